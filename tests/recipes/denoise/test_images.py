"""Files of all kinds, sets of images, and what is done to them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from recipes.common.errors import RecipeError
from recipes.denoise import images


def drawn(height: int, width: int, number: int) -> np.ndarray:
    """As those of `data_dir`."""
    y, x = np.mgrid[:height, :width]
    return (110 + 60 * np.sin(x / (3 + number)) * np.cos(y / 4) + 40 * (x > width // 2)).clip(0, 255).astype(np.uint8)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, hidden: bytes = b"") -> bytes:
    """A PNG file by its definition; rows without filter bytes; hidden: the number or colour that is not shown."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = len(rows) // height
    raw = b"".join(b"\0" + rows[i * size : (i + 1) * size] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *([chunk(b"tRNS", hidden)] if hidden else []),
        chunk(b"IDAT", zlib.compress(raw)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


GRAY = drawn(9, 7, 0)
RGB = np.stack([drawn(9, 7, i) for i in range(3)], -1)


def test_gray(tmp_path):
    picture = images.read(saved(tmp_path / "a.png", Image.fromarray(GRAY)))
    assert picture.depth == 8 and picture.alpha is None and not picture.notes
    np.testing.assert_array_equal(picture.planes, GRAY[None].astype(np.float32) / 255)


def test_colour(tmp_path):
    picture = images.read(saved(tmp_path / "a.png", Image.fromarray(RGB)))
    np.testing.assert_array_equal(picture.planes, RGB.transpose(2, 0, 1).astype(np.float32) / 255)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_kept(tmp_path, mode):
    colours = GRAY[..., None] if mode == "LA" else RGB
    alpha = drawn(9, 7, 5)
    image = Image.merge(mode, [Image.fromarray(p) for p in [*colours.transpose(2, 0, 1), alpha]])
    picture = images.read(saved(tmp_path / "a.png", image))
    np.testing.assert_array_equal(picture.alpha, alpha)
    assert len(picture.planes) == len(mode) - 1
    again = Image.open(io.BytesIO(images.encoded(picture)))
    assert again.mode == mode
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path, transparent):
    image = Image.fromarray(RGB).quantize(8)
    path = saved(tmp_path / "a.png", image, **({"transparency": 3} if transparent else {}))
    picture = images.read(path)
    shown = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(picture.planes, shown)
    assert (picture.alpha is not None) == transparent
    if transparent:
        np.testing.assert_array_equal(picture.alpha == 0, np.asarray(image) == 3)


def test_sixteen_bits(tmp_path):
    numbers = (np.arange(63, dtype=np.uint16).reshape(9, 7) * 1040 + 7)[::-1]
    picture = images.read(saved(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(numbers))))
    assert picture.depth == 16
    np.testing.assert_allclose(picture.planes[0], numbers / 65535, rtol=1e-6)  # float32
    again = np.asarray(Image.open(io.BytesIO(images.encoded(picture))))
    assert again.dtype == np.uint16
    np.testing.assert_array_equal(again, numbers)


def test_sixteen_bits_of_colour_are_told(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 3, 16, 2, np.arange(36, dtype=">u2").tobytes()))
    picture = images.read(path)
    assert picture.depth == 8 and picture.notes == ["16 bits a channel, of which Pillow reads 8"]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_gray_that_is_not_shown(tmp_path, depth):
    """The one number of a gray PNG that is transparent, at every depth, is that and no other; 16 bits keep it too."""
    numbers = np.arange(16).reshape(2, 8) % 2**depth * (4000 if depth == 16 else 1)
    if depth == 16:
        rows = numbers.astype(">u2").tobytes()
    else:
        bits = (numbers[..., None] >> np.arange(depth)[::-1]) & 1
        rows = np.packbits(bits.reshape(2, -1).astype(np.uint8), axis=1).tobytes()
    path = tmp_path / "a.png"
    path.write_bytes(png(8, 2, depth, 0, rows, struct.pack(">H", numbers[0, 1])))
    picture = images.read(path)
    np.testing.assert_allclose(picture.planes[0], numbers / (2**depth - 1), rtol=1e-6)  # float32
    np.testing.assert_array_equal(picture.alpha == 0, numbers == numbers[0, 1])
    again = tmp_path / "b.png"
    again.write_bytes(images.encoded(picture))
    np.testing.assert_array_equal(images.read(again).alpha, picture.alpha)
    shown = numbers != numbers[0, 1]
    np.testing.assert_allclose(images.read(again).planes[0][shown], picture.planes[0][shown], atol=2 / 65535)


def test_a_colour_of_sixteen_bits_that_is_not_shown_is_told(tmp_path):
    """Compared with the 8 bits that Pillow reads, (3, 4, 5) of 65535 would hide another colour."""
    path = tmp_path / "a.png"
    rows = np.full(36, 0x0304, ">u2").tobytes()
    path.write_bytes(png(4, 3, 16, 2, rows, struct.pack(">HHH", 3, 3, 3)))
    picture = images.read(path)
    assert picture.alpha is None and picture.notes[1:] == ["its transparent colour is one of 16 bits and is left out"]


