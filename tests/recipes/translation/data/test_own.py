"""A corpus of one's own: which files are found, how one pair of files is split, and what is dropped is counted."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, read_lines
from recipes.translation.data.corpus import COPY, EMPTY, NOT_UTF8, Part, Rules, locate
from recipes.translation.data.own import LEAK, Keys, Own, OwnCorpus, divided, doubt, key, keys_of
from recipes.translation.data.prepare import Preparation, counts
from recipes.translation.data.sentences import SentenceTask, process
from recipes.translation.text import TextSettings

TEXT = TextSettings("sw", "ka", tokenizer="none", subword="sentencepiece", units=60)


def write(path: Path, lines: list[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode("utf-8", "surrogateescape"))


def own(files: dict[str, Any] | None = None, languages: tuple[str, str] = ("sw", "ka"), **options: Any) -> OwnCorpus:
    chosen = Own("Tales", **options)
    return OwnCorpus("Tales", *languages, chosen.rules, own=chosen, files=files or {})


def pairs(corpus: OwnCorpus, folder: Path) -> dict[str, list[tuple[str, str]]]:
    found = locate(corpus, folder, folder / "scratch")
    return {split: list(part.pairs()) for split, part in found.parts()}


# --- the split --------------------------------------------------------------------------------------------------

sentences = st.sampled_from([*"abcdefghij", "A", " a", "b  ", "ﬁ", "fi"])


@given(
    rows=st.lists(st.tuples(sentences, sentences, st.booleans()), max_size=60),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_no_sentence_is_in_two_sets(rows: list[tuple[str, str, bool]], sizes: tuple[int, int], seed: int) -> None:
    source, target, usable = ([row[n] for row in rows] for n in range(3))
    columns = [np.array([key(text) for text in column], np.uint64) for column in (source, target)]
    keys = Keys(*columns, np.array(usable, bool), np.ones((len(rows), 2), np.uint64))
    try:
        sets = divided(keys, {"test": sizes[0], "valid": sizes[1]}, seed)
    except RecipeError as error:
        assert "differ in both sides" in str(error)
        return
    assert [int(sets[split].sum()) for split in ("test", "valid")] == [*sizes]
    assert not any((sets[a] & sets[b]).any() for a, b in (("test", "valid"), ("test", "train"), ("valid", "train")))
    assert not (sets["test"] | sets["valid"])[~keys.usable].any()
    for column in columns:
        held = [set(column[sets[split]].tolist()) for split in ("test", "valid", "train")]
        assert len(held[0]) == sizes[0] and len(held[1]) == sizes[1], "nothing is held out twice"
        assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    lost = ~(sets["test"] | sets["valid"] | sets["train"])
    held_out = sets["test"] | sets["valid"]
    assert all(  # and nothing is lost that need not be
        any(column[row] in column[held_out] for column in columns) for row in np.flatnonzero(lost)
    )
    again = divided(keys, {"test": sizes[0], "valid": sizes[1]}, seed)
    assert all((sets[split] == again[split]).all() for split in sets)


def test_what_is_the_same_sentence() -> None:
    assert key("Ein  HAUS\u00a0hier") == key("ein haus hier ") and key("ﬁn") == key("fin")
    assert key("ein haus") != key("ein Haus.")


def test_pairs_that_occur_once_are_held_out_first(tmp_path: Path) -> None:
    """So that a greeting that is there a hundred times takes no training pair with it."""
    lines = ["Habari!"] * 100 + [f"sentensi {n}" for n in range(20)]
    write(tmp_path / "tales.sw", lines)
    write(tmp_path / "tales.ka", [line.upper() + "?" for line in lines])
    found = locate(own(valid_pairs=5, test_pairs=10), tmp_path, tmp_path / "scratch")
    sets = {split: list(part.pairs()) for split, part in found.parts()}
    assert {split: len(rows) for split, rows in sets.items()} == {"train": 105, "valid": 5, "test": 10}
    assert found.dropped == {} and found.split_off == ("test", "valid")
    assert found.kind == "Tales, 120 pairs of raw text; valid and test split off by seed 1"


def test_other_seeds_hold_out_others(tmp_path: Path) -> None:
    write(tmp_path / "t.sw", [f"a {n}" for n in range(100)])
    write(tmp_path / "t.ka", [f"b {n}" for n in range(100)])
    one, same, two = (pairs(own(split_seed=seed), tmp_path)["test"] for seed in (1, 1, 2))
    assert one == same and one != two and len(one) == 5


def test_a_duplicate_of_what_is_held_out_is_dropped_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "t.sw", ["a", "a", "b", "c", "c"])
    write(tmp_path / "t.ka", ["x", "y", "y", "z", "z"])
    found = locate(own(valid_pairs=1, test_pairs=1), tmp_path, tmp_path / "scratch")
    sets = {split: list(part.pairs()) for split, part in found.parts()}
    assert found.dropped[LEAK] == 3 - len(sets["train"]) and found.dropped[LEAK] > 0
    sides = [{side for rows in sets[split] for side in rows} for split in ("train", "valid", "test")]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_too_few_pairs_say_so(tmp_path: Path) -> None:
    write(tmp_path / "t.sw", ["a"] * 9)
    write(tmp_path / "t.ka", [f"b {n}" for n in range(9)])
    with pytest.raises(RecipeError, match=r"9 pairs, and fewer than 2 of them differ in both sides.*--test-pairs"):
        locate(own(), tmp_path, tmp_path / "scratch")
    write(tmp_path / "t.ka", ["a"] * 9)
    with pytest.raises(RecipeError, match=r"9 pairs \(9 are empty, not UTF-8, or have equal sides\), and fewer than 2"):
        locate(own(), tmp_path, tmp_path / "scratch")


def test_what_was_given_is_left_as_it_is_and_an_overlap_is_said(tmp_path: Path) -> None:
    for split, numbers in (("train", range(50)), ("dev", range(48, 52)), ("test", range(60, 64))):
        write(tmp_path / f"{split}.sw", [f"a {n}" for n in numbers])
        write(tmp_path / f"{split}.ka", [f"b {n}" for n in numbers])
    found = locate(own(), tmp_path, tmp_path / "scratch")
    assert [len(list(part.pairs())) for _, part in found.parts()] == [50, 4, 4] and not found.split_off
    assert found.notice.startswith("2 of 4 valid pairs share their source or their target with a training pair: scores")


def test_lines_that_are_shifted_are_doubted(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 40, 600)
    write(tmp_path / "t.sw", [f"{n} " + "a" * length for n, length in enumerate(lengths)])
    write(tmp_path / "t.ka", [f"{n} " + "b" * length for n, length in enumerate(lengths)])
    right = keys_of(Part(tmp_path / "t.sw", tmp_path / "t.ka"))
    shifted = np.stack([right.lengths[:, 0], np.roll(right.lengths[:, 1], 1)], axis=1)
    assert doubt(right) == ""
    assert "do not go together" in doubt(right._replace(lengths=shifted))


# --- the files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", ["", ".gz", ".xz"])
def test_forms_of_files(tmp_path: Path, pack: str) -> None:
    write(tmp_path / "below" / "t.sw", ["\ufeffmoja\u2028mbili", "tatu"], "\r\n")
    write(tmp_path / "below" / "t.ka", ["one two", "three"])
    for side in ("sw", "ka"):
        path = tmp_path / "below" / f"t.{side}"
        if pack:
            (path.with_name(path.name + pack)).write_bytes(
                {".gz": gzip.compress, ".xz": lzma.compress}[pack](path.read_bytes())
            )
            path.unlink()
    for corpus in (own(), own({"train": (tmp_path / "below" / "t.sw", tmp_path / "below" / "t.ka")})):
        part = (corpus.named() or corpus.in_folder(tmp_path))["train"]
        assert list(part.pairs()) == [("moja\u2028mbili", "one two"), ("tatu", "three")]


def test_sets_that_are_named(tmp_path: Path) -> None:
    """Wherever they lie; what is not named is split off."""
    files = {}
    for split, size in (("train", 40), ("valid", 3), ("test", 2)):
        files[split] = (tmp_path / split / "left", tmp_path / "elsewhere" / f"{split}.right")
        for path in files[split]:
            write(path, [f"{path.name} {n}" for n in range(size)])
    assert {split: len(rows) for split, rows in pairs(own(files), tmp_path).items()} == {
        "train": 40, "valid": 3, "test": 2,
    }  # fmt: skip
    without = own({split: files[split] for split in ("train", "test")}, valid_pairs=4)
    assert {split: len(rows) for split, rows in pairs(without, tmp_path).items()} == {
        "train": 36, "valid": 4, "test": 2,
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"--test-pairs 9: the test set is .* as it is; leave it out"):
        pairs(own(files, test_pairs=9), tmp_path)


def test_held_out_sets_may_be_sgm(tmp_path: Path) -> None:
    for side in ("sw", "ka"):
        write(tmp_path / f"train.{side}", [f"{side} {n}" for n in range(40)])
        write(tmp_path / f"test.{side}.sgm", [f'<seg id="1">{side} &amp; x</seg>'])
    sets = pairs(own(valid_pairs=2), tmp_path)
    assert sets["test"] == [("sw & x", "ka & x")] and len(sets["valid"]) == 2 and len(sets["train"]) == 38


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"nothing of Tales is recognised there\. Looked for train\.\{sw,ka\}"),
        ({"t.sw": "a\n"}, r"t\.sw is there, but t\.ka is missing"),
        ({"t.ka": "a\n"}, r"t\.ka is there, but t\.sw is missing"),
        ({"a.sw": "", "a.ka": "", "b.sw": "", "b.ka": ""}, r"2 pairs of files \(a, b\) and none is called train"),
        ({"test.sw": "a\n", "test.ka": "a\n"}, r"test but no train\.\{sw,ka\}; put it there"),
        ({"t.sw": "a\nb\n", "t.ka": "a\n"}, r"t\.ka ends after 1 sentences, .*t\.sw goes on"),
        ({"t.sw": "a\n", "t.ka": "a\n\n"}, r"t\.sw ends after 1 sentences, .*t\.ka goes on"),
        ({"t.sw": "a\nb\0\n", "t.ka": "a\nb\n"}, r"t\.sw: not UTF-8 after line 1 \(a NUL character"),
        ({"t.sw": "a\r" * 200, "t.ka": "b\r" * 200}, r"line 1: over 100 carriage returns, as in files of old Macs"),
        ({"t.sw": "▁a ▁b\n" * 9, "t.ka": "▁a\n" * 9}, r"t\.sw: holds pieces of sentencepiece"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, newline="")
    with pytest.raises(RecipeError, match=message):
        locate(own(), tmp_path, tmp_path / "scratch")


def test_named_files_that_are_missing_or_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a.sw", ["a"])
    (tmp_path / "a.ka").symlink_to(tmp_path / "a.sw")
    with pytest.raises(RecipeError, match=r"b\.ka: no such file \(nor with \.xz or \.gz\); the train set needs"):
        own({"train": (tmp_path / "a.sw", tmp_path / "b.ka")}).named()
    with pytest.raises(RecipeError, match=r"a\.sw: is both sides of train"):
        own({"train": (tmp_path / "a.sw", tmp_path / "a.ka")}).named()


def test_tokenised_text_shows_where_moses_knows_the_languages(tmp_path: Path) -> None:
    for side in ("sw", "ka", "de", "en"):
        write(tmp_path / f"t.{side}", ["Ein Haus .", "Ja ."] * 20)
    forms = {languages: own(languages=languages).in_folder(tmp_path) for languages in (("sw", "ka"), ("de", "en"))}
    shaped = {languages: own(languages=languages).shaped("train", found["train"]) for languages, found in forms.items()}
    assert [part.form for part in shaped.values()] == ["raw", "tokenised"]
    assert own(languages=("de", "en"), form="raw").shaped("train", forms["de", "en"]["train"]).form == "raw"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"title": "a\nb"}, "--name"), ({"title": " "}, "--name"), ({"valid_pairs": 0}, "--valid-pairs 0"),
        ({"ratio": 0.5}, "the ratio at least 1"), ({"longest": -1}, "--max-length -1"), ({"form": "x"}, "--text-form"),
        ({"ratio": float("nan")}, "must be positive"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Own(**{"title": "x", **options})


# --- what is dropped --------------------------------------------------------------------------------------------

texts = st.text(st.sampled_from("ab \u200b\u2028\udce9"), max_size=6)


@given(st.lists(st.tuples(texts, texts), max_size=20), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_pair_is_kept_or_counted(given: list[tuple[str, str]], copies: bool) -> None:
    rules = Rules(longest=2, ratio=2, sound=True, copies=copies)
    split, dropped, kept = process(TEXT, rules, SentenceTask("train", "any", "raw", given))
    assert split == "train" and len(kept) + sum(dropped.values()) == len(given)
    for sentences in kept:
        assert all(set(text) & {"a", "b"} for text in sentences.words)
        assert copies or sentences.words[0] != sentences.words[1]
    assert dropped[NOT_UTF8] == sum("\udce9" in a + b for a, b in given)
    assert copies <= (dropped[COPY] == 0)


@pytest.mark.parametrize("text", [TEXT, TextSettings("de", "en", units=60)], ids=["sentencepiece", "bpe"])
def test_drops_of_the_whole_step_are_counted(tmp_path: Path, text: TextSettings) -> None:
    """From the files to the pieces: what was read is what is in the three sets and what was counted."""
    good = [(f"moja {n} mbili", f"one {n} two") for n in range(60)]
    bad = [
        ("", "x"),
        ("y", "\u200b"),
        ("same", "same"),
        ("caf\udce9", "coffee"),
        ("a " * 40, "b " * 40),
        ("k", "m " * 20),
    ]
    for n, side in enumerate(text.languages):
        write(tmp_path / "in" / f"t.{side}", [pair[n] for pair in good + bad])
    space = Workspace(tmp_path / "run", {})
    corpus = own(languages=text.languages, longest=30, ratio=5.0, valid_pairs=6, test_pairs=4)
    job = Preparation(corpus, text, space, 1)
    words = job.once("text", lambda: job.text(tmp_path / "in", {}, False))
    job.once("units", lambda: job.units(None))
    pieces = job.once("pieces", job.pieces)
    dropped = counts(words["dropped"]) + counts(pieces["dropped"])
    assert dropped[EMPTY] == 2 and dropped[COPY] == 1 and dropped[NOT_UTF8] == 1
    assert sum(pieces["sizes"].values()) + sum(dropped.values()) == len(good) + len(bad)
    for split, size in pieces["sizes"].items():
        columns = [read_lines(tmp_path / "run" / "bpe" / f"{split}.{side}") for side in text.languages]
        assert [len(column) for column in columns] == [size, size]
    raw = [read_lines(tmp_path / "run" / "raw" / f"test.{side}") for side in text.languages]
    assert set(zip(*raw, strict=True)) <= set(good + bad)
    space.lock.close()


def test_text_in_another_encoding_is_no_matter_of_a_few_lines(tmp_path: Path) -> None:
    """A hundredth may be broken; a whole file was written otherwise."""
    for side in ("sw", "ka"):
        (tmp_path / f"t.{side}").write_bytes("".join(f"café {n}\n" for n in range(60)).encode("latin-1"))
    space = Workspace(tmp_path / "run", {})
    job = Preparation(own(), TEXT, space, 1)
    with pytest.raises(RecipeError, match=r"t\.sw: not UTF-8 after line 0"):
        job.text(tmp_path, {}, False)
    space.lock.close()
