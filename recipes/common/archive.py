"""Tar archives from elsewhere: only files that are asked for, each under its base name, and never more than text is."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from .errors import RecipeError
from .textfile import UNPACKING, page, unpacked

MOST = 1_000  # files that one archive may give


def unpack(archive: Path, patterns: tuple[str, ...], folder: Path) -> list[Path]:
    """The files whose base names match, in `folder`; one that is there already is written anew.

    Raises:
        RecipeError: the archive is damaged, holds links or two different files where one is asked for, or unpacks to
            more than text does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    with told(archive):
        for name, content in matching(archive, patterns):
            target = folder / name
            if target in made:
                raise RecipeError(f"{archive}: holds two files called {name}; which one is meant is not known")
            if len(made) == MOST:
                raise RecipeError(f"{archive}: more than {MOST:,} files in it match {', '.join(patterns)}")
            partial = folder / (name + ".part")
            with partial.open("wb") as file:
                shutil.copyfileobj(content, file, 2**20)
            partial.replace(target)
            made.append(target)
    return made


def check(archive: Path, patterns: tuple[str, ...]) -> None:
    """Read all of it, to its very end; raise a RecipeError unless files match and nothing is damaged."""
    with told(archive):
        found = False
        for _, content in matching(archive, patterns):
            found = True
            while content.read(2**20):
                pass
    if not found:
        raise RecipeError(f"{archive}: holds no file that matches {', '.join(patterns)}; it is another archive")


def matching(archive: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    """(base name, content), to be read one by one."""
    with unpacked(archive) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tqdm(tar, desc=f"read {archive.name}", unit=" files"):
            name = PurePosixPath(member.name).name
            if member.isdir() or not any(fnmatch(name, pattern) for pattern in patterns):
                continue
            content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None:  # links lead elsewhere, devices never end, and a hole of a few bytes may be as large
                raise RecipeError(f"{archive}: {member.name} is a link, a device, or has holes; only files are taken")
            yield name, content
        while file.read(2**20):  # the sums of gzip and xz stand at the end
            pass


@contextmanager
def told(archive: Path) -> Iterator[None]:
    """What a damaged archive can raise, as a RecipeError."""
    try:
        yield
    except (tarfile.TarError, *UNPACKING, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the archive
            raise
        raise RecipeError(
            f"{archive}: cannot be unpacked ({page(archive) or error}); the file is truncated or corrupt. Fetch it "
            f"again (delete it first, if it was downloaded here)"
        ) from error
