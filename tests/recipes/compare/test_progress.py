"""How far the trainings of an experiment are, read off their logs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recipes.common.jobs import Command, run_all
from recipes.compare.progress import Progress

EVENT = '2026-01-01 00:00:00 | INFO | train_inner | {{"num_updates": "{}"}}\n'


@pytest.mark.parametrize(
    ("content", "count"),
    [('{"num_updates": "x"}', 0), ('{"num_updates": []}', 0), ('{"num_updates": null}', 0), ("{", 7)],
)
def test_a_damaged_log_ends_no_job(tmp_path: Path, content: str, count: int) -> None:
    """A line that is no JSON is none of an update; one with another count stops the counting."""
    (tmp_path / "a.train.log").write_text(f"1 | INFO | train_inner | {content}\n" + EVENT.format(7))
    assert Progress(tmp_path / "a.train.log").updates() == count
    (tmp_path / "b.train.log").mkdir()
    seen = [Progress(tmp_path / f"{name}.train.log") for name in ("a", "b")]
    tasks = [Command(name, [sys.executable, "-c", "import time; time.sleep(0.1)"], tmp_path / name) for name in "ab"]
    with (tmp_path / ".lock").open("a") as lock:
        found = run_all(tasks, [{}], lock=lock, total=30, progress=lambda: sum(progress.updates() for progress in seen))
    assert {name: outcome.value for name, outcome in found.items()} == {"a": 0, "b": 0}


def test_progress_reads_what_is_new(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "train.log")
    assert progress.updates() == 0
    (tmp_path / "train.log").write_text(EVENT.format(10) + "half a line")
    assert progress.updates() == 10
    with (tmp_path / "train.log").open("a") as log:
        log.write("\n" + EVENT.format(20))
    assert progress.updates() == 20 == progress.updates()
