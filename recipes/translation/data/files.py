"""Text files: packed or plain, lines that end at LF only, outputs that appear whole or not at all."""

from __future__ import annotations

import gzip
import html
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from recipes.common.errors import RecipeError

SUFFIXES = ("", ".xz", ".gz")
OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}


def packed(path: Path) -> Path | None:
    """`path`, or the same with .xz or .gz: whichever is there."""
    return next((there for suffix in SUFFIXES if (there := path.with_name(path.name + suffix)).is_file()), None)


def lines(path: Path) -> Iterator[str]:
    """Lines without their LF. `splitlines` would also break at characters inside a sentence."""
    number = 0
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                number += 1
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 after line {number} ({error}); fetch or convert the file anew") from error
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise RecipeError(
            f"{path}: cannot be read after line {number} ({error}); the file is truncated or corrupt. Fetch it again"
        ) from error


_MARKUP = re.compile(r"</?(?:title|description)>")


def ted_lines(path: Path) -> Iterator[str]:
    """train.tags.*: talks' addresses, numbers and keywords are dropped, titles and descriptions kept as sentences."""
    for line in lines(path):
        if not any(tag in line for tag in ("<url>", "<talkid>", "<keywords>")):
            yield _MARKUP.sub("", line)


_SEGMENT = re.compile(r'<seg id="[0-9]*">\s*|\s*</seg>\s*')


def segments(path: Path) -> Iterator[str]:
    """Sentences of NIST's XML and SGM files, entities as they stand there."""
    for line in lines(path):
        if "<seg id" in line:
            yield _SEGMENT.sub("", line)


def unescaped(sentence: str) -> str:
    """&amp; and the like become characters."""
    return html.unescape(sentence)


def sgm(path: Path) -> Iterator[str]:
    """The same as text for people."""
    return map(unescaped, segments(path))


def joined(path: Path) -> Iterator[str]:
    """Words of a file in BPE pieces."""
    for line in lines(path):
        yield (line + " ").replace("@@ ", "").rstrip()


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    "lines": lines,
    "ted": ted_lines,
    "segments": segments,
    "sgm": sgm,
    "pieces": joined,
}


@contextmanager
def whole(*paths: Path) -> Iterator[list[IO[str]]]:
    """Files to write, which get their names together when the block ends well, and are removed otherwise."""
    parts = [path.with_name(path.name + ".part") for path in paths]
    try:
        with ExitStack() as stack:
            for part in parts:
                part.parent.mkdir(parents=True, exist_ok=True)
            yield [stack.enter_context(part.open("w", encoding="utf-8", newline="\n")) for part in parts]
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def together(names: tuple[Path, Path], sides: tuple[Iterable[str], Iterable[str]]) -> Iterator[tuple[str, str]]:
    """Pairs of two files that must be equally long."""
    first, second = (iter(side) for side in sides)
    count = 0
    for a in first:
        b = next(second, None)
        if b is None:
            longer, shorter = names
            break
        yield a, b
        count += 1
    else:
        if next(second, None) is None:
            return
        shorter, longer = names
    raise RecipeError(
        f"{shorter} ends after {count:,} sentences, {longer} goes on; line n of one must be the translation of "
        f"line n of the other. Fetch both again"
    )