def test_one_bit(tmp_path):
    picture = images.read(saved(tmp_path / "a.png", Image.fromarray(GRAY > 100)))
    np.testing.assert_array_equal(picture.planes[0], (GRAY > 100).astype(np.float32))


def test_cmyk(tmp_path):
    image = Image.fromarray(RGB).convert("CMYK")
    picture = images.read(saved(tmp_path / "a.jpg", image, quality=100))
    assert picture.notes == ["CMYK turned into RGB"] and len(picture.planes) == 3
    assert abs(picture.planes * 255 - RGB.transpose(2, 0, 1)).mean() < 8  # JPEG of four channels


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_carried_out(tmp_path, orientation):
    """All eight, as Pillow does it, and numbers that are none."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(GRAY), exif=exif)
    picture = images.read(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(picture.planes[0] * 255, np.asarray(ImageOps.exif_transpose(image)))
    if orientation == 6:  # turned clockwise by 90° when shown
        np.testing.assert_array_equal(picture.planes[0] * 255, np.rot90(GRAY, -1))
    assert Image.open(io.BytesIO(images.encoded(picture))).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("damage", [b"MM", b"MM\0*\0\0", b"XX*\0\0\0\0\x08"])
def test_damaged_exif_data_take_no_picture_away(tmp_path, damage):
    """Of three kinds that Pillow raises errors of two classes for."""
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=b"Exif\0\0" + damage)
    picture = images.read(path)
    np.testing.assert_array_equal(picture.planes, RGB.transpose(2, 0, 1).astype(np.float32) / 255)
    assert picture.notes == ["its EXIF data are damaged, so that it may lie on its side"]


def test_profile_is_kept(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), icc_profile=b"a profile")
    assert Image.open(io.BytesIO(images.encoded(images.read(path)))).info["icc_profile"] == b"a profile"


def test_first_frame_is_told(tmp_path):
    frames = [Image.fromarray(drawn(9, 7, i)) for i in range(3)]
    path = saved(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:])
    picture = images.read(path)
    assert picture.notes == ["the first of 3 frames"]
    np.testing.assert_array_equal(picture.planes[0] * 255, GRAY)


def test_what_is_no_image(tmp_path):
    path = tmp_path / "a.png"
    for content, message in (
        (b"", "is empty"),
        (b"text", "is no PNG or JPEG"),
        (b"GIF89a" + bytes(30), "is no PNG or JPEG"),
        (png(4, 3, 8, 0, bytes(12))[:-20], "is damaged or cut off"),
    ):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=message):
            images.read(path)
    with pytest.raises(RecipeError, match=r"b\.png: no such file"):
        images.read(tmp_path / "b.png")
    with pytest.raises(RecipeError, match="is a folder"):
        images.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RecipeError, match="is no ordinary file"):
        images.read(tmp_path / "pipe.png")


@pytest.mark.parametrize("place", [20, 45, 60, -6])
def test_any_damaged_part_of_a_png(tmp_path, place):
    content = bytearray(png(40, 30, 8, 0, drawn(30, 40, 0).tobytes()))
    content[place] ^= 4
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(RecipeError, match=r"damaged or cut off|no PNG or JPEG|pixels that Pillow"):
        images.read(tmp_path / "a.png")


def test_cut_off_jpeg(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(drawn(64, 64, 0)))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(RecipeError, match=r"a\.jpg: is damaged or cut off"):
        images.read(path)


def test_pillows_limit_of_pixels(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.fromarray(GRAY))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 62)  # above it Pillow warns, above twice that it raises
    with pytest.raises(RecipeError, match="more than the 62 pixels"):
        images.read(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(RecipeError, match="more than the 20 pixels"):
        images.read(path)


def test_a_header_that_lies_about_the_size(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(2**20, 3, 8, 0, bytes(12)))
    with pytest.raises(RecipeError, match=r"damaged or cut off|cannot be read"):
        images.read(path)


# --- sets ------------------------------------------------------------------------------------------------------


def test_folders(tmp_path, data_dir):
    found = images.read_folder(data_dir / "bsd68", 8, "hint")
    assert list(found) == ["image0.png", "image1.png", "image2.png"]
    np.testing.assert_allclose(found["image1.png"], drawn(25, 31, 1), rtol=1e-6)  # /255, and times it, in float32
    with pytest.raises(RecipeError, match="nowhere: no such folder; hint"):
        images.read_folder(tmp_path / "nowhere", 8, "hint")
    with pytest.raises(RecipeError, match=r"holds no \.png or \.jpg files; hint"):
        images.read_folder(data_dir, 8, "hint")
    with pytest.raises(RecipeError, match=r"image0\.png: has 31 × 25 pixels, but 26 both ways are needed"):
        images.read_folder(data_dir / "bsd68", 26, "hint")
    (data_dir / "bsd68" / "._image0.png").write_bytes(b"what macOS leaves in archives")
    assert list(images.read_folder(data_dir / "bsd68", 8, "hint")) == list(found)
    (data_dir / "bsd68" / "image2.png").write_bytes(b"\x89PNG")
    with pytest.raises(RecipeError, match=r"image2\.png"):
        images.read_folder(data_dir / "bsd68", 8, "hint")


def test_colour_of_sets_is_that_of_the_published_figures(tmp_path):
    """JPEG: MATLAB's rgb2ycbcr(uint8), by its documented formula; noise: gray over the full range."""
    colours = np.random.default_rng(1).integers(0, 256, (9, 8, 3)).astype(np.uint8)
    colours[0, :2] = [[255, 255, 255], [0, 0, 0]]
    saved(tmp_path / "a.png", Image.fromarray(colours))
    r, g, b = colours.astype(np.float64).transpose(2, 0, 1)
    found = images.read_folder(tmp_path, 8, "", "jpeg")["a.png"]
    np.testing.assert_allclose(found, np.rint(16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255), rtol=1e-6)
    assert found[0, :2] == pytest.approx([235, 16])
    full = images.read_folder(tmp_path, 8, "")["a.png"]
    np.testing.assert_allclose(full, 0.299 * r + 0.587 * g + 0.114 * b, rtol=1e-5)  # float32


