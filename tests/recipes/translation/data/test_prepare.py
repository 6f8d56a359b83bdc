"""The whole data step through fairseq-preprocess: what it makes, resuming, and independence of the workers."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipes.common import commands
from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, digest, read_lines
from recipes.iwslt14_de_en.corpus import CORPUS as IWSLT14
from recipes.translation.data.corpus import Corpus, Input, Rules
from recipes.translation.data.files import lines
from recipes.translation.data.prepare import Preparation, prepare
from recipes.translation.text import Codec, TextSettings

SETTINGS = TextSettings("de", "en", lowercase=True, units=50)


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
            f"{house} {n}, {n % 9}." + (" x" * 20 if n % 7 == 0 and language == "en" else "") for n in range(4_300)
        ]
        (folder / f"all.{language}").write_text("".join(f"{line}\n" for line in pairs))
        (folder / f"test.{language}").write_text("".join(f"{house} {n}?\n" for n in range(5)))
    return folder


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
    assert facts["sizes"]["train"] + facts["sizes"]["valid"] + facts["dropped"] == 4_300
    assert facts["dropped"] == 615
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


@pytest.mark.slow
def test_the_whole_subset_with_the_joined_dictionary(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "iwslt14"
    facts = prepare(
        IWSLT14, TextSettings("de", "en", lowercase=True), Workspace(tmp_path, {}),
        data_dir=data, bpe_codes=data / "bpe10k.code.xz", dictionaries=data,
    )  # fmt: skip
    assert facts["dictionary"] == {"de": 10_152, "en": 10_152}
    assert facts["sizes"] == {"train": 44_811, "valid": 7_283, "test": 6_750}
    assert facts["dropped"] == 0


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
