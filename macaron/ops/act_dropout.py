"""Activation and dropout between the two projections of a feed-forward flow.

From top to bottom: reference, kernels, custom operators with their gradient, public function.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macaron.ops._backend import LEAST, use_triton
from macaron.ops._dropout import draw_seed, dropout_reference, keep
from macaron.ops._operator import operator
from macaron.ops._triton import OPTIONS, as_rows, ceil_div, device_of, jit, next_power_of_2, tl

# Shapes: F channels; "..." is (T, B) under fairseq and (B, T) under Hugging Face; N = T · B rows.

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "tanh", "linear")


def _activate(u: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return F.relu(u)
    if activation == "gelu":
        return F.gelu(u)
    if activation == "gelu_tanh":
        return F.gelu(u, approximate="tanh")
    if activation == "silu":
        return F.silu(u)
    if activation == "tanh":
        return torch.tanh(u)
    return u


def act_dropout_reference(u: Tensor, activation: str, dropout: float) -> Tensor:
    return dropout_reference(_activate(u, activation), dropout)


# Kernels. A program holds tiles of ROWS × BLOCK entries; all arithmetic is float32.


@jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@jit
def _activation(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(u < 0.0, 0.0, u)  # and NaN stays NaN
    elif ACTIVATION == "gelu":
        return 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        return 0.5 * u * (1.0 + _tanh(0.7978845608028654 * (u + 0.044715 * u * u * u)))
    elif ACTIVATION == "silu":
        return u * tl.sigmoid(u)
    elif ACTIVATION == "tanh":
        return _tanh(u)
    else:
        return u


@jit
def _slope(u, ACTIVATION: tl.constexpr):
    """The derivative of the activation."""
    if ACTIVATION == "relu":
        return tl.where(u > 0.0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * u * u)
        return 0.5 * (1.0 + tl.erf(u * 0.7071067811865476)) + u * density
    elif ACTIVATION == "gelu_tanh":
        t = _tanh(0.7978845608028654 * (u + 0.044715 * u * u * u))
        return 0.5 * (1.0 + t) + 0.5 * u * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * u * u)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(u)
        return s * (1.0 + u * (1.0 - s))
    elif ACTIVATION == "tanh":
        t = _tanh(u)
        return 1.0 - t * t
    else:
        return tl.full(u.shape, 1.0, tl.float32)


@jit(do_not_specialize=["n_rows", "inner"])
def _act_dropout_kernel(
    u_ptr,  # (N, F), strided
    dout_ptr,  # (N, F), or None: forward
    seed_ptr,  # ()
    out_ptr,  # (N, F)
    n_rows,
    inner,
    u_outer_stride,
    u_inner_stride,
    scale,  # 1 / (1 − dropout)
    dropout,
    F: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = scale · mask · activation(u), and backward  du = scale · mask · dout · activation'(u)"""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # (ROWS, 1)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]  # (1, BLOCK)
    real = (row < n_rows) & (col < F)
    outer = (row // inner).to(tl.int64)
    inside = (row % inner).to(tl.int64)
    here = row.to(tl.int64) * F + col
    u = tl.load(u_ptr + outer * u_outer_stride + inside * u_inner_stride + col, mask=real, other=0.0).to(tl.float32)
    if dout_ptr is None:
        out = _activation(u, ACTIVATION)
    else:
        out = tl.load(dout_ptr + here, mask=real, other=0.0).to(tl.float32) * _slope(u, ACTIVATION)
    if seed_ptr is not None:
        octet = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
        out = tl.where(keep(seed_ptr, row, octet, dropout, ROWS, BLOCK), scale * out, 0.0)
    tl.store(out_ptr + here, out, mask=real)


def _tile(width: int) -> dict[str, Any]:
    """Launch settings for rows of this width: 16 entries a thread, so two 16-byte loads of half precision."""
    block = min(1024, max(16, next_power_of_2(width)))
    return {"F": width, "ROWS": 2048 // block, "BLOCK": block, "num_warps": 4, **OPTIONS}


def _launch(u: Tensor, dout: Tensor | None, seed: Tensor | None, activation: str, dropout: float) -> Tensor:
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if u.numel():
        u, inner, *strides = as_rows(u)
        n, tile = u.numel() // u.size(-1), _tile(u.size(-1))
        grid = (ceil_div(n, tile["ROWS"]), ceil_div(u.size(-1), tile["BLOCK"]))
        tensors = (u, None if dout is None else dout.contiguous(), seed, out)
        rate = (1 / (1 - dropout), dropout)
        with device_of(u):
            _act_dropout_kernel[grid](*tensors, n, inner, *strides, *rate, ACTIVATION=activation, **tile)
    return out


# Custom operators. Their outputs are contiguous; `seed` is None without dropout.


@operator("macaron::act_dropout")
def _act_dropout(u: Tensor, seed: Tensor | None, activation: str, dropout: float) -> Tensor:
    return _launch(u, None, seed, activation, dropout)


@_act_dropout.register_fake
def _(u: Tensor, seed: Tensor | None, activation: str, dropout: float) -> Tensor:
    return u.new_empty(u.shape)


@operator("macaron::act_dropout_backward")
def _act_dropout_backward(dout: Tensor, u: Tensor, seed: Tensor | None, activation: str, dropout: float) -> Tensor:
    return _launch(u, dout, seed, activation, dropout)


@_act_dropout_backward.register_fake
def _(dout: Tensor, u: Tensor, seed: Tensor | None, activation: str, dropout: float) -> Tensor:
    return u.new_empty(u.shape)


def _act_dropout_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, seed, ctx.activation, ctx.dropout = inputs
    ctx.save_for_backward(u, seed)


def _act_dropout_gradient(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    u, seed = ctx.saved_tensors
    return _act_dropout_backward(dout, u, seed, ctx.activation, ctx.dropout), None, None, None


_act_dropout.register_autograd(_act_dropout_gradient, setup_context=_act_dropout_setup)


def check_activation(activation: str) -> None:
    """Raise ValueError for a name outside `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")


def act_dropout(u: Tensor, activation: str = "relu", dropout: float = 0.0, backend: str | None = None) -> Tensor:
    """`dropout(activation(u))`.

    The bias is in `u` already: a projection adds it in its product.

    Args:
        u: (..., F) pre-activation.
        activation: one of `ACTIVATIONS`; `gelu` is x·Φ(x) with erf, `gelu_tanh` its tanh approximation.
        dropout: probability to zero an entry; 0 outside training.
        backend: `auto`, `reference` or `triton`; None takes `MACARON_BACKEND`.

    Returns:
        (..., F) in the dtype of `u`.

    Raises:
        ValueError: unknown activation or backend, a dropout outside [0, 1).
        RuntimeError: a requested backend that cannot run.
    """
    if not torch.jit.is_scripting():
        check_activation(activation)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"act_dropout: dropout={dropout} is not a probability in [0, 1); 0 switches it off")
        if use_triton("act_dropout", u, backend, least=LEAST):
            return _act_dropout(u, draw_seed(u) if dropout > 0.0 else None, activation, dropout)
    return act_dropout_reference(u, activation, dropout)
