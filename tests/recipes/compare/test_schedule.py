"""Jobs share slots, each in its own environment; a failure stays alone; an interruption ends what is running."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.compare import schedule
from recipes.compare.schedule import Job, Progress, run_all

EVENT = '2026-01-01 00:00:00 | INFO | train_inner | {{"num_updates": "{}"}}\n'


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.02)


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, [sys.executable, "-c", code], folder / f"{name}.log", folder / f"{name}.train.log")


def run(folder: Path, jobs: list[Job], slots: list[dict[str, str]]) -> dict[str, int]:
    with (folder / ".lock").open("a") as lock:
        return run_all(jobs, slots, lock, 30)


def test_what_fails_stays_alone(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name, f"import sys; print('{name}'); sys.exit({status})") for name, status in
            (("a", 0), ("b", 3), ("c", 0))]  # fmt: skip
    assert run(tmp_path, jobs, [{}]) == {"a": 0, "b": 3, "c": 0}
    assert (tmp_path / "b.log").read_text() == "b\n"


def test_what_cannot_start_stays_alone(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name, f"print('{name}')") for name in ("a", "b", "c")]
    (tmp_path / "a.log").mkdir()
    jobs[1] = dataclasses.replace(jobs[1], command=[str(tmp_path / "no such program")])
    for slots in ([{}], [{}, {}]):
        assert run(tmp_path, jobs, slots) == {"a": 127, "b": 127, "c": 0}


@pytest.mark.parametrize(
    ("content", "count"),
    [('{"num_updates": "x"}', 0), ('{"num_updates": []}', 0), ('{"num_updates": null}', 0), ("{", 7)],
)
def test_a_damaged_log_ends_no_job(tmp_path: Path, content: str, count: int) -> None:
    """A line that is no JSON is none of an update; one with another count stops the counting."""
    (tmp_path / "a.train.log").write_text(f"1 | INFO | train_inner | {content}\n" + EVENT.format(7))
    assert Progress(tmp_path / "a.train.log").updates() == count
    (tmp_path / "b.train.log").mkdir()
    jobs = [job(tmp_path, name, "import time; time.sleep(0.1)") for name in ("a", "b")]
    assert run(tmp_path, jobs, [{}]) == {"a": 0, "b": 0}


def test_each_slot_has_its_gpu_and_at_most_one_job(tmp_path: Path) -> None:
    code = (
        "import os, time; gpu = os.environ['CUDA_VISIBLE_DEVICES']; path = f'busy{gpu}'; "
        "open(path, 'x').close(); time.sleep(0.1); os.remove(path); print(gpu)"
    )
    jobs = [job(tmp_path, str(index), f"import os; os.chdir({str(tmp_path)!r}); {code}") for index in range(4)]
    slots = [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    assert set(run(tmp_path, jobs, slots).values()) == {0}
    assert sorted((tmp_path / f"{index}.log").read_text().strip() for index in range(4)) == ["4", "4", "7", "7"]


def test_slots_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert schedule.slots(None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in schedule.slots(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in schedule.slots(None)] == ["3", "5"]


def test_slots_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert schedule.slots(2) == [{"OMP_NUM_THREADS": "1"}] * 2
    assert len(schedule.slots(None)) == len(os.sched_getaffinity(0))
    with pytest.raises(RecipeError, match="--jobs 0: must be at least 1"):
        schedule.slots(0)


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
        process = schedule.start(job(tmp_path, "a", "import time; time.sleep(60)"), {}, lock)
    try:
        with (tmp_path / ".lock").open("a") as again, pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        process.kill()
        process.wait()


def test_progress_reads_what_is_new(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "train.log")
    assert progress.updates() == 0
    (tmp_path / "train.log").write_text(EVENT.format(10) + "half a line")
    assert progress.updates() == 10
    with (tmp_path / "train.log").open("a") as log:
        log.write("\n" + EVENT.format(20))
    assert progress.updates() == 20 == progress.updates()
