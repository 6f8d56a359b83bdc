"""What worker processes do to a few thousand sentences at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from macaron.moses import Moses

from ..text import Pieces, TextSettings, Words
from .corpus import Input, Rules
from .files import spaced, unescaped
from .normalise import normaliser
from .parallel import chunks

Pair = tuple[str, str]


class SentenceTask(NamedTuple):
    split: str
    reader: str
    form: str
    pairs: list[Pair]


class Sentences(NamedTuple):
    """A pair as people read it, and as words."""

    raw: Pair
    words: Pair


def tasks(found: Input) -> Iterator[SentenceTask]:
    for split, part in found.parts():
        for pairs in chunks(part.pairs()):
            yield SentenceTask(split, part.reader, part.form, pairs)


def process(settings: TextSettings, rules: Rules, task: SentenceTask) -> tuple[str, Counter[str], list[Sentences]]:
    """Tokenise, and drop the training pairs that the rules drop: (split, how many were dropped and why, pairs kept)."""
    dropped: Counter[str] = Counter()
    kept = []
    training = task.split == "train"
    for pair in task.pairs:
        fault = rules.unsound(*pair) if training else ""
        if not fault:
            a, b = (
                side_of(settings, rules, language, task, sentence)
                for language, sentence in zip(settings.languages, pair, strict=True)
            )
            sentences = Sentences((a[0], b[0]), (a[1], b[1]))
            fault = rules.fault(*sentences.words) if training and rules.unit == "words" else ""
        if fault:
            dropped[fault] += 1
        else:
            kept.append(sentences)
    return task.split, dropped, kept


def side_of(settings: TextSettings, rules: Rules, language: str, task: SentenceTask, sentence: str) -> Pair:
    """(raw, words) of one sentence, each one line: an entity such as &#10; can bring in what the file did not have."""
    raw, words = forms_of(settings, rules, language, task, sentence)
    return spaced(raw), spaced(words)


def forms_of(settings: TextSettings, rules: Rules, language: str, task: SentenceTask, sentence: str) -> Pair:
    words = words_of(settings, language)
    moses = settings.tokenizer == "moses"
    training = task.split == "train"
    if task.form == "final" and moses:
        return ("" if training else moses_of(language).decode(sentence)), sentence
    raw = (sentence if task.form == "raw" else moses_of(language).decode(sentence)).strip()
    raw = raw.replace("\r", " ")  # normalize-punctuation.perl would join the words around it
    if training:
        return raw, words.training(normaliser(language)(raw) if rules.normalise and moses else raw).strip()
    if task.reader == "segments":
        # fairseq's script tokenises &amp; as it stands, so the canonical test set does too; people see &.
        return unescaped(raw), words.encode(raw if moses else unescaped(raw))
    return raw, words.encode(raw)


def segment(
    settings: TextSettings, model: Path, rules: Rules | None, rows: list[tuple[str, ...]]
) -> tuple[Counter[str], list[tuple[str, ...]]]:
    """Split words into pieces, and drop the pairs that the rules drop: (how many and why, rows kept).

    Args:
        rows: source and target; what else a row holds is handed on behind the pieces, after both of them.
    """
    encode = pieces_of(settings, model).encode
    dropped: Counter[str] = Counter()
    kept = []
    for row in rows:
        pair = encode(row[0]), encode(row[1])
        if fault := rules.fault(*pair) if rules is not None else "":
            dropped[fault] += 1
        else:
            kept.append(pair if len(row) == 2 else (*pair, *row))
    return dropped, kept


def count_words(sentences: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(sentence.split(" "))
    return counts


@lru_cache
def words_of(settings: TextSettings, language: str) -> Words:
    return Words(settings, language)


@lru_cache
def moses_of(language: str) -> Moses:
    return Moses(language)


@lru_cache
def pieces_of(settings: TextSettings, model: Path) -> Pieces:
    return Pieces(settings, model)
