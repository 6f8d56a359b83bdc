"""Punctuation of raw training text as fairseq's WMT script normalises it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import regex
from sacremoses import MosesPunctNormalizer

_NON_PRINTING = regex.compile(r"\p{C}")


@lru_cache
def normaliser(language: str) -> Callable[[str], str]:
    """normalize-punctuation.perl, then remove-non-printing-char.perl, which puts spaces in their place."""
    punctuation = MosesPunctNormalizer(language, perl_parity=True)
    return lambda sentence: _NON_PRINTING.sub(" ", punctuation.normalize(sentence))
