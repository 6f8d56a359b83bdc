"""A corpus of one's own: any two languages, in three pairs of files or in one that is split by a seed.

A pair whose source or whose target is held out for validation or test is never trained on: what would be left of it in
the training pairs is dropped, and counted.
"""

from __future__ import annotations

import random
import unicodedata
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from ...common.errors import RecipeError
from ...common.textfile import SUFFIXES, lines, packed
from ..languages import UNSPACED, moses
from .corpus import NOT_UTF8, SPLITS, Corpus, Input, Part, Rules, detected, places
from .files import any_lines

NAMES = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
MARKUP = {".sgm": "sgm", ".xml": "sgm"}  # of held-out sets, NAME.L.sgm
FORMS = ("auto", "raw", "tokenized")
HELD_OUT = 1_000  # pairs each, and not more than one in TWENTY
TWENTY = 20
BROKEN = 0.05  # of the lines are dropped when they are not UTF-8; more of them, and the file is in another encoding
LEAK = "also in validation or test"

Files = tuple[Path, Path]


@dataclass(frozen=True)
class Own:
    """What is chosen of a corpus, beside its files; a part of a run's settings.

    Args:
        title: what reports call it.
        valid_pairs, test_pairs: how many are split off where a set has no files; None: 1,000, but 5 % at most.
        split_seed: which ones.
        longest, ratio: see `Rules`, in pieces; 0 switches a rule off.
        copies: training pairs whose sides are equal stay.
        form: "raw", "tokenized" by Moses (detokenised first), or "auto": it shows.
    """

    title: str
    valid_pairs: int | None = None
    test_pairs: int | None = None
    split_seed: int = 1
    longest: int = 250
    ratio: float = 9.0  # the default of clean-corpus-n.perl
    copies: bool = False
    form: str = "auto"

    def __post_init__(self) -> None:
        if not self.title.strip() or not self.title.isprintable() or len(self.title) > 100:
            raise RecipeError(f"--name {self.title!r}: must be 1 to 100 printable characters")
        for option, number in (("--valid-pairs", self.valid_pairs), ("--test-pairs", self.test_pairs)):
            if number is not None and number < 1:
                raise RecipeError(f"{option} {number}: must be at least 1; a model is always validated and tested")
        if self.longest < 0 or not 0 <= self.ratio < float("inf") or 0 < self.ratio < 1:
            raise RecipeError(
                f"--max-length {self.longest}, --max-ratio {self.ratio:g}: must be positive, the ratio at least 1, or "
                f"0 for no limit"
            )
        if self.form not in FORMS:
            raise RecipeError(f"--text-form {self.form}: choose one of {', '.join(FORMS)}")

    @property
    def rules(self) -> Rules:
        return Rules(longest=self.longest, ratio=self.ratio, unit="pieces", sound=True, copies=self.copies)


