"""The one reader of users' text: marks, encodings, line ends, packed files and what packed files can do."""

from __future__ import annotations

import codecs
import gzip
import lzma
import os
import threading
from pathlib import Path

import pytest

from recipes.common import textfile
from recipes.common.errors import RecipeError
from recipes.common.textfile import lines, packed, unpacked
from recipes.common.workspace import read_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "text"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\x0bc\x0cd\x1ce\n", ["a\rb\x0bc\x0cd\x1ce"]),
        ("a\x85b\u2028c\u2029d\n".encode(), ["a\x85b\u2028c\u2029d"]),
        (codecs.BOM_UTF8 + b"a\nb\n", ["a", "b"]),
        (codecs.BOM_UTF8 * 2 + b"a\n", ["a"]),  # saved twice by an editor that writes marks
        (codecs.BOM_UTF8, []),
        (codecs.BOM_UTF8 + b"\n", [""]),
        (b"a\n" + codecs.BOM_UTF8 + b"b\n", ["a", "\ufeffb"]),  # elsewhere it is text, as in published dictionaries
    ],
)
def test_lines(path: Path, pack: object, content: bytes, expected: list[str]) -> None:
    """Whatever the file is called: packed files are known by their first bytes."""
    path.write_bytes(pack(content))  # type: ignore[operator]
    assert list(lines(path)) == read_lines(path) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["A text.\nGrün.\n", "п\n"])
def test_other_unicode_encodings_are_refused(path: Path, encoding: str, text: str) -> None:
    path.write_bytes(text.encode(encoding))
    with pytest.raises(RecipeError, match=r"text: not UTF-8 after line [01] \(.*convert the file, with iconv"):
        list(lines(path))


def test_other_content_is_refused(path: Path, tmp_path: Path) -> None:
    path.write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8 after line 1"):
        list(lines(path))
    path.write_bytes(b"good\n" + bytes(4096) + b"\n")  # a block that was never written
    with pytest.raises(RecipeError, match=r"not UTF-8 after line 1 \(a NUL character: it is UTF-16, or damaged"):
        list(lines(path))
    with pytest.raises(RecipeError, match="nowhere: cannot be read as UTF-8 text: no such file"):
        list(lines(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match=r"cannot be read after line 0 .*directory"):
        list(lines(tmp_path))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_packed_files(path: Path, pack: object, damage: str) -> None:
    content = bytearray(pack(os.urandom(5_000).hex().encode()))  # type: ignore[operator]
    if damage == "cut":
        del content[-9:]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"text: cannot be read after line .*is it complete"):
        list(lines(path))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
@pytest.mark.parametrize("line", [b"a\n", b"a"], ids=["many lines", "one line"])
def test_what_unpacks_without_end_is_refused(
    path: Path, pack: object, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "SMALL", 2**16)
    path.write_bytes(pack(line * (2**22 // len(line))))  # type: ignore[operator]
    with pytest.raises(RecipeError, match=r"text: unpacks to more than [\d,]+ bytes, 32 times its size.*unpack it you"):
        list(lines(path))
    monkeypatch.setattr(textfile, "GROWTH", 10_000)
    assert sum(map(len, lines(path))) == 2**22 - line.count(b"\n") * 2**21
    with unpacked(path) as file:
        assert file.read(3) == (line * 3)[:3]


def test_a_pipe_is_read(path: Path) -> None:
    """As in --hyp <(cut -f 2 output.tsv)."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(codecs.BOM_UTF8 + b"a\nb\n",))
    writer.start()
    assert read_lines(path) == ["a", "b"]
    writer.join()


def test_a_packed_file_is_found_by_its_plain_name(path: Path) -> None:
    assert packed(path) is None
    for suffix in (".gz", ".xz", ""):
        path.with_name(path.name + suffix).touch()
        assert packed(path) == path.with_name(path.name + suffix)
