"""The original's numbers, where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "golden_vision" / "pde_net"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """name ↦ tensors of that file."""
    if not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is absent")
    return lambda name: load_file(FOLDER / f"{name}.safetensors")


@pytest.fixture(scope="session")
def facts(golden: Callable[[str], dict[str, Tensor]]) -> dict[str, Any]:
    return json.loads((FOLDER / "pde_net.json").read_text(encoding="utf-8"))
