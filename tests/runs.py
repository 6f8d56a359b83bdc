"""Runs of whole suites, and their record in docs/runs.md: what was run when, at which commit, with which versions.

    python tests/runs.py slow                      the slow tier, by this Python                  (make slow)
    python tests/runs.py versions                  the default suite by each Python that is here  (make versions)
    python tests/runs.py versions 3.10 lowest      some of them

`versions` makes an environment for each in .versions/, as `make install` does: Python 3.10 to 3.13, of pyenv or on the
PATH, and `lowest`, Python 3.11 with the lowest torch and transformers that pyproject.toml allows. An environment that
is complete is used again, and for its own version the one that this Python is of. A run replaces the row of its
kind, and a part of a suite is recorded nowhere. Interrupted? The same command goes on: what this commit passed is not
run again, unless it is named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "runs.md"
ENVIRONMENTS = ROOT / ".versions"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OWN = ".".join(map(str, sys.version_info[:2]))
LOWEST, LOWEST_PYTHON = "lowest", "3.11"
BOUNDED = ("torch", "transformers")  # of these `lowest` takes the lower bounds
OF_THEIR_TIME = ("numpy<2.4",)  # Triton 3.4, torch 2.8's, interprets kernels with no later one
COLUMNS = ("suite", "date (UTC)", "commit", "Python", "torch", "transformers", "outcome", "minutes", "remarks")
HEAD = """# The record of runs

Whole suites, the last run of each; written by `make slow` and `make versions` (`tests/runs.py`), never by hand. What
has no row was not run. The default suite also runs in CI with one interpreter; of a GPU see
[What is tested where](tested.md).

"""

Row = dict[str, str]


# --- the record ---------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    """The rows of the record.

    Raises:
        ValueError: a line of the table that does not have its columns.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = []
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != len(COLUMNS):
            raise ValueError(
                f"{path}: {line!r} has {len(cells)} cells, not {len(COLUMNS)}; take the file of the commit"
            )
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def write(path: Path, rows: Sequence[Row]) -> None:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row[column] for column in COLUMNS] for row in rows)]
    text = HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    temporary = path.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def add(path: Path, row: Row) -> None:
    """In the place of the last run of that suite, or at the end."""
    row = {column: row[column].replace("|", "/").strip() or "–" for column in COLUMNS}
    rows = read(path)
    places = [i for i, other in enumerate(rows) if other["suite"] == row["suite"]]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    write(path, rows)


def commit() -> str:
    """The commit of the clone, marked when files other than the record differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ".", f":!{RECORD.relative_to(ROOT)}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git clone)"
    return head.strip() + (" with local changes" if changed.strip() else "")


def passed(path: Path, suite: str, at: str) -> bool:
    """Whether the last run of that suite was of this very commit, whole, and without a failure."""
    return " " not in at and any(  # neither "unknown (…" nor "… with local changes", which may be others by now
        (row["suite"], row["commit"]) == (suite, at) and re.fullmatch(r"\d+ passed(, \d+ skipped)?", row["outcome"])
        for row in read(path)
    )


# --- a suite ------------------------------------------------------------------------------------------------------


def versions_of(python: Path) -> dict[str, str]:
    """Of Python, torch and transformers there; "–" for what is not installed."""
    code = """if True:
        import json, platform
        from importlib.metadata import PackageNotFoundError, version
        def of(name):
            try:
                return version(name)
            except PackageNotFoundError:
                return "–"
        found = {name: of(name) for name in ("torch", "transformers")}
        print(json.dumps({"Python": platform.python_version(), **found}))
        """
    found: dict[str, str] = json.loads(
        subprocess.run([str(python), "-c", code], capture_output=True, check=True).stdout
    )
    return found


def outcome(report: Path, status: int) -> str:
    """In words, from pytest's report; a report that is not there or empty is no success."""
    try:
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return f"broke off with status {status}, no report"
    counts = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    parts = [f"{passed} passed"]
    parts += [
        f"**{counts[key]} {name}**" for key, name in (("failures", "failed"), ("errors", "errors")) if counts[key]
    ]
    parts += [f"{counts['skipped']} skipped"] if counts["skipped"] else []
    if status not in (0, 1) or (status == 1 and not counts["failures"] + counts["errors"]):
        parts.append(f"**ended with status {status}**")
    return ", ".join(parts)


def not_passed(report: Path, most: int = 5) -> list[str]:
    """Which tests failed, and why others were skipped; the first of them."""
    try:
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return []
    found = []
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            found.append(f"failed: {case.get('name')}")
        elif (skipped := case.find("skipped")) is not None:
            found.append(f"skipped: {skipped.get('message')}")
    found = [" ".join(what.split()) for what in dict.fromkeys(found)]
    return found[:most] + ([f"and {len(found) - most} more"] if len(found) > most else [])


def run_suite(name: str, python: Path, arguments: Sequence[str], record: Path, remarks: str = "") -> int:
    """Run pytest, and record what came out."""
    begin, at, row = time.monotonic(), commit(), versions_of(python)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [str(python), "-m", "pytest", *arguments, "--durations=10", f"--junit-xml={report}"]
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
        if status == 2 or status < 0:
            print(f"interrupted (status {status}): nothing is recorded", file=sys.stderr)
            return 130
        words, others = outcome(report, status), not_passed(report)
    minutes = (time.monotonic() - begin) / 60
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    row |= {"suite": name, "date (UTC)": date, "commit": at, "outcome": words, "minutes": f"{minutes:.0f}"}
    add(record, {**row, "remarks": "; ".join([remarks, *others] if remarks else others)})
    print(f"{name}: {words}; recorded in {record}")
    return status


