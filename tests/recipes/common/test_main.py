"""Whatever goes wrong in a command is one line and a status."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.common import main
from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, write_json


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def missing_entry() -> int:
    entries: dict[str, int] = {}
    return entries["seconds"]


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(RecipeError("--lr 0: too small")), 1, "recipes.cook: --lr 0: too small\n"),
        (raising(KeyboardInterrupt()), 130, "\nrecipes.cook: interrupted; come again\n"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "/data/x")), 1,
         "recipes.cook: /data/x: No space left on device; make room on the disk, then run the same command again\n"),
        (raising(PermissionError(errno.EACCES, "Permission denied", b"/data/x", None, "/y")), 1,
         "recipes.cook: /data/x → /y: Permission denied; give a place that you may use, or yourself the right to it, "
         "then run the same command again\n"),
        (raising(MemoryError()), 1,
         "recipes.cook: not enough memory (no more said); take smaller sizes, fewer jobs, or another machine\n"),
        (raising(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")), 1,
         "recipes.cook: not enough memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes); "
         "take smaller sizes, fewer jobs, or another machine\n"),
        (raising(RuntimeError("I/O error:\n No space left on device (os error 28)")), 1,
         "recipes.cook: I/O error: No space left on device (os error 28); make room on the disk, then run the same "
         "command again\n"),
    ],
)  # fmt: skip
def test_what_is_said(work: Any, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_command("cook", work, "come again") == status
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("error", [ValueError("a\nb"), TypeError(), RecursionError("deep"), OSError("x")])
def test_what_nobody_thought_of_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_command("cook", raising(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"recipes.cook: unexpected {type(error).__name__}: ") and said.count("\n") == 1
    assert "test_main.py, line" in said


def run_python(code: str, *options: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    root = Path(__file__).resolve().parents[3]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from recipes.common.main import run_command\n{code}"
    return subprocess.run([sys.executable, *options, "-c", code], check=False, stderr=subprocess.PIPE, **more)


def test_the_traceback_is_there_for_developers() -> None:
    done = run_python("sys.exit(run_command('cook', lambda: {}['salt']))", "-X", "dev", stdout=subprocess.PIPE)
    assert done.returncode == 1 and b"Traceback" in done.stderr and b"unexpected KeyError: 'salt'" in done.stderr


def test_a_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        done = run_python("sys.exit(run_command('cook', lambda: print('soup')))", stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        b"recipes.cook: No space left on device; make room on the disk, then run the same command again\n"
    )


def test_a_reader_that_has_seen_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_python("sys.exit(run_command('cook', lambda: print('soup' * 99999)))", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_names_that_are_not_utf8_are_printed() -> None:
    code = r"import os; sys.exit(run_command('cook', lambda: print(os.fsdecode(b'caf\xe9'))))"
    done = run_python(code, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUTF8": "1"})
    assert (done.returncode, done.stdout) == (0, b"caf\\udce9\n")


# --- options ------------------------------------------------------------------------------------------------------


def test_options_that_recipes_share() -> None:
    p = main.command_line("cook", "Soup.", out="soup/NAME", seeds=(1, 2), jobs="pots at a time", dry_run=True)
    args = p.parse_args([])
    assert (args.out, args.restart, args.seeds, args.jobs, args.dry_run) == (None, False, [1, 2], None, False)
    args = p.parse_args(["--out", "x", "--restart", "--seeds", "3", "--jobs", "2", "--dry-run"])
    assert (args.out, args.restart, args.seeds, args.jobs, args.dry_run) == (Path("x"), True, [3], 2, True)
    text = " ".join(p.format_help().split())
    assert "usage: python -m recipes.cook" in text and "(default: soup/NAME)" in text and "default: 1 2" in text


def test_a_recipe_has_the_options_that_it_asks_for() -> None:
    assert vars(main.command_line("cook", "Soup.").parse_args([])) == {}
    assert main.command_line("cook", "Soup.", seeds=()).parse_args([]).seeds is None
    with pytest.raises(SystemExit):
        main.command_line("cook", "Soup.", out="").parse_args([])


def test_commands_are_shown_as_one_would_type_them() -> None:
    assert main.shown([sys.executable, "-m", "recipes.cook", "a b"]) == "python -m recipes.cook 'a b'"
    assert main.module("compare.cost") == "recipes.compare.cost"


# --- every command ------------------------------------------------------------------------------------------------

RUNS = {  # a command, and the settings that it makes a folder with, as far as they are needed here
    "demo": ["--out"],
    "bert_pretrain": ["--text", "text.txt", "--out"],
    "multi30k_de_en": ["--out"],
    "iwslt14_de_en": ["--out"],
    "wmt14_en_de": ["--out"],
}


def command(name: str) -> Callable[[list[str]], int]:
    if name.endswith(("_de_en", "_en_de")):
        from recipes.translation.cli import main

        return lambda argv: main(name, argv)
    chosen: Callable[[list[str]], int] = importlib.import_module(f"recipes.{name}.__main__").main
    return chosen


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a sentence.\n")
    return tmp_path


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("content", ["[]", "null", "3", '{"corpus": ', '{"a": NaN}', '{"a": [' * 9999, "\x00"])
def test_settings_of_another_shape(name: str, content: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Workspace(place / "out", {}).lock.close()
    (place / "out" / "settings.json").write_text(content)
    assert command(name)([*RUNS[name], str(place / "out")]) == 1
    said = capsys.readouterr().err
    assert f"recipes.{name}: {place}/out/settings.json: " in said and said.count("\n") == 1
    assert (place / "out" / "settings.json").read_text() == content


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere", "/dev/null", "x" * 300])
def test_out_where_no_folder_can_be(name: str, out: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").write_text("letter")
    assert command(name)([*RUNS[name], out]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"recipes.{name}: ") and said.count("\n") == 1 and "unexpected" not in said
    assert (place / "file").read_text() == "letter"


@pytest.mark.parametrize("name", [*RUNS, "glue", "compare", "bench"])
def test_wrong_usage_has_status_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(name)(["--no-such-option"])
    assert ended.value.code == 2 and "usage: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "stamp", [{"files": {}}, {"seconds": 1}, {"files": [], "seconds": 1}, {"files": {"/etc/hosts": ""}}]
)
def test_stamps_of_another_shape(stamp: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.translation.pipeline import STAGES
    from recipes.translation.recipe import load

    space = Workspace(place / "out", load("demo").settings())
    for stage in STAGES:
        write_json(space.folder / "stamps" / f"{stage}.json", stamp)
    space.lock.close()
    assert command("demo")(["--out", str(place / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("recipes.demo: ") and said.count("\n") == 1
