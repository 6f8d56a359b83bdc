"""Jobs over slots: one process per GPU, or several on the CPU; what fails does not take the others along."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from recipes.common.errors import RecipeError
from recipes.common.provenance import PROJECT_ROOT
from recipes.translation import commands

POLL_SECONDS = 0.5
GRACE_SECONDS = 30  # for a job to end its own children
NOT_STARTED = 127  # as a shell says it


@dataclass(frozen=True)
class Job:
    """A command, where its output goes, and the fairseq log that shows how far its training is."""

    name: str
    command: Sequence[str]
    log: Path
    train_log: Path


def slots(jobs: int | None) -> list[dict[str, str]]:
    """The environment of every job that runs at a time: its GPU, or one CPU thread.

    Args:
        jobs: how many at a time; None: one per GPU, or per core when there is no GPU. With more jobs than GPUs they
            share them in turn.
    """
    if jobs is not None and jobs < 1:
        raise RecipeError(f"--jobs {jobs}: must be at least 1")
    gpus = visible_gpus()
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(jobs or len(gpus))]
    # One thread each: sums are then added in the same order wherever it runs, and processes do not wait on each other.
    return [{"OMP_NUM_THREADS": "1"}] * (jobs or len(os.sched_getaffinity(0)))


def visible_gpus() -> list[str]:
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def run_all(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], lock: IO[Any], updates: int) -> dict[str, int]:
    """Run every job; {name: exit status}. An interruption ends those at work, which can go on later.

    Args:
        lock: of the folder of the experiment; inherited, so that a job which is left behind keeps it.
        updates: of all jobs together, for the progress bar.
    """
    waiting, free = deque(jobs), deque(slots)
    running: dict[str, tuple[Job, subprocess.Popen[bytes], Mapping[str, str]]] = {}
    statuses: dict[str, int] = {}
    seen = {job.name: Progress(job.train_log) for job in jobs}
    with tqdm(total=updates, desc="train", unit="update") as bar:
        try:
            while waiting or running:
                while waiting and free:
                    job = waiting.popleft()
                    try:
                        running[job.name] = job, start(job, free[0], lock), free.popleft()
                    except OSError as error:  # its log cannot be written, say
                        statuses[job.name] = NOT_STARTED
                        bar.write(f"run       {job.name} FAILED to start: {error}")
                time.sleep(POLL_SECONDS)
                done = sum(progress.updates() for progress in seen.values())
                if done > bar.n:
                    bar.set_postfix_str(", ".join(running), refresh=False)
                    bar.update(done - bar.n)
                for job, process, slot in [*running.values()]:
                    if process.poll() is not None:
                        statuses[job.name] = process.returncode
                        free.append(slot)
                        del running[job.name]
                        bar.write(f"run       {job.name} {'done' if not process.returncode else 'FAILED'}")
        finally:
            stop([process for _, process, _ in running.values()])
    return statuses


def start(job: Job, slot: Mapping[str, str], lock: IO[Any]) -> subprocess.Popen[bytes]:
    with job.log.open("ab") as log:
        environment = {**commands.ENVIRONMENT, **slot, "PYTHONPATH": python_path()}
        return commands.start(job.command, lock, stdout=log, env=environment)


def python_path() -> str:
    """`recipes` is not installed: jobs find it, whatever folder they are started from."""
    return os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM, which recipes pass on to their training; SIGKILL for what does not listen."""
    for process in processes:
        process.terminate()
    deadline = time.time() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Progress:
    """Updates done so far, read off what is new in a training log."""

    def __init__(self, log: Path):
        self.log = log
        self.position = 0
        self.count = 0

    def updates(self) -> int:
        try:
            with self.log.open("rb") as reader:
                reader.seek(self.position)
                for line in commands.complete_lines(reader):
                    kind, stats = commands.parse(line) or ("", {})
                    prefix = "" if kind == "train_inner" else f"{kind}_"
                    self.count = int(stats.get(f"{prefix}num_updates", self.count))
                self.position = reader.tell()
        except (OSError, ValueError, TypeError):  # not there yet, or damaged: which is no reason to end the jobs
            pass
        return self.count
