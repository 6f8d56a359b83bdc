"""What is recognised as WMT14."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation.data.corpus import Part, locate
from recipes.translation.data.sentences import process, tasks
from recipes.translation.text import TextSettings
from recipes.wmt14_en_de.corpus import corpus

SETTINGS = TextSettings("en", "de", aggressive_hyphens=True)
TRAINING = ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-v9.de-en")


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """The five archives in small."""
    folder = tmp_path / "archives"
    folder.mkdir()
    content = {
        "training-parallel-europarl-v7.tgz": ["training/europarl-v7.de-en.", "training/europarl-v7.cs-en."],
        "training-parallel-commoncrawl.tgz": ["commoncrawl.de-en."],
        "training-parallel-nc-v9.tgz": ["training/news-commentary-v9.de-en."],
        "dev.tgz": ["dev/newstest2013.", "dev/newstest2012."],
        "test-full.tgz": ["test-full/newstest2014-deen-src.{}.sgm", "test-full/newstest2014-deen-ref.{}.sgm"],
    }
    for archive, stems in content.items():
        with tarfile.open(folder / archive, "w:gz") as tar:
            for stem in stems:
                for language in ("en", "de"):
                    name = stem.format(language) if "{}" in stem else stem + language
                    path = tmp_path / "one"
                    segment = f'<seg id="1">{name} &amp; more.</seg>\n'
                    path.write_text(segment if name.endswith("sgm") else f"{name}\n")
                    tar.add(path, name)
    return folder


def test_archives(archives: Path, tmp_path: Path) -> None:
    found = locate(corpus(), archives, tmp_path / "scratch")
    assert [part.source.name for part in found.train] == [f"{stem}.en" for stem in TRAINING]
    assert found.valid[0].target.name == "newstest2013.de"
    assert next(found.test[0].pairs())[1] == "test-full/newstest2014-deen-ref.de.sgm & more."
    assert found.kind.startswith("archive training-parallel-europarl-v7.tgz, ")
    assert not [path for path in (tmp_path / "scratch").iterdir() if "cs-en" in path.name or "2012" in path.name]


def test_the_validation_set_can_come_from_the_training_set(archives: Path, tmp_path: Path) -> None:
    found = locate(corpus("train"), archives, tmp_path / "scratch")
    assert found.valid == ()
    assert corpus("train").rules.every == 100


def test_an_archive_is_missing(archives: Path, tmp_path: Path) -> None:
    (archives / "dev.tgz").unlink()
    with pytest.raises(RecipeError, match=r"dev\.tgz missing beside training-parallel-europarl-v7\.tgz"):
        locate(corpus(), archives, tmp_path / "scratch")


def test_an_unknown_validation_set() -> None:
    with pytest.raises(RecipeError, match="'newstest2012' is unknown; choose newstest2013 or train"):
        corpus("newstest2012")


def test_without_a_test_set(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "text"
    folder.mkdir(parents=True)
    for language in ("en", "de"):
        (folder / f"europarl.{language}").write_text("a\n")
    with pytest.raises(RecipeError, match=r"newstest2013 is missing; looked there, below and beside it"):
        locate(corpus(), folder, tmp_path / "scratch")


def test_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Looked for the archives .*dev\.tgz.*europarl-v7\.de-en.*found nothing"):
        locate(corpus(), tmp_path, tmp_path / "scratch")


class TestReal:
    """The files beside a developer's clone."""

    @pytest.mark.parametrize(("name", "size"), [("newstest2013", 3_000), ("newstest2014", 3_003)])
    def test_newstest_sizes(self, shared: Path, name: str, size: int) -> None:
        assert len(list(corpus().newstest(shared / "data" / "wmt14", name).pairs())) == size

    def test_the_subset_and_its_mixture_of_forms(self, shared: Path, tmp_path: Path) -> None:
        found = locate(corpus(), shared / "data" / "wmt14_train_subset", tmp_path)
        assert {part.source.name: part.form for part in found.train} == {
            "commoncrawl.10k.tok.en.xz": "tokenised",
            "europarl_v7.20k.en.xz": "raw",
            "opennmt.10k.tok.en.xz": "tokenised",
        }
        assert [part.source.name for part in (*found.valid, *found.test)] == [
            "newstest2013.en.xz",
            "newstest2014.en.xz",
        ]
        assert "40,000 training pairs of the about 4,500,000" in corpus().notice({"train": 40_000})
        train = next(task for task in tasks(found) if task.split == "train")
        _, dropped, kept = process(SETTINGS, corpus().rules, train._replace(pairs=train.pairs[:200]))
        assert not dropped and len(kept) == 200  # cleaned later, by their pieces
        assert any(" @-@ " in sentences.words[0] for sentences in kept)

    def test_sgm_and_plain_text_give_the_same(self, shared: Path, tmp_path: Path) -> None:
        plain = corpus().newstest(shared / "data" / "wmt14", "newstest2014")
        pairs = list(plain.pairs())
        for language, side, index in (("en", "src", 0), ("de", "ref", 1)):
            sentences = (pair[index].replace("&", "&amp;").replace("<", "&lt;") for pair in pairs)
            content = "".join(f'<seg id="{n}">{s}</seg>\n' for n, s in enumerate(sentences, 1))
            (tmp_path / f"newstest2014-deen-{side}.{language}.sgm").write_text(content, encoding="utf-8")
        sgm = corpus().newstest(tmp_path, "newstest2014")
        assert isinstance(sgm, Part) and sgm.reader == "sgm"
        assert list(sgm.pairs()) == [(a.strip(), b.strip()) for a, b in pairs]
