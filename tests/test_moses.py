"""Tokens as tokenizer.perl makes them, in what sacremoses alone does otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

from macaron.moses import Moses, lowercase


@pytest.mark.parametrize(
    ("language", "sentence", "tokens"),
    [
        ("de", "Das kostet 75.", "Das kostet 75 ."),
        ("de", "Hüte, Mützen usw.", "Hüte , Mützen usw ."),
        ("en", "Made in the U.S.", "Made in the U.S ."),
        ("de", "usw. und so fort...", "usw. und so fort ..."),
        ("en", "Dr. No paid 1,000 dollars.", "Dr. No paid 1,000 dollars ."),
        ("en", "He said 'yes.'", "He said &apos; yes . &apos; "),
        ("en", "田郷明 (Tagoh) won't come", "田郷明 ( Tagoh ) won &apos;t come"),
        ("de", 'R&D "[x|y]"', "R &amp; D &quot; &#91; x &#124; y &#93; &quot;"),
    ],
)
def test_tokens(language: str, sentence: str, tokens: str) -> None:
    assert Moses(language).tokenize(sentence) == tokens


def test_hyphens() -> None:
    assert Moses("en", aggressive_hyphens=True).tokenize("a well-known 10-year-old") == (
        "a well @-@ known 10 @-@ year @-@ old"
    )


def test_lower_case_is_that_of_perl() -> None:
    assert lowercase("ÄSΣ ΟΔΟΣ") == "äsσ οδοσ"
    assert Moses("de", lower=True).tokenize("Große STRASSE.") == "große strasse ."


def test_an_apostrophe_of_a_test_set_becomes_plain() -> None:
    moses = Moses("en")
    assert moses.encode("it’s") == "it &apos;s"
    assert moses.tokenize("it’s") == "it ’ s"


def test_back_to_text() -> None:
    sentence = "He said: \"It's late, isn't it?\""
    assert Moses("en").decode(Moses("en").tokenize(sentence)) == sentence
    assert Moses("en").decode("well @-@ known") == "well-known"


def test_neither_torch_nor_fairseq_is_loaded() -> None:
    code = "import macaron.moses, sys; print(sorted({'torch', 'fairseq', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
