from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from recipes.bert_pretrain.text import Cleaner, clean, documents, lines, sentences
from recipes.common.errors import RecipeError


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  a \t b  \r\n", "a b"),
        ("e\u0301te\u0301", "été"),  # NFC
        ("so\u00adft\ufeff \x00\x07hy\x9fphen\ufffd", "soft hyphen"),
        ("a\u2028b\u0085c\u00a0d\x1ce", "a b c d e"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # the joiner belongs to the word
        ("日本語。", "日本語。"),
        (" \u3000 ", ""),
    ],
)
def test_clean(line: str, expected: str) -> None:
    assert clean(line) == expected


def test_documents_end_at_two_blank_lines_paragraphs_at_one() -> None:
    source = ["One\n", "goes on.\n", "\n", "Two.\n", " \n", "\n", "\n", "Other\n"]
    assert list(documents(source, 2)) == ["One goes on.\nTwo.", "Other"]
    assert list(documents(source, 1)) == ["One goes on.", "Two.", "Other"]
    assert list(documents(["\n", "\n"], 2)) == []


def test_cleaner_drops_repeats_whatever_their_case_and_spacing() -> None:
    cleaner = Cleaner(min_characters=5, valid_fraction=0.0, seed=1)
    kinds = [cleaner.split(text) for text in ("A long text", "a  LONG text", "tiny", "Another text")]
    assert kinds == ["train", None, None, "train"]
    assert (cleaner.counts.repeated, cleaner.counts.short, cleaner.counts.documents) == (1, 1, 4)


def test_held_out_documents_depend_on_their_content_alone() -> None:
    texts = [f"document number {n}" for n in range(2000)]

    def held_out(order: list[str], seed: int = 1) -> set[str]:
        cleaner = Cleaner(0, 0.1, seed)
        return {text for text in order if cleaner.split(text) == "valid"}

    first = held_out(texts)
    assert 150 < len(first) < 250
    assert held_out(texts[::-1]) == first
    assert held_out(texts[:500]) == first & set(texts[:500])
    assert held_out(texts, seed=2) != first


def test_sentences() -> None:
    text = "He said \"Go.\" She went! Why?\n`` It rained , '' . Yes .\n今日。明日「はい。」終わり"
    assert sentences(text) == [
        'He said "Go."', "She went!", "Why?", "`` It rained , '' .", "Yes .", "今日。", "明日「はい。」", "終わり",
    ]  # fmt: skip


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
def test_files_are_read_packed_or_not(tmp_path: Path, suffix: str, opener: object) -> None:
    path = tmp_path / f"a.txt{suffix}"
    with opener(path, "wb") as file:  # type: ignore[operator]
        file.write("ä\u2028b\nc\n".encode())
    assert list(lines(path)) == ["ä\u2028b\n", "c\n"]
    if suffix:
        path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(RecipeError, match=r"cannot be read .* is it complete"):
            list(lines(path))


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"--text .*latin.txt: not UTF-8 after line 1 .* iconv"):
        list(lines(path))
    with pytest.raises(RecipeError, match="no such file"):
        list(lines(tmp_path / "nowhere.txt"))


def test_marks_and_line_ends_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One\rgoes on.\n\n\nTwo.\n", encoding="utf-8-sig", newline="\r\n")
    assert list(documents(lines(path), 2)) == ["One goes on.", "Two."]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_other_unicode_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    """Without a mark, English in UTF-16 is UTF-8 with NULs in between."""
    path = tmp_path / "a.txt"
    path.write_text("A text.\n", encoding=encoding)
    with pytest.raises(RecipeError, match=r"--text .*a\.txt: not UTF-8 after line 0"):
        list(lines(path))
