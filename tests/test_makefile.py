"""`make install`, with a Python that installs nothing and notes what it is asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


class Clone:
    def __init__(self, root: Path, makefile: Path) -> None:
        self.root, self.log = root, root / "log"
        shutil.copy(makefile, root)
        (root / "pyproject.toml").touch()
        python = root / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\necho "$*" >> "{self.log}"\n')
        python.chmod(0o755)

    def make(self, *arguments: str) -> list[str]:
        """What was installed."""
        self.log.write_text("")
        subprocess.run(["make", f"PYTHON={sys.executable}", *arguments], cwd=self.root, check=True, capture_output=True)
        words = [line.split(" install ")[1] for line in self.log.read_text().splitlines() if " install " in line]
        return [word.split()[0] for word in words]


@pytest.fixture
def clone(tmp_path: Path, project_root: Path) -> Clone:
    return Clone(tmp_path, project_root / "Makefile")


def test_a_torch_that_is_asked_for_by_name_is_installed_and_stays(clone: Clone) -> None:
    first = clone.make("install")
    assert first[0] == "torch==2.13.0" and len(first) == 3  # torch, macaron, fairseq
    assert clone.make("install") == []
    assert clone.make("install", "TORCH=torch==2.8.0")[0] == "torch==2.8.0"
    assert clone.make("install", "TORCH=torch==2.8.0") == []
    assert clone.make("test") == []  # names none
    assert clone.make("install", "TORCH=torch==2.13.0")[0] == "torch==2.13.0"


def test_an_interrupted_install_goes_on_where_it_stopped(clone: Clone) -> None:
    whole = clone.make("install", "TORCH=torch==2.8.0")
    (clone.root / ".venv" / ".macaron" / "installed").unlink()
    assert clone.make("install", "TORCH=torch==2.8.0") == whole[1:]
