"""What is read off fairseq's log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recipes.common import commands
from recipes.common.errors import RecipeError

LOG = """\
2026-01-01 10:00:00 | INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "9", "ppl": "300", "num_updates": "5"}
2026-01-01 10:00:01 | INFO | valid | {"epoch": 1, "valid_nll_loss": "5.5", "valid_num_updates": "10"}
2026-01-01 10:00:02 | INFO | train | {"epoch": 1, "train_nll_loss": "6.5", "train_num_updates": "10"}
2026-01-01 10:00:03 | INFO | valid | {"epoch": 2, "valid_nll_loss": "4.0", "valid_num_updates": "20"}
2026-01-01 10:00:04 | INFO | valid | {"epoch": 2, "valid_nll_l
2026-01-01 10:01:00 | INFO | valid | {"epoch": 2, "valid_nll_loss": "4.5", "valid_num_updates": "20"}
"""


def test_learning_curve_of_an_interrupted_run(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(LOG)
    assert commands.learning_curve(log) == {"train": [(10, 6.5)], "valid": [(10, 5.5), (20, 4.5)]}


def test_lines_are_read_when_complete(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntw")
    with log.open("rb") as reader:
        assert commands.complete_lines(reader) == ["one"]
        with log.open("ab") as writer:
            writer.write(b"o\n")
        assert commands.complete_lines(reader) == ["two"]
        assert commands.complete_lines(reader) == []


def test_commands_are_shown_as_typed() -> None:
    command = commands.fairseq("train", "data bin", "--adam-betas", "(0.9, 0.98)")
    assert commands.shown(command) == "fairseq-train 'data bin' --adam-betas '(0.9, 0.98)'"


def test_a_failing_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log, lock = tmp_path / "log", (tmp_path / "lock").open("w")
    with lock, pytest.raises(RecipeError, match=r"(?s)cooking ended with status 3; .*no salt.*the same command"):
        commands.run([sys.executable, "-c", "print('no salt'); raise SystemExit(3)"], log, lock, "cooking")
