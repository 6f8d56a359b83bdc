"""A training whose weights are no numbers any more has failed, whatever it returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.common.commands import ANEW, events
from recipes.common.errors import RecipeError


def check_losses(log: Path) -> None:
    """Weights can be numbers that are too large for any loss, which fairseq itself accepts after the last update.

    Args:
        log: what fairseq-train wrote.

    Raises:
        RecipeError: the loss that it logged last, in training or in validation, is NaN or infinite.
    """
    for kind, stats in dict(events(log)).items():
        for name, value in stats.items():
            if name.endswith("loss") and str(value) in ("nan", "inf", "-inf"):
                raise RecipeError(f"{log}: the training diverged, the last {name} ({kind}) is {value}. {ANEW}")


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
