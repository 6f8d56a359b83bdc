"""python leash.py PARENT COMMAND …: runs a command that ends when the process PARENT does, and all that it started.

Whatever ends the parent, `kill -9` too. The command and its workers are one process group; those in groups of their
own, as torchrun makes them, become children of this process when it is gone (Linux). The lock of the folder, which all
all of them inherit, is free again when the last one is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

POLL_SECONDS = 0.1
GRACE_SECONDS = 20.0  # between SIGTERM and SIGKILL
NOT_STARTED = 127  # as a shell says it
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


class Stopped(Exception):
    """The parent asked for the end."""


def main(parent: int, command: list[str]) -> int:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.setsid()  # a group of its own; the terminal's ^C goes to the parent alone

    def stop(*_: object) -> None:
        raise Stopped

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, stop)
    try:
        try:
            process = subprocess.Popen(command, close_fds=False)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            return NOT_STARTED
        while os.getppid() == parent:
            try:
                status = process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)  # workers that it left behind
            end_children(GRACE_SECONDS)
            return status if status >= 0 else 128 - status
    except Stopped:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    end_children(0 if process.poll() is None else GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)
    return 1


def end_children(patience: float) -> None:
    """What became a child of this process: first asked, then, after so many seconds, killed, and theirs too."""
    deadline = time.monotonic() + patience
    asked: set[int] = set()
    while found := children():
        late = time.monotonic() >= deadline
        for pid in found if late else found - asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= found
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(POLL_SECONDS / 10)


def children() -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            parent = stat.read_text(errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(stat.parent.name))
    return found


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
