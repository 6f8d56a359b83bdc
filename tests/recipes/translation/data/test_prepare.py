"""The whole data step through fairseq-preprocess: what it makes, resuming, and independence of the workers."""

from __future__ import annotations

import lzma
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, digest, read_lines
from recipes.iwslt14_de_en.corpus import CORPUS as IWSLT14
from recipes.translation import commands
from recipes.translation.data import binary, subword
from recipes.translation.data.corpus import Corpus, Input, Rules
from recipes.translation.data.files import lines
from recipes.translation.data.parallel import chunks
from recipes.translation.data.prepare import Preparation, entries, prepare, unknown_pieces
from recipes.translation.text import Codec, Pieces, TextSettings

pytestmark = pytest.mark.usefixtures("forks")  # fairseq-preprocess comes from a process that has imported fairseq

SETTINGS = TextSettings("de", "en", lowercase=True, units=50)
PAIRS, CHUNK = 430, 100  # so that there are several chunks


@dataclass(frozen=True)
class Toy(Corpus):
    """Validation from the training set, cleaning by pieces: the longest way through all steps."""

    def find(self, folder: Path) -> Input | None:
        train, test = self.pair(folder, "all"), self.pair(folder, "test")
        return Input("toy", (train,), (), (test,)) if train and test else None

    def looked_for(self) -> str:
        return "all and test.{de,en}"


