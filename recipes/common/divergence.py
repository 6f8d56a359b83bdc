"""A training whose weights are no numbers any more has failed, whatever it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import RecipeError

ANEW = "Take a smaller --lr, or a longer warm-up, or clip gradients to a smaller norm, and begin anew with --restart"


def check_finite(tensors: Mapping[str, Any], where: object) -> None:
    """
    Args:
        tensors: a state dict.
        where: the tensors are from, for the message.

    Raises:
        RecipeError: one of them holds NaN or infinity.
    """
    import torch

    wrong = [name for name, tensor in tensors.items() if torch.is_tensor(tensor) and not torch.isfinite(tensor).all()]
    if wrong:
        some = ", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else "")
        raise RecipeError(
            f"{where}: the training diverged, {len(wrong)} of {len(tensors)} tensors hold NaN or infinity ({some}). "
            f"{ANEW}"
        )
