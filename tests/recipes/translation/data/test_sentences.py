"""What is done to sentences, and the rules of cleaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.translation.data.corpus import Rules, is_in_pieces, is_tokenised
from recipes.translation.data.files import READERS
from recipes.translation.data.normalise import normaliser
from recipes.translation.data.sentences import SentenceTask, process
from recipes.translation.text import TextSettings

RULES = Rules(longest=5, ratio=1.5)
SETTINGS = TextSettings("de", "en", lowercase=True)


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("a b c", "a b", True),  # the ratio itself is allowed
        ("a b c d", "a b", False),
        ("a b", "a b c d", False),
        ("a b c d e", "a b c d e", True),
        ("a b c d e f", "a b c d e", False),
        ("", "a", False),
        ("a", " ", False),
        ("x" * 1000, "a", True),
        ("x" * 1001, "a", False),
    ],
)
def test_cleaning_is_that_of_clean_corpus_n(source: str, target: str, kept: bool) -> None:
    assert (RULES.fault(source, target) == "") is kept


def done(split: str, reader: str, form: str, *pair: str, rules: Rules = RULES, settings: TextSettings = SETTINGS):
    _, _, kept = process(settings, rules, SentenceTask(split, reader, form, [(pair[0], pair[1])]))
    return [tuple(sentences) for sentences in kept]


def test_raw_text_is_tokenised() -> None:
    assert done("train", "lines", "raw", " Ja, gut.", "Yes, fine.") == [
        (("Ja, gut.", "Yes, fine."), ("ja , gut .", "yes , fine ."))
    ]


def test_test_sets_are_not_cleaned_and_shown_without_entities() -> None:
    assert done("test", "segments", "raw", "Ja &amp; Nein", "1 2 3 4 5 6 7’s") == [
        (("Ja & Nein", "1 2 3 4 5 6 7’s"), ("ja &amp; amp ; nein", "1 2 3 4 5 6 7 &apos;s"))
    ]


def test_final_text_stays_as_it_is_and_is_detokenised_for_people() -> None:
    assert done("test", "lines", "final", "ja , gut .", "&quot; yes &quot; .") == [
        (("ja, gut.", '"yes".'), ("ja , gut .", "&quot; yes &quot; ."))
    ]
    assert done("train", "lines", "final", "ja .", "yes .") == [(("", ""), ("ja .", "yes ."))]


def test_other_tokenised_text_is_brought_into_one_form() -> None:
    settings = TextSettings("de", "en", aggressive_hyphens=True)
    assert done("train", "lines", "tokenised", "Ein UN-Haus .", "A UN-house .", settings=settings) == [
        (("Ein UN-Haus.", "A UN-house."), ("Ein UN @-@ Haus .", "A UN @-@ house ."))
    ]


def test_final_text_is_raw_again_for_a_model_on_raw_text() -> None:
    settings = TextSettings("de", "en", tokenizer="none", subword="sentencepiece")
    assert done("train", "lines", "final", "ja , gut .", "yes .", settings=settings, rules=Rules()) == [
        (("ja, gut.", "yes."), ("ja, gut.", "yes."))
    ]


def test_only_training_text_is_normalised() -> None:
    rules = Rules(normalise=True)
    (train,) = done("train", "lines", "raw", "„Ja“ – gut\u200b", "“Yes”", rules=rules)
    assert train[1] == ("&quot; ja &quot; - gut", "&quot; yes &quot;")
    (test,) = done("test", "lines", "raw", "„Ja“", "“Yes”", rules=rules)
    assert test[1] == ("„ ja “", "“ yes ”")


def test_non_printing_characters_become_spaces() -> None:
    assert normaliser("en")("a\u200bb\x07c") == "a b c"
    assert normaliser("de")("10\u00a0000") == "10,000"
    assert normaliser("en")("‘a’") == "'a\""  # as normalize-punctuation.perl has it


def test_forms_are_recognised() -> None:
    assert is_tokenised(["Das ist es .", "Ja ?", "ohne Ende"])
    assert not is_tokenised(["Das ist es.", "Ja?", "ohne Ende ."])
    assert not is_tokenised([])
    assert is_in_pieces(["ein al@@ tes haus"])
    assert not is_in_pieces(["ein haus"] * 20 + ["@@ "])


WHITE = "\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u00a0\u2007\u2028\u2029\u202f\u3000"


@pytest.mark.parametrize("white", WHITE)
@pytest.mark.parametrize("form", ["final", "tokenised", "raw"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("tokenizer", ["moses", "none"])
def test_every_white_space_becomes_one_space(white: str, form: str, split: str, tokenizer: str) -> None:
    """A line end to one reader and none to the next, or a space to one and a letter to the next, shifts pairs."""
    settings = TextSettings("de", "en", lowercase=True, tokenizer=tokenizer)
    pair = f"{white}ein{white}haus {white} da{white}", f"a{white}house"
    ((raw, words),) = done(split, "lines", form, *pair, rules=Rules(normalise=True), settings=settings)
    assert words == ("ein haus da", "a house")
    assert raw in {("ein haus da", "a house"), ("", "")}


@pytest.mark.parametrize("entity", ["&#10;", "&#13;", "&#x2028;", "&NewLine;"])
@pytest.mark.parametrize("reader", ["segments", "sgm"])
def test_entities_bring_no_line_ends(tmp_path: Path, reader: str, entity: str) -> None:
    path = tmp_path / "test.sgm"
    path.write_text(f'<seg id="1">ein{entity}haus</seg>\n')
    (sentence,) = READERS[reader](path)
    for settings in (SETTINGS, TextSettings("de", "en", tokenizer="none")):
        (sentences,) = done("test", reader, "raw", sentence, sentence, settings=settings)
        assert not any(character in text for side in sentences for text in side for character in "\n\r\u2028")
        assert sentences[0] == ("ein haus", "ein haus")
