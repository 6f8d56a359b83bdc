"""Where a recipe computes, by its --device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import RecipeError

if TYPE_CHECKING:
    import torch


MOST_THREADS = 1024  # beyond, OpenMP ends the process that cannot start them


def check_threads(count: int | None) -> None:
    """
    Raises:
        RecipeError: a number of --threads that no processor has; None is no choice.
    """
    if count is not None and not 1 <= count <= MOST_THREADS:
        bound = "at least 1" if count < 1 else f"at most {MOST_THREADS}"
        raise RecipeError(f"--threads {count}: must be {bound}")


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
