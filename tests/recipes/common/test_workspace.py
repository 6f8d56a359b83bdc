"""Stages are done once, folders keep their settings, and nothing is overwritten or mixed silently."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recipes.common import workspace
from recipes.common.errors import RecipeError
from recipes.common.workspace import Made, Stage, Workspace, digest, inside, read_json, read_lines, write_json

SETTINGS = {"corpus": "grammar", "seed": 1}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "PATIENCE_SECONDS", 0.0)


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


# --- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "holds list, not an object"),
        ("null", "holds NoneType, not an object"),
        ("3", "holds int, not an object"),
        ("", "not valid JSON"),
        ('{"a": NaN}', "not valid JSON .a is nan"),
        ('{"a": [1, {"b": 1e999}]}', r"not valid JSON .a\[1\]\.b is inf"),
        ("[" * 100_000, "not valid JSON .*recursion"),
        ('{"a": ' * 100_000, "not valid JSON .*recursion"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\x00", "not valid JSON"),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=rf"(?s){re.escape(str(path))}: {message}"):
        read_json(path)


def test_json_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(RecipeError, match="not valid JSON"):
        read_json(tmp_path / "record.json")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_file_is_not_read_as_json(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "record.json")
    with pytest.raises(RecipeError, match="is no file"):
        read_json(tmp_path / "record.json")


def test_a_missing_entry_is_named_with_its_file(tmp_path: Path) -> None:
    write_json(tmp_path / "record.json", {"outer": {"inner": 1}, "list": [{"a": 1}]})
    record = read_json(tmp_path / "record.json")
    assert record == {"outer": {"inner": 1}, "list": [{"a": 1}]} and record.get("other") is None
    for part in (record, record["outer"], record["list"][0]):
        with pytest.raises(RecipeError, match=r"record\.json: has no entry 'other'"):
            part["other"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_number_that_json_lacks_is_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(RecipeError, match=rf"result\.json: final\.losses\[1\]\.mlm is {value}"):
        write_json(path, {"final": {"losses": [{"mlm": 1.0}, {"mlm": value}]}})
    assert read_json(path) == {"loss": 1.0} and list(tmp_path.iterdir()) == [path]


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x8d\xaa")
    write_json(tmp_path / "record.json", {"name": name})
    assert read_json(tmp_path / "record.json") == {"name": name}
    assert json.loads((tmp_path / "record.json").read_bytes()) == {"name": name}


# --- names that a file gives ----------------------------------------------------------------------------------------

OUTSIDE = [
    "/etc/passwd", "//etc/passwd", "../other", "a/../../other", "a/..", "..", ".", "", "~", "~/x", "~root/x",
    "leaving/x", "leaving", "link.txt", "loop", "loop/x", "a\0b", "\ud800", "x" * 5000, None, 3, ["a"],
]  # fmt: skip


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder with links that leave it, beside a file that must not be reached."""
    folder = tmp_path / "trap"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "other").write_text("precious")
    (folder / "leaving").symlink_to(tmp_path)
    (folder / "link.txt").symlink_to("../other")
    (folder / "loop").symlink_to("loop")
    (folder / "a" / "inner").symlink_to("../a")
    return folder


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_name_that_leaves_its_folder_is_refused(trap: Path, name: Any) -> None:
    with pytest.raises(RecipeError, match="read from a file there"):
        inside(trap, name)


@pytest.mark.parametrize("name", ["x", "a/x", "a/./x", "a/inner/x", "...", "..x", "a~", "é", "a b\n"])
def test_a_name_that_stays_is_taken(trap: Path, name: str) -> None:
    assert inside(trap, name) == trap / name


@pytest.mark.parametrize("name", ["/etc/hostname", "../other", "leaving/other", "~/x", ""])
def test_a_stamp_does_not_lead_out_of_its_folder(stamped: Path, name: str) -> None:
    (stamped.parent / "other").write_text("soup")
    (stamped / "leaving").symlink_to(stamped.parent)
    stamp = read_json(stamped / "stamps" / "cook.json")
    write_json(stamped / "stamps" / "cook.json", {**stamp, "files": {name: stamp["files"]["dish.txt"]}})
    with pytest.raises(RecipeError, match="read from a file there"):
        Workspace(stamped, SETTINGS).stamp("cook")


@pytest.mark.parametrize("files", [None, [], ["dish.txt"], "dish.txt", {"dish.txt": None}, {"dish.txt": ["0"]}])
def test_a_stamp_of_another_shape_is_refused(stamped: Path, files: Any) -> None:
    write_json(stamped / "stamps" / "cook.json", {"seconds": 1, "files": files})
    with pytest.raises(RecipeError, match=r"cook\.json: 'files' must name files with their sha256"):
        Workspace(stamped, SETTINGS).stamp("cook")


