"""Held-out sentences that would end a training are found before it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes.common.errors import RecipeError
from recipes.translation.held_out import check_held_out
from recipes.translation.recipe import load

RECIPE = load("multi30k_de_en")  # max_tokens: 2000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bpe").mkdir()
    (tmp_path / "raw").mkdir()
    for split in ("valid", "test"):
        for language in ("de", "en"):
            write(tmp_path, f"{split}.{language}", 3, 1, 1023)
    return tmp_path


def write(folder: Path, name: str, *pieces: int) -> None:
    for kind in ("raw", "bpe"):
        (folder / kind / name).write_text("".join(" ".join(["a"] * n) + "\n" for n in pieces), encoding="utf-8")


def test_the_longest_sentence_fits(folder: Path) -> None:
    check_held_out(RECIPE, folder)


@pytest.mark.parametrize("name", ["valid.de", "valid.en", "test.de", "test.en"])
def test_a_line_with_more_tokens_than_positions(folder: Path, name: str) -> None:
    write(folder, name, 3, 1024, 5, 3000)
    side = "source" if name.endswith("de") else "target"
    with pytest.raises(
        RecipeError,
        match=rf"raw/{name}: line 2 \(1,025 tokens\), 4 \(3,001 tokens\): longer than task.max_{side}_positions = "
        r"1,024, and held-out pairs are not dropped\. Mend or remove",
    ):
        check_held_out(RECIPE, folder)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"task.max_source_positions": 50}, "task.max_source_positions = 50"),
        ({"model.max_source_positions": 50}, "model.max_source_positions = 50"),
        ({"dataset.max_tokens": 50}, "dataset.max_tokens = 50"),
        ({"dataset.max_tokens_valid": 50}, "dataset.max_tokens_valid = 50"),
    ],
)
def test_what_limits_a_validation_sentence(folder: Path, changes: dict[str, Any], limit: str) -> None:
    write(folder, "valid.de", 49, 50)
    with pytest.raises(RecipeError, match=rf"line 2 \(51 tokens\): longer than {limit},"):
        check_held_out(RECIPE.changed(changes=tuple(changes.items())), folder)


@pytest.mark.parametrize("name", ["valid.de", "valid.en", "test.de", "test.en"])
@pytest.mark.parametrize("text", ["", " ", "\u200b", "\ufeff\u00ad"])
def test_a_line_without_text(folder: Path, name: str, text: str) -> None:
    (folder / "raw" / name).write_text(f"a\n{text}\nb\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"raw/{name}: line 2: without any text, .*both {name[:-3]} files"):
        check_held_out(RECIPE, folder)


def test_a_line_that_has_no_pieces(folder: Path) -> None:
    (folder / "bpe" / "test.de").write_text("a\nb\n\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"raw/test\.de: line 3: without any text"):
        check_held_out(RECIPE, folder)


def test_limits_of_training_batches_are_none_of_the_test_set(folder: Path) -> None:
    for language in ("de", "en"):
        write(folder, f"valid.{language}", 3)
    check_held_out(RECIPE.changed(max_tokens=50), folder)


def test_by_command_before_the_training(recipe_here: Any, corpus_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(corpus_folder, tmp_path / "data"))
    lines = (data / "valid.de").read_text(encoding="utf-8").splitlines()
    lines[6] = "ab " * 200
    (data / "valid.de").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    done = recipe_here("--out", tmp_path / "out", "--data-dir", data)
    assert done.returncode == 1, done.stdout
    assert "raw/valid.de: line 7 (" in done.stdout and "longer than dataset.max_tokens = 120" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "out" / "checkpoints").exists()
