"""Several tasks at a time, each on its GPU or core; what fails does not take the others down.

A task is a command, which becomes a process of its own, or a call, which a worker makes that outlives it: what takes
long to import is imported once. All of them end with this process, whatever ends that, and with an interruption.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from . import leash
from .errors import RecipeError
from .main import PACKAGE

POLL_SECONDS = 0.2
GRACE_SECONDS = 30  # for a task to end its own children
NOT_STARTED = 127  # as a shell says it
KILLED = "its process was killed; was there memory enough? The same command goes on with it"

# OpenMP threads that wait by spinning steal the core from the thread they wait for as soon as anything else
# runs on the machine: on two busy cores training was three times as fast with sleeping ones.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}

Slot = Mapping[str, str]  # the environment of what runs there


@dataclass(frozen=True)
class Command:
    """A command line; what it prints is appended to `log`."""

    name: str
    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Call:
    """A function of a module, with arguments and a result that can be pickled."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


Job = Command | Call


@dataclass(frozen=True)
class Outcome:
    """
    Args:
        value: what a call returned; the exit status of a command.
        error: what went wrong, in a line; empty when nothing did.
        trace: of an exception that is no RecipeError.
    """

    value: Any = None
    error: str = ""
    seconds: float = 0.0
    trace: str = ""


# --- slots --------------------------------------------------------------------------------------------------------


def slots(jobs: int | None = None, *, share: bool = False) -> list[dict[str, str]]:
    """What each of the tasks that run at a time has: its GPU, or one thread.

    With one thread sums are added in the same order wherever it runs, and processes do not wait on each other.

    Args:
        jobs: how many at a time; None: one per GPU, or per core where there is no GPU. With more jobs than GPUs they
            share them in turn.
        share: without a GPU, divide the cores among the jobs, unless OMP_NUM_THREADS says how many threads there are.

    Raises:
        RecipeError: fewer than one job.
    """
    if jobs is not None and jobs < 1:
        raise RecipeError(f"--jobs {jobs}: must be at least 1")
    if gpus := visible_gpus():
        return [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(jobs or len(gpus))]
    cores = len(os.sched_getaffinity(0))
    jobs = jobs or cores
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // jobs)) if share else "1"
    return [{"OMP_NUM_THREADS": threads}] * jobs


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, without starting CUDA here."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


# --- commands -----------------------------------------------------------------------------------------------------


def leashed(command: Sequence[str]) -> list[str]:
    """The command, with all that it starts, ends when this process does; to stop it before, send SIGTERM."""
    return [sys.executable, "-S", leash.__file__, str(os.getpid()), *command]


def start(command: Sequence[str], lock: IO[Any], **options: Any) -> subprocess.Popen[bytes]:
    """A leashed command that inherits the folder's lock, so that this is free when both have ended."""
    options = {"env": ENVIRONMENT, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **options}
    return subprocess.Popen(leashed(command), pass_fds=[lock.fileno()], **options)


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()


def call(command: Sequence[str], lock: IO[Any], **options: Any) -> int:
    """The status of a command, which ends with this call, whatever ends that."""
    process = start(command, lock, **options)
    try:
        return process.wait()
    finally:
        stop(process)


def environment(slot: Slot | None = None) -> dict[str, str]:
    """Of a command of ours on a slot. In a clone it finds the recipes from whatever folder it is started."""
    path = os.environ.get("PYTHONPATH", "")
    if PACKAGE == "recipes":  # which is not installed
        path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), path]))
    return {**ENVIRONMENT, **(slot or {}), "PYTHONPATH": path}


# --- calls --------------------------------------------------------------------------------------------------------

Tell = Callable[[str, float], object]
_tell: Tell = lambda line, units: print(line) if line else None  # noqa: E731


def tell(line: str = "", units: float = 0.0) -> None:
    """From a call, wherever it is made: a line for the screen, and so many units of progress."""
    _tell(line, units)


@contextlib.contextmanager
def heard_by(hear: Tell) -> Iterator[None]:
    """What is told meanwhile in this process goes there."""
    global _tell
    before, _tell = _tell, hear
    try:
        yield
    finally:
        _tell = before


def attempt(task: Call) -> Outcome:
    """The outcome of a call, made in this process."""
    started = time.time()
    try:
        return Outcome(task.function(*task.arguments), seconds=time.time() - started)
    except Exception as error:
        text = " ".join(str(error).split())[:500] or "no reason given"
        seconds = time.time() - started
        if isinstance(error, RecipeError):
            return Outcome(error=str(error), seconds=seconds)
        return Outcome(error=f"{type(error).__name__}: {text}", seconds=seconds, trace=traceback.format_exc())


