"""Checkpoints of an interrupted training: find one that can be read, and average the last few."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import IO, Any

from ..common.errors import RecipeError
from . import commands

__all__ = ["average", "distinct", "load", "mend_last", "newest_first", "sweep"]


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """`macaron.checkpoint.load`; torch is imported by the first checkpoint, not by `--help`."""
    from macaron import checkpoint

    return checkpoint.load(path, mmap=mmap)


def mend_last(folder: Path) -> None:
    """Make sure that checkpoint_last.pt, if there is one, can be read.

    fairseq copies the newest checkpoint to this name, so a kill can leave half a file. It is set aside as
    checkpoint_last.pt.corrupt and the newest readable checkpoint takes its place. Once there is a good one after it,
    what was set aside goes.
    """
    from macaron.checkpoint import CheckpointError

    last = folder / "checkpoint_last.pt"
    if not last.exists():
        others = newest_first(folder)
        if others:
            replace_last(last, others, f"{last}: missing although {len(others)} other checkpoints are there")
        return
    try:
        load(last, mmap=True)
        sweep(folder)
    except CheckpointError as error:
        aside = last.with_name("checkpoint_last.pt.corrupt")
        os.replace(last, aside)
        replace_last(last, newest_first(folder), f"{error}\nIt is set aside as {aside}")


def replace_last(last: Path, candidates: list[Path], why: str) -> None:
    from macaron.checkpoint import CheckpointError

    print(f"train     {why}", file=sys.stderr)
    for candidate in candidates:
        try:
            load(candidate, mmap=True)
        except CheckpointError:
            continue
        print(f"train     going on from {candidate} instead", file=sys.stderr)
        partial = last.with_name("checkpoint_last.pt.part")
        shutil.copyfile(candidate, partial)
        os.replace(partial, last)
        return
    raise RecipeError(
        f"{why}\nNone of the {len(candidates)} other checkpoints in {last.parent} can be read either; "
        f"put back a copy of checkpoint_last.pt, or run with --restart to train anew"
    )


def sweep(folder: Path) -> None:
    """Delete what an earlier, mended interruption left beside the checkpoints."""
    for suffix in ("corrupt", "part"):
        (folder / f"checkpoint_last.pt.{suffix}").unlink(missing_ok=True)


def newest_first(folder: Path) -> list[Path]:
    """checkpoint<epoch>.pt and checkpoint_<epoch>_<update>.pt by age, then checkpoint_best.pt."""
    best = [path for path in (folder / "checkpoint_best.pt",) if path.exists()]
    return sorted(filter(_age, folder.glob("checkpoint*.pt")), key=_age, reverse=True) + best


_EPOCH = re.compile(r"checkpoint(\d+)\.pt")
_UPDATE = re.compile(r"checkpoint_(\d+)_(\d+)\.pt")


def _age(path: Path) -> tuple[float, ...]:
    """(epoch, update), an epoch's end after all of its updates; () for other names."""
    if match := _EPOCH.fullmatch(path.name):
        return int(match[1]), math.inf
    match = _UPDATE.fullmatch(path.name)
    return (int(match[1]), int(match[2])) if match else ()


_BEST = re.compile(r"checkpoint\.best_\w+_(\d+\.\d{3})\d+\.pt")  # fairseq adds a digit, so that ties have two names


def best_first(folder: Path, highest: bool) -> list[Path]:
    """checkpoint.best_<metric>_<value>.pt, of which fairseq keeps some; checkpoint_best.pt where there are none."""
    found = [(float(match[1]), path) for path in sorted(folder.iterdir()) if (match := _BEST.fullmatch(path.name))]
    ranked = [path for _, path in sorted(found, key=lambda pair: pair[0], reverse=highest)]
    return ranked or [path for path in (folder / "checkpoint_best.pt",) if path.exists()]


def average(
    folder: Path, count: int, target: Path, log: Path, lock: IO[Any], kind: str = "epoch"
) -> tuple[list[str], list[Path]]:
    """The mean of the `count` newest checkpoints (of all, when there are fewer), or of the best ones.

    Args:
        kind: "epoch" for checkpoint<epoch>.pt, "update" for checkpoint_<epoch>_<update>.pt; "highest" or "lowest" for
            the best by that value of the validation. Without any, and for a `count` of 1, it is checkpoint_last.pt
            or checkpoint_best.pt alone.

    Returns:
        The command, and what was averaged.
    """
    if kind in ("highest", "lowest"):
        best = folder / "checkpoint_best.pt"
        inputs = best_first(folder, kind == "highest")[:count] if count > 1 or not best.exists() else [best]
    else:
        pattern = {"epoch": _EPOCH, "update": _UPDATE}[kind]
        inputs = [path for path in newest_first(folder) if count > 1 and pattern.fullmatch(path.name)][:count]
    inputs = inputs or [folder / "checkpoint_last.pt"]
    command = [sys.executable, "-m", "macaron", "average", "--force", "--output", str(target), "--inputs"]
    command += map(str, inputs)
    commands.run(command, log, lock, "macaron average")
    sweep(folder)
    return command, inputs


def distinct(model: dict[str, Any]) -> list[tuple[str, Any]]:
    """The parameters of a state dict, tied ones once."""
    seen = {tensor.data_ptr(): (name, tensor) for name, tensor in model.items() if not name.endswith(".version")}
    return list(seen.values())