def test_a_stamp_without_files_is_refused(stamped: Path) -> None:
    write_json(stamped / "stamps" / "cook.json", {"seconds": 1})
    with pytest.raises(RecipeError, match=r"cook\.json: has no entry 'files'"):
        Workspace(stamped, SETTINGS).stamp("cook")


# --- starts and restarts ----------------------------------------------------------------------------------------------


def start(folder: Path, **options: Any) -> str:
    """ "ok", or what was said."""
    try:
        space = Workspace(folder, SETTINGS, **options)
    except RecipeError as error:
        return "at work" if "is at work there" in str(error) else str(error)
    time.sleep(0.001)
    space.lock.close()
    return "ok"


def test_many_starts_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "PATIENCE_SECONDS", 60.0)
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            said = Counter(pool.map(start, [tmp_path / str(number)] * 8))
        assert said == {"ok": 8}
        assert sorted(path.name for path in (tmp_path / str(number)).iterdir()) == [".lock", "settings.json", "stamps"]


def test_many_restarts_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "PATIENCE_SECONDS", 60.0)
    for number in range(15):
        folder = tmp_path / str(number) / "out"
        start(folder)
        with ThreadPoolExecutor(8) as pool:
            said = Counter(pool.map(lambda restart: start(folder, restart=restart), [True, False] * 4))  # noqa: B023
        assert said == {"ok": 8}
        for other in folder.parent.iterdir():  # every folder is whole: none holds a part of two runs
            assert sorted(path.name for path in other.iterdir()) == [".lock", "settings.json", "stamps"]