def test_an_image_of_both_sets_is_refused():
    train = {"a.png": np.zeros((9, 9), np.float32), "b.png": np.ones((9, 9), np.float32)}
    images.check_apart(train, {"a.png": np.full((9, 9), 2, np.float32)})
    with pytest.raises(RecipeError, match=r"other\.png is b\.png of the training images, pixel for pixel"):
        images.check_apart(train, {"other.png": train["b.png"].copy()})


def test_fingerprint_sees_names_sizes_and_pixels():
    one = {"a": np.zeros((2, 3), np.float32)}
    others = [{"b": one["a"]}, {"a": one["a"].T.copy()}, {"a": one["a"] + 1}, {}]
    assert len({images.fingerprint(x) for x in [one, *others]}) == 5


def test_chosen_are_evenly_spaced_and_from_the_centre():
    found = {str(i): np.arange(35.0).reshape(5, 7) for i in range(10)}
    part = images.chosen(found, 4, 3)
    assert list(part) == ["0", "2", "5", "7"]
    np.testing.assert_array_equal(part["0"], found["0"][1:4, 2:5])
    assert list(images.chosen(found, 0, 0)) == list(found)
    assert images.chosen(found, 20, 100)["3"].shape == (5, 7)


# --- degradations ----------------------------------------------------------------------------------------------


def test_noise_is_that_of_the_image_times_sigma():
    clean = np.full((64, 64), 250.0, np.float32)
    one, two = (images.degraded("gaussian", "a.png", clean, sigma) for sigma in (25, 50))
    np.testing.assert_allclose(two - clean, 2 * (one - clean), atol=1e-4)
    assert one.max() > 255 and not np.array_equal(one, np.rint(one))  # neither clipped nor rounded
    assert (one - clean).std() == pytest.approx(25, rel=0.05)  # 4096 draws: 1.1 %
    assert not np.array_equal(images.degraded("gaussian", "b.png", clean, 25), one)


def test_psnr_clips_and_does_not_round():
    clean = np.full((4, 4), 254.0, np.float32)
    assert images.psnr(clean + 100, clean, clip=False) == pytest.approx(20 * np.log10(255 / 100))
    assert images.psnr(clean + 100, clean) == pytest.approx(20 * np.log10(255))
    assert images.psnr(clean - 0.25, clean) == pytest.approx(20 * np.log10(255 / 0.25))
    assert images.psnr(clean, clean) == 100


def test_published_jpeg_inputs(real):
    """Of all 29 LIVE1 images to 0.01 dB; the talk's slide has 32.45."""
    clean = images.read_folder(real / "live1", 8, "")
    values = [images.psnr(images.degraded("jpeg", n, image, 40), image) for n, image in clean.items()]
    assert len(values) == 29
    assert np.mean(values) == pytest.approx(32.35, abs=0.01)


def test_published_noisy_inputs(real):
    """σ 75 on BSD68: 10.63 dB; clipped, as `psnr` does with outputs, 12.04."""
    clean = images.read_folder(real / "bsd68", 8, "")
    errors, clipped = [], []
    for name, image in clean.items():
        noisy = images.degraded("gaussian", name, image, 75)
        errors.append(images.psnr(noisy, image, clip=False))
        clipped.append(images.psnr(noisy, image))
    assert len(errors) == 68
    assert np.mean(errors) == pytest.approx(10.63, abs=0.01)
    assert np.mean(clipped) == pytest.approx(12.04, abs=0.01)
