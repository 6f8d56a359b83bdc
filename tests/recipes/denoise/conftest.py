"""Small images that are not noise, and a run of seconds on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "images"


def drawn(height: int, width: int, number: int) -> np.ndarray:
    """Waves and an edge, uint8."""
    y, x = np.mgrid[:height, :width]
    return (110 + 60 * np.sin(x / (3 + number)) * np.cos(y / 4) + 40 * (x > width // 2)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """train400, bsd68 and live1 of a few images; those to test on have odd sides."""
    folder = tmp_path / "images"
    for name, count, size in (("train400", 3, (20, 22)), ("bsd68", 3, (25, 31)), ("live1", 2, (27, 24))):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(drawn(*size, i)).save(folder / name / f"image{i}.png")
    return folder


@pytest.fixture
def real() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the published image sets are not beside this clone")
    return SHARED


@pytest.fixture
def tiny() -> list[str]:
    """Options of a run of about two seconds; what it learns is not looked at."""
    sizes = "--width 2 --policy-width 2 --dncnn-depth 3 --dncnn-width 3 --most 4 --steps 1 2 2 3"
    training = "--patch 16 --batch 2 --updates 12 --policy-patch 16 --policy-batch 2 --policy-updates 6 --lag 2"
    test = "--crop 24 --test-count 2 --bm3d-images 0 --test-levels 25 75 --threads 1"
    return [word for options in (sizes, training, test) for word in options.split()]