@pytest.mark.parametrize("left", [[], ["stamps/"], ["stamps/", ".lock"], [".lock"], [".lock", "settings.json.part"]])
def test_a_start_that_was_killed_is_done_again(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text('{"cor')
    Workspace(tmp_path, SETTINGS).lock.close()
    assert read_json(tmp_path / "settings.json") == SETTINGS
    assert not (tmp_path / "settings.json.part").exists()


def test_a_folder_that_holds_only_the_folder_of_a_part_is_taken(tmp_path: Path) -> None:
    Workspace(tmp_path / "data", {}).lock.close()
    Workspace(tmp_path, SETTINGS)


@pytest.mark.parametrize("restart", [False, True])
def test_a_foreign_folder_is_left_as_it_was(tmp_path: Path, restart: bool) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    assert "no recipe made" in start(folder, restart=restart)
    assert list(tmp_path.rglob("*")) == [folder, folder / "thesis.tex"]


@pytest.mark.parametrize("where", ["", "data", "runs/lie-seed1"])
def test_restart_waits_for_no_one(stamped: Path, where: str) -> None:
    at_work = Workspace(stamped / where, SETTINGS)
    assert start(stamped, restart=True) == "at work"
    assert not stamped.with_name("out.old1").exists()
    at_work.lock.close()
    assert start(stamped, restart=True) == "ok"
    assert (stamped.with_name("out.old1") / "dish.txt").exists()


def test_restart_does_not_rename_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("letter")
    with pytest.raises(RecipeError, match="is a file; give a folder"):
        Workspace(tmp_path / "out", SETTINGS, restart=True)
    assert (tmp_path / "out").read_text() == "letter"


def test_settings_that_differ_are_named_one_by_one(tmp_path: Path) -> None:
    made = {"preset": "tiny", "model": {"heads": 2, "width": 16}}
    Workspace(tmp_path, made).lock.close()
    with pytest.raises(RecipeError, match=r"other settings \(model\.heads = 2 there, 4 now\)"):
        Workspace(tmp_path, {"preset": "tiny", "model": {"heads": 4, "width": 16}})


def test_what_was_cut_short_is_swept(stamped: Path) -> None:
    whole = ["checkpoints/checkpoint_last.pt", "checkpoints/checkpoint1.pt", "a.tmp", "download/corpus.tgz.part"]
    parts = ["text/train.de.part", "model.part/x", ".average.pt.4711.tmp", "checkpoints/checkpoint_last.pt.corrupt",
             "checkpoints/checkpoint_1_5.pt.tmp", ".release.part/y", "stamps/cook.json.part"]  # fmt: skip
    nested = Workspace(stamped / "data", {})
    other = ["data/train.arrow.part", "checkpoints2/checkpoint_last.pt.corrupt"]
    for name in [*whole, *parts, *other]:
        (stamped / name).parent.mkdir(parents=True, exist_ok=True)
        (stamped / name).write_text("half")
    (stamped / "link.part").symlink_to(stamped.parent)
    Workspace(stamped, SETTINGS)
    assert all((stamped / name).exists() for name in [*whole, *other, "dish.txt"])
    assert not any((stamped / name).exists() for name in [*parts, "model.part", ".release.part", "link.part"])
    assert stamped.parent.is_dir()
    nested.lock.close()


# --- stages -----------------------------------------------------------------------------------------------------------


class Kitchen:
    """Stages that write down when they were done; one of them may fail."""

    def __init__(self, folder: Path) -> None:
        self.space = Workspace(folder, SETTINGS)
        self.done: list[str] = []
        self.broken: set[str] = set()

    def stages(self, **needs: tuple[str, ...] | None) -> list[Stage]:
        return [Stage(name, partial(self.work, name), needed) for name, needed in needs.items()]

    def work(self, name: str) -> Made:
        self.done.append(name)
        if name in self.broken:
            raise RecipeError("no salt")
        (self.space.folder / name).write_text("made")
        return Made([self.space.folder / name], cooks=2)


def test_what_follows_a_stage_done_again_is_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kitchen = Kitchen(tmp_path)
    stages = kitchen.stages(buy=None, cook=None, eat=None)
    for _ in range(2):
        assert kitchen.space.run(stages) == {}
    assert kitchen.done == ["buy", "cook", "eat"]
    assert capsys.readouterr().out.splitlines()[2:4] == ["eat       done in 0 s", "buy       done before"]
    (tmp_path / "stamps" / "cook.json").unlink()
    kitchen.broken = {"cook"}
    with pytest.raises(RecipeError, match="no salt"):
        kitchen.space.run(stages)
    kitchen.broken = set()
    kitchen.space.run(stages)
    assert kitchen.done == ["buy", "cook", "eat", "cook", "cook", "eat"]


def test_a_stamp_holds_what_the_stage_made(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.space.run(kitchen.stages(buy=None))
    stamp = read_json(tmp_path / "stamps" / "buy.json")
    assert list(stamp) == ["seconds", "cooks", "files"]  # as those of folders that are there already
    assert stamp["cooks"] == 2 and stamp["files"] == {"buy": digest(tmp_path / "buy")}


def test_what_does_not_need_a_stage_done_again_stays(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    stages = kitchen.stages(buy=(), bake=(), cook=("buy",), eat=("cook",), read=("bake",))
    kitchen.space.run(stages)
    kitchen.done.clear()
    kitchen.space.forget(["buy"])
    kitchen.space.run(stages)
    assert kitchen.done == ["buy", "cook", "eat"]


def test_a_run_ends_with_the_stage_that_is_named(tmp_path: Path) -> None:
    """What comes later is done again all the same, when it is its turn."""
    kitchen = Kitchen(tmp_path)
    stages = kitchen.stages(buy=None, cook=None, eat=None)
    kitchen.space.run(stages)
    kitchen.done.clear()
    kitchen.space.forget(["buy"])
    kitchen.space.run(stages, "cook")
    assert kitchen.done == ["buy", "cook"]
    kitchen.space.run(stages)
    assert kitchen.done == ["buy", "cook", "eat"]


def test_a_failure_leaves_alone_what_does_not_depend_on_it(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.broken = {"cook"}
    stages = kitchen.stages(buy=(), cook=("buy",), eat=("cook",), read=())
    failed = kitchen.space.run(stages, keep_going=True)
    assert failed == {"cook": "no salt", "eat": "cook failed: no salt"} and kitchen.done == ["buy", "cook", "read"]
    (tmp_path / "buy").write_text("eaten")
    failed = kitchen.space.run(stages, keep_going=True)
    assert list(failed) == ["buy", "cook", "eat"] and "buy: has changed since" in failed["buy"]


@pytest.mark.parametrize("needs", [{"eat": ("cook",), "cook": ()}, {"eat": ("sleep",)}, {"eat": ("eat",)}])
def test_a_stage_needs_what_stands_before_it(tmp_path: Path, needs: Any) -> None:
    kitchen = Kitchen(tmp_path)
    with pytest.raises(ValueError, match="'eat' is there twice, or needs what is not before it"):
        kitchen.space.run(kitchen.stages(**needs))
    assert kitchen.done == []


def test_a_workspace_is_free_when_it_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Workspace(tmp_path, SETTINGS):
        raise KeyError
    Workspace(tmp_path, SETTINGS)
