"""The output folder: its settings, its lock, and the stamps that say which stages are complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from macaron.files import digest

from .errors import RecipeError
from .textfile import lines


def write_json(path: Path, content: Any) -> None:
    """All or nothing: a reader never sees half a file.

    Raises:
        RecipeError: a number is NaN or infinite, which JSON does not have and no result may be.
    """
    if wrong := next(not_finite(content), None):
        raise RecipeError(f"{path}: {wrong[0] or 'it'} is {wrong[1]}, no number that a result can have; not written")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_name(path.name + ".part")
    try:
        # What is not UTF-8 in a file's name is a lone surrogate here, whose escape is JSON's too.
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def not_finite(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of each number that is NaN or infinite."""
    if isinstance(content, float) and not math.isfinite(content):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from not_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from not_finite(value, f"{name}[{index}]")


class MissingEntryError(RecipeError, KeyError):
    """For those who ask for an entry and know what to do without it, it is the error of any dictionary."""

    __str__ = Exception.__str__


class JSONObject(dict[str, Any]):
    """An object of a JSON file, which names the file when an entry is missing."""

    path: Path

    def __missing__(self, key: str) -> NoReturn:
        raise MissingEntryError(f"{self.path}: has no entry {key!r}; {MENDING}")


MENDING = (
    "the file is truncated or was edited. Choose another folder with --out, or --restart to set this one aside and "
    "begin anew"
)


def read_json(path: Path) -> Any:
    """The object in a JSON file.

    Raises:
        RecipeError: the file cannot be read, or holds something else.
    """

    def record(entries: dict[str, Any]) -> JSONObject:
        made = JSONObject(entries)
        made.path = path
        return made

    if path.exists() and not path.is_file():
        raise RecipeError(f"{path}: is no file, but a JSON file belongs there; remove it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=record)
        if wrong := next(not_finite(content), None):
            raise ValueError(f"{wrong[0]} is {wrong[1]}")
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid JSON ({error}); {MENDING}") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); put it back, or use --restart") from error
    if not isinstance(content, JSONObject):
        raise RecipeError(f"{path}: holds {type(content).__name__}, not an object with named entries; {MENDING}")
    return content


def inside(folder: Path, name: Any) -> Path:
    """`folder / name`, for a name that was read from a file: it must not lead out of the folder.

    Raises:
        RecipeError: the name is no text, empty, absolute, begins with ~, climbs with .., or passes a symbolic link
            that leaves the folder.
    """
    why = None
    if not isinstance(name, str) or not name or "\0" in name:
        why = "is not the name of a file"
    elif name.startswith(("/", "~")) or ".." in Path(name).parts:
        why = "leads out of the folder"
    else:
        try:
            whole, real = folder.resolve(), (folder / name).resolve()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                real.stat()
            if real == whole or not real.is_relative_to(whole):
                why = "leads out of the folder" if real != whole else "is the folder itself"
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long or not encodable
            why = f"cannot be followed ({error})"
    if why:
        raise RecipeError(f"{folder}: the name {name!r}, read from a file there, {why}; refused. {MENDING}")
    return folder / str(name)


def read_lines(path: Path) -> list[str]:
    """All lines of a text file, see `recipes.common.textfile.lines`."""
    return list(lines(path))


class Made:
    """What a stage leaves behind.

    Args:
        files: inside the workspace; their sha256 goes into the stamp.
        facts: for the stamp too, as JSON takes them.
    """

    def __init__(self, files: Iterable[Path] = (), **facts: Any) -> None:
        self.files, self.facts = tuple(files), facts


@dataclass(frozen=True)
class Stage:
    """A part of a run that is done once.

    Args:
        name: of its stamp, and on the screen.
        work: does it; what it needs to know is bound to it.
        needs: names of the stages before it that it depends on; None: all of them.
    """

    name: str
    work: Callable[[], Made]
    needs: tuple[str, ...] | None = None


