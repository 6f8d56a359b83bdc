"""--prepared: what the stamps of another run name is taken over, and nothing else is touched."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, digest, read_json, write_json
from recipes.translation.pipeline import share
from recipes.translation.recipe import Recipe, load

FILES = ("text/train.de", "bpe/codes", "data-bin/dict.de.txt")


@pytest.fixture
def recipe() -> Recipe:
    return load("iwslt14_de_en")


@pytest.fixture
def other(tmp_path: Path, recipe: Recipe) -> Path:
    """The folder of a run that prepared its data."""
    space = Workspace(tmp_path / "other", recipe.settings())
    for name in FILES:
        (space.folder / name).parent.mkdir(exist_ok=True)
        (space.folder / name).write_text(name)
    space.finish("prepare-text", [space.folder / name for name in FILES], time.time())
    space.finish("prepare", [], time.time())
    space.lock.close()
    return space.folder


@pytest.fixture
def mine(tmp_path: Path, recipe: Recipe) -> Workspace:
    return Workspace(tmp_path / "mine", recipe.settings())


def snapshot(folder: Path) -> dict[str, str]:
    return {str(path): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_and_stamps_are_taken_over(other: Path, mine: Workspace, recipe: Recipe) -> None:
    share(other, mine, recipe)
    assert all((mine.folder / name).read_text() == name for name in FILES)
    assert read_json(mine.folder / "stamps" / "prepare-text.json") == read_json(other / "stamps" / "prepare-text.json")
    share(other, mine, recipe)


NAMES: dict[str, Callable[[Path], str]] = {
    "absolute": lambda folder: str(folder / "letter"),
    "climbing": lambda folder: "text/../../letter",
    "home": lambda folder: "~/letter",
    "empty": lambda folder: "",
    "the folder": lambda folder: ".",
    "zero byte": lambda folder: "text/a\0b",
    "through a link": lambda folder: "text/leaving/letter",
    "a link": lambda folder: "text/link",
    "a folder": lambda folder: "text",
    "a folder below": lambda folder: "text/sub",
    "a pipe": lambda folder: "text/pipe",
    "the settings": lambda folder: "settings.json",
    "a stamp": lambda folder: "stamps/prepare.json",
    "a model": lambda folder: "checkpoints/checkpoint_last.pt",
    "the lock": lambda folder: ".lock",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [False, True])
def test_other_names_are_refused_before_anything_is_touched(
    name: str, first: bool, other: Path, mine: Workspace, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "letter").write_text("precious")
    for folder in (other, mine.folder):  # so that every name is there, on both sides
        for below in ("text/sub", "checkpoints"):
            (folder / below).mkdir(parents=True, exist_ok=True)
        (folder / "text" / "leaving").symlink_to(tmp_path)
        (folder / "text" / "link").symlink_to(tmp_path / "letter")
        os.mkfifo(folder / "text" / "pipe")
        (folder / "checkpoints" / "checkpoint_last.pt").write_text("weights")
    (mine.folder / "text" / "train.de").write_text("mine")
    named = NAMES[name](tmp_path)
    stamp = read_json(other / "stamps" / "prepare-text.json")
    entry = {named: digest(tmp_path / "letter")}
    files = {**entry, **stamp["files"]} if first else {**stamp["files"], **entry}
    write_json(other / "stamps" / "prepare-text.json", {**stamp, "files": files})
    before = snapshot(tmp_path)
    with pytest.raises(RecipeError):
        share(other, mine, recipe)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_data_that_is_not_what_it_was_is_refused(change: str, other: Path, mine: Workspace, recipe: Recipe) -> None:
    (other / FILES[1]).unlink()
    if change == "changed":
        (other / FILES[1]).write_text("other codes")
    with pytest.raises(RecipeError, match="is gone since" if change == "gone" else "has changed since"):
        share(other, mine, recipe)
    assert not (mine.folder / "text").exists()


def test_links_within_the_folder_become_files(other: Path, mine: Workspace, recipe: Recipe) -> None:
    (other / "bpe" / "codes").rename(other / "bpe" / "learned")
    (other / "bpe" / "codes").symlink_to("learned")
    share(other, mine, recipe)
    assert not (mine.folder / "bpe" / "codes").is_symlink() and (mine.folder / "bpe" / "codes").read_text() == FILES[1]


@pytest.mark.parametrize(
    "record", [[], {"seconds": 1}, {"files": []}, {"files": None}, {"files": {"text/train.de": 3}}]
)
def test_stamps_of_another_shape_are_refused(record: Any, other: Path, mine: Workspace, recipe: Recipe) -> None:
    (other / "stamps" / "prepare-text.json").unlink()
    (other / "stamps" / "prepare-text.json").write_text(json.dumps(record))
    with pytest.raises(RecipeError, match=r"prepare-text\.json"):
        share(other, mine, recipe)
