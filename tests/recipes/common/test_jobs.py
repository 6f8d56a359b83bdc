"""Tasks share slots, each in its own environment; a failure stays alone; an interruption ends what is running."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from recipes.common import jobs
from recipes.common.errors import RecipeError
from recipes.common.jobs import Call, Command, Job, run_all


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.02)


def job(folder: Path, name: str, code: str) -> Command:
    return Command(name, [sys.executable, "-c", code], folder / f"{name}.log")


def run(folder: Path, tasks: Sequence[Job], slots: list[dict[str, str]]) -> dict[str, int]:
    with (folder / ".lock").open("a") as lock:
        return {name: outcome.value for name, outcome in run_all(tasks, slots, lock=lock).items()}


def test_what_fails_stays_alone(tmp_path: Path) -> None:
    tasks = [job(tmp_path, name, f"import sys; print('{name}'); sys.exit({status})") for name, status in
            (("a", 0), ("b", 3), ("c", 0))]  # fmt: skip
    assert run(tmp_path, tasks, [{}]) == {"a": 0, "b": 3, "c": 0}
    assert (tmp_path / "b.log").read_text() == "b\n"


def test_what_cannot_start_stays_alone(tmp_path: Path) -> None:
    tasks = [job(tmp_path, name, f"print('{name}')") for name in ("a", "b", "c")]
    (tmp_path / "a.log").mkdir()
    tasks[1] = dataclasses.replace(tasks[1], command=[str(tmp_path / "no such program")])
    for slots in ([{}], [{}, {}]):
        assert run(tmp_path, tasks, slots) == {"a": 127, "b": 127, "c": 0}


def test_each_slot_has_its_gpu_and_at_most_one_job(tmp_path: Path) -> None:
    code = (
        "import os, time; gpu = os.environ['CUDA_VISIBLE_DEVICES']; path = f'busy{gpu}'; "
        "open(path, 'x').close(); time.sleep(0.1); os.remove(path); print(gpu)"
    )
    tasks = [job(tmp_path, str(index), f"import os; os.chdir({str(tmp_path)!r}); {code}") for index in range(4)]
    slots = [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    assert set(run(tmp_path, tasks, slots).values()) == {0}
    assert sorted((tmp_path / f"{index}.log").read_text().strip() for index in range(4)) == ["4", "4", "7", "7"]


def test_slots_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert jobs.slots(None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in jobs.slots(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in jobs.slots(None)] == ["3", "5"]


def test_slots_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert jobs.slots(2) == [{"OMP_NUM_THREADS": "1"}] * 2
    assert len(jobs.slots(None)) == len(os.sched_getaffinity(0))
    assert jobs.slots(1, share=True) == [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(7))
    assert jobs.slots(3, share=True) == [{"OMP_NUM_THREADS": "2"}] * 3
    with pytest.raises(RecipeError, match="--jobs 0: must be at least 1"):
        jobs.slots(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler, which is missing where a shell runs the tests in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted(tmp_path: Path) -> None:
    """A job gets SIGTERM, and the time to pass it on."""
    code = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('ended'), sys.exit(143))); "
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    )

    def interrupt() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [job(tmp_path, "a", code), job(tmp_path, "b", "print('never')")], [{}])
    assert (tmp_path / "a.log").read_text() == "ended\n" and not (tmp_path / "b.log").exists()


def test_a_job_left_behind_keeps_the_lock(tmp_path: Path) -> None:
    """The experiment's lock is inherited, so that a second call cannot train beside an orphan."""
    import fcntl

    with (tmp_path / ".lock").open("a") as lock:
        os.set_inheritable(lock.fileno(), True)
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = jobs.start([sys.executable, "-c", "import time; time.sleep(60)"], lock)
    try:
        with (tmp_path / ".lock").open("a") as again, pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        process.kill()
        process.wait()


# --- calls ------------------------------------------------------------------------------------------------------------


def triple(number: int) -> int:
    jobs.tell(f"three times {number}", 1.0)
    return 3 * number


def refuse(number: int) -> int:
    raise RecipeError(f"{number} is too small")


def divide(number: int) -> float:
    return 1 / number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unpicklable(number: int) -> object:
    return lambda: number


def where(number: int) -> tuple[int, str]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def sleep(flag: str) -> None:
    Path(flag).touch()
    time.sleep(3600)


@pytest.fixture
def workers() -> list[dict[str, str]]:
    return [{"OMP_NUM_THREADS": "1"}] * 2


@pytest.mark.parametrize("beside", [False, True])
def test_calls_fail_alone(beside: bool, workers: list[dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    functions = [triple, refuse, *([die, unpicklable] if beside else []), triple]
    tasks = [Call(f"{function.__name__} {number}", function, (number,)) for number, function in enumerate(functions)]
    seen: list[str] = []
    found = run_all(tasks, workers if beside else [], total=2, done=lambda task, outcome: seen.append(task.name))
    assert sorted(seen) == sorted(found) == sorted(task.name for task in tasks)
    assert found["triple 0"].value == 0 and found[tasks[-1].name].value == 3 * (len(tasks) - 1)
    assert found["refuse 1"].error == "1 is too small" and not found["refuse 1"].trace
    if beside:
        assert found["die 2"].error == jobs.KILLED
        assert "local object" in found["unpicklable 3"].error and found["unpicklable 3"].trace
    assert "three times 0" in capsys.readouterr().out


def test_an_exception_is_told_whole() -> None:
    outcome = run_all([Call("a", divide, (0,))])["a"]
    assert outcome.error == "ZeroDivisionError: division by zero" and "in divide" in outcome.trace


def test_workers_are_kept(workers: list[dict[str, str]]) -> None:
    """What takes long to import is imported once for a slot."""
    found = run_all([Call(str(n), where, (n,)) for n in range(5)], workers[:1])
    assert {outcome.value for outcome in found.values()} == {(found["0"].value[0], "1")}
    assert found["0"].value[0] != os.getpid()


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_ends_the_workers(tmp_path: Path, workers: list[dict[str, str]]) -> None:
    flags = [tmp_path / name for name in "ab"]

    def interrupt() -> None:
        while not all(flag.exists() for flag in flags):
            time.sleep(0.01)
        sent.append(time.time())
        os.kill(os.getpid(), signal.SIGINT)

    sent: list[float] = []
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_all([Call(flag.name, sleep, (str(flag),)) for flag in flags], workers)
    # those that do not listen are killed after GRACE_SECONDS; a call lasts an hour
    assert multiprocessing.active_children() == [] and time.time() - sent[0] < 10 * jobs.GRACE_SECONDS
