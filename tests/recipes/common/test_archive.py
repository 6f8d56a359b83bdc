"""Archives from elsewhere: what is taken from them, and everything that hostile or damaged ones try."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.common import archive, textfile
from recipes.common.archive import check, unpack
from recipes.common.errors import RecipeError

PATTERNS = ("train.*",)


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object):
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, io.BytesIO(content)


def tar(*members: tuple[tarfile.TarInfo, io.BytesIO]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for info, content in members:
            file.addfile(info, content)
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.tgz"


GOOD = tar(member("x/train.de", b"Haus\n"), member("x/train.en", b"house\n"), member("x/README", b"read me"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
def test_files_that_match_are_unpacked_under_their_base_names(path: Path, pack: Callable[..., bytes]) -> None:
    path.write_bytes(pack(GOOD))
    folder = path.parent / "out"
    check(path, PATTERNS)
    assert unpack(path, PATTERNS, folder) == [folder / "train.de", folder / "train.en"]
    assert sorted(p.name for p in folder.iterdir()) == ["train.de", "train.en"]


def test_a_file_of_equal_size_is_unpacked_again(path: Path) -> None:
    path.write_bytes(gzip.compress(GOOD))
    (path.parent / "train.de").write_text("Maus\n")
    unpack(path, PATTERNS, path.parent)
    assert (path.parent / "train.de").read_text() == "Haus\n"


@pytest.mark.parametrize("name", ["/{0}/train.evil", "../../train.evil", "x/../../train.evil", "./train.evil"])
def test_nothing_is_written_elsewhere(tmp_path: Path, name: str) -> None:
    path, folder = tmp_path / "a.tgz", tmp_path / "deep" / "out"
    path.write_bytes(gzip.compress(tar(member(name.format(tmp_path), b"x"))))
    unpack(path, PATTERNS, folder)
    assert [p.name for p in folder.iterdir()] == ["train.evil"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tgz", "deep", "out", "train.evil"]


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    ids=["symlink", "hardlink", "character device", "block device", "fifo"],
)
def test_links_and_devices_are_refused(path: Path, kind: bytes) -> None:
    path.write_bytes(gzip.compress(tar(member("train.de", kind=kind, linkname="/etc/passwd"))))
    for work in (lambda: unpack(path, PATTERNS, path.parent / "out"), lambda: check(path, PATTERNS)):
        with pytest.raises(RecipeError, match=r"train\.de is a link, a device, or has holes"):
            work()
    assert not list((path.parent / "out").iterdir())


def test_a_link_of_an_earlier_attempt_is_not_written_through(path: Path, tmp_path: Path) -> None:
    path.write_bytes(gzip.compress(GOOD))
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "train.de").symlink_to(tmp_path / "mine")
    unpack(path, PATTERNS, folder)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_hole_of_a_few_bytes_is_refused(path: Path) -> None:
    """GNU's sparse files state a size that they do not have."""
    holes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    holes["GNU.sparse.name"] = "train.de"
    path.write_bytes(gzip.compress(tar(member("train.de", b"0\n" + bytes(510), pax_headers=holes))))
    with pytest.raises(RecipeError, match="has holes"):
        unpack(path, PATTERNS, path.parent / "out")


def test_two_files_of_one_name_are_refused(path: Path) -> None:
    path.write_bytes(gzip.compress(tar(member("a/train.de", b"x"), member("b/train.de", b"y"))))
    with pytest.raises(RecipeError, match=r"two files called train\.de"):
        unpack(path, PATTERNS, path.parent / "out")


def test_too_many_files_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST", 3)
    path.write_bytes(gzip.compress(tar(*(member(f"train.{n}") for n in range(4)))))
    with pytest.raises(RecipeError, match=r"more than 3 files in it match train"):
        unpack(path, PATTERNS, path.parent / "out")


@pytest.mark.parametrize("name", ["train.de", "other"], ids=["wanted", "skipped"])
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_what_unpacks_without_end_is_refused(
    path: Path, name: str, pack: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "SMALL", 2**16)
    path.write_bytes(pack(tar(member(name, bytes(2**22)))))
    for work in (lambda: unpack(path, PATTERNS, path.parent / "out"), lambda: check(path, PATTERNS)):
        with pytest.raises(RecipeError, match=r"a\.tgz: unpacks to more than [\d,]+ bytes, 32 times its size"):
            work()
    assert not (path.parent / "out" / "train.de").exists()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("train.de", "Haus\n")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(GOOD)[:-6], "Compressed file ended"),
        (gzip.compress(GOOD)[:-8] + bytes(8), "CRC check failed"),
        (GOOD[:700], ""),
        (b"", "empty"),
        (b"<!DOCTYPE html><html>sign in</html>", "it is an HTML or XML page"),
        (b"\xef\xbb\xbf \n<?xml version='1.0'?><Error/>", "it is an HTML or XML page"),
        (zipped(), ""),
        (bz2.compress(GOOD), ""),
        (gzip.compress(b"no tar at all"), ""),
        (gzip.compress(GOOD[:300] + b"\xff" * 300), ""),
    ],
    ids=["cut", "sum", "cut tar", "empty", "html", "xml", "zip", "bz2", "no tar", "damaged tar"],
)
def test_damaged_archives_are_named(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    for work in (lambda: unpack(path, PATTERNS, path.parent / "out"), lambda: check(path, PATTERNS)):
        with pytest.raises(RecipeError, match=rf"a\.tgz: cannot be unpacked \(.*{reason}.*Fetch it again"):
            work()


def test_another_archive_is_told(path: Path) -> None:
    path.write_bytes(gzip.compress(tar(member("x/README", b"read me"))))
    with pytest.raises(RecipeError, match=r"holds no file that matches train"):
        check(path, PATTERNS)