class Workspace:
    """A folder that remembers. A stage is stamped when complete, with the sha256 of what it made.

    Whoever holds the lock of the folder owns it. What a run that was killed left half-written is removed.

        with Workspace(folder, settings) as space:
            space.run([Stage("cook", cook), Stage("eat", eat)])

    Args:
        folder: created when absent; one that holds other files is refused.
        settings: must equal those that the folder was made with.
        restart: set an existing folder aside under a numbered name first.
        wait: wait for another run that is at work in the folder, instead of raising.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], restart: bool = False, wait: bool = False):
        self.folder = folder
        # One look: between two, another run may set the folder aside.
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise RecipeError(f"--out {folder}: is a file; give a folder")
        if restart and folder.exists():
            self._set_aside()
        self.lock = self._lock(folder, wait)
        try:
            self._open(settings)
        except BaseException:
            self.lock.close()
            raise

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.lock.close()

    def _open(self, settings: dict[str, Any]) -> None:
        record = self.folder / "settings.json"
        if record.exists():
            self._compare(read_json(record), settings)
        else:
            self._check_ours()
            write_json(record, settings)
        (self.folder / "stamps").mkdir(exist_ok=True)
        sweep(self.folder)

    def _check_ours(self) -> None:
        """Raise a RecipeError for a folder without settings that holds what no recipe made."""
        if foreign := [path.name for path in self.folder.iterdir() if not ours(path)]:
            if len(list(self.folder.iterdir())) == len(foreign) + 1:  # the lock, made just now
                (self.folder / LOCK).unlink()
            raise RecipeError(
                f"--out {self.folder}: the folder holds files that no recipe made; give a new or empty folder with "
                f"--out"
            )

    def _set_aside(self) -> None:
        """Rename the folder, unless a run is at work in it, or in a folder of its own in there, or it is no run's."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock(self.folder, wait=False))
            for place, _, files in os.walk(self.folder):
                if LOCK in files and Path(place) != self.folder:
                    stack.enter_context(self._lock(Path(place), wait=False))
            if all(path.name == LOCK for path in self.folder.iterdir()):
                return
            if not (self.folder / "settings.json").exists():
                self._check_ours()
            aside = next(
                name
                for n in range(1, 10**6)
                if not (name := self.folder.with_name(f"{self.folder.name}.old{n}")).exists()
            )
            self.folder.rename(aside)
        print(f"restart   {self.folder} is now {aside}")

    def _lock(self, folder: Path, wait: bool) -> IO[Any]:
        """Held by this process and, through inheritance, by what it starts, until that has ended too."""
        patience = time.monotonic() + PATIENCE_SECONDS
        while True:
            late = time.monotonic() > patience
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = (folder / LOCK).open("a")
            except (FileNotFoundError, FileExistsError):  # another run may set the folder aside at any moment
                if late or folder.is_file():
                    raise
                continue
            os.set_inheritable(lock.fileno(), True)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat()):
                    return lock
            except FileNotFoundError:
                pass
            except BlockingIOError:
                if late:
                    lock.close()
                    raise RecipeError(
                        f"--out {folder}: another run, or a training it left behind, is at work there; "
                        f"wait for it, stop it, or give another folder with --out"
                    ) from None
                time.sleep(0.01)
            except BaseException:
                lock.close()
                raise
            lock.close()

    def _compare(self, made_with: dict[str, Any], settings: dict[str, Any]) -> None:
        there, now = (dict(flat(record)) for record in (made_with, json.loads(json.dumps(settings))))
        differing = [
            f"{name} = {there.get(name)!r} there, {now.get(name)!r} now"
            for name in sorted(there.keys() | now.keys())
            if there.get(name) != now.get(name)
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
        for name, expected in files_of(stamp, path).items():
            made = inside(self.folder, name)
            if not made.is_file() or digest(made) != expected:
                state = "has changed since" if made.is_file() else "is gone since"
                raise RecipeError(
                    f"{made}: {state} stage '{stage}' made it; put it back, or delete {path} to have "
                    f"the stage done again, or use --restart"
                )
        return stamp

    def finish(self, stage: str, files: Iterable[Path], started: float, **facts: Any) -> dict[str, Any]:
        """Stamp a stage that was done in another way than by `run`."""
        stamp = {
            "seconds": round(time.time() - started, 1),
            **facts,
            "files": {str(path.relative_to(self.folder)): digest(path) for path in files},
        }
        write_json(self.folder / "stamps" / f"{stage}.json", stamp)
        return stamp

    def forget(self, stages: Iterable[str]) -> None:
        """Have them done again."""
        for stage in stages:
            (self.folder / "stamps" / f"{stage}.json").unlink(missing_ok=True)

    def run(
        self,
        stages: Sequence[Stage],
        last: str | None = None,
        *,
        keep_going: bool = False,
        say: Callable[[str], object] = lambda line: print(line, flush=True),
    ) -> dict[str, str]:
        """Do what is not done yet, and again what depends on a stage that had to be done.

        Args:
            stages: in the order in which they are done.
            last: the stage to end with; those after it are done another time.
            keep_going: a stage that fails leaves alone what does not depend on it.
            say: takes a line about each stage.

        Returns:
            {stage: message} of those that failed, and of those that depend on them; else {}.

        Raises:
            RecipeError: a stage failed, or what it had made has changed since; not with `keep_going`.
        """
        dependents = dependents_of(stages)
        if last is not None:
            stages = stages[: [stage.name for stage in stages].index(last) + 1]
        failed: dict[str, str] = {}
        for name, work in ((stage.name, stage.work) for stage in stages):
            if name in failed:
                continue
            try:
                if self.stamp(name) is not None:
                    say(f"{name:<9} done before")
                    continue
                self.forget([name, *dependents[name]])
                started = time.time()
                made = work()
                seconds = self.finish(name, made.files, started, **made.facts)["seconds"]
            except RecipeError as error:
                if not keep_going:
                    raise
                failed |= {name: str(error), **{other: f"{name} failed: {error}" for other in dependents[name]}}
            else:
                say(f"{name:<9} done in {seconds:.0f} s")
        return failed


def dependents_of(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """{stage: those that need it, themselves or through others}.

    Raises:
        ValueError: two stages of one name, or one that needs what does not stand before it.
    """
    needed: dict[str, set[str]] = {}
    for stage in stages:
        direct = set(needed) if stage.needs is None else set(stage.needs)
        if stage.name in needed or not direct <= needed.keys():
            raise ValueError(f"stage {stage.name!r} is there twice, or needs what is not before it: {stage.needs}")
        needed[stage.name] = direct.union(*(needed[name] for name in direct))
    return {name: [other for other, theirs in needed.items() if name in theirs] for name in needed}


def files_of(stamp: dict[str, Any], path: Path) -> dict[str, str]:
    """{name: sha256} of what a stage made, from its stamp in `path`."""
    files = stamp["files"]
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise RecipeError(f"{path}: 'files' must name files with their sha256; {MENDING}")
    return files


def flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of entries under joined names."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


LOCK = ".lock"
PATIENCE_SECONDS = 5.0  # what a run that was killed had started ends within so long


def ours(path: Path) -> bool:
    """Whether a folder without settings may hold this: what a start that was killed leaves, or the folder of a part."""
    if path.name == "stamps":
        return path.is_dir() and not any(path.iterdir())
    return path.name in (LOCK, "settings.json.part") or (path / LOCK).is_file()


# Written under these names until it was whole: by us, by `macaron average`, by fairseq.
_UNFINISHED = re.compile(r".*\.part|\..*\.\d+\.tmp|checkpoint.*\.pt\.tmp")


def sweep(folder: Path) -> None:
    """Remove what was cut short, and the damaged checkpoint that another has replaced.

    Downloads stay, which are gone on with, and so do folders with a lock of their own.
    """
    for place, folders, files in os.walk(folder):
        here = Path(place)
        for name in [*folders, *files]:
            replaced = name == "checkpoint_last.pt.corrupt" and "checkpoint_last.pt" in files
            if _UNFINISHED.fullmatch(name) or replaced:
                path = here / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        folders[:] = [
            name
            for name in folders
            if name != "download" and not _UNFINISHED.fullmatch(name) and not (here / name / LOCK).exists()
        ]
