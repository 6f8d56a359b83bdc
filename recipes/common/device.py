"""Where a recipe computes, by its --device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import RecipeError

if TYPE_CHECKING:
    import torch


def device_of(name: str) -> torch.device:
    """
    Raises:
        RecipeError: no such device here.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"--device {name}: is no device; give cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"--device {name}: give cpu or cuda")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise RecipeError(f"--device {name}: torch finds no such GPU here; give --device cpu")
    return device
