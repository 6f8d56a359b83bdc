"""Order whatever the number of processes, and what happens when one of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation.data.parallel import chunks, in_order


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(in_order(abs, range(-40, 0), workers)) == list(range(40, 0, -1))


def test_one_item_needs_no_process() -> None:
    assert list(in_order(lambda n: (n, os.getpid()), [7], 2)) == [(7, os.getpid())]
    assert list(in_order(abs, iter(()), 2)) == []


def test_chunks() -> None:
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_process_comes_through(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order((1).__floordiv__, range(-20, 1), workers))


def end(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(RecipeError, match=r"one of 2 processes of the preparation was killed, .*fewer --workers"):
        list(in_order(end, range(10), 2))


# Says the workers' ids, then waits for ever while they wait for tasks, or work.
PARENT = """
import os, sys, time
from recipes.translation.data.parallel import in_order

def tasks():
    yield from range(8)
    time.sleep(600)

def work(n):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600 if sys.argv[1] == "working" else 0.1)

if __name__ == "__main__":
    list(in_order(work, tasks(), 2))
"""


@pytest.mark.parametrize("state", ["working", "waiting"])
def test_workers_end_with_a_parent_that_is_killed(state: str, tmp_path: Path, project_root: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), state]
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        workers = {int(parent.stdout.readline()) for _ in range(2 if state == "working" else 8)}
    finally:
        parent.kill()
    rest = parent.stdout.read()  # ends when the last process that could write has ended
    parent.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert (rest, parent.pid in workers) == ("", False)
