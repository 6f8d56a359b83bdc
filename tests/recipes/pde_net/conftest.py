"""Fields with a known equation, solved exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

POINTS, TIMES, SAMPLES, DT = 16, 8, 4, 0.02
ADVECTION, DIFFUSION, DECAY = 0.5, 0.1, 0.2


def linear_fields() -> dict[str, Any]:
    """c_t = −0.5 c_x + 0.1 (c_xx + c_yy) − 0.2 c, by the exact solution of each wave."""
    random = np.random.default_rng(0)
    k = np.fft.fftfreq(POINTS, 1 / POINTS)
    ky, kx = np.meshgrid(k, k, indexing="ij")
    rate = -DIFFUSION * (kx**2 + ky**2) - 1j * ADVECTION * kx - DECAY
    waves = np.fft.fft2(random.standard_normal((SAMPLES, 1, 1, POINTS, POINTS))) * ((abs(kx) <= 2) & (abs(ky) <= 2))
    time = np.arange(TIMES) * DT
    x = np.arange(POINTS) * 2 * np.pi / POINTS
    return {
        "fields": np.fft.ifft2(waves * np.exp(rate * time[:, None, None, None])).real,
        "time": time,
        "components": np.array(["c"]),
        "x": x,
        "y": x,
    }


@pytest.fixture
def content() -> dict[str, Any]:
    return linear_fields()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(arrays: dict[str, Any]) -> Path:
        path = tmp_path / "fields.npz"
        np.savez(path, **arrays)
        return path

    return write