TOY = Toy("Toy", "de", "en", Rules(longest=30, ratio=1.5, unit="pieces", every=10, normalise=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several chunks of pairs; every 7th is too unequal."""
    folder = tmp_path_factory.mktemp("toy")
    for language, house in (("de", "Haus"), ("en", "house")):
        pairs = [
            f"{house} {n}, {n % 9}." + (" x" * 20 if n % 7 == 0 and language == "en" else "") for n in range(PAIRS)
        ]
        (folder / f"all.{language}").write_text("".join(f"{line}\n" for line in pairs))
        (folder / f"test.{language}").write_text("".join(f"{house} {n}?\n" for n in range(5)))
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("prepare", "sentences", "subword"):
        monkeypatch.setattr(f"recipes.translation.data.{module}.chunks", partial(chunks, size=CHUNK))


def run(folder: Path, data: Path, workers: int, **options: Any) -> dict[str, Any]:
    space = Workspace(folder, {})
    try:
        return prepare(TOY, SETTINGS, space, data_dir=data, workers=workers, **options)
    finally:
        space.lock.close()


def test_all_of_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run goes on where it stopped, and two processes make what one makes, byte for byte."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(commands, "run", interrupted)
        run(one, data, workers=1)
    assert sorted(path.stem for path in (one / "stamps").iterdir()) == [
        "prepare-pieces", "prepare-text", "prepare-units",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        for step in ("text", "units", "pieces"):
            patch.setattr(Preparation, step, interrupted)
        facts = run(one, data, workers=1)

    assert facts["kind"] == "toy"
    assert facts["sizes"]["test"] == 5
    assert facts["sizes"]["train"] + facts["sizes"]["valid"] + sum(facts["dropped"].values()) == PAIRS
    assert facts["dropped"] == {"one side over 1.5 times as long as the other": 62}  # every 7th
    assert facts["dictionary"]["de"] == facts["dictionary"]["en"] > 10
    assert facts["unknown"]["train.de"] == "0.0%"
    columns = [read_lines(one / kind / f"valid.{side}") for kind in ("raw", "text", "bpe") for side in ("de", "en")]
    assert {len(column) for column in columns} == {facts["sizes"]["valid"]}
    assert (columns[0][0], columns[2][0], columns[0][2]) == ("Haus 9, 0.", "haus 9 , 0 .", "Haus 29, 2.")
    codec = Codec.open(one / "data-bin")
    assert codec.settings == SETTINGS
    assert codec.pieces("Haus 9, 0.") == read_lines(one / "bpe" / "valid.de")[0]

    assert run(two, data, workers=2) == facts
    made = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    same = {name for name in made if digest(one / name) == digest(two / name)}
    differing = {name for name in made - same if not name.endswith((".log", ".json"))}
    assert not differing
    assert run(one, data / "gone", workers=1) == facts  # nothing finished is done again, nor its input needed


def test_canonical_codes_and_dictionaries(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "iwslt14"
    head = tmp_path / "head"
    head.mkdir()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            with lzma.open(data / f"{split}.{language}.xz", "rt", encoding="utf-8", newline="\n") as file:
                (head / f"{split}.{language}").write_text("".join(next(file) for _ in range(50)), encoding="utf-8")
    space = Workspace(tmp_path / "run", {})
    facts = prepare(
        IWSLT14, TextSettings("de", "en", lowercase=True, joined_dictionary=False), space,
        data_dir=head, workers=1, bpe_codes=data / "bpe10k.code.xz", dictionaries=data,
    )  # fmt: skip
    assert facts["dictionary"] == {"de": 8_848, "en": 6_632}
    assert facts["unknown"]["train.de"] == facts["unknown"]["train.en"] == "0.0%"
    assert facts["units"] == 10_000
    assert "50 training pairs, 0% of the 160,239 of IWSLT14: a subset" in facts["notice"]
    assert list(lines(tmp_path / "run" / "data-bin" / "dict.en.txt"))[:3] == list(lines(data / "dict.en.txt.xz"))[:3]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenised text as other systems leave it: marks, CR LF, and every other white space inside sentences."""
    folder = tmp_path_factory.mktemp("awkward")
    for split, count in (("train", 40), ("valid", 5), ("test", 5)):
        for language, house in (("de", "haus"), ("en", "house")):
            text = [f"{house} {n} , {house} {n % 7} ." for n in range(count)]
            for n, white in enumerate("\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\t\u00a0\r"):
                line = (n * (3 if language == "de" else 2)) % count
                text[line] = text[line].replace(" ", white, 1)
            content = "".join(f"{line}\r\n" for line in text)
            (folder / f"{split}.{language}").write_text(content, encoding="utf-8-sig", newline="\n")
    return folder


@pytest.mark.parametrize("subword", ["subword_nmt", "sentencepiece"])
def test_pairs_stay_together_whatever_white_space_is_inside(awkward: Path, tmp_path: Path, subword: str) -> None:
    tokenizer = "moses" if subword == "subword_nmt" else "none"
    settings = TextSettings("de", "en", lowercase=True, units=40, tokenizer=tokenizer, subword=subword)
    space = Workspace(tmp_path, {})
    facts = prepare(IWSLT14, settings, space, data_dir=awkward, workers=1)
    assert facts["sizes"] == {"train": 40, "valid": 5, "test": 5}
    for split, count in facts["sizes"].items():
        for language in ("de", "en"):
            house = {"de": "haus", "en": "house"}[language]
            assert len(binary.sizes(tmp_path / "data-bin" / f"{split}.de-en.{language}.idx")) == count
            form = "{0} {1} , {0} {2} ." if tokenizer == "moses" else "{0} {1}, {0} {2}."
            text = [form.format(house, n, n % 7) for n in range(count)]
            assert read_lines(tmp_path / "text" / f"{split}.{language}") == text
            assert not set((tmp_path / "bpe" / f"{split}.{language}").read_text(encoding="utf-8")) & set("\r\x85\u2028")


def test_binary_data_that_is_not_the_text_is_no_result(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when fairseq-preprocess takes something for a line end that nobody thought of."""
    real = commands.run

    def shifted(*arguments: Any) -> None:
        path = tmp_path / "bpe" / "train.en"
        content = path.read_text(encoding="utf-8")
        path.write_text(content.replace(" ", "\r", 1), encoding="utf-8", newline="\n")
        real(*arguments)
        path.write_text(content, encoding="utf-8", newline="\n")

    monkeypatch.setattr(commands, "run", shifted)
    with pytest.raises(
        RecipeError, match=r"train\.de-en\.en\.idx: .* sentences, but .* lines, and line 1 is the first"
    ):
        run(tmp_path, data, workers=1)
    assert not (tmp_path / "stamps" / "prepare-binary.json").exists()


@pytest.mark.parametrize("name", ["codes", "spm.model"])
def test_codes_that_are_none_are_named(data: Path, tmp_path: Path, name: str) -> None:
    given = tmp_path / name
    given.write_bytes(b"\xef\xbb\xbf#version: 0.2\r\na b c\r\n")
    settings = replace(SETTINGS, subword="sentencepiece", tokenizer="none") if name == "spm.model" else SETTINGS
    with pytest.raises(RecipeError, match=rf"--bpe-codes .*{name}: not taken as a model of s"):
        subword.take(given, tmp_path / "taken", settings)
    assert not (tmp_path / "taken").exists()


def test_codes_of_other_systems_are_the_same(tmp_path: Path) -> None:
    """A mark would hide the version, and with it where words end; CR LF would belong to the merges."""
    merges = "#version: 0.2\nh a\nha u\nhau s</w>\n"
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.write_text(merges)
    other.write_text(merges, encoding="utf-8-sig", newline="\r\n")
    for given in (plain, other):
        assert subword.take(given, tmp_path / "taken", SETTINGS) == 3
        assert (tmp_path / "taken").read_text() == merges
    for model in (plain, other):  # a released folder that somebody edited
        assert Pieces(SETTINGS, model).encode("haus haut") == "haus hau@@ t"


@pytest.mark.parametrize("line", ["a", "", "a x", " 5", "a 1\rb 2", "a -3", "a 1.5", "b 7"])
def test_entries_that_fairseq_would_read_otherwise_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "dict.de.txt"
    path.write_text(f"b 9\n{line}\n", newline="\n")
    with pytest.raises(RecipeError, match=r"dict\.de\.txt, line 2: .* is not a new symbol, a space and a count"):
        list(entries(path))


def test_dictionaries_of_other_systems_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "dict.de.txt"
    path.write_text("b 9\n\u2028 3\na#b 2 #fairseq:overwrite\n", encoding="utf-8-sig", newline="\r\n")
    assert list(entries(path)) == ["b 9", "\u2028 3", "a#b 2 #fairseq:overwrite"]


@pytest.mark.slow
def test_the_whole_subset_with_the_joined_dictionary(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "iwslt14"
    facts = prepare(
        IWSLT14, TextSettings("de", "en", lowercase=True), Workspace(tmp_path, {}),
        data_dir=data, bpe_codes=data / "bpe10k.code.xz", dictionaries=data,
    )  # fmt: skip
    assert facts["dictionary"] == {"de": 10_152, "en": 10_152}
    assert facts["sizes"] == {"train": 44_811, "valid": 7_283, "test": 6_750}
    assert facts["dropped"] == {}


def test_a_missing_dictionary_is_named(data: Path, tmp_path: Path) -> None:
    space = Workspace(tmp_path, {})
    job = Preparation(TOY, SETTINGS, space, 1)
    with pytest.raises(RecipeError, match=r"dict\.joined\.txt is missing"):
        job.dictionary_options(data)


def test_missing_codes_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--bpe-codes nowhere: no such file"):
        run(tmp_path, data, workers=1, bpe_codes=Path("nowhere"))


def test_languages_must_agree(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Toy is de-en, but the text settings say en-de"):
        prepare(TOY, TextSettings("en", "de"), Workspace(tmp_path, {}))


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("all", "test"):
        for language in ("de", "en"):
            (tmp_path / "in" / f"{name}.{language}").write_text("a\n" if name == "test" else "b\n")
    with pytest.raises(RecipeError, match="toy: no sentences are left for valid"):
        run(tmp_path / "out", tmp_path / "in", workers=1)
    assert not (tmp_path / "out" / "stamps" / "prepare-text.json").exists()


def test_sentencepiece_needs_a_fitting_size(data: Path, tmp_path: Path) -> None:
    settings = TextSettings("de", "en", tokenizer="none", subword="sentencepiece", units=50_000)
    with pytest.raises(RecipeError, match="units 50000 does not suit the corpus: sentencepiece says"):
        prepare(TOY, settings, Workspace(tmp_path, {}), data_dir=data, workers=1)


def test_a_dictionary_that_does_not_fit_is_said() -> None:
    assert unknown_pieces({"train.de": "0.0%", "test.de": "1.99%"}) == ""
    shares = {"train.de": "12.5%", "test.de": "0.1%", "test.en": "2e+01%"}
    assert unknown_pieces(shares) == "pieces that the dictionary does not know: 12.5% of train.de, 2e+01% of test.en"
