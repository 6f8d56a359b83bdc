"""Is what fairseq-preprocess wrote what it was given? Its index files against the text, line by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...common.errors import RecipeError
from ...common.textfile import lines

MAGIC = b"MMIDIDX\x00\x00"
HEADER = len(MAGIC) + 17  # and version (8 bytes), type (1), count (8)


def check(
    data_bin: Path, text: Callable[[str, str], Path], splits: tuple[str, ...], languages: tuple[str, str]
) -> None:
    """Raise a RecipeError unless each line of text is one entry with as many tokens, and both sides have as many.

    Args:
        text: (split, language) to the file that was made binary.
    """
    for split in splits:
        counts = {}
        for language in languages:
            index = data_bin / f"{split}.{'-'.join(languages)}.{language}.idx"
            counts[language] = compare(text(split, language), index)
        if len(set(counts.values())) > 1:
            sides = " but ".join(f"{count:,} in {language}" for language, count in counts.items())
            raise RecipeError(f"{data_bin}: {sides} for {split}; line n of one must translate line n of the other")


def compare(text: Path, index: Path) -> int:
    """How many sentences both have."""
    given = np.fromiter((len(line.split()) + 1 for line in lines(text)), np.int64)
    made = sizes(index)
    differing = np.flatnonzero(given[: len(made)] != made[: len(given)])
    if len(given) != len(made) or len(differing):
        line = f", and line {differing[0] + 1:,} is the first to differ" if len(differing) else ""
        raise RecipeError(
            f"{index}: {len(made):,} sentences, but {text} has {len(given):,} lines{line}; pairs would be shifted "
            f"against each other. Run the same command again; if that does not help, fairseq takes something in the "
            f"text for the end of a line"
        )
    return len(given)


def sizes(index: Path) -> np.ndarray:
    """(sentences) how many tokens each has."""
    content = index.read_bytes()
    count = int.from_bytes(content[HEADER - 8 : HEADER], "little")
    if not content.startswith(MAGIC) or len(content) != HEADER + 12 * count:  # 4 bytes of size and 8 of address each
        raise RecipeError(f"{index}: no index of fairseq, or truncated; run the same command again")
    return np.frombuffer(content, "<i4", count, HEADER)
