"""What the recipes know of languages: which of them Moses' rules fit, and how words are counted in the others."""

from __future__ import annotations

from functools import cache

from ..common.errors import RecipeError

NAMES = {"de": "German", "en": "English"}

# Written without spaces between words (Unicode Standard Annex #29, section 4): words between spaces mean nothing there.
UNSPACED = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "yue", "zh"})


def base(code: str) -> str:
    """The language of a code with a region or a script: pt_BR is pt."""
    return code.replace("_", "-").partition("-")[0].lower()


@cache
def moses() -> frozenset[str]:
    """The codes for which sacremoses has abbreviations; for any other it takes the English ones in silence."""
    from sacremoses.corpus import NonbreakingPrefixes

    return frozenset(code for code in NonbreakingPrefixes().available_langs.values() if len(code) <= 3)


def check_moses(languages: tuple[str, str]) -> None:
    """
    Raises:
        RecipeError: a language that Moses would tokenise by the rules of another, or not at all.
    """
    for code in languages:
        if code in UNSPACED:
            raise RecipeError(
                f"--subword bpe: Moses finds words by spaces, and {code} is written without them; use "
                f"--subword sentencepiece, or give text whose words you have set apart, under another code"
            )
        if code not in moses():
            known = f"; {base(code)} is known: name the files so" if base(code) in moses() - UNSPACED else ""
            raise RecipeError(
                f"--subword bpe: Moses has no rules for {code!r}{known}. It has them for "
                f"{', '.join(sorted(moses() - UNSPACED))}; use --subword sentencepiece, which takes any language"
            )


def sacrebleu_tokenizer(code: str) -> str:
    """By which sacreBLEU finds words in a language, of those that need no other program; its signature names it."""
    if base(code) in ("yue", "zh"):
        return "zh"
    return "char" if base(code) in UNSPACED else "13a"