@dataclass(frozen=True)
class OwnCorpus(Corpus):
    """
    Args:
        files: the two of each split that were named; without any, a folder is searched.
    """

    soft_units: ClassVar[bool] = True

    own: Own = Own("corpus")
    files: Mapping[str, Files] = field(default_factory=dict)

    def download(self, folder: Path, sha256: dict[str, str], trust: bool) -> None:
        if not self.files:
            raise RecipeError(
                "no corpus: name its files by --data-dir DIR, --trainpref PREFIX or --pair FILE FILE; or, to share "
                "what another run prepared, its folder by --prepared"
            )
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, folder: Path) -> Input | None:
        given = self.named() or self.in_folder(folder)
        if "train" not in given:
            return None
        for split, option, size in (
            ("valid", "--valid-pairs", self.own.valid_pairs),
            ("test", "--test-pairs", self.own.test_pairs),
        ):
            if size is not None and split in given:
                raise RecipeError(f"{option} {size}: the {split} set is {given[split].source} as it is; leave it out")
        parts = {split: self.shaped(split, given[split]) for split in SPLITS if split in given}
        train = keys_of(parts["train"])
        if missing := [split for split in ("test", "valid") if split not in parts]:
            sizes = {split: self.size(split, len(train.usable)) for split in missing}
            rows = divided(train, sizes, self.own.split_seed)
            for split in missing:
                parts[split] = replace(parts["train"], rows=rows[split])
            dropped = int(len(train.usable) - sum(chosen.sum() for chosen in rows.values()))
            parts["train"] = replace(parts["train"], rows=rows["train"])
        else:
            dropped = 0
        notices = [doubt(train)]
        notices += [overlap(split, keys_of(parts[split]), train) for split in ("valid", "test") if split in given]
        forms = {"tokenised": "tokenised text, which is detokenised first", "raw": "raw text"}
        how = f"; {' and '.join(sorted(missing, reverse=True))} split off by seed {self.own.split_seed}"
        return Input(
            f"{self.own.title}, {len(train.usable):,} pairs of {forms[parts['train'].form]}{how if missing else ''}",
            *((parts[split],) for split in SPLITS),
            split_off=tuple(missing),
            dropped={LEAK: dropped} if dropped else {},
            notice=". ".join(filter(None, notices)),
        )

    def files_in(self, folder: Path | None) -> list[Path]:
        given = self.named() or (self.in_folder(folder) if folder else {})
        return [path for part in given.values() for path in part.files]

    def size(self, split: str, pairs: int) -> int:
        asked = self.own.valid_pairs if split == "valid" else self.own.test_pairs
        return asked or min(HELD_OUT, max(1, pairs // TWENTY))

    def named(self) -> dict[str, Part]:
        found = {}
        for split, names in self.files.items():
            there = [packed(name) for name in names]
            if absent := [str(name) for name, path in zip(names, there, strict=True) if path is None]:
                raise RecipeError(
                    f"{' and '.join(absent)}: no such file (nor with {' or '.join(SUFFIXES[1:])}); the {split} set "
                    f"needs one file of {self.source} and one of {self.target}"
                )
            assert there[0] and there[1]
            if there[0].samefile(there[1]):
                raise RecipeError(f"{there[0]}: is both sides of {split}; give the translation as the other")
            found[split] = Part(there[0], there[1])
        return found

    def in_folder(self, folder: Path) -> dict[str, Part]:
        """Those of NAMES in the first place that has any; else the only pair of files there."""
        for place in places(folder):
            found = {}
            for split, names in NAMES.items():
                for name in names:
                    plain = [self.pair(place, name)]
                    marked = [self.pair(place, name, suffix, reader=reader) for suffix, reader in MARKUP.items()]
                    if part := next(filter(None, plain + (marked if split != "train" else [])), None):
                        found.setdefault(split, part)
            if not found:
                found = self.only_pair(place)
            if found:
                if "train" not in found:
                    raise RecipeError(
                        f"{place}: {' and '.join(found)} but no train.{{{self.source},{self.target}}}; put it there, "
                        f"or name it by --trainpref"
                    )
                return found
        return {}

    def only_pair(self, place: Path) -> dict[str, Part]:
        stems = {side: set(self.stems(place, side)) for side in self.languages}
        both = sorted(stems[self.source] & stems[self.target])
        if len(both) > 1:
            raise RecipeError(
                f"{place}: {len(both)} pairs of files ({', '.join(both[:5])}{' …' if both[5:] else ''}) and none is "
                f"called train; say which by --trainpref {place / both[0]}"
            )
        if both:
            part = self.pair(place, both[0])
            assert part
            return {"train": part}
        for here, there in (self.languages, self.languages[::-1]):
            if stems[here]:
                stem = min(stems[here])
                raise RecipeError(f"{place}: {stem}.{here} is there, but {stem}.{there} is missing; put it beside")
        return {}

    @staticmethod
    def stems(place: Path, language: str) -> Iterable[str]:
        for suffix in SUFFIXES:
            for path in place.glob(f"*.{language}{suffix}"):
                if path.is_file() and (stem := path.name.removesuffix(f".{language}{suffix}")) != "dict":
                    yield stem

    def shaped(self, split: str, part: Part) -> Part:
        """The part with its form; training lines need not be UTF-8."""
        if part.reader != "lines":
            return part
        for path in part.files:
            start = list(islice(any_lines(path), 1_000))
            if sum(line.startswith("▁") for line in start) > len(start) / 2:
                raise RecipeError(f"{path}: holds pieces of sentencepiece (▁); give the text itself")
        found = detected(part)
        if self.own.form != "auto":
            found = replace(found, form="raw" if self.own.form == "raw" else "tokenised")
        elif not {*self.languages} <= moses() - UNSPACED:
            found = replace(found, form="raw")  # a full stop that stands apart may be how it is written
        if found.reader == "pieces" and found.form == "raw":
            found = replace(found, form="tokenised")
        return replace(found, reader="any") if split == "train" and found.reader == "lines" else found

    def looked_for(self) -> str:
        sides = f"{{{self.source},{self.target}}}"
        return (
            f"train.{sides}, with or without valid.{sides} (or val, dev) and test.{sides}, or one pair NAME.{sides} "
            f"(plain, .xz or .gz), there or in folders below"
        )


# --- one pair of files into three sets --------------------------------------------------------------------------


class Keys(NamedTuple):
    """What pairs are told apart by, one row each: sentences that differ in case, white space or the form of characters
    alone are the same.
    """

    source: np.ndarray  # (pairs) uint64
    target: np.ndarray
    usable: np.ndarray  # (pairs) bool: could be held out
    lengths: np.ndarray  # (pairs, 2) in letters


def key(sentence: str) -> int:
    folded = " ".join(unicodedata.normalize("NFKC", sentence).casefold().split())
    return int.from_bytes(blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def keys_of(part: Part) -> Keys:
    """
    Raises:
        RecipeError: the two files are not equally long, are not UTF-8 at all, or their lines end as on old Macs.
    """
    rules = Rules(sound=True, copies=False)
    source, target, lengths, usable = array("Q"), array("Q"), array("Q"), bytearray()
    broken = 0
    for a, b in part.pairs():
        source.append(key(a))
        target.append(key(b))
        fault = rules.unsound(a, b)
        usable.append(not fault)
        broken += fault == NOT_UTF8
        lengths.extend((len(a), len(b)))
        if a.count("\r") > 100 and b.count("\r") > 100:
            raise RecipeError(
                f"{part.source}, line {len(source)}: over 100 carriage returns, as in files of old Macs, whose lines "
                f"end so; convert both files, with `tr '\\r' '\\n'` for instance"
            )
    if broken > BROKEN * len(source):
        for path in part.files:  # says which line is the first
            deque(lines(path), maxlen=0)
    columns = [np.frombuffer(column, np.uint64) for column in (source, target, lengths)]
    return Keys(columns[0], columns[1], np.frombuffer(usable, np.bool_), columns[2].reshape(-1, 2))


def divided(keys: Keys, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Which pairs are held out for each of `sizes`, and which remain for "train": (pairs) of bool each.

    No source and no target of one set is in another. Pairs whose sides both occur once go first, for which nothing has
    to be dropped; pairs that share a side with one that is held out are in no set.

    Raises:
        RecipeError: there are not so many different pairs.
    """
    order = list(range(len(keys.usable)))
    random.Random(seed).shuffle(order)
    alone = keys.usable & once(keys.source) & once(keys.target)
    waiting = iter([*(row for row in order if alone[row]), *(row for row in order if keys.usable[row] & ~alone[row])])
    taken: tuple[set[int], set[int]] = (set(), set())
    sets = {split: np.zeros(len(order), bool) for split in sizes}
    for split, size in sizes.items():
        while size:
            row = next(waiting, None)
            if row is None:
                unusable = int((~keys.usable).sum())
                faults = f" ({unusable:,} are empty, not UTF-8, or have equal sides)" if unusable else ""
                raise RecipeError(
                    f"{len(order):,} pairs{faults}, and fewer than {sum(sizes.values()):,} of them differ in both "
                    f"sides, which are to be held out ({', '.join(f'{n:,} {name}' for name, n in sizes.items())}); "
                    f"give a larger corpus, or smaller --valid-pairs and --test-pairs"
                )
            sides = int(keys.source[row]), int(keys.target[row])
            if sides[0] in taken[0] or sides[1] in taken[1]:
                continue
            for known, side in zip(taken, sides, strict=True):
                known.add(side)
            sets[split][row] = True
            size -= 1
    held = [np.isin(column, np.fromiter(side, np.uint64)) for column, side in zip(keys[:2], taken, strict=True)]
    return {**sets, "train": ~(held[0] | held[1])}


def once(column: np.ndarray) -> np.ndarray:
    """(pairs) whether the value is there but once."""
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] == 1)


def overlap(split: str, held_out: Keys, train: Keys) -> str:
    """How much of a set that was given is trained on, in words; the files are left as they are."""
    known = np.isin(held_out.source, train.source) | np.isin(held_out.target, train.target)
    if not known.any():
        return ""
    return (
        f"{int(known.sum()):,} of {len(known):,} {split} pairs share their source or their target with a training "
        f"pair: scores are too good for text that was not seen"
    )


def doubt(train: Keys) -> str:
    """Of translations long sentences are long: when lengths do not go together, lines may be shifted."""
    sides = np.log1p(train.lengths[train.usable].astype(float)).T
    if sides.shape[1] < 500 or sides.std(axis=1).min() < 0.3:
        return ""
    r = float(np.corrcoef(sides)[0, 1])
    if r > 0.1:
        return ""
    return (
        f"the lengths of source and target do not go together (r = {r:.2f}): is line n of one file the translation of "
        f"line n of the other?"
    )
