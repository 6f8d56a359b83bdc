"""All that is to be measured on a GPU, in order of worth, within a time: tests, measurements, plots, goals.

What does not fit any more is left out and said. What was measured before something failed or took too long is kept:
rows are appended case by case.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common import leash
from ..common.errors import RecipeError
from ..common.main import module
from .record import read

ROOT = Path(__file__).resolve().parents[2]
PLOT_SECONDS = 45.0  # kept for the figures and the table at the end
STEP_GOAL = 2.0  # times fairseq's Transformer of the same size, both in bf16
COPY_GOAL = 0.85  # of a copy's bandwidth
BOUND_BY_MEMORY = ("step_norm", "euler_step", "act_dropout")

Row = dict[str, str]
Runner = Callable[[Sequence[str], float], "int | None"]  # command, seconds ↦ status, None where the time was up


@dataclass(frozen=True)
class Job:
    """A command after `python -m`, the seconds under which it is not worth beginning, and those that it may take."""

    name: str
    command: tuple[str, ...]
    least: float
    most: float

    @property
    def measures(self) -> bool:
        return self.command[0] == module("bench")


def _bench(name: str, words: str, least: float, most: float) -> Job:
    return Job(name, (module("bench"), *words.split()), least, most)


STEP = "--max-tokens 8192 --precision bf16 --seconds 60"
OURS = "macaron macaron-compile macaron-graphs"
FORCED = "macaron-triton macaron-triton-compile"  # the kernels, whatever their check says: an error is no row of `auto`
JOBS = (
    Job("the gpu tests", ("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=5", "tests"), 60, 300),
    *(
        _bench(
            f"a training step of {size}, bf16",
            f"train --size {size} {STEP} --buckets 32 --contenders fairseq {OURS}",
            60,
            330,
        )
        for size in ("base", "big")
    ),
    _bench(  # tensors of several times a GPU's cache
        "operations, bf16",
        "ops --tokens 131072 --precision bf16 --seconds 6 --contenders eager compile macaron triton",
        60,
        330,
    ),
    *(
        _bench(
            f"the same of {size}, kernels forced",
            f"train --size {size} {STEP} --length 32 --contenders fairseq {FORCED}",
            60,
            180,
        )
        for size in ("base", "big")
    ),
    _bench("projection and loss, bf16", "loss --tokens 16384 --precision bf16 --seconds 30", 30, 90),
    _bench("BERT, bf16", "bert --precision bf16 --seconds 30", 45, 150),
    *(
        _bench(
            f"beam search, {number} sentence{'s' * (number > 1)}",
            f"decode --sentences {number} --seconds 20 --contenders fairseq macaron macaron:bf16",
            45,
            120,
        )
        for number in (32, 1)
    ),
    _bench(
        "cost over vocabulary, bf16",
        "cost --over vocabulary --max-tokens 8192 --precision bf16 --seconds 15 --contenders fairseq macaron",
        60,
        180,
    ),
    _bench(
        "cost over length, bf16",
        "cost --over length --max-tokens 8192 --precision bf16 --seconds 15 --contenders fairseq macaron",
        60,
        180,
    ),
    _bench(
        "a training step of base, fp32",
        "train --size base --max-tokens 8192 --seconds 40 --contenders fairseq macaron",
        60,
        120,
    ),
    _bench("operations, fp32", "ops --tokens 131072 --seconds 4 --contenders eager compile macaron", 60, 240),
)


@dataclass(frozen=True)
class Outcome:
    job: Job
    status: int | None  # None: ended by the limit of its time; NOT_BEGUN: no time left for it
    seconds: float

    @property
    def said(self) -> str:
        if self.status == NOT_BEGUN:
            return f"not begun: less than {self.job.least:.0f} s were left"
        how = {0: "done", None: "ended at its time limit, rows before are kept"}
        return f"{how.get(self.status, f'FAILED with status {self.status}')}, {self.seconds:.0f} s"


NOT_BEGUN = -1


def work_through(
    jobs: Sequence[Job],
    seconds: float,
    out: Path,
    runner: Runner,
    now: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Do the jobs in their order, as many as the seconds allow; one that fails or is late ends no other.

    Args:
        seconds: for all, plots not counted.
        out: the CSV file that measurements get as `--out`.
        runner: runs a command for so many seconds at most.
        now: a clock, in seconds.
    """
    end, outcomes = now() + seconds, []
    for job in jobs:
        left, begin = end - now(), now()
        if left < job.least:
            outcomes.append(Outcome(job, NOT_BEGUN, 0.0))
            continue
        command = [sys.executable, "-m", *job.command, *(["--out", str(out)] if job.measures else [])]
        limit = min(job.most, left)
        print(f"\n== {job.name} (at most {limit:.0f} s of {left:.0f})\n   {shlex.join(command)}", flush=True)
        status = runner(command, limit)
        outcomes.append(Outcome(job, status, now() - begin))
        print(f"== {job.name}: {outcomes[-1].said}", flush=True)
    return outcomes


