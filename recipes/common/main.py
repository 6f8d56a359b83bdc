"""What the commands of all recipes have in common: options, and what they do with what goes wrong.

argparse, since it costs the import of nothing and fairseq's own options, which recipes pass on, are argparse's: a
command line made from signatures (tyro, jsonargparse) would leave two kinds of `--help`.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import RecipeError

PACKAGE = __name__.partition(".common")[0]  # "recipes" in a clone, "macaron.recipes" where it is installed

REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EACCES: "give a place that you may use, or yourself the right to it",
    errno.EPERM: "give a place that you may use, or yourself the right to it",
    errno.EROFS: "give a place that is not read-only",
    errno.ENAMETOOLONG: "give a shorter name",
}


NO_MEMORY = ("can't allocate memory", "CUDA out of memory")  # as torch says it


def module(recipe: str = "") -> str:
    """The name that `python -m` takes: module("compare.cost")."""
    return f"{PACKAGE}.{recipe}".rstrip(".")


def shown(command: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(["python" if word == sys.executable else str(word) for word in command])


def command_shown(recipe: str) -> str:
    """The command that this process was started with, for reports."""
    return shown([sys.executable, "-m", module(recipe), *sys.argv[1:]])


def command_line(
    recipe: str,
    description: str,
    *,
    out: str | None = None,
    seeds: Sequence[int] | None = None,
    jobs: str | None = None,
    dry_run: bool = False,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """A recipe's parser, with those of the options that recipes share, each the same everywhere.

    Args:
        out: what --out is when it is not given, for the help; "": it must be given; None: there is no folder to name,
            neither --out nor --restart.
        seeds: their default; empty: the recipe's own; None: no such option.
        jobs: what runs at a time, and how many of them by default; None: no such option.
    """
    p = argparse.ArgumentParser(prog=f"python -m {module(recipe)}", description=description, epilog=epilog)
    shared = p.add_argument_group("options that recipes share")
    if out is not None:
        shared.add_argument(
            "--out", type=Path, required=not out, metavar="DIR",
            help="where everything goes" + (f" (default: {out})" if out else ""),
        )  # fmt: skip
        shared.add_argument("--restart", action="store_true", help="set an existing --out aside and begin anew")
    if seeds is not None:
        default = " ".join(map(str, seeds)) or "the recipe's own"
        shared.add_argument(
            "--seeds", nargs="+", type=int, default=list(seeds) or None, metavar="N", help=f"default: {default}"
        )
    if jobs is not None:
        shared.add_argument("--jobs", type=int, metavar="N", help=jobs)
    if dry_run:
        shared.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return p


def positive(text: str) -> int:
    """A type for argparse: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


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
        print(f"{chr(10) * (status == 130)}{module(name)}: {said}", file=sys.stderr)
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
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return f"not enough memory ({text or 'no more said'}); take smaller sizes, fewer jobs, or another machine"
    if os.strerror(errno.ENOSPC) in text:  # as torch and safetensors say it
        return f"{text}; {REMEDIES[errno.ENOSPC]}, then run the same command again"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__}: {text[:500]} ({Path(place.filename).name}, line {place.lineno}). If the "
        f"files in --out are as they were made, please report it, with what `python -X dev -m …` prints"
    )
