"""Reading packed text, tagged talks and NIST's segments; writing files whole or not at all."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation.data.files import joined, lines, packed, segments, sgm, ted_lines, together, whole

TEXT = "erste\u2028Zeile\nzweite\r\nletzte ohne Ende"


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_lines_end_at_lf_and_cr_lf_only(tmp_path: Path, suffix: str, pack: object) -> None:
    (tmp_path / f"a.de{suffix}").write_bytes(pack(TEXT.encode()))  # type: ignore[operator]
    path = packed(tmp_path / "a.de")
    assert path is not None
    assert list(lines(path)) == ["erste\u2028Zeile", "zweite", "letzte ohne Ende"]


def test_broken_files_say_where(tmp_path: Path) -> None:
    (tmp_path / "a.xz").write_bytes(lzma.compress(TEXT.encode())[:-9])
    with pytest.raises(RecipeError, match=r"a\.xz: cannot be read after line .*truncated or corrupt"):
        list(lines(tmp_path / "a.xz"))
    (tmp_path / "b").write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"b: not UTF-8 after line"):
        list(lines(tmp_path / "b"))


def test_talks(tmp_path: Path) -> None:
    """As prepare-iwslt14.sh leaves them: three kinds of line dropped, two kinds of tag taken off."""
    (tmp_path / "t").write_text(
        "<url>http://x</url>\n<keywords>a, b</keywords>\n<speaker>Al</speaker>\n<talkid>1</talkid>\n"
        "<title>Ein Titel</title>\n<description>Worum es geht</description>\n Ein Satz.\n"
    )
    assert list(ted_lines(tmp_path / "t")) == ["<speaker>Al</speaker>", "Ein Titel", "Worum es geht", " Ein Satz."]


def test_segments(tmp_path: Path) -> None:
    (tmp_path / "s").write_text('<doc>\n<hl>\n<seg id="1"> A &amp; B </seg>\n</hl>\n<p>\n<seg id="12">C</seg>\n')
    assert list(segments(tmp_path / "s")) == ["A &amp; B", "C"]
    assert list(sgm(tmp_path / "s")) == ["A & B", "C"]


def test_pieces_are_joined(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("ein al@@ t@@ es haus\nam en@@\n")
    assert list(joined(tmp_path / "p")) == ["ein altes haus", "am en"]


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    a, b = tmp_path / "x" / "a", tmp_path / "b"
    with pytest.raises(KeyError), whole(a, b) as (first, _):
        first.write("half")
        raise KeyError
    assert list(tmp_path.rglob("*")) == [tmp_path / "x"]
    with whole(a, b) as (first, second):
        first.write("1")
        second.write("2")
    assert (a.read_text(), b.read_text()) == ("1", "2")


@pytest.mark.parametrize(("first", "second"), [("abc", "ab"), ("ab", "abc"), ("", "a")])
def test_files_that_are_not_equally_long(first: str, second: str) -> None:
    shorter = "one" if len(first) < len(second) else "two"
    with pytest.raises(RecipeError, match=rf"{shorter} ends after {min(len(first), len(second))} sentences"):
        list(together((Path("one"), Path("two")), (first, second)))


def test_pairs() -> None:
    assert list(together((Path("one"), Path("two")), ("ab", "cd"))) == [("a", "c"), ("b", "d")]


def test_segments_that_would_be_lost_or_mixed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text('<seg id="1">A</seg><seg id="2">B</seg>\n')
    with pytest.raises(RecipeError, match=r"s, line 1: several segments"):
        list(segments(path))
    path.write_text('<seg id="1">A</seg>\n<seg id="2">B and')
    with pytest.raises(RecipeError, match=r"s: ends inside a segment; the file is truncated"):
        list(segments(path))
    path.write_text('<seg id="1">A\n</seg>\n')  # the script of fairseq takes the first line too
    assert list(segments(path)) == ["A"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for content, reader, expected in (
        ("<title>A</title>\n", ted_lines, ["A"]),
        ('<seg id="1">A</seg>\r\n', segments, ["A"]),
        ("al@@\tt\u00a0A\r\n", joined, ["alt A"]),
    ):
        (tmp_path / "m").write_text(content, encoding="utf-8-sig", newline="\n")
        assert list(reader(tmp_path / "m")) == expected
