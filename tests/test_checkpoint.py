"""Damaged files are refused by name, whatever the damage; what old versions of torch wrote is still read."""

from __future__ import annotations

import argparse
import os
import random
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from macaron.checkpoint import CheckpointError, load, read

MODEL = {f"layers.{i}.weight": torch.linspace(-1, 1, 50) * (i + 1) for i in range(4)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"model": MODEL, "args": argparse.Namespace(arch="macaron_tiny")}, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def is_intact(state: dict) -> bool:
    return list(state["model"]) == list(MODEL) and all(torch.equal(state["model"][name], MODEL[name]) for name in MODEL)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_is_refused_or_changes_nothing(path, mmap):
    content, dice = path.read_bytes(), random.Random(0)
    refused = 0
    for bit in dice.sample(range(8 * len(content)), 300):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert is_intact(load(path, mmap=mmap)), f"bit {bit}"
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 150  # the others fall between the records


def test_every_bit_of_the_tensors_counts(path):
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [(info, archive.read(info)) for info in archive.infolist() if "/data/" in info.filename]
    assert len(records) >= len(MODEL)
    for info, record in records:
        start = content.index(record, info.header_offset)
        for byte in (start, start + len(record) // 2, start + len(record) - 1):
            damaged = bytearray(content)
            damaged[byte] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(
                CheckpointError, match=r"truncated or corrupt.*checksum of record '.*/data/\d+' is wrong"
            ):
                load(path)


@pytest.mark.parametrize("tail", [b"\0", b"garbage", b"PK\x05\x06", b"\0" * 100_000])
def test_what_follows_the_end_is_refused(path, tail):
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load(path)


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 100, 0.5, 0.99, -1])
def test_truncated(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load(path)


@pytest.mark.parametrize("name", ["data.pkl", "DATA.PKL"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name(path, name):
    with zipfile.ZipFile(path) as archive:
        prefix = archive.namelist()[0].split("/")[0]
        content = archive.read(f"{prefix}/data.pkl")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{prefix}/{name}", content)
    with pytest.raises(CheckpointError, match="two records of one name"):
        load(path)


def test_files_older_than_torch_1_6_have_no_checksums_and_are_read(path):
    state = torch.load(path, weights_only=False)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read_it in (load, read):
            for mmap in (False, True):
                assert is_intact(read_it(path, mmap=mmap))


def test_torch_can_be_told_to_write_no_checksums(path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": MODEL}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert is_intact(load(path))


def test_wrong_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; check the path"):
        load(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="is no ordinary file"):
        load(tmp_path / "pipe")


def test_code_in_an_option_is_refused_by_name(path):
    args = argparse.Namespace(adaptive_input_cutoff="__import__('os').abort()")
    torch.save({"model": MODEL, "args": args}, path)
    for mmap in (False, True):
        with pytest.raises(CheckpointError, match=r"\.pt: refused, because its option adaptive_input_cutoff is"):
            load(path, mmap=mmap)
