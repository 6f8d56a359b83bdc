"""Stages are done once, folders keep their settings, and nothing is overwritten or mixed silently."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, read_json, read_lines

SETTINGS = {"corpus": "grammar", "seed": 1}


@pytest.fixture
def stamped(tmp_path: Path) -> Path:
    """A folder in which the stage `cook` is complete."""
    space = Workspace(tmp_path / "out", SETTINGS)
    dish = space.folder / "dish.txt"
    dish.write_text("soup")
    space.finish("cook", [dish], time.time(), salt=2)
    space.lock.close()
    return space.folder


def test_a_finished_stage_is_remembered(stamped: Path) -> None:
    space = Workspace(stamped, SETTINGS)
    stamp = space.stamp("cook")
    assert stamp and stamp["salt"] == 2 and list(stamp["files"]) == ["dish.txt"]
    assert space.stamp("eat") is None


def test_a_changed_product_is_refused(stamped: Path) -> None:
    (stamped / "dish.txt").write_text("stew")
    with pytest.raises(RecipeError, match=r"dish\.txt: has changed since stage 'cook' made it; put it back, or delete"):
        Workspace(stamped, SETTINGS).stamp("cook")


def test_a_missing_product_is_refused(stamped: Path) -> None:
    (stamped / "dish.txt").unlink()
    with pytest.raises(RecipeError, match=r"dish\.txt: is gone since"):
        Workspace(stamped, SETTINGS).stamp("cook")


def test_other_settings_are_refused(stamped: Path) -> None:
    with pytest.raises(RecipeError, match=r"other settings \(seed = 1 there, 2 now\).*--out.*--restart"):
        Workspace(stamped, {**SETTINGS, "seed": 2})


def test_restart_sets_the_folder_aside(stamped: Path) -> None:
    space = Workspace(stamped, {**SETTINGS, "seed": 2}, restart=True)
    assert space.stamp("cook") is None
    assert (stamped.with_name("out.old1") / "dish.txt").read_text() == "soup"


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RecipeError, match=r"holds files that no recipe made; give a new or empty folder"):
        Workspace(tmp_path, SETTINGS)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(RecipeError, match=r"is a file; give a folder"):
        Workspace(tmp_path / "out", SETTINGS)


def test_two_at_once_are_refused(stamped: Path) -> None:
    first = Workspace(stamped, SETTINGS)
    with pytest.raises(RecipeError, match=r"another run, or a training it left behind, is at work there"):
        Workspace(stamped, SETTINGS)
    first.lock.close()
    Workspace(stamped, SETTINGS)


def test_a_damaged_record_is_refused(stamped: Path) -> None:
    (stamped / "settings.json").write_text('{"corpus": ')
    with pytest.raises(RecipeError, match=r"settings\.json: not valid JSON .*truncated or was edited"):
        Workspace(stamped, SETTINGS)


def test_json_is_read_back(stamped: Path) -> None:
    assert read_json(stamped / "settings.json") == SETTINGS


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("a\u2028b\rc\n\r\nd\r\n".encode())
    assert read_lines(path) == ["a\u2028b\rc", "", "d"]
