"""MNIST, CIFAR-10 and CIFAR-100 from a folder, in the forms they are kept in; whatever else it holds is refused.

| data set | form | files |
|---|---|---|
| MNIST | IDX, as published | `train-images-idx3-ubyte`, …, with or without .gz; also in `raw/` or `MNIST/raw/` |
| | IDX in parts | the training images as `train-images-idx3-ubyte.part0.gz`, …, each an IDX file, and `SHA256SUMS` |
| CIFAR-10 | torchvision's folder | `data_batch_1` … `test_batch`; also in `cifar-10-batches-py/` |
| | binary | `data_batch_1.bin` … `test_batch.bin`; also in `cifar-10-batches-bin/` |
| | sheets | `train_00.png` … of 40 x 25 images, `train.tsv`, `test.tsv`, and `SHA256SUMS` |
| CIFAR-100 | torchvision's folder | `train`, `test`; also in `cifar-100-python/` |
| | binary | `train.bin`, `test.bin`; also in `cifar-100-binary/` |

What is read is compared with the published md5, with the folder's sha256 (sheets), or, of the binary files, of which no
sums are published, with the published mean of the training images. torchvision's files are pickles: they are read only
after their md5 is right, and by an unpickler that builds arrays and containers alone.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import RecipeError
from .settings import CLASSES, PUBLISHED_IMAGES, SIDE

Arrays = tuple[np.ndarray, np.ndarray]  # images (N, C, H, W) uint8, labels (N,) int64

# md5 of the published files; those of MNIST unpacked.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
MEANS = {  # of the published training images, pixels from 0 to 1
    "cifar10": (0.49139968, 0.48215841, 0.44653091),
    "cifar100": (0.50707516, 0.48654887, 0.44091784),
}
# What the experiments divide by. That of CIFAR-10 is a widely copied mistake, the mean of the images' own deviations
# (the deviation is .2470, .2435, .2616): kept, to compare.
NORMALISATION = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
ROWS = {  # of a binary file
    ("cifar10", "train"): 10_000,
    ("cifar10", "test"): 10_000,
    ("cifar100", "train"): 50_000,
    ("cifar100", "test"): 10_000,
}
SHEET = (25, 40)  # rows and columns of images in a sheet


@dataclass(frozen=True)
class Split:
    """Images and labels.

    Fields:
        images: (N, C, H, W), uint8 from 0 to 255, or float32 from 0 to 1.
        labels: (N,) int64.

    Raises:
        RecipeError: pixels outside of their range, or labels that do not fit.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        x = self.images
        if x.dim() != 4 or self.labels.shape != (len(x),) or not len(x):
            raise RecipeError(
                f"images of shape {tuple(x.shape)} with labels of shape {tuple(self.labels.shape)}; give (N, C, H, W) "
                f"and one label each"
            )
        if x.dtype != torch.uint8:
            if x.dtype != torch.float32:
                raise RecipeError(f"images of {x.dtype}; give uint8 from 0 to 255, or float32 from 0 to 1")
            low, high = float(x.min()), float(x.max())
            if not (low >= 0.0 and high <= 1.0):  # also where one is NaN
                raise RecipeError(
                    f"images with pixels from {low:g} to {high:g}: they must lie between 0 and 1, the units of "
                    f"--epsilon. Divide by the largest level; a normalisation belongs into the network"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) as float32 from 0 to 1, and labels."""
        return pixels(self.images[index]), self.labels[index]

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


def pixels(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class ImageSet:
    """What a run is trained and tested on.

    Fields:
        form: of the folder, in words.
        there: training images that the folder has; the published set may have more.
    """

    dataset: str
    form: str
    train: Split
    test: Split
    there: int

    @property
    def classes(self) -> int:
        return CLASSES[self.dataset]

    @property
    def fingerprint(self) -> str:
        """sha256 of images and labels."""
        total = hashlib.sha256()
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            total.update(tensor.contiguous().numpy())  # type: ignore[arg-type]
        return total.hexdigest()

    @property
    def sentence(self) -> str:
        published = PUBLISHED_IMAGES[self.dataset]
        of = f"all {published:,}" if len(self.train) == published else f"{len(self.train):,} of the {published:,}"
        side = self.train.images.shape[-1]
        size = "" if side == SIDE[self.dataset] else f", averaged to {side} x {side}"
        return f"{self.dataset}: {of} training images and {len(self.test):,} test images{size} ({self.form})"


def load(dataset: str, folder: Path, *, size: int = 0, train_images: int = 0, test_images: int = 0) -> ImageSet:
    """Read and check a folder.

    Args:
        size: 0 or the images' own, or half of that: blocks of 2 x 2 pixels are averaged, which gives float32.
        train_images, test_images: the first so many, 0 for all. Of sheets only those are read.

    Raises:
        RecipeError: missing, truncated or damaged files, another data set, or no folder at all.
    """
    form, place = recognised(dataset, folder)
    train, there = READERS[form](dataset, place, "train", train_images)
    test, _ = READERS[form](dataset, place, "test", test_images)
    splits: dict[str, Split] = {}
    for part, (images, labels), wanted in (("train", train, train_images), ("test", test, test_images)):
        if labels.min() < 0 or labels.max() >= CLASSES[dataset]:
            raise RecipeError(
                f"--data-dir {place}: a label of {part} is {labels.max() if labels.min() >= 0 else labels.min()}, but "
                f"{dataset} has classes 0 to {CLASSES[dataset] - 1}; the files are damaged, fetch them again"
            )
        x, y = images[: wanted or None], labels[: wanted or None]
        splits[part] = Split(averaged(torch.tensor(x), size or SIDE[dataset]), torch.tensor(y))
    return ImageSet(dataset, form, splits["train"], splits["test"], there)


def averaged(images: Tensor, size: int) -> Tensor:
    """Means of blocks, where the images are larger than `size`."""
    if images.shape[-1] == size:
        return images
    return torch.cat([torch.nn.functional.avg_pool2d(pixels(part), images.shape[-1] // size)
                      for part in images.split(1000)])  # fmt: skip


# --- which folder it is ---------------------------------------------------------------------------------------

# Form ↦ its data set, the folders it may lie in, and a file that shows it.
FORMS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "IDX in parts": ("mnist", ("",), "train-images-idx3-ubyte.part0.gz"),
    "IDX": ("mnist", ("", "raw", "MNIST/raw"), "train-images-idx3-ubyte"),
    "IDX, packed": ("mnist", ("", "raw", "MNIST/raw"), "train-images-idx3-ubyte.gz"),
    "sheets": ("cifar10", ("",), "train.tsv"),
    "torchvision's CIFAR-10 batches": ("cifar10", ("", "cifar-10-batches-py"), "data_batch_1"),
    "binary CIFAR-10 batches": ("cifar10", ("", "cifar-10-batches-bin"), "data_batch_1.bin"),
    "torchvision's CIFAR-100": ("cifar100", ("", "cifar-100-python"), "train"),
    "binary CIFAR-100": ("cifar100", ("", "cifar-100-binary"), "train.bin"),
}


ARCHIVE = r"\.(tar\.gz|tgz|tar|zip)$"


def recognised(dataset: str, folder: Path) -> tuple[str, Path]:
    """(form, folder of the files).

    Raises:
        RecipeError: no folder, or one that holds something else.
    """
    if not folder.exists():
        raise RecipeError(f"--data-dir {folder}: there is no such folder; correct the path")
    if not folder.is_dir():
        archive = re.search(ARCHIVE, folder.name)
        raise RecipeError(
            f"--data-dir {folder}: is a file; give the folder that the files lie in"
            + (", after unpacking" if archive else "")
        )
    found = [
        (form, folder / inner)
        for form, (_, places, sign) in FORMS.items()
        for inner in places
        if (folder / inner / sign).is_file()
    ]
    mine = [(form, place) for form, place in found if FORMS[form][0] == dataset]
    if mine:
        return mine[0]
    if found:
        form = found[0][0]
        raise RecipeError(
            f"--data-dir {folder}: holds {FORMS[form][0]} ({form}), not {dataset}; give --dataset {FORMS[form][0]} or "
            f"another folder"
        )
    signs = sorted({sign for of, _, sign in FORMS.values() if of == dataset})
    names = sorted(path.name for path in folder.iterdir())
    packed = next((name for name in names if re.search(ARCHIVE, name)), None)
    names = names[:5]
    raise RecipeError(
        f"--data-dir {folder}: no {dataset} there: it holds {', '.join(names) or 'nothing'}"
        f"{', …' if len(names) == 5 else ''}, and one of {', '.join(signs)} was looked for, in the folder itself or in "
        f"torchvision's folders under it; "
        + (f"unpack {packed} there" if packed else "give the folder that the files lie in")
    )


# --- files ----------------------------------------------------------------------------------------------------


def content(path: Path, most: int) -> bytes:
    """Of a file, unpacked where its name ends in .gz.

    Raises:
        RecipeError: it is missing, cannot be read or unpacked, or has more than `most` bytes.
    """
    try:
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path}: is no file; put the data set's file there")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = file.read(most + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: is missing; the folder is not complete, fetch the data set again") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RecipeError(f"{path}: cannot be unpacked ({error}); it is truncated or damaged, fetch it again") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); put that right") from error
    if len(found) > most:
        raise RecipeError(f"{path}: has more than the {most:,} bytes of the data set's file; fetch it again")
    return found


def check_md5(found: bytes | str, name: str, path: Path) -> None:
    """
    Raises:
        RecipeError: another md5 than the published file's.
    """
    md5 = hashlib.md5(found).hexdigest() if isinstance(found, bytes) else found
    if md5 != MD5[name]:
        raise RecipeError(
            f"{path}: its md5 is {md5}, that of the published file {MD5[name]}; it is truncated, damaged, or another "
            f"data set in the same format. Fetch it again"
        )


def sums(folder: Path) -> dict[str, str]:
    """{name: sha256} of `SHA256SUMS`.

    Raises:
        RecipeError: it is missing, or holds something else.
    """
    path = folder / "SHA256SUMS"
    found = {}
    for line in content(path, 2**20).decode("utf-8", "replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([\w.-]+)", line)
        if not match:
            raise RecipeError(f"{path}: {line[:80]!r} is no line of sha256sum; fetch the file again")
        found[match[2]] = match[1]
    return found


def checked(folder: Path, name: str, known: dict[str, str], most: int = 2**26) -> bytes:
    """The bytes of a file as they are, which must be those of `SHA256SUMS`."""
    if name not in known:
        raise RecipeError(f"{folder / 'SHA256SUMS'}: does not name {name}; fetch both again")
    path = folder / name
    if not path.is_file():
        raise RecipeError(f"{path}: is missing; the folder is not complete, fetch the data set again")
    if path.stat().st_size > most:
        raise RecipeError(f"{path}: has {path.stat().st_size:,} bytes, far more than such a file; fetch it again")
    found = path.read_bytes()
    if hashlib.sha256(found).hexdigest() != known[name]:
        raise RecipeError(f"{path}: its sha256 is not that of SHA256SUMS; it is truncated or damaged, fetch it again")
    return found


# --- MNIST ----------------------------------------------------------------------------------------------------


def idx(found: bytes, path: Path) -> np.ndarray:
    """The array of an IDX file of bytes.

    Raises:
        RecipeError: another kind of file, or another length than its header says.
    """
    if len(found) < 4 or found[:3] != b"\0\0\x08" or not 1 <= found[3] <= 3:
        raise RecipeError(f"{path}: begins with {found[:4].hex(' ') or 'nothing'}, not as an IDX file of bytes does")
    header = 4 + 4 * found[3]
    if len(found) < header:
        raise RecipeError(f"{path}: ends within its header; it is truncated, fetch it again")
    shape = struct.unpack(f">{found[3]}I", found[4:header])
    if (body := len(found) - header) != int(np.prod(shape, dtype=object)):
        raise RecipeError(
            f"{path}: its header says {' x '.join(map(str, shape))} bytes, but {body:,} follow; it is truncated or "
            f"damaged, fetch it again"
        )
    return np.frombuffer(found, np.uint8, offset=header).reshape(shape)


_MOST_IDX = 16 + 60_000 * 28 * 28


def idx_published(dataset: str, folder: Path, part: str, wanted: int) -> tuple[Arrays, int]:
    stem = "train" if part == "train" else "t10k"
    read = {}
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{stem}-{kind}-ubyte"
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), folder / name)
        found = content(path, _MOST_IDX)
        read[kind] = idx(found, path)
        check_md5(found, name, path)
    return _mnist(read["images-idx3"], read["labels-idx1"], folder)


def idx_parts(dataset: str, folder: Path, part: str, wanted: int) -> tuple[Arrays, int]:
    """The parts joined under one header have to give the published file."""
    if part != "train":
        known = sums(folder)
        for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
            checked(folder, name, known)
        return idx_published(dataset, folder, part, wanted)
    known, name = sums(folder), "train-images-idx3-ubyte"
    parts = [entry for entry in known if re.fullmatch(rf"{name}\.part\d+\.gz", entry)]
    parts.sort(key=lambda entry: int(entry.split(".part")[1][:-3]))
    arrays = []
    for entry in parts:
        checked(folder, entry, known)
        arrays.append(idx(content(folder / entry, _MOST_IDX), folder / entry))
    if not arrays or any(a.ndim != 3 or a.shape[1:] != arrays[0].shape[1:] for a in arrays):
        raise RecipeError(f"--data-dir {folder}: the parts of {name} are no images of one size; fetch them again")
    joined = np.concatenate(arrays)
    header = b"\0\0\x08\x03" + struct.pack(">3I", *joined.shape)
    check_md5(header + joined.tobytes(), name, folder / f"{name}.part*.gz")
    checked(folder, "train-labels-idx1-ubyte.gz", known)
    path = folder / "train-labels-idx1-ubyte.gz"
    found = content(path, _MOST_IDX)
    check_md5(found, "train-labels-idx1-ubyte", path)
    return _mnist(joined, idx(found, path), folder)


def _mnist(images: np.ndarray, labels: np.ndarray, folder: Path) -> tuple[Arrays, int]:
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != (len(images),):
        raise RecipeError(
            f"--data-dir {folder}: images {images.shape} with labels {labels.shape}; MNIST has 28 x 28 and a label each"
        )
    return (images[:, None], labels.astype(np.int64)), len(images)


# --- CIFAR ----------------------------------------------------------------------------------------------------


class _Arrays(pickle.Unpickler):
    """Builds arrays, bytes and containers; what refers to anything else is refused before it is built."""

    ALLOWED: frozenset[tuple[str, str]] = frozenset(
        [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
        + [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        if (module, name) == ("_codecs", "encode"):
            return _encode
        return getattr(np, name) if module == "numpy" else np.empty(0).__reduce__()[0]


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as Python 3 writes bytes with it: latin-1 and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding}")
    return text.encode("latin1")


def unpickled(found: bytes, path: Path) -> dict[str, Any]:
    """A batch of torchvision's, with its keys as text.

    Raises:
        RecipeError: no pickle, or one that holds something else than arrays and containers.
    """
    try:
        batch = _Arrays(io.BytesIO(found), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises many kinds
        raise RecipeError(
            f"{path}: refused, since it is no pickle of arrays and lists alone ({type(error).__name__}: {error}); "
            f"fetch it again"
        ) from error
    if not isinstance(batch, dict):
        raise RecipeError(f"{path}: holds a {type(batch).__name__}, not the dictionary of a batch; fetch it again")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in batch.items()}


def cifar_batches(dataset: str, folder: Path, part: str, wanted: int) -> tuple[Arrays, int]:
    if dataset == "cifar10":
        names, key = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"], "labels"
    else:
        names, key = [part], "fine_labels"
    images, labels = [], []
    for name in names:
        path = folder / name
        found = content(path, 2**28)
        check_md5(found, name, path)
        batch = unpickled(found, path)
        data, label = batch.get("data"), batch.get(key)
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
            raise RecipeError(f"{path}: has no array 'data' of N x 3072 bytes; fetch it again")
        if not isinstance(label, list) or len(label) != len(data) or not all(type(n) is int for n in label):
            raise RecipeError(f"{path}: has no list {key!r} with a whole number for each image; fetch it again")
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(np.array(label, np.int64))
    joined = np.concatenate(images), np.concatenate(labels)
    return joined, len(joined[1])


def cifar_binary(dataset: str, folder: Path, part: str, wanted: int) -> tuple[Arrays, int]:
    if dataset == "cifar10":
        names, before = [f"data_batch_{i}.bin" for i in range(1, 6)] if part == "train" else ["test_batch.bin"], 1
    else:
        names, before = [f"{part}.bin"], 2  # coarse label, fine label
    rows = []
    for name in names:
        path = folder / name
        count = ROWS[dataset, part]
        found = content(path, count * (before + 3072))
        if len(found) != count * (before + 3072):
            raise RecipeError(
                f"{path}: has {len(found):,} bytes, the published file {count * (before + 3072):,}; it is truncated, "
                f"fetch it again"
            )
        rows.append(np.frombuffer(found, np.uint8).reshape(count, -1))
    joined = np.concatenate(rows)
    images, labels = joined[:, before:].reshape(-1, 3, 32, 32), joined[:, before - 1].astype(np.int64)
    if part == "train":
        mean = images.mean((0, 2, 3), dtype=np.float64) / 255
        if abs(mean - np.array(MEANS[dataset])).max() > 1e-7:  # they are printed to eight digits
            raise RecipeError(
                f"--data-dir {folder}: the channels' means are {', '.join(f'{m:.6f}' for m in mean)}, those of "
                f"{dataset} {', '.join(f'{m:.6f}' for m in MEANS[dataset])}; the files are damaged or of another data "
                f"set, fetch them again"
            )
    return (images, labels), len(labels)


def cifar_sheets(dataset: str, folder: Path, part: str, wanted: int) -> tuple[Arrays, int]:
    """The first `wanted` images; a sheet that none of them is on is not read."""
    from PIL import Image

    known = sums(folder)
    text = checked(folder, f"{part}.tsv", known).decode("utf-8", "replace")
    labels = []
    for n, line in enumerate(text.splitlines()):
        match = re.fullmatch(r"(\d+)\t(\d)\t[^\t]+", line)
        if not match or int(match[1]) != n:
            raise RecipeError(
                f"{folder / f'{part}.tsv'}, line {n + 1}: {line[:60]!r} is not the position {n}, a label from 0 to 9 "
                f"and a name, with tabs between them; fetch the file again"
            )
        labels.append(int(match[2]))
    rows, columns = SHEET
    wanted = min(wanted or len(labels), len(labels))
    sheets = []
    for k in range(-(-wanted // (rows * columns))):
        path = folder / f"{part}_{k:02d}.png"
        found = checked(folder, path.name, known)
        try:
            with Image.open(io.BytesIO(found), formats=["PNG"]) as image:
                if image.mode != "RGB" or image.size != (32 * columns, 32 * rows):
                    raise RecipeError(
                        f"{path}: is {image.mode} of {image.size[0]} x {image.size[1]} pixels, a sheet RGB of "
                        f"{32 * columns} x {32 * rows}; fetch it again"
                    )
                sheet = np.asarray(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RecipeError(f"{path}: cannot be read as PNG ({error}); fetch it again") from error
        tiles = sheet.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3)
        sheets.append(tiles.reshape(-1, 3, 32, 32))
    images = np.concatenate(sheets)[:wanted]
    if len(images) < wanted:
        raise RecipeError(f"--data-dir {folder}: {len(images):,} images of {part}, but {wanted:,} labels")
    return (images, np.array(labels[:wanted], np.int64)), len(labels)


READERS: dict[str, Callable[[str, Path, str, int], tuple[Arrays, int]]] = {
    "IDX in parts": idx_parts,
    "IDX": idx_published,
    "IDX, packed": idx_published,
    "sheets": cifar_sheets,
    "torchvision's CIFAR-10 batches": cifar_batches,
    "binary CIFAR-10 batches": cifar_binary,
    "torchvision's CIFAR-100": cifar_batches,
    "binary CIFAR-100": cifar_binary,
}
