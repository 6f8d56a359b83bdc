"""Binary data against the text that it was made from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation.data import binary

SPLITS = ("train", "valid", "test")


@pytest.fixture
def made(tiny_corpus: Path, tiny_data_bin: Path, tmp_path: Path) -> Path:
    """text/ and data-bin/ as fairseq-preprocess leaves them."""
    shutil.copytree(tiny_corpus, tmp_path / "text")
    shutil.copytree(tiny_data_bin, tmp_path / "data-bin")
    return tmp_path


def check(folder: Path) -> None:
    text = folder / "text"
    binary.check(folder / "data-bin", lambda split, side: text / f"{split}.{side}", SPLITS, ("de", "en"))


def change(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new, 1))


def test_what_fairseq_makes_is_right(made: Path) -> None:
    check(made)
    sizes = binary.sizes(made / "data-bin" / "train.de-en.de.idx")
    first = (made / "text" / "train.de").read_text().split("\n")[0]
    assert (len(sizes), sizes[0]) == (60, len(first.split()) + 1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", ["de", "en"])
def test_a_line_more_or_less(made: Path, split: str, language: str) -> None:
    """To a reader with universal newlines \\r ends a line; here it is white space, so the text has a line less."""
    change(made / "text" / f"{split}.{language}", b"\n", b"\r")
    message = (
        rf"{split}\.de-en\.{language}\.idx: \d+ sentences, but .* has \d+ lines, and line 1 is the first to differ"
    )
    with pytest.raises(RecipeError, match=message):
        check(made)


def test_equally_many_lines_that_are_others(made: Path) -> None:
    path = made / "text" / "train.en"
    lines = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in [*lines[1:], lines[0]]))
    with pytest.raises(RecipeError, match=r"60 sentences, but .*train\.en has 60 lines, and line \d+ is the first"):
        check(made)


def test_sides_that_are_not_equally_long(made: Path) -> None:
    for name in ("text/valid.en", "data-bin/valid.de-en.en.idx"):
        shutil.copy(made / name.replace("valid", "train"), made / name)
    with pytest.raises(RecipeError, match=r"12 in de but 60 in en for valid"):
        check(made)


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "other"])
def test_damaged_indexes(made: Path, damage: str) -> None:
    path = made / "data-bin" / "test.de-en.en.idx"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-8], "longer": content + b"x", "empty": b"", "other": b"x" + content[1:]}[damage])
    with pytest.raises(RecipeError, match=r"test\.de-en\.en\.idx: no index of fairseq, or truncated"):
        check(made)
