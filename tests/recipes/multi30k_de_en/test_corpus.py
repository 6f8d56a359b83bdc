"""Multi30k: local copies, downloads from a server on this machine, and every way in which they can be broken."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.multi30k_de_en import corpus as multi30k
from recipes.multi30k_de_en.corpus import CORPUS, MAX_BYTES, SHA256, read_verified
from recipes.translation.data.corpus import locate

CONTENT = {name: f"Zeile 1 {name}\nZeile 2\u2028noch Zeile 2\n".encode() for name in multi30k.SHA256}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums of a corpus of two lines a file."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(multi30k, "SHA256", sums)


@pytest.fixture
def folder(tmp_path: Path, small: None) -> Path:
    """The six files, each packed in another way."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index, (name, content) in enumerate(CONTENT.items()):
        suffix, pack = (("", bytes), (".xz", lzma.compress), (".gz", gzip.compress))[index % 3]
        (folder / (name + suffix)).write_bytes(pack(content))
    return folder


@pytest.fixture
def server(tmp_path: Path, small: None) -> Iterator[tuple[str, Path]]:
    """(address, the folder that it serves)"""
    root = tmp_path / "served"
    root.mkdir()
    for name, content in CONTENT.items():
        (root / f"{name}.gz").write_bytes(gzip.compress(content))
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", root
    http.shutdown()
    thread.join()
    http.server_close()


def found(folder: Path, tmp_path: Path) -> dict[str, list[tuple[str, str]]]:
    """The pairs of each split, as the recipe reads them."""
    return {split: list(part.pairs()) for split, part in locate(CORPUS, folder, tmp_path / "scratch").parts()}


def test_every_packing_is_read_and_lines_end_at_lf_only(folder: Path, tmp_path: Path) -> None:
    for split, name in multi30k.NAMES.items():
        sides = [CONTENT[f"{name}.{language}"].decode().removesuffix("\n").split("\n") for language in ("de", "en")]
        assert found(folder, tmp_path)[split] == list(zip(*sides, strict=True)) and len(sides[0]) == 2


def test_missing_file(folder: Path, tmp_path: Path) -> None:
    (folder / "train.en.xz").unlink()
    with pytest.raises(RecipeError, match=r"nothing of Multi30k.*Looked for train\.de, train\.en.*found test_2016"):
        found(folder, tmp_path)
    with pytest.raises(RecipeError, match=r"train\.en is missing .*put the file there, or give another folder"):
        read_verified(folder, "train.en")


@pytest.mark.parametrize("name", ["train.en.xz", "val.de.gz"])
def test_truncated_file(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(RecipeError, match=rf"{name}: cannot be unpacked .*truncated or corrupt\. Fetch it again"):
        found(folder, tmp_path)


def test_changed_file(folder: Path, tmp_path: Path) -> None:
    (folder / "train.de").write_bytes(CONTENT["train.de"] + b"x\n")
    with pytest.raises(RecipeError, match=r"train\.de: sha256 of .* is [0-9a-f]{64} but must be [0-9a-f]{64}"):
        found(folder, tmp_path)


def test_download(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, root = server
    monkeypatch.setattr(multi30k, "fetch_file", partial(multi30k.fetch_file, base_url=address))
    folder = tmp_path / "download"
    CORPUS.download(folder)
    assert read_verified(folder, "val.en") == ["Zeile 1 val.en", "Zeile 2\u2028noch Zeile 2"]
    for path in root.iterdir():
        path.unlink()
    CORPUS.download(folder)  # nothing is fetched twice
    assert len(found(folder, tmp_path)["train"]) == 2


def test_download_of_a_missing_file(server: tuple[str, Path], tmp_path: Path) -> None:
    address, root = server
    (root / "train.de.gz").unlink()
    with pytest.raises(RecipeError, match=r"train\.de\.gz: download failed \(HTTP Error 404.*run the same command"):
        multi30k.fetch_file("train.de", tmp_path, address)


def test_download_without_a_server(tmp_path: Path, small: None) -> None:
    with pytest.raises(RecipeError, match=r"download failed .*refused.*name it with --data-dir"):
        multi30k.fetch_file("train.de", tmp_path, "http://127.0.0.1:9")


def test_download_with_a_wrong_checksum(server: tuple[str, Path], tmp_path: Path) -> None:
    address, root = server
    (root / "train.de.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(RecipeError, match=r"train\.de\.gz: sha256 of .* but must be"):
        multi30k.fetch_file("train.de", tmp_path, address)
    assert not list(tmp_path.glob("train.de*"))


def test_truncated_download(server: tuple[str, Path], tmp_path: Path) -> None:
    address, root = server
    (root / "train.de.gz").write_bytes(gzip.compress(CONTENT["train.de"])[:-9])
    with pytest.raises(RecipeError, match=r"cannot be unpacked .*truncated or not a \.gz file"):
        multi30k.fetch_file("train.de", tmp_path, address)


def test_real_sizes(shared: Path, tmp_path: Path) -> None:
    real = locate(CORPUS, shared / "data" / "multi30k", tmp_path)
    assert [len(list(part.pairs())) for _, part in real.parts()] == [29_000, 1_014, 1_000]
    assert {part.form for _, part in real.parts()} == {"raw"}
    assert next(real.train[0].pairs())[0].startswith("Zwei junge weiße Männer sind im Freien")
    assert not list(tmp_path.iterdir())


def test_another_version_is_refused(tmp_path: Path) -> None:
    for name in SHA256:
        (tmp_path / name).write_text("x\n")
    with pytest.raises(RecipeError, match=r"sha256 of the uncompressed train\.de is [0-9a-f]{64} but must be"):
        locate(CORPUS, tmp_path, tmp_path / "scratch")


def test_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing of Multi30k.*Looked for train\.de, .*test_2016_flickr\.en"):
        locate(CORPUS, tmp_path, tmp_path / "scratch")


def test_a_file_that_unpacks_without_end(tmp_path: Path) -> None:
    """A few kilobytes that would be gigabytes; and so for a file that is as large as that unpacked."""
    for pack in (lzma.compress, gzip.compress, bytes):
        (tmp_path / "train.de").write_bytes(pack(b"a" * (MAX_BYTES + 1)))
        with pytest.raises(RecipeError, match=r"train\.de: more than 8,388,608 bytes when unpacked; it is no file of"):
            read_verified(tmp_path, "train.de")
