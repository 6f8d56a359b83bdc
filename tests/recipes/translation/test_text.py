"""Text settings, and the way from raw text to pieces and back."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation.data import subword
from recipes.translation.text import Codec, Pieces, TextSettings, Words

SETTINGS = TextSettings("de", "en", lowercase=True, units=60)
SENTENCES = ["das ist ein haus .", "das haus ist alt .", "ein altes haus", "this is a house .", "an old house ."] * 5


@pytest.fixture(params=["subword_nmt", "sentencepiece"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """text.json and a sub-word model, as in data-bin."""
    settings = replace(SETTINGS, subword=request.param, tokenizer="moses")
    text = tmp_path / "train.de"
    text.write_text("".join(f"{line}\n" for line in SENTENCES), encoding="utf-8")
    subword.learn([text], tmp_path / settings.model_name, settings, workers=1)
    settings.write(tmp_path / "text.json")
    return tmp_path


def test_pieces_and_back(folder: Path) -> None:
    codec = Codec.open(folder)
    pieces = codec.pieces("Das Haus ist „alt“, usw.")
    assert codec.tokens(pieces) == "das haus ist „ alt “ , usw ."
    assert Codec.open(folder).tokens(codec.pieces("x")) == "x"
    assert codec.text(codec.pieces("This is a house.")) == "this is a house."


def test_pieces_are_smaller_than_rare_words(folder: Path) -> None:
    codec = Codec.open(folder)
    assert len(codec.pieces("haus").split()) < len(codec.pieces("xyzw").split())


def test_raw_text_with_sentencepiece_keeps_case_and_punctuation(tmp_path: Path) -> None:
    settings = TextSettings("de", "en", tokenizer="none", subword="sentencepiece", units=70)
    text = tmp_path / "train.de"
    text.write_text("".join(f"{line.capitalize()}\n" for line in SENTENCES), encoding="utf-8")
    subword.learn([text], tmp_path / "spm.model", settings, workers=1)
    codec = Codec(settings, tmp_path)
    assert codec.text(codec.pieces("Das  Haus, an.")) == "Das Haus, an."


def test_settings_survive_the_file(tmp_path: Path) -> None:
    SETTINGS.write(tmp_path / "text.json")
    assert TextSettings.read(tmp_path / "text.json") == SETTINGS
    assert json.loads((tmp_path / "text.json").read_text())["subword"] == "subword_nmt"


def test_unknown_fields_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text('{"source": "de", "target": "en", "pieces": 3}')
    with pytest.raises(RecipeError, match=r"text\.json: unknown fields \['pieces'\]; known are .*units"):
        TextSettings.read(tmp_path / "text.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenizer": "spacy"}, "tokenizer 'spacy' is unknown; choose moses or none"),
        ({"subword": "wordpiece"}, "subword 'wordpiece' is unknown; choose subword_nmt or sentencepiece"),
        ({"units": 0}, "units 0: .* give more"),
        ({"target": "de"}, "source and target are both 'de'"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(SETTINGS, **values)


def test_codes_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "codes").write_text("this is a text, no code\n")
    with pytest.raises(RecipeError, match="no BPE codes of subword-nmt"):
        Pieces(SETTINGS, tmp_path / "codes").encode("a")


def test_training_text_keeps_its_apostrophes() -> None:
    words = Words(TextSettings("en", "de"), "en")
    assert (words.training("it’s"), words.encode("it’s")) == ("it ’ s", "it &apos;s")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"source": "de"', r"text\.json: no JSON, so it is truncated or damaged"),
        ('["de", "en"]', r"text\.json: holds a list, not a JSON object"),
        ('{"source": "de", "target": "en"}', r"text\.json: 'tokenizer' is missing; prepare the data anew"),
    ],
)
def test_files_that_hold_no_settings(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        TextSettings.read(tmp_path / "text.json")


def test_settings_of_a_file_are_checked_as_those_that_are_written(tmp_path: Path) -> None:
    content = {**SETTINGS.content(), "target": "../en"}
    (tmp_path / "text.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"text\.json: target '\.\./en' is no language code"):
        TextSettings.read(tmp_path / "text.json")


def test_settings_go_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(SETTINGS)) == SETTINGS