def slow(workers: str, record: Path) -> int:
    return run_suite("slow tier", Path(sys.executable), ["-m", "slow", "-n", workers, "--dist", "loadfile"], record)


# --- environments -------------------------------------------------------------------------------------------------


def find_python(version: str) -> Path | None:
    """Of pyenv, the newest of that version, or on the PATH."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [path for path in home.glob(f"{version}.*/bin/python") if path.is_file()]
    if found:
        return max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.parent.name)])
    on_path = shutil.which(f"python{version}")
    return Path(on_path) if on_path else None


def lower_bounds(pyproject: str) -> dict[str, str]:
    """Of the packages of `BOUNDED`: "torch": "2.8.0".

    Raises:
        ValueError: one that has none.
    """
    bounds = {}
    for name in BOUNDED:
        match = re.search(rf'"{name}>=([\d.]+)', pyproject)
        if match is None:
            raise ValueError(f"pyproject.toml gives no lower bound of {name}")
        bounds[name] = match[1] if match[1].count(".") > 1 else f"{match[1]}.0"
    return bounds


def environment(name: str, python: Path, bounds: Mapping[str, str]) -> Path:
    """The Python of an environment by `make install`, made if it is not there yet, or there of other bounds.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    home = ENVIRONMENTS / name
    ENVIRONMENTS.mkdir(exist_ok=True)
    settings = {**os.environ}
    words = ["make", "install", f"VENV={home.relative_to(ROOT)}", f"PYTHON={python}"]
    if bounds:
        constraints = ENVIRONMENTS / f"{name}.txt"
        lines = (*(f"{package}=={version}" for package, version in bounds.items()), *OF_THEIR_TIME)
        text = "".join(f"{line}\n" for line in lines)
        if not constraints.exists() or constraints.read_text() != text:
            shutil.rmtree(home, ignore_errors=True)  # fairseq there is built against another torch
            constraints.write_text(text)
        settings["PIP_CONSTRAINT"] = str(constraints)
        words.append(f"TORCH=torch=={bounds['torch']}")
    subprocess.run(words, cwd=ROOT, env=settings, check=True)
    return home / "bin" / "python"


def versions(chosen: Sequence[str], workers: str, record: Path) -> int:
    """The default suite by each; one that fails or cannot be installed is recorded so and ends no other."""
    worst = 0
    for name in chosen or (*PYTHONS, LOWEST):
        version = LOWEST_PYTHON if name == LOWEST else name
        bounds = lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8")) if name == LOWEST else {}
        title = f"default suite, lowest {' and '.join(bounds)}" if bounds else f"default suite, Python {version}"
        at = commit()
        if not chosen and passed(record, title, at):
            print(f"{title}: passed at {at}, not run again; name it to do so")
            continue
        python = find_python(version)
        if python is None:
            print(f"{title}: no python{version} in pyenv or on the PATH; left out", file=sys.stderr)
            worst = worst or 1
            continue
        begin = time.monotonic()
        try:
            inside = Path(sys.executable) if name == OWN else environment(name, python, bounds)
        except subprocess.CalledProcessError as error:
            blank = dict.fromkeys(COLUMNS, "–") | {"Python": version, "torch": bounds.get("torch", "–")}
            date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
            minutes = f"{(time.monotonic() - begin) / 60:.0f}"
            words = f"**could not be installed** (make install ended with status {error.returncode})"
            add(
                record, blank | {"suite": title, "date (UTC)": date, "commit": at, "outcome": words, "minutes": minutes}
            )
            print(f"{title}: {words}; recorded in {record}", file=sys.stderr)
            worst = worst or 1
            continue
        status = run_suite(title, inside, ["-n", workers, "--dist", "loadfile"], record)
        if status == 130:
            return status
        worst = worst or status
    return worst


def _workers(text: str) -> str:
    if text in ("auto", "logical") or re.fullmatch(r"[0-9]+", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, auto or logical")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/runs.py", description="Run whole suites, and record what came out in docs/runs.md."
    )
    parser.add_argument("--workers", type=_workers, default="2", metavar="N", help="of pytest (default: %(default)s)")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="default: docs/runs.md")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("slow", help="the slow tier, by this Python")
    several = commands.add_parser("versions", help="the default suite by each Python that is here, and lower bounds")
    known = (*PYTHONS, LOWEST)
    several.add_argument("chosen", nargs="*", metavar="VERSION", help=", ".join(known))
    args = parser.parse_args(argv)
    for name in getattr(args, "chosen", ()):
        if name not in known:
            several.error(f"{name} is not one of {', '.join(known)}")
    try:
        read(args.record)
    except (OSError, ValueError) as error:  # told before hours are spent
        parser.error(f"--record {args.record} cannot be read: {error}")
    with contextlib.suppress(KeyboardInterrupt):
        if args.command == "slow":
            return slow(args.workers, args.record)
        return versions(args.chosen, args.workers, args.record)
    return 130


if __name__ == "__main__":
    sys.exit(main())
