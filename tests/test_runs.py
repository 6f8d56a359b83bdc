"""The record of runs: what a row says is what pytest said, and nothing else is recorded."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def runs(project_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("runs", project_root / "tests" / "runs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def apart(tmp_path: Path) -> list[str]:
    """Options of a pytest that knows nothing of this project."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return ["-q", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini"), str(tmp_path / "test_x.py")]


@pytest.fixture
def record(runs: ModuleType, tmp_path: Path) -> Path:
    runs.write(tmp_path / "runs.md", [])
    return tmp_path / "runs.md"


def test_the_record_of_this_project_can_be_read(runs: ModuleType) -> None:
    assert runs.RECORD.read_text(encoding="utf-8").startswith(runs.HEAD)
    for row in runs.read(runs.RECORD):
        assert row["date (UTC)"].startswith("20") and row["commit"] and row["outcome"]


def test_a_run_is_recorded_with_what_pytest_said(
    runs: ModuleType, record: Path, apart: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to import
    (tmp_path / "test_x.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): assert False\n"
        "@pytest.mark.skip(reason='no | at hand')\ndef test_d(): pass\n"
    )
    status = runs.run_suite("a suite", Path(sys.executable), apart, record)
    (row,) = runs.read(record)
    assert status == 1
    assert row["outcome"] == "2 passed, **1 failed**, 1 skipped"
    assert row["suite"] == "a suite" and row["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert row["torch"].startswith("2.") and row["remarks"] == "failed: test_c; skipped: no / at hand"
    # The next run of the suite takes its place; another has a row of its own.
    assert runs.run_suite("a suite", Path(sys.executable), [*apart[:-1], f"{apart[-1]}::test_a"], record) == 0
    runs.add(record, row | {"suite": "another"})
    assert [(r["suite"], r["outcome"]) for r in runs.read(record)] == [
        ("a suite", "1 passed"),
        ("another", "2 passed, **1 failed**, 1 skipped"),
    ]
    assert runs.read(record)[0]["remarks"] == "–"


def test_of_many_that_did_not_pass_the_first_are_named(runs: ModuleType, tmp_path: Path) -> None:
    cases = [f'<testcase name="test_{i}"><failure/></testcase>' for i in range(7)]
    (tmp_path / "r.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    assert runs.not_passed(tmp_path / "r.xml", 2) == ["failed: test_0", "failed: test_1", "and 5 more"]
    assert runs.not_passed(tmp_path / "none.xml") == []


def test_an_interrupted_run_is_not_recorded(
    runs: ModuleType, record: Path, apart: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "test_x.py").write_text("def test_a(): raise KeyboardInterrupt\n")
    assert runs.run_suite("a suite", Path(sys.executable), apart, record) == 130
    assert runs.read(record) == []


@pytest.mark.parametrize(
    ("report", "status", "said"),
    [
        (None, 3, "broke off with status 3, no report"),
        ("<testsuites>", 1, "broke off with status 1, no report"),
        ('<testsuites><testsuite tests="2"/></testsuites>', 5, "2 passed, **ended with status 5**"),
        ('<testsuites><testsuite tests="2" errors="1"/></testsuites>', 1, "1 passed, **1 errors**"),
        ('<testsuites><testsuite tests="2"/></testsuites>', 1, "2 passed, **ended with status 1**"),
    ],
)
def test_what_is_no_success_is_not_called_one(
    runs: ModuleType, report: str | None, status: int, said: str, tmp_path: Path
) -> None:
    if report is not None:
        (tmp_path / "r.xml").write_text(report)
    assert runs.outcome(tmp_path / "r.xml", status) == said


def test_a_damaged_record_is_refused(runs: ModuleType, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.write_text(record.read_text(encoding="utf-8") + "| one | two |\n", encoding="utf-8")
    for path, said in (
        (record, "has 2 cells, not 9; take the file of the commit"),
        (record.parent / "none.md", "none.md cannot be read: [Errno 2]"),
    ):
        with pytest.raises(SystemExit):
            runs.main(["--record", str(path), "slow"])
        assert said in capsys.readouterr().err


def test_workers_that_are_no_number_are_refused(
    runs: ModuleType, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """pytest would refuse them, and that would take the place of the last run in the record."""
    for workers in ("two", "-1", ""):
        with pytest.raises(SystemExit):
            runs.main([f"--workers={workers}", "--record", str(record), "slow"])
        assert f"{workers!r} is not a number of processes, auto or logical" in capsys.readouterr().err


def test_an_unknown_version_is_refused(runs: ModuleType, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runs.main(["--record", str(record), "versions", "3.9"])
    assert "3.9 is not one of 3.10, 3.11, 3.12, 3.13, lowest" in capsys.readouterr().err


def test_lower_bounds_are_those_of_the_project(runs: ModuleType, project_root: Path) -> None:
    text = (project_root / "pyproject.toml").read_text(encoding="utf-8")
    assert runs.lower_bounds(text) == {"torch": "2.8.0", "transformers": "5.6.0"}
    with pytest.raises(ValueError, match="no lower bound of torch"):
        runs.lower_bounds("")


def test_the_newest_of_a_version_is_found(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("3.12.9", "3.12.10", "3.1.4"):
        python = tmp_path / "versions" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert runs.find_python("3.12") == tmp_path / "versions" / "3.12.10" / "bin" / "python"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.find_python("3.13") is None


def test_an_environment_of_other_bounds_is_made_anew(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(words: list[str], env: dict[str, str], **_: object) -> None:
        found.append((words[-1], kept.exists(), Path(env["PIP_CONSTRAINT"]).read_text().split()[0]))
        kept.parent.mkdir(exist_ok=True)
        kept.touch()

    kept, found = tmp_path / "folder" / "lowest" / "installed", []
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "ENVIRONMENTS", tmp_path / "folder")
    monkeypatch.setattr(subprocess, "run", make)
    for version in ("1.0", "1.0", "1.1"):
        python = runs.environment("lowest", Path(sys.executable), {"torch": version})
        assert python == tmp_path / "folder" / "lowest" / "bin" / "python"
    assert [there for _, there, _ in found] == [False, True, False]
    assert [(word, line) for word, _, line in found[1:]] == [
        ("TORCH=torch==1.0", "torch==1.0"), ("TORCH=torch==1.1", "torch==1.1")
    ]  # fmt: skip


def test_an_environment_that_cannot_be_installed_is_recorded_and_ends_no_other(
    runs: ModuleType, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def environment(name: str, python: Path, bounds: dict[str, str]) -> Path:
        asked.append((name, bounds))
        if name == "3.10":
            raise subprocess.CalledProcessError(2, ["make"])
        return Path(sys.executable)

    def run_suite(name: str, python: Path, arguments: list[str], path: Path) -> int:
        runs.add(path, dict.fromkeys(runs.COLUMNS, "x") | {"suite": name})
        return 0

    monkeypatch.setattr(runs, "environment", environment)
    monkeypatch.setattr(runs, "run_suite", run_suite)
    monkeypatch.setattr(runs, "find_python", lambda version: None if version == "3.13" else Path(sys.executable))
    monkeypatch.setattr(runs, "OWN", "3.12")  # which has an environment
    assert runs.versions([], "1", record) == 1
    assert [name for name, _ in asked] == ["3.10", "3.11", "lowest"]
    assert asked[-1][1] == {"torch": "2.8.0", "transformers": "5.6.0"}
    assert [(row["suite"], row["outcome"]) for row in runs.read(record)] == [
        ("default suite, Python 3.10", "**could not be installed** (make install ended with status 2)"),
        ("default suite, Python 3.11", "x"),
        ("default suite, Python 3.12", "x"),
        ("default suite, lowest torch and transformers", "x"),
    ]


def test_what_this_commit_passed_is_run_again_when_it_is_named_only(
    runs: ModuleType, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {
        "Python 3.10": ("abc", "5 passed, 1 skipped"), "Python 3.11": ("abc", "5 passed, **1 failed**"),
        "Python 3.12": ("older", "6 passed"), "Python 3.13": ("abc", "6 passed, **ended with status 5**"),
        "lowest torch and transformers": ("abc with local changes", "6 passed"),
    }  # fmt: skip
    for name, (at, outcome) in outcomes.items():
        suite = f"default suite, {name}"
        runs.add(record, dict.fromkeys(runs.COLUMNS, "x") | {"suite": suite, "commit": at, "outcome": outcome})
    done: list[str] = []
    monkeypatch.setattr(runs, "environment", lambda *_: Path(sys.executable))
    monkeypatch.setattr(runs, "find_python", lambda version: Path(sys.executable))
    monkeypatch.setattr(runs, "run_suite", lambda name, *_: done.append(name.removeprefix("default suite, ")) or 0)
    monkeypatch.setattr(runs, "commit", lambda: "abc")
    assert runs.versions([], "1", record) == 0
    assert done == [name for name in outcomes if name != "Python 3.10"]
    assert runs.versions(["3.10"], "1", record) == 0 and done[-1] == "Python 3.10"
    done.clear()
    monkeypatch.setattr(runs, "commit", lambda: "abc with local changes")  # which may be others than then
    assert runs.versions([], "1", record) == 0 and len(done) == 5
