"""What a corpus consists of, by which rules it is cleaned and split, and how files in a folder are recognised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import compress, islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from macaron.text import PART_OF_A_WORD, is_blank

from ...common.archive import unpack
from ...common.download import Remote, fetch
from ...common.errors import RecipeError
from ...common.textfile import packed
from ..text import TextSettings
from .files import READERS, any_lines, is_unicode, spaced, together

SPLITS = ("train", "valid", "test")

# Why training pairs are dropped, beside the rules' lengths.
EMPTY, COPY, NOT_UTF8 = "empty", "both sides equal", "not UTF-8"
WORD = 1_000  # letters


@dataclass(frozen=True)
class Part:
    """Two line-aligned files.

    Attributes:
        reader: how sentences are read, a key of files.READERS.
        form: "raw", "tokenised" (Moses or alike: brought into one form by detokenising and tokenising anew),
            or "final" (tokenised and cased just as the recipe wants it: taken as it is).
        rows: (lines) which of them belong to the part; None: all.
    """

    source: Path
    target: Path
    reader: str = "lines"
    form: str = "raw"
    rows: np.ndarray | None = field(default=None, compare=False)

    @property
    def files(self) -> tuple[Path, Path]:
        return self.source, self.target

    def pairs(self) -> Iterator[tuple[str, str]]:
        read = READERS[self.reader]
        pairs = together(self.files, (read(self.source), read(self.target)))
        yield from pairs if self.rows is None else compress(pairs, self.rows)


@dataclass(frozen=True)
class Input:
    """What was found in a folder, or downloaded.

    Attributes:
        kind: in words, for people.
        train, valid, test: parts in order; without `valid`, every `Rules.every`-th training pair is held out.
        canonical: the complete corpus in its original form, so that its known sizes and sums are demanded.
        split_off: those of valid and test that were training pairs, so that the rules clean them too.
        dropped: training pairs that are in none of the parts, by the reason.
        notice: what a reader of the scores must know about these files.
    """

    kind: str
    train: tuple[Part, ...]
    valid: tuple[Part, ...]
    test: tuple[Part, ...]
    canonical: bool = False
    split_off: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    notice: str = ""

    def parts(self) -> Iterator[tuple[str, Part]]:
        for split, parts in zip(SPLITS, (self.train, self.valid, self.test), strict=True):
            yield from ((split, part) for part in parts)


@dataclass(frozen=True)
class Rules:
    """Cleaning and splitting, as in fairseq's prepare scripts.

    Attributes:
        longest, ratio: training pairs with a longer side, or with sides more unequal, are dropped (after
            clean-corpus-n.perl); 0 switches a rule off.
        unit: "words" or "pieces": what these rules count.
        every: without a validation set, every n-th clean training pair becomes one.
        normalise: punctuation of raw training text, before tokenisation (normalize-punctuation.perl), and
            non-printing characters.
        sound: pairs with nothing to be seen on a side are dropped whatever the unit, as are lines that are not UTF-8;
            for corpora that nobody has cleaned.
        copies: pairs whose sides are equal stay; only `sound` asks.
    """

    longest: int = 0
    ratio: float = 0
    unit: str = "words"
    every: int = 0
    normalise: bool = False
    sound: bool = False
    copies: bool = True

    def fault(self, source: str, target: str) -> str:
        """Why a pair is dropped, after clean-corpus-n.perl: 1 ≤ length ≤ longest, lengths within `ratio`, no word over
        1,000 letters. "" for a pair that stays.
        """
        a, b = source.split(), target.split()
        if not a or not b:
            return EMPTY
        if self.longest and max(len(a), len(b)) > self.longest:
            return f"over {self.longest} {self.unit}"
        if self.ratio and (len(a) > self.ratio * len(b) or len(b) > self.ratio * len(a)):
            return f"one side over {self.ratio:g} times as long as the other"
        if max(map(len, a)) > WORD or max(map(len, b)) > WORD:
            return f"a word over {WORD:,} letters"
        return ""

    def unsound(self, source: str, target: str) -> str:
        """Why a pair as it was read is dropped; "" without `sound`."""
        if not self.sound:
            return ""
        if not (is_unicode(source) and is_unicode(target)):
            return NOT_UTF8
        if is_blank(source) or is_blank(target):
            return EMPTY
        return COPY if not self.copies and spaced(source) == spaced(target) else ""


@dataclass(frozen=True)
class Corpus:
    """A recipe's corpus; sub-classes know its files.

    Attributes:
        soft_units: where the text does not give as many pieces as were asked for, as many as it gives will do.
    """

    soft_units: ClassVar[bool] = False

    name: str
    source: str
    target: str
    rules: Rules
    remotes: tuple[Remote, ...] = ()

    @property
    def languages(self) -> tuple[str, str]:
        return self.source, self.target

    def download(self, folder: Path, sha256: dict[str, str], trust: bool) -> None:
        for remote in self.remotes:
            fetch(remote, folder, sha256=sha256.get(remote.name), trust_first_download=trust)

    def find(self, folder: Path) -> Input | None:
        """What `folder` holds of this corpus; None when nothing is recognised."""
        raise NotImplementedError

    def files_in(self, folder: Path | None) -> list[Path]:
        """The files that would be read, where they lie there as they are; [] without any."""
        found = self.find(folder) if folder and folder.is_dir() else None
        return list(dict.fromkeys(path for _, part in found.parts() for path in part.files)) if found else []

    def looked_for(self) -> str:
        """For the message of a folder without anything: names of files, in words."""
        raise NotImplementedError

    def notice(self, sizes: dict[str, int]) -> str:
        """What a reader of the scores must know about the data; empty when it is the corpus itself."""
        return ""

    def check(self, found: Input, sizes: dict[str, int], text: Path, settings: TextSettings) -> None:
        """Raise when a canonical input did not give the canonical text."""

    def pair(self, folder: Path, stem: str, suffix: str = "", **options: str) -> Part | None:
        """The two files `stem`.L, packed or not."""
        found = [packed(folder / f"{stem}.{language}{suffix}") for language in self.languages]
        return Part(found[0], found[1], **options) if found[0] and found[1] else None

    def pair_below(self, folder: Path, stem: str, suffix: str = "", **options: str) -> Part | None:
        """The same in `folder` or, as archives are laid out, one or two folders below it."""
        return next((part for place in places(folder) if (part := self.pair(place, stem, suffix, **options))), None)

    def splits(self, folder: Path, names: dict[str, str] | None = None) -> dict[str, Part] | None:
        """train, valid and test by name, when all three are there."""
        parts = {split: self.pair(folder, (names or {}).get(split, split)) for split in SPLITS}
        found = {split: part for split, part in parts.items() if part}
        return found if len(found) == len(SPLITS) else None


def places(folder: Path, depth: int = 2) -> Iterator[Path]:
    """`folder` and those below it."""
    yield folder
    for level in range(1, depth + 1):
        yield from sorted(folder.glob("*/" * level))


def detected(part: Part, final: bool = False) -> Part:
    """`part` with its reader and form.

    Args:
        final: if it is tokenised, then just as the recipe wants it.
    """
    samples = [list(islice(any_lines(path), 2_000)) for path in part.files]
    tokenised = all(map(is_tokenised, samples))
    return replace(
        part,
        reader="pieces" if all(map(is_in_pieces, samples)) else part.reader,
        form=("final" if final else "tokenised") if tokenised else "raw",
    )


def is_tokenised(sample: list[str]) -> bool:
    """The full stop of a sentence stands apart."""
    ends = [line.rstrip() for line in sample if line.rstrip().endswith((".", "?", "!"))]
    return bool(ends) and sum(line[-2:-1] == " " for line in ends) > 0.5 * len(ends)


def is_in_pieces(sample: list[str]) -> bool:
    return sum(PART_OF_A_WORD in line for line in sample) > 0.1 * len(sample)


def locate(corpus: Corpus, folder: Path, scratch: Path) -> Input:
    """What a folder holds of the corpus; archives are unpacked into `scratch` first."""
    if not folder.is_dir():
        raise RecipeError(f"--data-dir {folder}: no such folder; give one with {corpus.looked_for()}")
    found = corpus.find(folder)
    if found is None and (archives := [(folder / remote.name, remote) for remote in corpus.remotes if remote.members]):
        there = [pair for pair in archives if pair[0].is_file()]
        if there and len(there) < len(archives):
            missing = ", ".join(path.name for path, _ in archives if not path.is_file())
            raise RecipeError(f"--data-dir {folder}: {missing} missing beside {there[0][0].name}; put it there")
        if there:
            for path, remote in there:
                unpack(path, remote.members, scratch)
            found = corpus.find(scratch)
            found = found and replace(found, kind=f"archive {', '.join(path.name for path, _ in there)}")
    if found is None:
        names = sorted(path.name for path in folder.iterdir())
        listing = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if names[8:] else "") if names else "nothing"
        raise RecipeError(
            f"--data-dir {folder}: nothing of {corpus.name} is recognised there. Looked for {corpus.looked_for()}; "
            f"found {listing}. Give another folder, or leave the option out to download the corpus"
        )
    return found
