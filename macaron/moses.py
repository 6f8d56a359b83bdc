"""Moses tokenisation exactly as mosesdecoder's tokenizer.perl does it: sacremoses, with two deviations mended.

Loaded neither by `import macaron` nor by fairseq: it needs sacremoses alone, and costs worker processes little.
"""

from __future__ import annotations

import re

import regex  # type: ignore[import-untyped]
from sacremoses import MosesDetokenizer, MosesTokenizer  # type: ignore[import-untyped]

__all__ = ["Moses", "lowercase"]

_LAST_PERIOD = re.compile(r"(?<=\S)\.$")
_ALNUM = r"\p{Alphabetic}\p{Nd}"  # Perl's IsAlnum


class _Tokenizer(MosesTokenizer):  # type: ignore[misc]  # sacremoses has no types
    """tokenizer.perl in two things in which sacremoses differs from it for European languages.

    Chinese, Japanese and Korean letters are letters, so they are not set apart one by one; and (since 2016) the last
    word's period is split off even after an abbreviation or a number ("usw.", "75.").
    """

    PAD_NOT_ISALNUM = regex.compile(rf"([^{_ALNUM}\s\.'\`\,\-])"), r" \1 "
    AGGRESSIVE_HYPHEN_SPLIT = regex.compile(rf"([{_ALNUM}])\-(?=[{_ALNUM}])"), r"\1 @-@ "

    def handles_nonbreaking_prefixes(self, text: str) -> str:
        return _LAST_PERIOD.sub(" .", super().handles_nonbreaking_prefixes(text))


def lowercase(text: str) -> str:
    """Perl's `lc`: letter by letter, where Python would write a Σ at the end of a word as ς."""
    return "".join(map(str.lower, text)) if "Σ" in text else text.lower()


class Moses:
    """Raw sentences to tokens and back.

    Args:
        language: whose abbreviations and apostrophes; an ISO 639-1 code such as "de".
        aggressive_hyphens: split "a-b" into "a @-@ b" (option -a of tokenizer.perl).
        lower: lower-case after tokenisation. Lost for good: `decode` does not undo it.
    """

    def __init__(self, language: str, *, aggressive_hyphens: bool = False, lower: bool = False):
        self.tokenizer = _Tokenizer(language)
        self.detokenizer = MosesDetokenizer(language)
        self.aggressive_hyphens = aggressive_hyphens
        self.lower = lower

    def tokenize(self, sentence: str) -> str:
        """Tokens of a training sentence, separated by spaces, with &, |, <, >, ', ", [ and ] escaped."""
        text: str = self.tokenizer.tokenize(
            sentence, aggressive_dash_splits=self.aggressive_hyphens, return_str=True, escape=True
        )
        return lowercase(text) if self.lower else text

    def encode(self, sentence: str) -> str:
        """Tokens of a sentence to translate: as fairseq's scripts do it for test sets, ’ first becomes '."""
        return self.tokenize(sentence.replace("’", "'"))

    def decode(self, tokens: str) -> str:
        """The sentence that tokens came from, as far as spaces can be known."""
        text: str = self.detokenizer.detokenize(tokens.split())
        return text
