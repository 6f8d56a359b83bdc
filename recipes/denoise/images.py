"""Image files, read with care: what a picture is, and what is done to the images of a set."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.errors import RecipeError

FORMATS = ("PNG", "JPEG")  # the second also opens those of phones, with more than one picture
FOLDERS = {"gaussian": ("train400", "bsd68"), "jpeg": ("train400", "live1")}
NOISE = 20180519  # seed of the test noise
ORIENTATION = 0x0112  # of EXIF; what undoes each is
TURNS = dict(zip(range(2, 9), (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
), strict=True))  # fmt: skip
Array = np.ndarray[Any, Any]


@dataclass
class Picture:
    """planes: (1 or 3, H, W), float32 in [0, 1]; alpha, if there is one: (H, W) uint8, as it was stored."""

    planes: Array
    depth: int  # bits of a number, 8 or 16
    alpha: Array | None = None
    profile: bytes | None = None
    notes: list[str] = field(default_factory=list)


def read(path: Path) -> Picture:
    """A PNG or JPEG file of any mode.

    Raises:
        RecipeError: no such file, another format, a damaged file, or one beyond Pillow's limit of pixels.
    """
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder; give the images in it")
    if not path.exists():
        raise RecipeError(f"{path}: no such file; check the path")
    if not path.is_file():  # a pipe would be waited for
        raise RecipeError(f"{path}: is no ordinary file; give an image")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give yourself the right to it") from error
    if not content:
        raise RecipeError(f"{path}: is empty; copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata; those of the size are
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.verify()  # the checksums of a PNG
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _picture(image, content)
    except Image.UnidentifiedImageError as error:
        raise RecipeError(f"{path}: is no PNG or JPEG image; convert it to PNG first") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RecipeError(
            f"{path}: has more than the {Image.MAX_IMAGE_PIXELS:,} pixels that Pillow takes to be safe to unpack; "
            f"cut it into parts"
        ) from error
    except (
        OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, KeyError, IndexError, TypeError
    ) as error:  # fmt: skip  # Pillow's many kinds
        raise RecipeError(f"{path}: is damaged or cut off ({error}); copy it again") from error


def _picture(image: Image.Image, content: bytes) -> Picture:
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"the first of {getattr(image, 'n_frames', 1)} frames")
    depth, colour = content[24:26] if content[:8] == b"\x89PNG\r\n\x1a\n" else (8, 2)
    if depth == 16 and colour in (2, 4, 6):
        notes.append("16 bits a channel, of which Pillow reads 8")
        if image.info.pop("transparency", None) is not None:
            notes.append("its transparent colour is one of 16 bits and is left out")
    elif depth in (2, 4) and colour == 0 and "transparency" in image.info:  # Pillow scales the pixels to 8 bits alone
        image.info["transparency"] *= 255 // (2**depth - 1)
    profile = image.info.get("icc_profile")
    image.load()
    image = upright(image, notes)
    mode = image.mode
    if mode.startswith("I"):  # of 16 bits, but for a few writers
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"mode {mode} with numbers from {grey.min()} to {grey.max()}; 0 to 65535 is needed")
        hidden = image.info.get("transparency")  # the one number that is not shown
        alpha = np.where(grey == hidden, 0, 255).astype(np.uint8) if isinstance(hidden, int) else None
        return Picture((grey / 65535).astype(np.float32)[None], 16, alpha, profile, notes)
    if mode == "CMYK":
        notes.append("CMYK turned into RGB")
        image, profile = image.convert("RGB"), None
    transparent = mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info
    if mode in ("1", "L", "LA", "La"):
        image = image.convert("LA" if transparent else "L")
    else:
        image = image.convert("RGBA" if transparent else "RGB")
    numbers = np.asarray(image)
    numbers = numbers if numbers.ndim == 3 else numbers[..., None]
    alpha = numbers[..., -1].copy() if transparent else None
    colours = numbers[..., : 3 if numbers.shape[2] >= 3 else 1]
    return Picture(np.ascontiguousarray(colours.transpose(2, 0, 1)).astype(np.float32) / 255, 8, alpha, profile, notes)


def upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """As its EXIF data wants it shown. Where these are damaged, as in many a picture that is whole, that is noted."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # Pillow's parser lets through whatever its parts raise
        notes.append("its EXIF data are damaged, so that it may lie on its side")
        return image
    return image if turn is None else image.transpose(turn)


def encoded(picture: Picture) -> bytes:
    """As PNG, of the picture's depth, numbers clipped to [0, 1] and rounded; alpha and colour profile are kept."""
    most = 65535 if picture.depth == 16 else 255
    numbers = np.rint(picture.planes.astype(np.float64).clip(0, 1) * most)
    options: dict[str, Any] = {}
    if picture.depth == 16:
        if picture.alpha is not None:  # PNG's own way, as Pillow writes no second channel here: 0 is not shown
            numbers = np.where(picture.alpha == 0, 0, numbers.clip(min=1))
            options["transparency"] = 0
        image = Image.fromarray(numbers[0].astype(np.uint16))
    else:
        planes = [*numbers.astype(np.uint8), *([] if picture.alpha is None else [picture.alpha])]
        modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
        image = Image.merge(modes[len(planes)], [Image.fromarray(plane) for plane in planes])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=picture.profile, **options)
    return buffer.getvalue()