def run_leashed(command: Sequence[str], seconds: float) -> int | None:
    """Its status, or None where the seconds were up; what it started ends with it, and with this process."""
    with subprocess.Popen(
        [sys.executable, "-S", leash.__file__, str(os.getpid()), *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.terminate()
            process.wait()


def goals(rows: Sequence[Row]) -> list[str]:
    """The goals beside what these rows, all of a GPU, say; a goal without rows is not measured."""
    return [*_step_goals(rows), *_copy_goals(rows)]


def _step_goals(rows: Sequence[Row]) -> list[str]:
    lines = []
    for size in ("base", "big"):
        ours = [
            row
            for row in rows
            if (row["benchmark"], row["case"]) == ("train", f"train {size}")
            and row["precision"] == "bf16"
            and row["baseline"] == "fairseq"
            and row["contender"].startswith("macaron")
        ]
        goal = f"training step of {size}, bf16: at least {STEP_GOAL:g} × fairseq's Transformer"
        if not ours:
            lines.append(f"{goal}: not measured")
            continue
        best = max(ours, key=lambda row: float(row["speedup"]))
        all_of = ", ".join(f"{row['contender']} {float(row['speedup']):.2f}" for row in ours)
        reached = "reached" if float(best["speedup"]) >= STEP_GOAL else "NOT REACHED"
        quartiles = f"{float(best['speedup_q1']):.2f}–{float(best['speedup_q3']):.2f}"
        lines.append(
            f"{goal}: {reached}, {float(best['speedup']):.2f} × ({quartiles}) by {best['contender']} [{all_of}]"
        )
    return lines


def _copy_goals(rows: Sequence[Row]) -> list[str]:
    lines = []
    for op in BOUND_BY_MEMORY:
        found = [
            row
            for row in rows
            if (row["benchmark"], row["case"]) == ("ops", op)
            and row["contender"] in ("macaron", "triton")
            and row["precision"] == "bf16"
            and row["share_of_copy"]
        ]
        goal = f"{op}, bf16: at least {COPY_GOAL:.0%} of a copy's bandwidth"
        if not found:
            lines.append(f"{goal}: not measured")
            continue
        shares = {row["contender"]: float(row["share_of_copy"]) for row in found}
        taken = shares.get("macaron", 0.0)  # what a user gets; kernels forced are shown beside it
        reached = "reached" if taken >= COPY_GOAL else "NOT REACHED"
        lines.append(f"{goal}: {reached}, " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    return lines


def check_machine() -> None:
    """Raise RecipeError where this command has nothing to measure on."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = (
            "torch sees none (nvidia-smi says whether the driver does)"
            if built
            else f"torch {torch.__version__} is a build for CPUs"
        )
        raise RecipeError(
            f"gpu: needs a GPU, and {why}; on a CPU: python -m {module('bench')} train, cost, loss, ops or bert"
        )


def run(minutes: float, out: Path, figures: Path, runner: Runner = run_leashed) -> None:
    """Work through `JOBS` in so many minutes, draw what was measured, and print the goals beside it.

    Raises:
        RecipeError: no GPU, a time too short for the first job, or (at the end) tests or measurements that failed.
    """
    check_machine()
    seconds = 60 * minutes - PLOT_SECONDS
    if not seconds >= JOBS[0].least:  # NaN, too
        raise RecipeError(f"--minutes {minutes:g}: {(PLOT_SECONDS + JOBS[0].least) / 60:.0f} are the least; 25 do most")
    before = len(read(out))
    outcomes = work_through(JOBS, seconds, out.resolve(), runner)
    rows = read(out)[before:]
    if rows:
        from .plot import draw_all

        draw_all(out, figures)
    print("\nDone and not done:", *(f"  {outcome.job.name}: {outcome.said}" for outcome in outcomes), sep="\n")
    print(f"\nGoals ({len(rows)} new rows in {out}):", *(f"  {line}" for line in goals(rows)), sep="\n")
    failed = [outcome.job.name for outcome in outcomes if outcome.status not in (0, None, NOT_BEGUN)]
    if failed:
        raise RecipeError(f"failed: {'; '.join(failed)}. The output above says why; the rest stands")
