"""What is recognised as IWSLT14, and that the canonical files come out of what is here."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, digest, read_lines
from recipes.iwslt14_de_en import corpus as iwslt14
from recipes.iwslt14_de_en.corpus import CORPUS, SHA256, SIZES
from recipes.translation.data import prepare
from recipes.translation.data.corpus import Corpus, locate
from recipes.translation.data.files import lines
from recipes.translation.data.sentences import process, segment, tasks
from recipes.translation.text import TextSettings

SETTINGS = TextSettings("de", "en", lowercase=True, units=40)


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    return shared / "data" / "iwslt14"


def talks(language: str, count: int = 46) -> str:
    """train.tags of `count` clean pairs, one of them a title, and one pair that is too unequal."""
    sentences = [f"Satz {n} von {language}." for n in range(1, count)]
    head = f"<url>x</url>\n<keywords>k</keywords>\n<title>Titel {language}</title>\n"
    unequal = "kurz\n" if language == "de" else "much too long for it\n"
    return head + unequal + "".join(f"{sentence}\n" for sentence in sentences) + "<talkid>1</talkid>\n"


@pytest.fixture
def extracted(tmp_path: Path) -> Path:
    """The archive's files in small."""
    folder = tmp_path / "de-en"
    folder.mkdir()
    for language in ("de", "en"):
        (folder / f"train.tags.de-en.{language}").write_text(talks(language))
        for n, stem in enumerate(iwslt14.TEST_SETS):
            (folder / f"{stem}.{language}.xml").write_text(f'<seg id="1"> Test {n} von {language}. </seg>\n')
    return folder


@pytest.fixture
def archive(extracted: Path, tmp_path: Path) -> Path:
    """A folder with de-en.tgz alone; a file in it wants to be written elsewhere."""
    folder = tmp_path / "archive"
    folder.mkdir()
    with tarfile.open(folder / "de-en.tgz", "w:gz") as tar:
        tar.add(extracted, "de-en")
        evil = tarfile.TarInfo("../../train.tags.de-en.evil")
        evil.size = 4
        tar.addfile(evil, io.BytesIO(b"evil"))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes that the archive above gives: of 46 clean pairs every 23rd is held out."""
    monkeypatch.setattr(iwslt14, "SIZES", {"train": 44, "valid": 2, "test": 5})


def text_step(
    folder: Path, data_dir: Path | None, corpus: Corpus = CORPUS, sha256: dict[str, str] | None = None
) -> dict[str, list[str]]:
    space = Workspace(folder, {})
    try:
        files, _ = prepare.Preparation(corpus, SETTINGS, space, workers=1).text(data_dir, sha256 or {}, False)
    finally:
        space.lock.close()
    return {f"{path.parent.name}/{path.name}": read_lines(path) for path in files}


@pytest.mark.parametrize("name", ["extracted", "archive"])
def test_archive_and_folder(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = request.getfixturevalue(name)
    monkeypatch.setattr(iwslt14, "SHA256", {})
    made = text_step(tmp_path / "run", data_dir)
    assert made["text/valid.de"] == ["satz 22 von de .", "satz 45 von de ."]  # the title is the first pair
    assert made["raw/valid.en"] == ["Satz 22 von en.", "Satz 45 von en."]
    assert made["text/train.de"][:2] == ["titel de", "satz 1 von de ."]
    assert len(made["text/train.en"]) == 44
    assert made["text/test.de"] == [f"test {n} von de ." for n in range(5)]
    assert made["raw/test.en"] == [f"Test {n} von en." for n in range(5)]
    assert not list(tmp_path.parent.glob("train.tags*"))


@pytest.fixture
def served(archive: Path) -> Iterator[Corpus]:
    """The corpus with the archive on a server of this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(archive))
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{http.server_port}/de-en.tgz"
    yield replace(CORPUS, remotes=(replace(iwslt14.ARCHIVE, urls=(f"{url}.absent", url)),))
    http.shutdown()
    thread.join()
    http.server_close()


