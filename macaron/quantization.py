"""Matrices as whole numbers of 8 bits: W ≈ s Q, one scale s for each row; and checkpoints that hold them so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SCALES = "macaron_scales"  # of a checkpoint: name of a parameter ↦ s, (N,) float32


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) → whole numbers of −127 … 127 (N, C) int8, and the scale of each row, (N,) float32."""
    scale = weight.abs().amax(-1).clamp_min_(torch.finfo(torch.float32).tiny) / 127
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def dequantized(numbers: Tensor, scale: Tensor) -> Tensor:
    """What `quantized` makes the same numbers of: (N, C) float32."""
    return numbers.float() * scale[:, None]


def stored(state: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """A checkpoint whose matrices (weights of linear maps and embeddings; no positions) take fewer bits.

    Args:
        state: fairseq's, `model` in float32.
        precision: "fp32" (as it is) | "bf16" | "int8".

    Raises:
        ValueError: parameters of another type.
    """
    if precision == "fp32":
        return dict(state)
    model, scales = dict(state["model"]), {}
    made: dict[Any, tuple[Tensor, Tensor | None]] = {}  # one tensor may have several names
    for name, weight in model.items():
        if not name.endswith(".weight") or weight.dim() != 2 or "embed_positions" in name:
            continue
        if weight.dtype != torch.float32:
            raise ValueError(f"{name} is {str(weight.dtype).removeprefix('torch.')}; {precision} is made of float32")
        if (place := _place(weight)) not in made:
            made[place] = quantized(weight) if precision == "int8" else (weight.to(torch.bfloat16), None)
        model[name], scale = made[place]
        if scale is not None:
            scales[name] = scale
    return {**state, "model": model, **({SCALES: scales} if scales else {})}


def restored(state: dict[str, Any]) -> dict[str, Any]:
    """The same checkpoint with matrices in float32, for whatever reads one; `state` itself if all of its are.

    Raises:
        ValueError: scales that do not belong to its matrices, or matrices of 8-bit numbers without any.
    """
    model = state["model"]
    if SCALES not in state:
        _check_whole(model)
        return state
    scales = state[SCALES]
    if not isinstance(scales, dict) or not isinstance(model, dict):
        raise ValueError(f"{SCALES} is a {type(scales).__name__}, but must be the scales of matrices by name")
    whole = dict(model)
    made: dict[Any, Tensor] = {}
    for name, scale in scales.items():
        numbers: Any = model.get(name)
        if not (isinstance(numbers, Tensor) and isinstance(scale, Tensor) and _fit(numbers, scale)):
            raise ValueError(f"{SCALES}: those of {name} do not fit a matrix of 8-bit numbers of that name")
        if not bool((scale > 0).all() and scale.isfinite().all()):
            raise ValueError(f"{SCALES}: those of {name} are not all positive and finite")
        if (place := (_place(numbers), _place(scale))) not in made:
            made[place] = dequantized(numbers, scale)
        whole[name] = made[place]
    _check_whole(whole)
    return {**{name: value for name, value in state.items() if name != SCALES}, "model": whole}


def _check_whole(model: Any) -> None:
    values = model.items() if isinstance(model, Mapping) else ()
    if bare := [name for name, value in values if isinstance(value, Tensor) and value.dtype == torch.int8]:
        raise ValueError(f"{SCALES}: none for {bare[0]}, which holds 8-bit numbers")


def _fit(numbers: Tensor, scale: Tensor) -> bool:
    types = numbers.dtype == torch.int8 and scale.dtype == torch.float32
    return types and numbers.dim() == 2 and scale.shape == numbers.shape[:1]


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape
