"""Corpus files: sentences of talks, segments and pieces; outputs that appear whole or not at all."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from macaron.text import join_bpe

from ...common.errors import RecipeError
from ...common.textfile import lines as lines  # part of what is read here
from ...common.textfile import packed as packed

_MARKUP = re.compile(r"</?(?:title|description)>")


def ted_lines(path: Path) -> Iterator[str]:
    """train.tags.*: talks' addresses, numbers and keywords are dropped, titles and descriptions kept as sentences."""
    for line in lines(path):
        if not any(tag in line for tag in ("<url>", "<talkid>", "<keywords>")):
            yield _MARKUP.sub("", line)


_SEGMENT = re.compile(r'<seg id="[0-9]*">\s*|\s*</seg>\s*')


def segments(path: Path) -> Iterator[str]:
    """Sentences of NIST's XML and SGM files, entities as they stand there.

    Raises:
        RecipeError: several in a line, which would become one; the file ends inside one.
    """
    closed = True
    for number, line in enumerate(lines(path), 1):
        if line.count("<seg id") > 1:
            raise RecipeError(f"{path}, line {number}: several segments; bring each to a line of its own")
        if "<seg id" in line:
            closed = "</seg>" in line
            yield _SEGMENT.sub("", line)
        else:
            closed = closed or "</seg>" in line
    if not closed:
        raise RecipeError(f"{path}: ends inside a segment; the file is truncated. Fetch it again")


def unescaped(sentence: str) -> str:
    """&amp; and the like become characters."""
    return html.unescape(sentence)


def sgm(path: Path) -> Iterator[str]:
    """The same as text for people."""
    return map(unescaped, segments(path))


def spaced(text: str) -> str:
    """One line whose words stand between single spaces, with no other white space and no line end of any system.

    Text lies in files that fairseq and sub-word models read with their own ideas of both.
    """
    return " ".join(text.split())


def any_lines(path: Path) -> Iterator[str]:
    """Lines that need not be UTF-8: what cannot be read becomes lone surrogates, see `is_unicode`."""
    return lines(path, errors="surrogateescape")


def is_unicode(text: str) -> bool:
    """Whether all of it could be read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def joined(path: Path) -> Iterator[str]:
    """Words of a file in BPE pieces."""
    for line in lines(path):
        yield join_bpe(spaced(line))


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    "lines": lines,
    "any": any_lines,
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
