"""`bench gpu`: what it does within a time, by a clock and commands that are not real, and what it says of its goals."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from recipes.bench import gpu
from recipes.bench.__main__ import main, parser
from recipes.bench.record import FIELDS
from recipes.common.errors import RecipeError


class Machine:
    """A clock, and commands that take the seconds that they are told to, or as many as they may."""

    def __init__(self, takes: dict[str, float], statuses: dict[str, int] | None = None) -> None:
        self.time, self.takes, self.statuses = 1000.0, takes, statuses or {}
        self.commands: list[list[str]] = []

    def now(self) -> float:
        return self.time

    def run(self, command: Sequence[str], seconds: float) -> int | None:
        self.commands.append(list(command))
        word = next(word for word in self.takes if word in command)
        self.time += min(self.takes[word], seconds)
        return None if self.takes[word] > seconds else self.statuses.get(word, 0)


def job(name: str, least: float, most: float) -> gpu.Job:
    return gpu.Job(name, ("recipes.bench", name), least, most)


def test_jobs_are_done_in_order_until_the_time_is_up(tmp_path: Path) -> None:
    machine = Machine({"a": 50, "b": 500, "c": 40, "d": 10, "e": 5})
    jobs = [job("a", 10, 100), job("b", 10, 100), job("c", 60, 80), job("d", 20, 30), job("e", 50, 60)]
    outcomes = gpu.work_through(jobs, 200, tmp_path / "r.csv", machine.run, machine.now)
    # a takes its 50 s; b is ended at its 100; 50 s are left: too few for c, enough for d, then too few for e
    assert [outcome.status for outcome in outcomes] == [0, None, gpu.NOT_BEGUN, 0, gpu.NOT_BEGUN]
    assert [outcome.seconds for outcome in outcomes] == [50, 100, 0, 10, 0]
    assert machine.time - 1000.0 <= 200
    assert [command[3] for command in machine.commands] == ["a", "b", "d"]
    assert all(command[-2:] == ["--out", str(tmp_path / "r.csv")] for command in machine.commands)


def test_what_fails_ends_no_other(tmp_path: Path) -> None:
    machine = Machine({"a": 1, "b": 1}, {"a": 3})
    outcomes = gpu.work_through([job("a", 1, 9), job("b", 1, 9)], 60, tmp_path / "r.csv", machine.run, machine.now)
    assert [outcome.status for outcome in outcomes] == [3, 0]
    assert "FAILED with status 3" in outcomes[0].said


def test_the_last_job_gets_what_is_left_and_no_more(tmp_path: Path) -> None:
    limits = []

    def run(command: Sequence[str], seconds: float) -> int:
        limits.append(seconds)
        return 0

    gpu.work_through([job("a", 10, 100)], 42, tmp_path / "r.csv", run, lambda: 7.0)
    assert limits == [42]


def test_every_job_is_a_command_that_is_understood(project_root: Path) -> None:
    for planned in gpu.JOBS:
        assert planned.least <= planned.most
        if planned.measures:
            args = parser().parse_args([*planned.command[1:], "--out", "r.csv"])
            assert args.precision == ("bf16" if "bf16" in planned.name or "forced" in planned.name else "fp32")
    assert gpu.JOBS[0].command[:4] == (
        "pytest",
        "-q",
        "-m",
        "gpu",
    )  # tests come first: figures of wrong kernels are none
    first = [planned.command[1:4] for planned in gpu.JOBS[1:3]]
    assert first == [("train", "--size", "base"), ("train", "--size", "big")]  # what the goals are about
    # In 25 minutes, with each job at its limit, all that the goals need is done.
    seconds = 25 * 60 - gpu.PLOT_SECONDS
    assert sum(planned.most for planned in gpu.JOBS[:4]) < seconds


def row(**values: object) -> dict[str, str]:
    return dict.fromkeys(FIELDS, "") | {key: str(value) for key, value in values.items()}


def step(size: str, contender: str, speedup: float, precision: str = "bf16") -> dict[str, str]:
    return row(
        benchmark="train", case=f"train {size}", contender=contender, baseline="fairseq", precision=precision,
        speedup=speedup, speedup_q1=speedup - 0.1, speedup_q3=speedup + 0.1,
    )  # fmt: skip


def op(name: str, contender: str, share: float) -> dict[str, str]:
    return row(benchmark="ops", case=name, contender=contender, baseline="eager", precision="bf16", share_of_copy=share)


def test_goals_stand_beside_what_was_measured() -> None:
    rows = [
        *(step("base", "fairseq", 1.0), step("base", "macaron", 1.9), step("base", "macaron-compile", 2.1)),
        *(step("big", "fairseq", 1.0), step("big", "macaron", 1.99), step("big", "macaron", 3.0, precision="fp32")),
        *(op("step_norm", "eager", 0.95), op("step_norm", "macaron", 0.9), op("step_norm", "triton", 0.9)),
        *(op("euler_step", "macaron", 0.5), op("euler_step", "triton", 0.99)),
    ]
    base, big, norm, euler, act = gpu.goals(rows)
    assert "reached, 2.10 × (2.00–2.20) by macaron-compile" in base and "NOT" not in base
    assert "NOT REACHED, 1.99 ×" in big
    assert "reached, macaron 90%" in norm and "NOT" not in norm
    assert "NOT REACHED, macaron 50%, triton 99%" in euler  # a kernel that `auto` does not take is of no use
    assert act.endswith("not measured")
    assert all(line.endswith("not measured") for line in gpu.goals([]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--minutes", "25", "--out", str(tmp_path / "r.csv")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("recipes.bench: gpu: needs a GPU, and torch") and "on a CPU: python -m recipes.bench" in said
    assert not (tmp_path / "r.csv").exists()


@pytest.mark.parametrize("minutes", [0, -3, 1, float("nan")])
def test_a_time_that_is_too_short_is_refused(minutes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "check_machine", lambda: None)
    with pytest.raises(RecipeError, match=r"--minutes .*25 do most"):
        gpu.run(minutes, tmp_path / "r.csv", tmp_path, lambda command, seconds: pytest.fail("begun"))


def test_rows_are_drawn_and_a_failure_is_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With commands that write a row where they measure, and tests that fail."""
    monkeypatch.setattr(gpu, "check_machine", lambda: None)
    out = tmp_path / "r.csv"

    def run(command: Sequence[str], seconds: float) -> int:
        if "train" not in command:
            return 1 if "pytest" in command else 0
        new = not out.exists()
        with out.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            for contender, speedup in (("fairseq", 1.0), ("macaron", 2.5)):
                size = command[command.index("--size") + 1]
                origin = {"settings": "{}", "GPU": "a GPU", "threads": "1", "median_ms": "5", "load": "0"}
                writer.writerow(step(size, contender, speedup) | origin)
        return 0

    with pytest.raises(RecipeError, match="failed: the gpu tests"):
        gpu.run(25, out, tmp_path / "figures", run)
    said = capsys.readouterr().out
    assert "training step of base, bf16: at least 2 × fairseq's Transformer: reached, 2.50 ×" in said
    assert (tmp_path / "figures" / "train_gpu.png").is_file()


def test_a_command_ends_with_its_time(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert gpu.run_leashed([sys.executable, "-S", "-c", "import time; time.sleep(60)"], 0.5) is None
    assert time.monotonic() - begin < 20  # not the 60 of the command
    assert gpu.run_leashed([sys.executable, "-S", "-c", "raise SystemExit(5)"], 60) == 5
