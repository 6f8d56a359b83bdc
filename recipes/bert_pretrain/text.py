"""Text files → documents: read (plain, .xz, .gz), cleaned, without repeats; one document in memory at a time."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..common import textfile
from ..common.errors import RecipeError

# Dropped: controls, byte order marks, soft hyphens, replacement characters. Joiners stay: scripts need them.
_DROPPED = [*range(0x00, 0x09), *range(0x0E, 0x20), *range(0x7F, 0x85), *range(0x86, 0xA0), 0xAD, 0xFEFF, 0xFFFD]
# Line ends other than LF and CR LF lie inside a line, as `splitlines` would not have it.
_SPACES = [0x09, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x1F, 0x85, 0x2028, 0x2029]
_TABLE = dict.fromkeys(_DROPPED) | dict.fromkeys(_SPACES, " ")


def clean(line: str) -> str:
    """Canonical composition (NFC), no control characters, single spaces."""
    return " ".join(unicodedata.normalize("NFC", line).translate(_TABLE).split())


def lines(path: Path) -> Iterator[str]:
    """With their ends; errors name the option."""
    try:
        yield from (line + "\n" for line in textfile.lines(path))
    except RecipeError as error:
        raise RecipeError(f"--text {error}") from error


def documents(source: Iterable[str], blank_lines: int) -> Iterator[str]:
    """Cleaned documents; each paragraph one line, whose source lines are joined.

    Args:
        source: lines.
        blank_lines: so many in a row end a document; fewer end a paragraph.
    """
    paragraphs: list[str] = []
    paragraph: list[str] = []
    blank = 0
    for line in source:
        text = clean(line)
        if text:
            paragraph.append(text)
            blank = 0
            continue
        blank += 1
        if paragraph:
            paragraphs.append(" ".join(paragraph))
            paragraph = []
        if blank >= blank_lines and paragraphs:
            yield "\n".join(paragraphs)
            paragraphs = []
    if paragraph:
        paragraphs.append(" ".join(paragraph))
    if paragraphs:
        yield "\n".join(paragraphs)


@dataclass
class Counts:
    """What happened to the documents of all files."""

    documents: int = 0
    short: int = 0
    repeated: int = 0
    held_out: int = 0
    characters: int = 0  # kept, training part


class Cleaner:
    """Decides on each document: kept for training, held out, too short, or seen before.

    A document is known by a hash of its letters (case and white space do not count), 16 bytes each: that set is all
    that grows with the corpus. The same hash says whether it is held out, so neither the order nor the number of the
    files moves a document from one side to the other.
    """

    def __init__(self, min_characters: int, valid_fraction: float, seed: int):
        self.min_characters = min_characters
        self.threshold = int(valid_fraction * 2**64)
        self.key = seed.to_bytes(8, "little")
        self.seen: set[bytes] = set()
        self.counts = Counts()

    def split(self, document: str) -> str | None:
        """ "train", "valid", or None for one that is dropped."""
        self.counts.documents += 1
        if len(document) < self.min_characters:
            self.counts.short += 1
            return None
        letters = "".join(document.casefold().split())
        digest = hashlib.blake2b(letters.encode("utf-8"), digest_size=16, key=self.key).digest()
        if digest in self.seen:
            self.counts.repeated += 1
            return None
        self.seen.add(digest)
        if int.from_bytes(digest[:8], "little") < self.threshold:
            self.counts.held_out += 1
            return "valid"
        self.counts.characters += len(document)
        return "train"


# The end of a sentence in scripts with and without spaces; closing quotes belong to it. Abbreviations are split
# too: for the pairs a unit of about a sentence is enough, and no language needs its own rules.
_SENTENCE_END = re.compile(r"""(?:[。！？]["'”’»」』)\]]*\s*|[.!?…।؟]+(?:\s?["'”’»)\]]+)*\s)""")


def sentences(document: str) -> list[str]:
    """The sentences of all paragraphs, in order."""
    found = []
    for paragraph in document.split("\n"):
        start = 0
        for match in _SENTENCE_END.finditer(paragraph):
            found.append(paragraph[start : match.end()].strip())
            start = match.end()
        found.append(paragraph[start:].strip())
    return [sentence for sentence in found if sentence]
