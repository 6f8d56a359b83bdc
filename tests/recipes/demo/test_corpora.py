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
from recipes.demo import corpora
from recipes.multi30k_de_en import corpus as multi30k

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


def write(tmp_path: Path, data_dir: Path | None, train_size: int = 0) -> dict[str, str]:
    paths = corpora.write_corpus("multi30k", tmp_path / "text", train_size=train_size, seed=1, data_dir=data_dir)
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def test_every_packing_is_read_and_lines_end_at_lf_only(folder: Path, tmp_path: Path) -> None:
    written = write(tmp_path, folder)
    assert written["valid.de"] == CONTENT["val.de"].decode()
    assert written["test.en"] == CONTENT["test_2016_flickr.en"].decode()
    assert len(written) == 6


def test_train_size_shortens_the_training_set_alone(folder: Path, tmp_path: Path) -> None:
    written = write(tmp_path, folder, train_size=1)
    assert written["train.de"] == "Zeile 1 train.de\n"
    assert written["test.de"] == CONTENT["test_2016_flickr.de"].decode()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--data-dir .*nowhere: no such folder; it must hold train\.de.*Correct"):
        write(tmp_path, tmp_path / "nowhere")


def test_missing_file(folder: Path, tmp_path: Path) -> None:
    (folder / "train.en.xz").unlink()
    with pytest.raises(RecipeError, match=r"train\.en is missing .*put the file there, or give another folder"):
        write(tmp_path, folder)


@pytest.mark.parametrize("name", ["train.en.xz", "val.de.gz"])
def test_truncated_file(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(RecipeError, match=rf"{name}: cannot be unpacked .*truncated or corrupt\. Fetch it again"):
        write(tmp_path, folder)


def test_changed_file(folder: Path, tmp_path: Path) -> None:
    (folder / "train.de").write_bytes(CONTENT["train.de"] + b"x\n")
    with pytest.raises(RecipeError, match=r"train\.de: sha256 of .* is [0-9a-f]{64} but must be [0-9a-f]{64}"):
        write(tmp_path, folder)
    assert not (tmp_path / "text").exists()


def test_download(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, root = server
    monkeypatch.setattr(corpora, "MULTI30K_LOCAL", tmp_path / "absent")
    folder = corpora.multi30k_folder(None, tmp_path / "download", address)
    assert multi30k.read_verified(folder, "val.en") == ["Zeile 1 val.en", "Zeile 2\u2028noch Zeile 2"]
    for path in root.iterdir():
        path.unlink()
    assert corpora.multi30k_folder(None, folder, address) == folder  # nothing is fetched twice


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


def test_real_multi30k(tmp_path: Path) -> None:
    if not corpora.MULTI30K_LOCAL.is_dir():
        pytest.skip(f"no {corpora.MULTI30K_LOCAL}: Multi30k is not part of the repository")
    written = write(tmp_path, None)
    assert [text.count("\n") for text in written.values()] == [29000, 29000, 1014, 1014, 1000, 1000]
    assert written["train.de"].startswith("Zwei junge weiße Männer sind im Freien")
