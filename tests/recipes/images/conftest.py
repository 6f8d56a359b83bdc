"""Small data sets in all forms that the recipe reads, with checksums of their own."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.images import data


def made(count: int, channels: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is seen: rows of their own brightness; (N, C, H, W), labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    x = random.integers(0, 60, (count, channels, size, size))
    for image, label in zip(x, labels, strict=True):
        image[:, 2 * label : 2 * label + 4] += 190
    return x.astype(np.uint8), labels.astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_sums(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


class Known:
    """The checksums that hold in a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def md5(self, name: str, content: bytes) -> None:
        self.monkeypatch.setitem(data.MD5, name, hashlib.md5(content).hexdigest())


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    return Known(monkeypatch)


Maker = Callable[..., Path]


@pytest.fixture
def mnist(tmp_path: Path, known: Known) -> Maker:
    """A folder of MNIST's files: "IDX", "packed", or "parts"."""

    def make(form: str = "packed", train: int = 80, test: int = 40) -> Path:
        folder = tmp_path / f"mnist-{form}"
        folder.mkdir()
        for stem, count, seed in (("train", train, 1), ("t10k", test, 2)):
            x, y = made(count, 1, 28, seed)
            for name, array in ((f"{stem}-images-idx3-ubyte", x[:, 0]), (f"{stem}-labels-idx1-ubyte", y)):
                known.md5(name, idx(array))
                if form == "IDX":
                    (folder / name).write_bytes(idx(array))
                elif form == "parts" and name.startswith("train-images"):
                    for k, part in enumerate(np.array_split(array, 3)):
                        (folder / f"{name}.part{k}.gz").write_bytes(gzip.compress(idx(part), 1))
                else:
                    (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
        if form == "parts":
            write_sums(folder)
        return folder

    return make


def pickled(batch: dict[Any, Any]) -> bytes:
    return pickle.dumps(batch, protocol=2)


@pytest.fixture
def cifar(tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """A folder of CIFAR's files: "sheets" (four images each), "batches" or "binary"."""

    def make(form: str = "sheets", dataset: str = "cifar10", train: int = 60, test: int = 40) -> Path:
        folder = tmp_path / f"{dataset}-{form}"
        folder.mkdir()
        (x, y), (tx, ty) = made(train, 3, 32, 3), made(test, 3, 32, 4)
        if form == "sheets":
            from PIL import Image

            monkeypatch.setattr(data, "SHEET", (2, 10))
            for part, images, labels in (("train", x, y), ("test", tx, ty)):
                for k, chunk in enumerate(np.split(images, len(images) // 20)):
                    sheet = chunk.reshape(2, 10, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(64, 320, 3)
                    Image.fromarray(sheet).save(folder / f"{part}_{k:02d}.png")
                lines = [f"{n}\t{label}\tname_{n}.png\n" for n, label in enumerate(labels)]
                (folder / f"{part}.tsv").write_text("".join(lines))
            write_sums(folder)
            return folder
        files: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if dataset == "cifar10":
            files = {f"data_batch_{i + 1}": (x[i::5], y[i::5]) for i in range(5)} | {"test_batch": (tx, ty)}
        else:
            files = {"train": (x, y), "test": (tx, ty)}
        for name, (images, labels) in files.items():
            if form == "batches":
                key = "labels" if dataset == "cifar10" else "fine_labels"
                rows = images.reshape(len(images), -1)
                content = pickled({b"data": rows, key.encode(): [int(n) for n in labels], b"batch_label": b"one"})
                known.md5(name, content)
                (folder / name).write_bytes(content)
            else:
                before = [labels[:, None]] if dataset == "cifar10" else [labels[:, None] % 5, labels[:, None]]
                rows = np.concatenate([*before, images.reshape(len(images), -1)], 1)
                (folder / f"{name}.bin").write_bytes(rows.tobytes())
                part = "test" if name.startswith("test") else "train"
                monkeypatch.setitem(data.ROWS, (dataset, part), len(images))
        monkeypatch.setitem(data.MEANS, dataset, tuple(x.mean((0, 2, 3)) / 255))
        return folder

    return make
