"""fairseq's own command lines, run as sub-processes: what a user would type, and what the report quotes."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

import macaron
from recipes.common.errors import RecipeError
from recipes.common.workspace import read_lines

Event = dict[str, Any]

USER_DIR = Path(macaron.__file__).parent

# fairseq drops a last batch whose size is no multiple of this (default 8), sentences of the test set too.
KEEP_LAST_BATCH = ("--required-batch-size-multiple", 1)

# OpenMP threads that wait by spinning steal the core from the thread they wait for as soon as anything else
# runs on the machine: on two busy cores training was three times as fast with sleeping ones.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


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
    """Run with all output appended to `log`; the lock of the folder is inherited, so an orphan keeps it."""
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()], env=ENVIRONMENT, check=False
        )
    check(process.returncode, what, log)


def run_with_progress(command: list[str], log: Path, lock: IO[Any], total: int) -> None:
    """fairseq-train with one bar over all updates, read off the JSON lines in its log."""
    seen = log.stat().st_size if log.exists() else 0
    with (
        log.open("ab") as file,
        log.open("rb") as reader,
        tqdm(total=total, desc="train", unit="update") as bar,
    ):
        reader.seek(seen)
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()], env=ENVIRONMENT
        )
        try:
            figures: dict[str, str] = {}
            running = True
            while running:
                time.sleep(0.3)
                running = process.poll() is None
                for kind, stats in filter(None, map(parse, complete_lines(reader))):
                    prefix = "" if kind == "train_inner" else f"{kind}_"
                    updates = int(stats[f"{prefix}num_updates"])
                    if kind != "train":
                        figures[f"{prefix}ppl"] = stats[f"{prefix}ppl"]
                    bar.set_postfix(figures, refresh=False)
                    bar.update(updates - bar.n)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    check(process.returncode, "training", log)


def check(status: int, what: str, log: Path) -> None:
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RecipeError(
            f"{what} ended with status {status}; the end of {log} says\n{tail}\n"
            f"When the cause is gone, the same command goes on where it stopped"
        )


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
    except ValueError:
        return None  # the line that an interrupted process was writing


def learning_curve(log: Path) -> dict[str, list[tuple[int, float]]]:
    """{"train"/"valid": [(update, loss in bits per token), ...]}; of updates done twice the later counts."""
    curves: dict[str, dict[int, float]] = {"train": {}, "valid": {}}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        event = parse(line)
        if event and event[0] in curves:
            kind, stats = event
            curves[kind][int(stats[f"{kind}_num_updates"])] = float(stats[f"{kind}_nll_loss"])
    return {kind: sorted(points.items()) for kind, points in curves.items()}


class Hypothesis(NamedTuple):
    pieces: str
    score: float  # log2 of its probability, over its length to the power of lenpen


def hypotheses(output: Path) -> dict[int, Hypothesis]:
    """The best translation of each sentence, by the sentence's number, from what fairseq-generate wrote."""
    best: dict[int, Hypothesis] = {}
    for line in read_lines(output):
        if line.startswith("H-"):
            name, score, pieces = line.split("\t")
            best.setdefault(int(name[2:]), Hypothesis(pieces, float(score)))
    return best
