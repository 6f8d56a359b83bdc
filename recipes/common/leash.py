"""python leash.py PARENT COMMAND …: runs a command that ends when the process PARENT does, and all that it started.

Whatever ends the parent, `kill -9` too. The command and its workers are one process group, and the lock of the folder,
which they inherit, is free again when the last of them is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

POLL_SECONDS = 0.1
GRACE_SECONDS = 20.0  # between SIGTERM and SIGKILL


class Stopped(Exception):
    """The parent asked for the end."""


def main(parent: int, command: list[str]) -> int:
    os.setsid()  # a group of its own; the terminal's ^C goes to the parent alone

    def stop(*_: object) -> None:
        raise Stopped

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, stop)
    try:
        process = subprocess.Popen(command, close_fds=False)
        while os.getppid() == parent:
            try:
                status = process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)  # workers that it left behind
            return status if status >= 0 else 128 - status
    except Stopped:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)
    return 1


def end_with_parent() -> None:
    """From now on this process ends when its parent does, also where it only waits for what the parent would send."""
    parent, known = os.getppid(), multiprocessing.parent_process()

    def watch() -> None:
        if known is not None:
            known.join()
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
