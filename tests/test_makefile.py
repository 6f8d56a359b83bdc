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
        python.write_text(f'#!/bin/sh\necho "$*" >> "{self.log}"\ncase "$*" in *torch==9.*) exit 1;; esac\n')
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


@pytest.mark.parametrize("before", [[], ["TORCH=torch==2.8.0"]], ids=["new", "another"])
def test_a_torch_whose_installation_was_interrupted_is_gone_on_with(clone: Clone, before: list[str]) -> None:
    """By commands that name none, too: a torch half installed would be taken for one."""
    if before:
        clone.make("install", *before)
    with pytest.raises(subprocess.CalledProcessError):
        clone.make("install", "TORCH=torch==9.0")
    with pytest.raises(subprocess.CalledProcessError) as error:
        clone.make("test")
    assert "torch==9.0" in clone.log.read_text()
    said = error.value.stdout.decode()
    assert "make: torch==9.0 and the build requirements were not installed" in said
    assert "name another: make install TORCH=torch==2.13.0" in said
    assert clone.make("test", "TORCH=torch==2.13.0")[0] == "torch==2.13.0"
    assert clone.make("test") == []


def test_fairseq_is_built_anew_for_another_torch(clone: Clone) -> None:
    """pip would take the wheel that it keeps, and what is installed already, for the same."""
    clone.make("install")
    assert "--no-cache-dir" not in clone.log.read_text()
    clone.make("install", "TORCH=torch==2.8.0")
    built, installed = [line for line in clone.log.read_text().splitlines() if "fairseq-fixed" in line]
    assert " --no-cache-dir wheel " in built and " --force-reinstall " in installed


@pytest.mark.parametrize("name", ["2.8.0", ""])
def test_what_is_no_torch_is_refused(clone: Clone, name: str) -> None:
    clone.make("install")
    with pytest.raises(subprocess.CalledProcessError) as error:
        clone.make("install", f"TORCH={name}")
    assert f"TORCH={name} is not what pip installs as torch; say it like TORCH=torch==" in error.value.stdout.decode()
    assert clone.make("install") == [] and not (clone.root / ".venv" / ".macaron" / "asked").exists()
