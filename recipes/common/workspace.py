"""The output folder: its settings, its lock, and the stamps that say which stages are complete."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.common.errors import RecipeError
from recipes.common.textfile import lines


def write_json(path: Path, content: Any) -> None:
    """All or nothing: a reader never sees half a file."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(
            f"{path}: not valid JSON ({error}); the file is truncated or was edited. "
            f"Choose another folder with --out, or --restart to set this one aside and begin anew"
        ) from error


def read_lines(path: Path) -> list[str]:
    """All lines of a text file, see `recipes.common.textfile.lines`."""
    return list(lines(path))


def digest(path: Path) -> str:
    """sha256 of a file (hashlib.file_digest once Python 3.10 is not supported any more)."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


class Workspace:
    """A folder that remembers. A stage is stamped when complete, with the sha256 of what it made.

    Args:
        folder: created when absent; one that holds other files is refused.
        settings: must equal those that the folder was made with.
        restart: set an existing folder aside under a numbered name first.
        wait: wait for another run that is at work in the folder, instead of raising.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], restart: bool = False, wait: bool = False):
        self.folder = folder
        if restart and folder.exists():
            aside = next(
                name for n in range(1, 10**6) if not (name := folder.with_name(f"{folder.name}.old{n}")).exists()
            )
            folder.rename(aside)
            print(f"restart   {folder} is now {aside}")
        if folder.exists() and not folder.is_dir():
            raise RecipeError(f"--out {folder}: is a file; give a folder")
        record = folder / "settings.json"
        if folder.is_dir() and any(folder.iterdir()) and not record.exists():
            raise RecipeError(
                f"--out {folder}: the folder holds files that no recipe made; give a new or empty folder with --out"
            )
        (folder / "stamps").mkdir(parents=True, exist_ok=True)
        self._lock(wait)
        if not record.exists():
            write_json(record, settings)
            return
        try:
            self._compare(read_json(record), settings)
        except RecipeError:
            self.lock.close()
            raise

    def _lock(self, wait: bool) -> None:
        """Held by this process and, through inheritance, by the training it starts, even if orphaned."""
        self.lock = (self.folder / ".lock").open("a")
        os.set_inheritable(self.lock.fileno(), True)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            self.lock.close()
            raise RecipeError(
                f"--out {self.folder}: another run, or a training it left behind, is at work there; "
                f"wait for it, stop it, or give another folder with --out"
            ) from error

    def _compare(self, made_with: dict[str, Any], settings: dict[str, Any]) -> None:
        names = sorted(made_with.keys() | settings.keys())
        differing = [
            f"{name} = {made_with.get(name)!r} there, {settings.get(name)!r} now"
            for name in names
            if made_with.get(name) != settings.get(name)
        ]
        if differing:
            raise RecipeError(
                f"--out {self.folder}: made with other settings ({'; '.join(differing)}); results are not "
                f"mixed. Give another folder with --out, or --restart to set this one aside and begin anew"
            )

    def stamp(self, stage: str) -> dict[str, Any] | None:
        """What `stage` recorded when it was completed, or None; its files must still be what they were."""
        path = self.folder / "stamps" / f"{stage}.json"
        if not path.exists():
            return None
        stamp: dict[str, Any] = read_json(path)
        for name, expected in stamp["files"].items():
            made = self.folder / name
            if not made.is_file() or digest(made) != expected:
                state = "has changed since" if made.is_file() else "is gone since"
                raise RecipeError(
                    f"{made}: {state} stage '{stage}' made it; put it back, or delete {path} to have "
                    f"the stage done again, or use --restart"
                )
        return stamp

    def finish(self, stage: str, files: Iterable[Path], started: float, **facts: Any) -> dict[str, Any]:
        stamp = {
            "seconds": round(time.time() - started, 1),
            **facts,
            "files": {str(path.relative_to(self.folder)): digest(path) for path in files},
        }
        write_json(self.folder / "stamps" / f"{stage}.json", stamp)
        return stamp
