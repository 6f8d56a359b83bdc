"""Documents → token ids → examples, each step a generator that writes one memory-mapped Arrow file."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa

Array = Any  # np.ndarray of integers

TEXT = datasets.Features({"text": datasets.Value("large_string")})
# The ids of a document without special tokens, and where its units (sentences, long ones in pieces) end.
TOKENS = datasets.Features(
    {"ids": datasets.List(datasets.Value("int32")), "ends": datasets.List(datasets.Value("int32"))}
)
# With special tokens. `second`: where the second segment starts, the length if there is none; `is_next`: 1 if it
# follows the first one in its document, 0 if it was drawn elsewhere, -1 without pairs.
EXAMPLES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "second": datasets.Value("int32"),
        "is_next": datasets.Value("int8"),
    }
)

BUFFER = 2**22  # characters or ids in memory before they go to the disk


class ArrowFile:
    """Rows in, an Arrow file out that `datasets.Dataset.from_file` maps; complete or not there at all."""

    def __init__(self, path: Path, features: datasets.Features):
        self.path = path
        self.partial = path.with_name(path.name + ".part")
        self.schema = features.arrow_schema
        self.rows: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        self.held = 0
        self.written = 0

    def __enter__(self) -> ArrowFile:
        self.sink = pa.OSFile(str(self.partial), "wb")
        self.stream = pa.ipc.new_stream(self.sink, self.schema)
        return self

    def write(self, *values: Any) -> None:
        for column, value in zip(self.rows.values(), values, strict=True):
            column.append(value)
        self.held += len(values[0])
        self.written += 1
        if self.held >= BUFFER:
            self._flush()

    def _flush(self) -> None:
        columns = [pa.array(self.rows[field.name], type=field.type) for field in self.schema]
        self.stream.write_batch(pa.record_batch(columns, schema=self.schema))
        for column in self.rows.values():
            column.clear()
        self.held = 0

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._flush()
        self.stream.close()
        self.sink.close()
        if kind is None:
            os.replace(self.partial, self.path)


def mapped(path: Path) -> datasets.Dataset:
    """The file as a memory-mapped data set; rows are read from the disk when asked for."""
    return datasets.Dataset.from_file(str(path))


class Document(NamedTuple):
    ids: Array  # (N,)
    ends: Array  # (units,), the last one is N


class Documents(Sequence[Document]):
    """The tokens of a mapped file, as views: reading one costs microseconds and no copy."""

    def __init__(self, path: Path):
        chunks = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_batches()
        self.first = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        self.chunks = [
            [(c.offsets.to_numpy(), c.values.to_numpy()) for c in (chunk.column("ids"), chunk.column("ends"))]
            for chunk in chunks
        ]
        lengths = np.concatenate([np.diff(offsets) for (offsets, _), _ in self.chunks])
        self.begins = np.concatenate([[0], np.cumsum(lengths)])  # of the documents, all ids in a row

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk = int(np.searchsorted(self.first, index, "right")) - 1
        row = index - self.first[chunk]
        return Document(*(values[offsets[row] : offsets[row + 1]] for offsets, values in self.chunks[chunk]))


def tokenize(documents: Iterable[str], tokenizer: Any, sentences: Any, unit: int) -> Iterator[Document]:
    """One document at a time.

    Args:
        documents: cleaned text.
        tokenizer: the fast one.
        sentences: splits a document.
        unit: longer sentences are cut, so that a pair of units always fits an example.
    """
    for text in documents:
        encoded = tokenizer(sentences(text), add_special_tokens=False, return_attention_mask=False, verbose=False)
        pieces = [ids[start : start + unit] for ids in encoded["input_ids"] for start in range(0, len(ids), unit)]
        if pieces:
            yield Document(np.concatenate(pieces).astype(np.int32), np.cumsum([len(piece) for piece in pieces]))


class Example(NamedTuple):
    input_ids: Array
    second: int
    is_next: int


def packed(documents: Iterable[Document], length: int, cls: int, sep: int) -> Iterator[Example]:
    """[CLS] … [SEP], every one full: documents follow one another, [SEP] between them. Only the last may be shorter."""
    room = length - 2
    buffer = np.empty(0, np.int32)
    for ids, _ in documents:
        joined = [buffer, [sep], ids] if len(buffer) else [ids]
        buffer = np.concatenate(joined).astype(np.int32)
        full = len(buffer) // room * room
        for start in range(0, full, room):
            yield Example(np.concatenate([[cls], buffer[start : start + room], [sep]]), length, -1)
        buffer = buffer[full:]
    if len(buffer):
        yield Example(np.concatenate([[cls], buffer, [sep]]), len(buffer) + 2, -1)


def pairs(tokens: Documents, length: int, short_fraction: float, seed: int, cls: int, sep: int) -> Iterator[Example]:
    """[CLS] A [SEP] B [SEP], as BERT makes them (arXiv:1810.04805, A.2).

    Consecutive units are taken until they fill an example. A is a random number of them. In half of the cases B is
    the rest (is_next 1); else B comes from a random place of the other documents (is_next 0) and the rest is used for
    the next example. Both are cut to fit, the longer one first. Each document is read once, the others by random
    access to the mapped file.
    """
    rng = random.Random(f"pairs {seed}")
    for index in range(len(tokens)):
        ids, ends = tokens[index]
        first = 0
        while first < len(ends):
            room = length - 3
            if rng.random() < short_fraction:
                room = rng.randint(2, room)
            begin = int(ends[first - 1]) if first else 0
            last = min(int(np.searchsorted(ends, begin + room)), len(ends) - 1)
            in_a = rng.randint(1, last - first) if last > first else 1
            middle = int(ends[first + in_a - 1])
            a = ids[begin:middle]
            if last > first and rng.random() < 0.5:
                b, is_next = ids[middle : ends[last]], 1
                first = last + 1
            else:
                b, is_next = elsewhere(tokens, index, max(1, room - len(a)), rng), 0
                first += in_a
            a, b = fitted(a, b, room, rng)
            yield Example(np.concatenate([[cls], a, [sep], b, [sep]]), len(a) + 2, is_next)


def elsewhere(tokens: Documents, index: int, wanted: int, rng: random.Random) -> Array:
    """At least one unit, or so many that they reach `wanted` ids, from a random place of the other documents.

    All places are equally likely, not all documents, as in BERT: where their lengths differ much, as those of novels
    and newswire, a second segment would else give away by its style that it was drawn.
    """
    own, end = (int(tokens.begins[i]) for i in (index, index + 1))
    place = rng.randrange(int(tokens.begins[-1]) - (end - own))
    place += (end - own) * (place >= own)
    other = int(np.searchsorted(tokens.begins, place, "right")) - 1
    ids, ends = tokens[other]
    first = int(np.searchsorted(ends, place - int(tokens.begins[other]), "right"))
    begin = int(ends[first - 1]) if first else 0
    last = min(int(np.searchsorted(ends, begin + wanted)), len(ends) - 1)
    return ids[begin : ends[last]]


def fitted(a: Array, b: Array, room: int, rng: random.Random) -> tuple[Array, Array]:
    """Cut to `room` ids together, at a random side of each; the shorter one is cut only where both exceed half."""
    keep_a = max(min(len(a), room - room // 2), room - len(b))
    keep_b = room - keep_a
    return cut(a, keep_a, rng), cut(b, keep_b, rng)


def cut(ids: Array, keep: int, rng: random.Random) -> Array:
    excess = len(ids) - keep
    if excess <= 0:
        return ids
    start = rng.randint(0, excess)
    return ids[start : start + keep]