def serve(pipe: Connection, slot: Slot) -> None:
    """A worker: takes calls until the pipe is closed, and ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's ^C goes to all; the parent ends the workers
    leash.end_with_parent()
    os.environ.update(slot)
    if "OMP_NUM_THREADS" in slot:
        import torch

        torch.set_num_threads(int(slot["OMP_NUM_THREADS"]))
    with contextlib.suppress(EOFError), heard_by(lambda line, units: pipe.send((line, units))):
        while True:
            outcome = attempt(pipe.recv())
            try:
                pipe.send(outcome)
            except Exception as error:  # a result that cannot be pickled
                pipe.send(Outcome(error=f"{type(error).__name__}: {error}", trace=traceback.format_exc()))


class Place:
    """A slot, and the task that is at work there: a command in its process, a call in the worker, which is kept."""

    def __init__(self, slot: Slot, lock: IO[Any] | None) -> None:
        self.slot, self.lock = slot, lock
        self.command: subprocess.Popen[bytes] | None = None
        self.worker: BaseProcess | None = None
        self.pipe: Connection | None = None  # to the worker

    def begin(self, task: Job) -> None:
        """
        Raises:
            OSError: the log of a command cannot be written.
        """
        self.task, self.started = task, time.time()
        if isinstance(task, Command):
            assert self.lock is not None, "a command inherits the lock of the folder that it works in"
            with task.log.open("ab") as log:
                self.command = start(task.command, self.lock, stdout=log, env=environment(self.slot))
            return
        if self.pipe is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.worker = context.Process(target=serve, args=(theirs, self.slot))
            self.worker.start()
            theirs.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `poll` will see it
            self.pipe.send(task)

    def poll(self, hear: Tell) -> Outcome | None:
        """What came of the task, once it has ended."""
        if isinstance(self.task, Command):
            status = self.command.poll() if self.command else NOT_STARTED
            error = f"ended with status {status}" if status else ""
            return None if status is None else Outcome(status, error, time.time() - self.started)
        assert self.pipe is not None and self.worker is not None
        try:
            while self.pipe.poll():
                news = self.pipe.recv()
                if isinstance(news, Outcome):
                    return news
                hear(*news)
        except (EOFError, ConnectionResetError):
            self.worker.join()
            self.pipe = self.worker = None  # the next call gets a new one
            return Outcome(error=KILLED, seconds=time.time() - self.started)
        return None

    def close(self) -> None:
        """A worker that rests ends; what is at work gets SIGTERM, which commands pass on to what they started."""
        if self.pipe is not None:
            self.pipe.close()
        for process in (self.command, self.worker):
            if process is not None:
                process.terminate()

    def join(self, deadline: float) -> None:
        """Wait for the end, and kill what does not listen."""
        seconds = max(0.1, deadline - time.time())
        if self.command is not None:
            try:
                self.command.wait(seconds)
            except subprocess.TimeoutExpired:
                self.command.kill()
                self.command.wait()
        if self.worker is not None:
            self.worker.join(seconds)
            self.worker.kill()
            self.worker.join()


# --- all of them --------------------------------------------------------------------------------------------------


def run_all(
    tasks: Sequence[Job],
    slots: Sequence[Slot] = (),
    *,
    lock: IO[Any] | None = None,
    desc: str = "runs",
    unit: str = "run",
    total: float | None = None,
    progress: Callable[[], float] | None = None,
    done: Callable[[Job, Outcome], object] | None = None,
) -> dict[str, Outcome]:
    """Do every task; {its name: its outcome}. An interruption ends those at work, and goes through.

    Args:
        slots: so many tasks run at a time; none: calls are made in this process, one after another.
        lock: of the folder; commands inherit it, so that one which is left behind keeps it.
        total: units of work of the progress bar, which `tell` or `progress` count; None: it counts tasks, where they
            run beside each other.
        progress: units done so far.
        done: called in this process with each task that has ended.
    """
    outcomes: dict[str, Outcome] = {}
    size = len(tasks) if total is None else total
    form = "{l_bar}{bar}| {elapsed}, {remaining} left" if progress is None and total is not None else None
    hidden = total is None and not slots
    with tqdm(total=size, desc=desc, unit=unit, bar_format=form, disable=hidden, mininterval=patience()) as bar:

        def hear(line: str, units: float) -> None:
            if line:
                tqdm.write(line)
            bar.update(min(units, max(0.0, size - bar.n)))

        def conclude(task: Job, outcome: Outcome) -> None:
            outcomes[task.name] = outcome
            bar.update(total is None)
            if outcome.trace and sys.flags.dev_mode:
                tqdm.write(outcome.trace)
            if done is not None:
                done(task, outcome)

        if not slots:
            with heard_by(hear):
                for task in tasks:
                    assert isinstance(task, Call), "a command needs a slot"
                    conclude(task, attempt(task))
            return outcomes
        waiting, places = deque(tasks), [Place(slot, lock) for slot in slots]
        free, busy = deque(places), list[Place]()
        try:
            while waiting or busy:
                while waiting and free:
                    place, task = free.popleft(), waiting.popleft()
                    try:
                        place.begin(task)
                        busy.append(place)
                    except OSError as error:
                        free.appendleft(place)
                        conclude(task, Outcome(NOT_STARTED, f"could not be started: {error}"))
                wait([place.pipe for place in busy if place.pipe], POLL_SECONDS)
                if progress is not None and (now := progress()) > bar.n:
                    bar.set_postfix_str(", ".join(place.task.name for place in busy), refresh=False)
                    bar.update(now - bar.n)
                for place in [*busy]:
                    if (outcome := place.poll(hear)) is not None:
                        busy.remove(place)
                        free.append(place)
                        conclude(place.task, outcome)
        finally:
            deadline = time.time() + GRACE_SECONDS
            for place in places:
                place.close()
            for place in places:
                place.join(deadline)
    return outcomes


def patience() -> float:
    """Seconds between two states of a progress bar: often on a terminal, seldom in a log."""
    return 0.5 if os.isatty(2) else 60.0
