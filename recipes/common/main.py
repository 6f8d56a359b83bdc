"""What every command of the recipes does with what goes wrong: one line on stderr, and a status."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.common.errors import RecipeError

REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EACCES: "give a place that you may use, or yourself the right to it",
    errno.EPERM: "give a place that you may use, or yourself the right to it",
    errno.EROFS: "give a place that is not read-only",
    errno.ENAMETOOLONG: "give a shorter name",
}


def run_command(
    name: str, work: Callable[[], int | None], interrupted: str = "the same command goes on from here"
) -> int:
    """Do the work of the command `name`, and say in one line what went wrong.

    Args:
        work: parses the arguments too; returns the status, None for 0.
        interrupted: what there is to know after an interruption.

    Returns:
        0; 1 after an error; 130 after an interruption. For wrong usage argparse itself ends with 2.
    """
    set_up()
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        said, status = f"interrupted; {interrupted}", 130
    except BrokenPipeError:  # `| head` has seen enough
        said, status = "", 1
    except Exception as error:
        if sys.flags.dev_mode:
            traceback.print_exc()
        said, status = described(error), 1
    try:
        sys.stdout.flush()
    except OSError:  # what cannot be printed is not tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if said:
        print(f"{chr(10) * (status == 130)}recipes.{name}: {said}", file=sys.stderr)
    return status


def set_up() -> None:
    """SIGTERM leaves through `finally`, so that what was started ends too; names that are not UTF-8 can be printed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")


def described(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, RecipeError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return f"a name is not UTF-8 ({text}); rename the file or folder"
    if isinstance(error, OSError) and error.errno:
        names = " → ".join(
            os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
        )
        what = f"{names}: {error.strerror}" if names else str(error.strerror)
        remedy = REMEDIES.get(error.errno, "put that right")
        return f"{what}; {remedy}, then run the same command again"
    if os.strerror(errno.ENOSPC) in text:  # as torch and safetensors say it
        return f"{text}; {REMEDIES[errno.ENOSPC]}, then run the same command again"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__}: {text[:500]} ({Path(place.filename).name}, line {place.lineno}). If the "
        f"files in --out are as they were made, please report it, with what `python -X dev -m …` prints"
    )