def luma(planes: Array) -> Array:
    """(3, H, W) → (H, W), ITU-R BT.601 over the full range, which JPEG files have."""
    r, g, b = planes
    return np.asarray(0.299 * r + 0.587 * g + 0.114 * b, dtype=np.float32)


def studio_luma(planes: Array) -> Array:
    """That of MATLAB's `rgb2ycbcr` for uint8, 16 to 235 of 255, rounded: what figures of deblocking are of. The luma of
    the full range, OpenCV's, has a PSNR more than 1 dB lower."""
    r, g, b = planes.astype(np.float64)
    return np.asarray(np.rint(16 + 65.481 * r + 128.553 * g + 24.966 * b) / 255, dtype=np.float32)


# --- sets of images --------------------------------------------------------------------------------------------


LUMA = {"gaussian": luma, "jpeg": studio_luma}  # of a set's colour images, by the task


def read_folder(folder: Path, least: int, option: str, task: str = "gaussian") -> dict[str, Array]:
    """Name ↦ gray image, (H, W) float32 in 0 … 255, of all PNG and JPEG files, sorted by name; colour by LUMA.

    Raises:
        RecipeError: no such folder, none in it, or an image that is damaged or has a side below `least`.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "no such folder"
        raise RecipeError(f"{folder}: {what}; {option}")
    # Hidden ones are no pictures: macOS leaves a `._NAME` beside each NAME in an archive.
    seen = (path for path in folder.iterdir() if not path.name.startswith("."))
    paths = sorted(path for path in seen if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise RecipeError(f"{folder}: holds no .png or .jpg files; {option}")
    found = {}
    for path in paths:
        picture = read(path)
        image = (picture.planes[0] if len(picture.planes) == 1 else LUMA[task](picture.planes)) * np.float32(255)
        if min(image.shape) < least:
            raise RecipeError(
                f"{path}: has {image.shape[1]} × {image.shape[0]} pixels, but {least} both ways are needed; remove it, "
                f"or take smaller patches"
            )
        found[path.name] = image
    return found


def check_apart(train: Mapping[str, Array], test: Mapping[str, Array]) -> None:
    """
    Raises:
        RecipeError: an image is in both sets.
    """
    learned = {fingerprint({"": image}): name for name, image in train.items()}
    for name, image in test.items():
        if (other := learned.get(fingerprint({"": image}))) is not None:
            raise RecipeError(
                f"--test-images: {name} is {other} of the training images, pixel for pixel; a test on what was learned "
                f"says nothing. Take it out of one of the two folders"
            )


def fingerprint(images: Mapping[str, Array]) -> str:
    """sha256 over names, sizes and pixels."""
    sha256 = hashlib.sha256()
    for name, image in images.items():
        sha256.update(f"{os.fsencode(name)!r} {image.shape}".encode())
        sha256.update(image.tobytes())
    return sha256.hexdigest()


def chosen(images: Mapping[str, Array], count: int, crop: int) -> dict[str, Array]:
    """`count` of them (0: all), evenly spaced, each cut to a square of `crop` pixels (0: whole) from its centre."""
    names = list(images)
    if 0 < count < len(names):
        names = [names[i * len(names) // count] for i in range(count)]
    return {name: centre(images[name], crop) for name in names}


def centre(image: Array, crop: int) -> Array:
    if not crop:
        return image
    height, width = image.shape
    top, left = max(0, (height - crop) // 2), max(0, (width - crop) // 2)
    return image[top : top + crop, left : left + crop]


# --- what is done to them --------------------------------------------------------------------------------------


def compressed(image: Array, quality: int) -> Array:
    """JPEG by Pillow and back, (H, W) in 0 … 255."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(image).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), dtype=np.float32)


def degraded(task: str, name: str, image: Array, level: float) -> Array:
    """A test image with noise of standard deviation σ, neither rounded nor clipped, or compressed. 0 … 255.

    The noise of an image is that of its name, times σ: subsets meet the noise that the whole set has.
    """
    if task == "jpeg":
        return compressed(image, int(level))
    random = np.random.default_rng([NOISE, zlib.crc32(os.fsencode(name))])
    return (image + level * random.standard_normal(image.shape)).astype(np.float32)


def psnr(image: Array, clean: Array, clip: bool = True) -> float:
    """In dB, peak 255, the image clipped to 0 … 255 unless it is an input, and not rounded; 100 where both agree."""
    numbers = image.astype(np.float64)
    error = float(np.mean(((numbers.clip(0, 255) if clip else numbers) - clean.astype(np.float64)) ** 2))
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))
