"""fairseq's own command lines, run as sub-processes: what a user would type, and what the report quotes."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

import macaron

from ..common.divergence import ANEW
from ..common.errors import RecipeError
from ..common.jobs import call, start, stop
from ..common.workspace import read_lines

Event = dict[str, Any]

USER_DIR = Path(macaron.__file__).parent

# fairseq drops a last batch whose size is no multiple of this (default 8), sentences of the test set too.
KEEP_LAST_BATCH = ("--required-batch-size-multiple", 1)
BATCH = 128  # sentences that fairseq-generate translates at a time; the check of a release counts on it


def quiet() -> None:
    """Libraries that would talk to the terminal: hydra, which fairseq starts, lets everything through."""
    for library in ("fairseq", "matplotlib", "sacrebleu"):
        logging.getLogger(library).setLevel(logging.WARNING)


def shown(command: list[str]) -> str:
    """The command as one would type it, fairseq's scripts by name."""
    if command[:2] == [sys.executable, "-m"]:
        name = command[2]
        if name == "torch.distributed.run":
            name = "torchrun"
        elif name.startswith("fairseq_cli."):
            name = name.replace("fairseq_cli.", "fairseq-").replace("_", "-")
        return shlex.join([name, *command[3:]])
    return shlex.join(command)


def fairseq(tool: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"fairseq_cli.{tool}", *map(str, arguments)]


def run(command: list[str], log: Path, lock: IO[Any], what: str) -> None:
    """Run with all output appended to `log`."""
    with log.open("ab") as file:
        seen = file.tell()
        status = call(command, lock, stdout=file)
    check(status, what, log, seen)


def run_with_progress(command: list[str], log: Path, lock: IO[Any], total: int) -> None:
    """fairseq-train with one bar over all updates, read off the JSON lines in its log."""
    seen = log.stat().st_size if log.exists() else 0
    with (
        log.open("ab") as file,
        log.open("rb") as reader,
        tqdm(total=total, desc="train", unit="update") as bar,
    ):
        reader.seek(seen)
        process = start(command, lock, stdout=file)
        try:
            figures: dict[str, str] = {}
            running = True
            while running:
                time.sleep(0.3)
                running = process.poll() is None
                for kind, stats in filter(None, map(parse, complete_lines(reader))):
                    prefix = "" if kind == "train_inner" else f"{kind}_"
                    updates = int(stats.get(f"{prefix}num_updates", bar.n))
                    if kind != "train":
                        figures[f"{prefix}ppl"] = stats.get(f"{prefix}ppl", "")
                    bar.set_postfix(figures, refresh=False)
                    bar.update(updates - bar.n)
        finally:
            stop(process)
    check(process.returncode, "training", log, seen)


def check(status: int, what: str, log: Path, since: int = 0) -> None:
    """Raise unless `status` is 0, with what the command said: its exception, else the end of its log.

    Args:
        since: where in the log this command began.
    """
    if not status:
        return
    with log.open("rb") as file:
        file.seek(since)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    said = cause(lines)
    if said.startswith("FloatingPointError"):
        raise RecipeError(f"{what} diverged; {log} says: {said.rstrip('.')}. {ANEW}")
    tail = f"{log} says: {said.rstrip('.')}." if said else f"the end of {log} says\n" + "\n".join(lines[-15:]) + "\n"
    killed = f" ({signal.Signals(status - 128).name}; out of memory?)" if status == 128 + signal.SIGKILL else ""
    raise RecipeError(
        f"{what} ended with status {status}{killed}; {tail} When the cause is gone, the same command goes on where it "
        f"stopped"
    )


_RAISED = re.compile(r"(?:\[\w+\]:\s?)?(?:(?:\w+\.)*(\w+(?:Error|Exception|Interrupt)(?::.*)?)|(\S+: error: .+))")
# How one process says that another one failed.
_ECHO = re.compile(r"ChildFailedError|Process(Raised|Exited)Exception|.*[Cc]onnection (closed|reset)|BrokenPipe")


def cause(lines: Sequence[str]) -> str:
    """The exception or usage error that ended a command, off its log, a failure of arithmetic first; "" without one."""
    found = []
    for number, line in enumerate(lines):
        if match := _RAISED.fullmatch(line.rstrip()):
            more = itertools.takewhile(lambda text: text[:1].isspace(), lines[number + 1 : number + 6])
            found.append(" ".join([match[1] or match[2], *map(str.strip, more)]))
    original = [text for text in found if not _ECHO.match(text)] or found
    return next((text for text in original if text.startswith("FloatingPointError")), (original or [""])[-1])


def complete_lines(reader: IO[bytes]) -> list[str]:
    """What was appended since the last call, up to the last line end."""
    start = reader.tell()
    content = reader.read()
    end = content.rfind(b"\n") + 1
    reader.seek(start + end)
    return content[:end].decode("utf-8", errors="replace").splitlines()


_EVENT = re.compile(r"\| (train_inner|train|valid) \| (\{.*\})$")


def parse(line: str) -> tuple[str, Event] | None:
    """(kind, numbers) of a JSON line of fairseq's log: train_inner, train or valid."""
    match = _EVENT.search(line)
    if not match:
        return None
    try:
        return match[1], json.loads(match[2])
    except (ValueError, RecursionError):
        return None  # the line that an interrupted process was writing


def events(log: Path) -> Iterator[tuple[str, Event]]:
    """What `parse` finds in a log, line by line."""
    return filter(None, map(parse, log.read_text(encoding="utf-8", errors="replace").splitlines()))


def check_losses(log: Path) -> None:
    """Weights can be numbers that are too large for any loss, which fairseq itself accepts after the last update.

    Args:
        log: what fairseq-train wrote.

    Raises:
        RecipeError: the loss that it logged last, in training or in validation, is NaN or infinite.
    """
    for kind, stats in dict(events(log)).items():
        for name, value in stats.items():
            if name.endswith("loss") and str(value) in ("nan", "inf", "-inf"):
                raise RecipeError(f"{log}: the training diverged, the last {name} ({kind}) is {value}. {ANEW}")


def learning_curve(log: Path) -> dict[str, list[tuple[int, float]]]:
    """{"train"/"valid": [(update, loss in bits per token), ...]}; of updates done twice the later counts."""
    curves: dict[str, dict[int, float]] = {"train": {}, "valid": {}}
    for kind, stats in events(log):
        if kind in curves:
            update, loss = (float(stats.get(f"{kind}_{name}", "nan")) for name in ("num_updates", "nll_loss"))
            if math.isfinite(update) and math.isfinite(loss):  # the other ones belong to an attempt that diverged
                curves[kind][int(update)] = loss
    return {kind: sorted(points.items()) for kind, points in curves.items()}


class Hypothesis(NamedTuple):
    pieces: str
    score: float  # log2 of its probability, over its length to the power of lenpen


def hypotheses(output: Path) -> dict[int, Hypothesis]:
    """The best translation of each sentence, by the sentence's number, from what fairseq-generate wrote."""
    best: dict[int, Hypothesis] = {}
    for line in read_lines(output):
        if line.startswith("H-"):
            try:
                name, score, pieces = line.split("\t")
                best.setdefault(int(name[2:]), Hypothesis(pieces, float(score)))
            except ValueError as error:
                raise RecipeError(
                    f"{output}: {line!r} is no line of fairseq-generate; the file was edited or cut off. Delete it and "
                    f"run the same command again"
                ) from error
    return best
