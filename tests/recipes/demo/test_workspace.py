"""Stages are done once, folders keep their settings, and nothing is overwritten or mixed silently."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from recipes.demo.settings import PRESETS, DemoError, settings_for
from recipes.demo.workspace import Workspace, read_json

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
    with pytest.raises(DemoError, match=r"dish\.txt: has changed since stage 'cook' made it; put it back, or delete"):
        Workspace(stamped, SETTINGS).stamp("cook")


def test_a_missing_product_is_refused(stamped: Path) -> None:
    (stamped / "dish.txt").unlink()
    with pytest.raises(DemoError, match=r"dish\.txt: is gone since"):
        Workspace(stamped, SETTINGS).stamp("cook")


def test_other_settings_are_refused(stamped: Path) -> None:
    with pytest.raises(DemoError, match=r"other settings \(seed = 1 there, 2 now\).*--out.*--restart"):
        Workspace(stamped, {**SETTINGS, "seed": 2})


def test_restart_sets_the_folder_aside(stamped: Path) -> None:
    space = Workspace(stamped, {**SETTINGS, "seed": 2}, restart=True)
    assert space.stamp("cook") is None
    assert (stamped.with_name("out.old1") / "dish.txt").read_text() == "soup"


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DemoError, match=r"holds files that are not from a demo; give a new or empty folder"):
        Workspace(tmp_path, SETTINGS)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(DemoError, match=r"is a file; give a folder"):
        Workspace(tmp_path / "out", SETTINGS)


def test_two_at_once_are_refused(stamped: Path) -> None:
    first = Workspace(stamped, SETTINGS)
    with pytest.raises(DemoError, match=r"another demo, or a training it left behind, is at work there"):
        Workspace(stamped, SETTINGS)
    first.lock.close()
    Workspace(stamped, SETTINGS)


def test_a_damaged_record_is_refused(stamped: Path) -> None:
    (stamped / "settings.json").write_text('{"corpus": ')
    with pytest.raises(DemoError, match=r"settings\.json: not valid JSON .*truncated or was edited"):
        Workspace(stamped, SETTINGS)


def test_settings_take_the_preset_unless_told_otherwise() -> None:
    assert settings_for("grammar", beam=None) == PRESETS["grammar"]
    assert settings_for("multi30k", beam=4).beam == 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_update", 0, "max_update is 0 but must be at least 1"),
        ("train_size", -1, "train_size is -1 and seed is 1 but neither may be negative"),
        ("heads", 5, "dim is 128 but must be a multiple of heads = 5"),
    ],
)
def test_settings_are_checked(name: str, value: int, message: str) -> None:
    with pytest.raises(DemoError, match=message):
        settings_for("grammar", **{name: value})


def test_json_is_read_back(stamped: Path) -> None:
    assert read_json(stamped / "settings.json") == SETTINGS
