"""Text settings from a file, and words of raw text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macaron.text import Pieces, TextError, TextSettings, Words, is_blank, read_json

SETTINGS = TextSettings("de", "en")


@pytest.mark.parametrize(("lower", "words"), [(True, 'don \'t " a-b "'), (False, 'Don \'t " A-b "')])
def test_words_of_raw_text(lower: bool, words: str) -> None:
    moses = Words(TextSettings("en", "de", lowercase=lower), "en")
    escaped = words.replace("'", "&apos;").replace('"', "&quot;")
    assert moses.encode('Don’t "A-b"') == escaped
    assert moses.decode("&quot; i don &apos;t &quot;") == '"i don\'t"'
    plain = Words(TextSettings("en", "de", tokenizer="none", lowercase=lower), "en")
    assert plain.encode("  Don't   go ") == ("don't go" if lower else "Don't go")
    assert plain.decode("as it is") == "as it is"


def test_settings_of_a_file_are_those_that_were_written() -> None:
    assert TextSettings.of(SETTINGS.content()) == SETTINGS


@pytest.mark.parametrize("name", list(SETTINGS.content()))
def test_no_setting_is_guessed(name: str) -> None:
    content = SETTINGS.content()
    del content[name]
    with pytest.raises(KeyError, match=name):
        TextSettings.of(content)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pieces": 3}, r"unknown fields \['pieces'\]; known are .*units"),
        ({"source": "../x"}, r"source '\.\./x' is no language code"),
        ({"target": "/etc/x"}, "target '/etc/x' is no language code"),
        ({"target": ".."}, "is no language code"),
        ({"target": ""}, "target '' is no language code"),
        ({"target": "en\n"}, "is no language code"),
        ({"target": "e\\n"}, "is no language code"),
        ({"target": "x" * 99}, "is no language code"),
        ({"source": "en"}, "source and target are both 'en'"),
        ({"source": 5}, "source 5: must be a string"),
        ({"source": None}, "source None: must be a string"),
        ({"tokenizer": "spacy"}, "tokenizer 'spacy' is unknown; choose moses or none"),
        ({"tokenizer": ["moses"]}, r"tokenizer \['moses'\]: must be a string"),
        ({"subword": "../codes"}, r"subword '\.\./codes' is unknown"),
        ({"lowercase": 1}, "lowercase 1: must be true or false"),
        ({"lowercase": "false"}, "lowercase 'false': must be true or false"),
        ({"aggressive_hyphens": None}, "aggressive_hyphens None: must be true or false"),
        ({"joined_dictionary": "yes"}, "joined_dictionary 'yes': must be true or false"),
        ({"units": "10"}, "units '10': must be a whole number"),
        ({"units": 1e4}, "units 10000.0: must be a whole number"),
        ({"units": True}, "units True: must be a whole number"),
        ({"units": 0}, "units 0: .* give more"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TextError, match=message):
        TextSettings.of({**SETTINGS.content(), **values})


@pytest.mark.parametrize("source", ["de", "pt_BR", "zh-Hans", "en2"])
def test_languages(source: str) -> None:
    assert TextSettings(source, "en").languages == (source, "en")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON, so it is truncated or damaged"),
        (b'{"source": "d', "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        (b'{"lenpen": NaN}', "NaN is no number"),
        (b'{"lenpen": -Infinity}', "-Infinity is no number"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "holds a list, not a JSON object"),
        (b"null", "holds a NoneType"),
    ],
)
def test_files_that_hold_no_settings(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_bytes(content)
    with pytest.raises(TextError, match=message):
        read_json(tmp_path / "text.json")


@pytest.mark.parametrize(
    ("subword", "content"),
    [
        ("subword_nmt", b""),
        ("subword_nmt", b"this is a text, no code\n"),
        ("subword_nmt", b"\xff\xfe\n"),
        ("sentencepiece", b""),
        ("sentencepiece", b"no model"),
    ],
)
def test_subword_models_that_are_none(subword: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(TextError, match=r"these are no BPE codes|this is no model of sentencepiece"):
        Pieces(TextSettings("de", "en", subword=subword), tmp_path / "model").encode("a")


def test_codes_end_at_line_feeds_alone(tmp_path: Path) -> None:
    (tmp_path / "codes").write_bytes(b"#version: 0.2\na\r b</w>\n")
    assert Pieces(SETTINGS, tmp_path / "codes").encode("cb") == "c@@ b"


@pytest.mark.parametrize(("text", "blank"), [("", True), ("\u200b\u00ad \ufeff\x07", True), ("\u200ba", False)])
def test_what_is_to_be_seen(text: str, blank: bool) -> None:
    assert is_blank(text) is blank
