"""Images from folders, in every form, and every kind of folder that is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.common.errors import RecipeError
from recipes.images import data

from .conftest import idx, made, pickled, write_sums


def refused(dataset: str, folder: Path, *said: str) -> None:
    with pytest.raises(RecipeError) as error:
        data.load(dataset, folder)
    for text in said:
        assert text in str(error.value)


# --- what is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["IDX", "packed", "parts"])
def test_mnist_in_all_forms(mnist, form) -> None:
    found = data.load("mnist", mnist(form))
    x, y = made(80, 1, 28, 1)
    assert np.array_equal(found.train.images.numpy(), x) and found.train.labels.tolist() == y.tolist()
    assert len(found.test) == 40 and found.classes == 10
    assert "80 of the 60,000 training images and 40 test images" in found.sentence


@pytest.mark.parametrize("inner", ["raw", "MNIST/raw"])
def test_torchvision_s_folder_of_mnist(mnist, tmp_path, inner) -> None:
    (tmp_path / "root" / inner).parent.mkdir(parents=True)
    mnist("IDX").rename(tmp_path / "root" / inner)
    assert len(data.load("mnist", tmp_path / "root").train) == 80


@pytest.mark.parametrize("form", ["sheets", "batches", "binary"])
def test_cifar10_in_all_forms(cifar, form) -> None:
    found = data.load("cifar10", cifar(form))
    x, y = made(60, 3, 32, 3)
    order = np.arange(60) if form == "sheets" else np.concatenate([np.arange(i, 60, 5) for i in range(5)])
    assert np.array_equal(found.train.images.numpy(), x[order])
    assert found.train.labels.tolist() == y[order].tolist()


@pytest.mark.parametrize("form", ["batches", "binary"])
def test_cifar100_has_its_fine_labels(cifar, form) -> None:
    found = data.load("cifar100", cifar(form, "cifar100"))
    assert found.train.labels.tolist() == made(60, 3, 32, 3)[1].tolist() and found.classes == 100


def test_torchvision_s_folder_of_cifar(cifar, tmp_path) -> None:
    (tmp_path / "root").mkdir()
    cifar("batches").rename(tmp_path / "root" / "cifar-10-batches-py")
    assert len(data.load("cifar10", tmp_path / "root").train) == 60


def test_first_images_and_their_size(cifar) -> None:
    folder = cifar("sheets")
    (folder / "train_02.png").unlink()  # not needed for these
    found = data.load("cifar10", folder, size=16, train_images=30, test_images=10)
    x = made(60, 3, 32, 3)[0][:30].astype(np.float64).reshape(30, 3, 16, 2, 16, 2).mean((3, 5)) / 255
    assert len(found.train) == 30 and found.there == 60 and len(found.test) == 10
    np.testing.assert_allclose(found.train.images.numpy(), x, atol=1e-6)  # float32
    assert "30 of the 50,000 training images" in found.sentence and "averaged to 16 x 16" in found.sentence


def test_fingerprint_is_of_what_is_used(cifar) -> None:
    folder = cifar("sheets")
    prints = {data.load("cifar10", folder, train_images=n, size=s).fingerprint for n in (20, 30) for s in (16, 32)}
    assert len(prints) == 4
    assert data.load("cifar10", folder, train_images=20, size=16).fingerprint in prints


def test_pixels_lie_between_0_and_1() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(data.Split(x, labels).batch(torch.tensor([1]))[0], x[1:])
    for wrong in (x * 255, x - 0.5, x * torch.nan):
        with pytest.raises(RecipeError, match="must lie between 0 and 1"):
            data.Split(wrong, labels)
    with pytest.raises(RecipeError, match="float64"):
        data.Split(x.double(), labels)
    with pytest.raises(RecipeError, match="one label each"):
        data.Split(x, labels[:1])


def test_the_real_images(shared: Path) -> None:
    """Of the README there: sha256 of the test images in order, and the official md5, which loading compares."""
    folder = shared / "data" / "images"
    found = data.load("cifar10", folder / "cifar10", train_images=10)
    raw = found.test.images.permute(0, 2, 3, 1).contiguous().numpy()
    assert hashlib.sha256(raw).hexdigest() == "5eb99a3fe3f2c8b2d23e2c6208188de2e93cdf0f9f3e0969d1d0c4d6872f25af"
    assert found.train.labels.tolist() == list(range(10)) and found.there == 20_000
    digits = data.load("mnist", folder / "mnist")
    assert digits.sentence == "mnist: all 60,000 training images and 10,000 test images (IDX in parts)"
    assert digits.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]


# --- what is refused ------------------------------------------------------------------------------------------


def test_folders_that_are_none(tmp_path, mnist, cifar) -> None:
    refused("mnist", tmp_path / "nowhere", "there is no such folder")
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"x")
    refused("cifar10", archive, "is a file", "after unpacking")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("cifar10", empty, "no cifar10 there: it holds nothing", "data_batch_1", "train.tsv")
    (empty / "holiday.jpg").write_bytes(b"x")
    refused("cifar100", empty, "it holds holiday.jpg", "give the folder that the files lie in")
    (empty / "z-cifar-10-python.tar.gz").write_bytes(b"x")
    refused("cifar10", empty, "unpack z-cifar-10-python.tar.gz there")
    refused("cifar10", mnist("packed"), "holds mnist (IDX, packed), not cifar10", "--dataset mnist")
    refused("mnist", cifar("sheets"), "holds cifar10 (sheets), not mnist")
    refused("cifar100", cifar("binary"), "holds cifar10 (binary CIFAR-10 batches), not cifar100")


def test_sheets_that_are_missing_or_damaged(cifar) -> None:
    folder = cifar("sheets")
    path = folder / "train_01.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused("cifar10", folder, "train_01.png: its sha256 is not that of SHA256SUMS")
    write_sums(folder)
    refused("cifar10", folder, "train_01.png: cannot be read as PNG")
    path.unlink()
    refused("cifar10", folder, "train_01.png: is missing")
    shutil.copy(folder / "train.tsv", path)
    write_sums(folder)
    refused("cifar10", folder, "train_01.png: cannot be read as PNG")
    from PIL import Image

    Image.new("L", (320, 64)).save(path)
    write_sums(folder)
    refused("cifar10", folder, "is L of 320 x 64 pixels, a sheet RGB of 320 x 64")
    path.write_bytes(whole)
    (folder / "train.tsv").write_text("0\t1\ta.png\n2\t1\tb.png\n")
    write_sums(folder)
    refused("cifar10", folder, "train.tsv, line 2", "is not the position 1")
    (folder / "SHA256SUMS").write_text("nonsense\n")
    refused("cifar10", folder, "is no line of sha256sum")
    (folder / "SHA256SUMS").write_text("")
    refused("cifar10", folder, "does not name train.tsv")
    (folder / "SHA256SUMS").unlink()
    refused("cifar10", folder, "SHA256SUMS: is missing")


def test_idx_files_that_are_damaged(mnist, known) -> None:
    folder = mnist("packed")
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    refused("mnist", folder, "train-images-idx3-ubyte.gz: cannot be unpacked", "truncated")
    path.write_bytes(b"<html>")
    refused("mnist", folder, "cannot be unpacked")
    x = made(80, 1, 28, 1)[0][:, 0]
    for content, said in (
        (idx(x)[:-1], "its header says 80 x 28 x 28 bytes, but 62,719 follow"),
        (idx(x)[:9], "ends within its header"),
        (b"", "begins with nothing"),
        (b"\0\0\x0d\3" + idx(x)[4:], "begins with 00 00 0d 03"),
        (idx(x ^ 1), "another data set in the same format"),  # as Fashion-MNIST has it
    ):
        path.write_bytes(gzip.compress(content))
        refused("mnist", folder, "train-images-idx3-ubyte.gz", said)
    path.unlink()
    refused("mnist", folder, "no mnist there")
    path.write_bytes(whole)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    refused("mnist", folder, "t10k-labels-idx1-ubyte: is missing")
    os.mkdir(folder / "t10k-labels-idx1-ubyte.gz")
    refused("mnist", folder, "is no file")


def test_a_file_that_unpacks_without_end(mnist, monkeypatch) -> None:
    monkeypatch.setattr(data, "_MOST_IDX", 1000)
    refused("mnist", mnist("packed"), "has more than the 1,000 bytes")


def test_parts_that_do_not_give_the_published_file(mnist) -> None:
    folder = mnist("parts")
    (folder / "train-images-idx3-ubyte.part2.gz").unlink()
    write_sums(folder)
    refused("mnist", folder, "part*.gz: its md5 is")


def test_parts_are_joined_by_their_numbers(mnist) -> None:
    """Of eleven parts the tenth is not the second, as it is where names are sorted."""
    folder, x = mnist("parts"), made(80, 1, 28, 1)[0]
    for path in folder.glob("train-images*"):
        path.unlink()
    for k, part in enumerate(np.array_split(x[:, 0], 11)):
        (folder / f"train-images-idx3-ubyte.part{k}.gz").write_bytes(gzip.compress(idx(part), 1))
    write_sums(folder)
    assert torch.equal(data.load("mnist", folder).train.images, torch.tensor(x))


def test_labels_of_no_class(mnist, known) -> None:
    folder, y = mnist("IDX"), made(80, 1, 28, 1)[1]
    y[3] = 77
    known.md5("train-labels-idx1-ubyte", idx(y))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(y))
    refused("mnist", folder, "a label of train is 77")


def test_batches_that_are_damaged(cifar, known) -> None:
    folder = cifar("batches")
    path = folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    refused("cifar10", folder, "data_batch_3: its md5 is")
    x = np.zeros((2, 3072), np.uint8)
    for batch, said in (
        ({b"data": x, b"labels": [1]}, "no list 'labels'"),
        ({b"data": x, b"labels": [1, 2.5]}, "no list 'labels'"),
        ({b"data": x.astype(np.int32), b"labels": [1, 2]}, "no array 'data'"),
        ({b"labels": [1, 2]}, "no array 'data'"),
        ([1, 2], "holds a list"),
    ):
        path.write_bytes(pickled(batch))
        known.md5("data_batch_3", path.read_bytes())
        refused("cifar10", folder, "data_batch_3", said)
    path.unlink()
    refused("cifar10", folder, "data_batch_3: is missing")


class Hostile:
    def __init__(self, what, *arguments) -> None:
        self.what, self.arguments = what, arguments

    def __reduce__(self):
        return self.what, self.arguments


def test_a_hostile_pickle_is_not_run(cifar, known, tmp_path) -> None:
    """Even with the right md5."""
    folder, mark = cifar("batches"), tmp_path / "mark"
    for what in (Hostile(os.mkdir, str(mark)), Hostile(eval, "1"), Hostile(getattr, 1, "real"), np.array([mark])):
        content = pickle.dumps({b"data": what}, protocol=2)
        (folder / "data_batch_1").write_bytes(content)
        known.md5("data_batch_1", content)
        refused("cifar10", folder, "data_batch_1: refused", "it refers to")
    assert not mark.exists()


def test_published_batches_are_read_as_python_2_wrote_them() -> None:
    """Byte strings without a type, and arrays by numpy's old name."""
    old = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x02\x07\xfftbU\x06labelsq\x08]q\tK\x05au."
    )
    batch = data.unpickled(old, Path("data_batch_1"))
    assert batch["labels"] == [5] and batch["data"].tolist() == [[7, 255]]


def test_binary_files_of_another_length_or_content(cifar) -> None:
    folder = cifar("binary")
    path = folder / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused("cifar10", folder, f"data_batch_2.bin: has {len(whole) - 1:,} bytes, the published file {len(whole):,}")
    path.write_bytes(whole + b"x")
    refused("cifar10", folder, "has more than")
    path.write_bytes(whole[:1] + bytes(200) + whole[201:])
    refused("cifar10", folder, "the channels' means are")
