"""How long sentences are, in sub-words: tables measured on real text, and lengths drawn from them.

    python -m recipes.bench lengths --data-dir ../shared/data

printed the tables. A table holds every fifth percentile, so that lengths are drawn by inverting the distribution.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..common.errors import RecipeError

PERCENTS = tuple(range(0, 101, 5))
MAX_LENGTH = 128  # of the GLUE protocol
VOCABULARY = {"glue": 30522, "wmt": 32768}

Table = tuple[float, ...]

GLUE: dict[str, Table] = {
    "cola": (4, 6, 7, 8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 12, 12, 13, 14, 15, 17, 19, 47),
    "sst2": (3, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 12, 13, 15, 16, 19, 21, 25, 30, 59),
    "mrpc": (19, 32, 36, 38, 41, 43, 45, 47, 49, 51, 52, 54, 56, 58, 59, 61, 63, 65, 68, 73, 101),
    "stsb": (11, 15, 16, 17, 18, 18, 19, 20, 20, 21, 22, 23, 24, 26, 28, 30, 34, 42, 50, 59, 125),
    "qqp": (11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 31, 33, 35, 37, 41, 46, 54, 128),
    "qnli": (15, 27, 30, 33, 35, 37, 39, 41, 42, 44, 46, 48, 50, 53, 55, 58, 61, 66, 73, 83, 128),
    "rte": (13, 28, 33, 36, 39, 42, 45, 47, 49, 52, 55, 58, 61, 66, 72, 85, 101, 119, 128, 128, 128),
    "wnli": (16, 21, 23, 24, 25, 27, 27, 28, 30, 31, 32, 33, 35, 36, 38, 40, 43, 49, 61, 70, 99),
}

# source lengths, and target length / source length
WMT: dict[str, Table] = {
    "source": (2, 10, 12, 14, 16, 17, 19, 21, 22, 24, 26, 27, 29, 31, 34, 36, 39, 44, 49, 58, 195),
    "ratio": (
        0.67,
        0.76,
        0.81,
        0.846,
        0.88,
        0.905,
        0.929,
        0.949,
        0.97,
        1,
        1,
        1.027,
        1.051,
        1.073,
        1.1,
        1.125,
        1.158,
        1.2,
        1.25,
        1.333,
        1.496,
    ),
}


def draw(table: Table, count: int, random: np.random.Generator) -> np.ndarray:
    """(count,) values with the distribution of the table."""
    return np.interp(random.uniform(0, 100, count), PERCENTS, table)


def glue_lengths(
    batch_size: int, random: np.random.Generator, tables: dict[str, Table] | None = None
) -> Iterator[list[int]]:
    """The lengths of one batch after another, each of one task, as in fine-tuning; the tasks take turns."""
    tables = GLUE if tables is None else tables
    while True:
        for table in tables.values():
            yield [round(length) for length in draw(table, batch_size, random)]


def wmt_lengths(pairs: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Source and target lengths (pairs,) of training data."""
    source = draw(WMT["source"], pairs, random)
    target = source * draw(WMT["ratio"], pairs, random)
    return tuple(np.maximum(2, lengths.round()).astype(np.int64) for lengths in (source, target))


# Measuring.


def table(values: Iterable[float], digits: int) -> Table:
    return tuple(round(float(value), digits) for value in np.percentile(list(values), PERCENTS))


def measure_glue(data_dir: Path) -> dict[str, Table]:
    """Tokens of an example with [CLS] and [SEP], cut to 128, by a WordPiece trained on these sentences.

    Of the training set where it is there, else of the dev set.
    """
    from tokenizers import BertWordPieceTokenizer

    from ..glue.data import load
    from ..glue.tasks import TASKS

    found = {}
    for name in TASKS:
        data = load(name, data_dir)
        part = data.train or data.dev
        if part is not None and name != "ax":
            found[name] = (part.first, part.second)
    if not found:
        raise RecipeError(f"--data-dir {data_dir}: no GLUE task there; it must hold CoLA/train.tsv, RTE/train.tsv …")
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    sentences = (sentence for pair in found.values() for part in pair if part for sentence in part)
    wordpiece.train_from_iterator(sentences, vocab_size=VOCABULARY["glue"], show_progress=False)
    tables = {}
    for name, (first, second) in found.items():
        examples = first if second is None else list(zip(first, second, strict=True))
        special = 2 if second is None else 3
        lengths = (len(encoding) + special for encoding in wordpiece.encode_batch(examples, add_special_tokens=False))
        tables[name] = table((min(length, MAX_LENGTH) for length in lengths), 0)
    return tables


def measure_wmt(data_dir: Path) -> dict[str, Table]:
    """By a joint BPE trained on these pairs; an end of sentence counts. Pairs as fairseq's recipe keeps them: at most
    250 tokens, and neither side over 1.5 times the other.
    """
    from tokenizers import SentencePieceBPETokenizer

    texts: dict[str, list[str]] = {}
    for language in ("en", "de"):
        files = sorted(data_dir.glob(f"*.{language}.xz"))
        content = "".join(lzma.decompress(file.read_bytes()).decode() for file in files)
        texts[language] = content.split("\n")[:-1]
    if not texts["en"] or len(texts["en"]) != len(texts["de"]):
        raise RecipeError(f"{data_dir}: no parallel *.en.xz and *.de.xz there")
    bpe = SentencePieceBPETokenizer()
    both = (line for lines in texts.values() for line in lines)
    bpe.train_from_iterator(both, vocab_size=VOCABULARY["wmt"], show_progress=False)
    source, target = (np.array([len(e) for e in bpe.encode_batch(texts[language])]) for language in ("en", "de"))
    kept = (np.minimum(source, target) > 0) & (np.maximum(source, target) <= 250)
    kept &= np.maximum(source, target) <= 1.5 * np.minimum(source, target)
    source, target = source[kept] + 1, target[kept] + 1
    return {"source": table(source, 0), "ratio": table(target / source, 3)}


def show(data_dir: Path) -> None:
    for name, tables in (
        ("GLUE", measure_glue(data_dir / "glue")),
        ("WMT", measure_wmt(data_dir / "wmt14_train_subset")),
    ):
        print(f"{name} = {{")
        for key, values in tables.items():
            print(f'    "{key}": ({", ".join(f"{value:g}" for value in values)}),')
        print("}")