def test_download(served: Corpus, archive: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody states the archive's sum: it is asked for, demanded, and what comes out is checked all the same."""
    with pytest.raises(RecipeError, match=r"de-en\.tgz: its publisher states no checksum.*--trust-first-download"):
        text_step(tmp_path / "run", None, served)
    sums = {"de-en.tgz": digest(archive / "de-en.tgz")}
    with pytest.raises(RecipeError, match=r"not give the canonical"):
        text_step(tmp_path / "run", None, served, sums)
    monkeypatch.setattr(iwslt14, "SHA256", {})
    assert len(text_step(tmp_path / "run", None, served)["text/train.de"]) == 44
    assert json.loads((tmp_path / "run" / "download" / "downloads.json").read_text()) == sums


def test_another_release_is_refused(extracted: Path, tmp_path: Path, small: None) -> None:
    with pytest.raises(RecipeError, match=r"not give the canonical.*\(sha256 of text/valid\.de differs.*again"):
        text_step(tmp_path / "run", extracted)


def test_a_size_that_differs_is_named(extracted: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"44 train pairs, not 160,239; 2 valid pairs, not 7,283"):
        text_step(tmp_path / "run", extracted)


def test_an_archive_that_is_cut_short(archive: Path, tmp_path: Path) -> None:
    path = archive / "de-en.tgz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RecipeError, match=r"de-en\.tgz: cannot be unpacked .*Fetch it again"):
        text_step(tmp_path / "run", archive)


def test_what_an_earlier_attempt_left_is_not_taken(
    served: Corpus, archive: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the same size as in the archive, and one that is not in it."""
    monkeypatch.setattr(iwslt14, "SHA256", {})
    sums = {"de-en.tgz": digest(archive / "de-en.tgz")}
    first = text_step(tmp_path / "run", None, served, sums)
    for path in (tmp_path / "run" / "download" / "unpacked").iterdir():
        path.write_bytes(bytes(byte ^ 1 if 97 <= byte <= 122 else byte for byte in path.read_bytes()))
    (tmp_path / "run" / "download" / "unpacked" / "train.de").touch()
    assert text_step(tmp_path / "run", None, served, sums) == first
    assert not (tmp_path / "run" / "download" / "unpacked" / "train.de").exists()


@pytest.mark.parametrize("side", ["train.tags.de-en.de", "IWSLT14.TED.tst2010.de-en.en.xml"])
def test_marks_and_carriage_returns_do_not_shift_pairs(
    extracted: Path, tmp_path: Path, small: None, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iwslt14, "SHA256", {})
    first = text_step(tmp_path / "one", extracted)
    path = extracted / side
    text = path.read_text().replace("Satz 3 von", "Satz\r3\u2028von").replace("Test 2 von", "Test\x0b2\x85von")
    path.write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert text_step(tmp_path / "two", extracted) == first


def test_a_test_set_is_missing(extracted: Path, tmp_path: Path) -> None:
    (extracted / "IWSLT14.TED.tst2011.de-en.de.xml").unlink()
    with pytest.raises(RecipeError, match=r"IWSLT14\.TED\.tst2011\.de-en\.\{de,en\}\.xml not found"):
        text_step(tmp_path / "run", extracted)


def test_a_side_is_shorter(extracted: Path, tmp_path: Path) -> None:
    path = extracted / "train.tags.de-en.en"
    path.write_text("\n".join(path.read_text().split("\n")[:20]) + "\n")
    with pytest.raises(RecipeError, match=r"train\.tags\.de-en\.en ends after 18 sentences, .*\.de goes on"):
        text_step(tmp_path / "run", extracted)


def test_a_wrong_folder_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(RecipeError, match=r"nothing of IWSLT14.*Looked for the archive.*found holiday\.jpg"):
        locate(CORPUS, tmp_path, tmp_path / "scratch")
    with pytest.raises(RecipeError, match="no such folder; give one with the archive"):
        locate(CORPUS, tmp_path / "nowhere", tmp_path / "scratch")


def test_output_of_fairseqs_script(tmp_path: Path) -> None:
    """Its folder holds text in pieces, which is joined; text before BPE lies in tmp, and is preferred."""
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            (tmp_path / f"{split}.{language}").write_text("ein al@@ tes haus .\n")
    found = locate(CORPUS, tmp_path, tmp_path / "scratch")
    assert (found.kind, found.train[0].reader) == ("tokenised text", "pieces")
    assert next(found.train[0].pairs()) == ("ein altes haus .", "ein altes haus .")
    shutil.copytree(tmp_path, tmp_path / "tmp")
    assert locate(CORPUS, tmp_path, tmp_path / "scratch").train[0].source == tmp_path / "tmp" / "train.de"


def test_the_subset_is_never_called_iwslt14() -> None:
    notice = CORPUS.notice({"train": 44_811, "valid": 7_283, "test": 6_750})
    assert "44,811 training pairs, 28% of the 160,239 of IWSLT14: a subset, not comparable" in notice
    assert CORPUS.notice(SIZES) == ""


class TestReal:
    """The files beside a developer's clone."""

    def test_the_test_set_is_canonical(self, data: Path, tmp_path: Path) -> None:
        """raw_xml → tokens: 6,750 lines, byte for byte."""
        found = locate(CORPUS, data, tmp_path)
        assert len(found.test) == 5
        outputs = {language: tmp_path / f"test.{language}" for language in ("de", "en")}
        with outputs["de"].open("w") as de, outputs["en"].open("w") as en:
            for task in tasks(found):
                if task.split == "test":
                    for sentences in process(SETTINGS, CORPUS.rules, task)[2]:
                        de.write(sentences.words[0] + "\n")
                        en.write(sentences.words[1] + "\n")
        assert {f"test.{language}": digest(path) for language, path in outputs.items()} == {
            name: known for name, known in SHA256.items() if name.startswith("test")
        }
        assert len(read_lines(outputs["de"])) == SIZES["test"]

    @pytest.mark.parametrize("share", [20, pytest.param(1, marks=pytest.mark.slow)])
    def test_canonical_codes_give_canonical_pieces(self, data: Path, tmp_path: Path, share: int) -> None:
        """No piece of the training set lies outside the canonical dictionaries; of valid and test few do."""
        codes = tmp_path / "codes"
        codes.write_text("".join(f"{line}\n" for line in lines(data / "bpe10k.code.xz")), encoding="utf-8")
        known = [{line.split(" ")[0] for line in lines(data / f"dict.{side}.txt.xz")} for side in ("de", "en")]
        unknown: Counter[str] = Counter()
        for task in tasks(locate(CORPUS, data, tmp_path)):
            task = task._replace(pairs=task.pairs[::share])
            rows = [tuple(sentences.words) for sentences in process(SETTINGS, CORPUS.rules, task)[2]]
            for row in segment(SETTINGS, codes, None, rows)[1]:
                for language, types, pieces in zip(("de", "en"), known, row, strict=True):
                    unknown[f"{task.split}.{language}"] += sum(piece not in types for piece in pieces.split())
        assert unknown["train.de"] == unknown["train.en"] == 0
        if share == 1:
            whole = {"valid.de": 35, "valid.en": 8, "test.de": 103, "test.en": 14, "train.de": 0, "train.en": 0}
            assert unknown == whole
