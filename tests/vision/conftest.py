"""The original's numbers, where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "golden_vision"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """folder/name ↦ tensors of that file."""
    if not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is absent")
    return lambda name: load_file(FOLDER / f"{name}.safetensors")


@pytest.fixture(scope="session")
def facts(golden: Callable[[str], dict[str, Tensor]]) -> Callable[[str], Any]:
    """folder ↦ what stands in its JSON."""
    return lambda name: json.loads((FOLDER / name / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def closely() -> Callable[[Tensor, Tensor], None]:
    """Equal within the tolerance of the reference numbers, float32."""
    return lambda got, want: torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
