"""A training whose losses are no numbers any more has failed, even if fairseq returned 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation.commands import check_losses


def line(kind: str, **stats: str) -> str:
    prefix = "" if kind == "train_inner" else f"{kind}_"
    return f"2024-01-01 | INFO | {kind} | {json.dumps({prefix + name: value for name, value in stats.items()})}\n"


GOOD = line("train", loss="7.1", num_updates="1") + line("valid", loss="6.2", nll_loss="5.9", num_updates="1")


@pytest.mark.parametrize(
    ("kind", "stats"),
    [
        ("valid", {"loss": "nan", "nll_loss": "nan"}),
        ("valid", {"loss": "3.1", "nll_loss": "inf"}),
        ("train", {"loss": "inf"}),
        ("train_inner", {"loss": "nan"}),
    ],
)
def test_the_last_losses_are_numbers(tmp_path: Path, kind: str, stats: dict[str, str]) -> None:
    log = tmp_path / "train.log"
    log.write_text(GOOD + line(kind, **stats))
    with pytest.raises(RecipeError, match=f"train.log: the training diverged, the last .*loss .{kind}. is"):
        check_losses(log)


def test_an_attempt_that_was_done_again_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(line("valid", loss="nan") + line("train", loss="inf") + GOOD + line("train", loss="2", gnorm="nan"))
    check_losses(log)
    log.write_text("no line of numbers\n" + line("valid", loss="nan")[:-9])
    check_losses(log)
