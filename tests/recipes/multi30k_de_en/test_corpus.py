"""Multi30k as a corpus of the translation recipes; its files themselves are tested with the demo."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.multi30k_de_en.corpus import CORPUS, MAX_BYTES, SHA256, read_verified
from recipes.translation.data.corpus import locate


def test_real_sizes(shared: Path, tmp_path: Path) -> None:
    found = locate(CORPUS, shared / "data" / "multi30k", tmp_path)
    assert [len(list(part.pairs())) for _, part in found.parts()] == [29_000, 1_014, 1_000]
    assert {part.form for _, part in found.parts()} == {"raw"}
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
