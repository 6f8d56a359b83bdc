"""Bias, activation and dropout between the two projections of a feed-forward flow.

From top to bottom: reference, kernels, custom operators with their gradient, public function.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macaron.ops._backend import use_triton
from macaron.ops._dropout import draw_seed, dropout_reference, keep
from macaron.ops._triton import OPTIONS, as_rows, ceil_div, device_of, jit, next_power_of_2, resident_programs, tl

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


def bias_act_reference(u: Tensor, bias: Tensor | None, activation: str, dropout: float) -> Tensor:
    if bias is not None:
        u = (u + bias).to(u.dtype)
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
def _bias_act_fwd_kernel(
    u_ptr,  # (N, F), strided
    bias_ptr,  # (F,)
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
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # (ROWS, 1)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]  # (1, BLOCK)
    real = (row < n_rows) & (col < F)
    outer = (row // inner).to(tl.int64)
    inside = (row % inner).to(tl.int64)
    u = tl.load(u_ptr + outer * u_outer_stride + inside * u_inner_stride + col, mask=real, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        u += tl.load(bias_ptr + tl.zeros((ROWS, 1), tl.int32) + col, mask=real, other=0.0).to(tl.float32)
    out = _activation(u, ACTIVATION)
    if seed_ptr is not None:
        octet = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
        out = tl.where(keep(seed_ptr, row, octet, dropout, ROWS, BLOCK), scale * out, 0.0)
    tl.store(out_ptr + row.to(tl.int64) * F + col, out, mask=real)


@jit(do_not_specialize=["n_rows", "inner"])
def _bias_act_bwd_kernel(
    dout_ptr,  # (N, F)
    u_ptr,  # (N, F), strided
    bias_ptr,  # (F,)
    seed_ptr,  # ()
    du_ptr,  # (N, F)
    dbias_ptr,  # (programs, F): sums over the rows of a program
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
    """du = scale · mask · dout · activation'(u + bias)        dbias = Σ du over all rows"""
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    if dbias_ptr is not None:
        dbias = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        real = (row < n_rows) & (col < F)
        outer = (row // inner).to(tl.int64)
        inside = (row % inner).to(tl.int64)
        here = row.to(tl.int64) * F + col
        u = tl.load(u_ptr + outer * u_outer_stride + inside * u_inner_stride + col, mask=real, other=0.0)
        du = tl.load(dout_ptr + here, mask=real, other=0.0).to(tl.float32)
        u = u.to(tl.float32)
        if bias_ptr is not None:
            u += tl.load(bias_ptr + tl.zeros((ROWS, 1), tl.int32) + col, mask=real, other=0.0).to(tl.float32)
        du *= scale * _slope(u, ACTIVATION)
        if seed_ptr is not None:
            octet = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
            du = tl.where(keep(seed_ptr, row, octet, dropout, ROWS, BLOCK), du, 0.0)
        tl.store(du_ptr + here, du, mask=real)
        if dbias_ptr is not None:
            dbias += du  # 0 outside the rows, as dout
    if dbias_ptr is not None:
        partial = tl.program_id(0) * F + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside_row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK) < F
        tl.store(dbias_ptr + partial, tl.sum(dbias, axis=0), mask=inside_row)


def _tile(width: int) -> dict[str, Any]:
    """Launch settings for rows of this width: 16 entries a thread, so two 16-byte loads of half precision."""
    block = min(1024, max(16, next_power_of_2(width)))
    return {"F": width, "ROWS": 2048 // block, "BLOCK": block, "num_warps": 4, **OPTIONS}


# Custom operators. Their outputs are contiguous; `seed` is None without dropout.


@torch.library.custom_op("macaron::bias_act", mutates_args=())
def _bias_act(u: Tensor, bias: Tensor | None, seed: Tensor | None, activation: str, dropout: float) -> Tensor:
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if u.numel():
        u, inner, *strides = as_rows(u)
        bias = None if bias is None else bias.contiguous()
        n, tile = u.numel() // u.size(-1), _tile(u.size(-1))
        grid = (ceil_div(n, tile["ROWS"]), ceil_div(u.size(-1), tile["BLOCK"]))
        rate = (1 / (1 - dropout), dropout)
        with device_of(u):
            _bias_act_fwd_kernel[grid](u, bias, seed, out, n, inner, *strides, *rate, ACTIVATION=activation, **tile)
    return out


@_bias_act.register_fake
def _(u: Tensor, bias: Tensor | None, seed: Tensor | None, activation: str, dropout: float) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.custom_op("macaron::bias_act_backward", mutates_args=())
def _bias_act_backward(
    dout: Tensor, u: Tensor, bias: Tensor | None, seed: Tensor | None, activation: str, dropout: float
) -> tuple[Tensor, Tensor]:
    """du, and dbias in float32 as (1, F), or (0, F) without a bias."""
    du = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if not u.numel():
        return du, torch.zeros(int(bias is not None), u.size(-1), dtype=torch.float32, device=u.device)
    u, inner, *strides = as_rows(u)
    n, tile = u.numel() // u.size(-1), _tile(u.size(-1))
    programs, columns = ceil_div(n, tile["ROWS"]), ceil_div(u.size(-1), tile["BLOCK"])
    partial = None
    if bias is not None:
        bias = bias.contiguous()
        programs = min(programs, ceil_div(resident_programs(u.device, tile["num_warps"]), columns))
        partial = torch.empty(programs, u.size(-1), dtype=torch.float32, device=u.device)
    tensors = (dout.contiguous(), u, bias, seed, du, partial)
    rate = (1 / (1 - dropout), dropout)
    with device_of(u):
        _bias_act_bwd_kernel[(programs, columns)](*tensors, n, inner, *strides, *rate, ACTIVATION=activation, **tile)
    return du, du.new_empty(0, du.size(-1), dtype=torch.float32) if partial is None else partial.sum(0, keepdim=True)


@_bias_act_backward.register_fake
def _(
    dout: Tensor, u: Tensor, bias: Tensor | None, seed: Tensor | None, activation: str, dropout: float
) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(int(bias is not None), u.size(-1), dtype=torch.float32)


def _bias_act_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, bias, seed, ctx.activation, ctx.dropout = inputs
    ctx.save_for_backward(u, bias, seed)


def _bias_act_gradient(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    u, bias, seed = ctx.saved_tensors
    du, dbias = _bias_act_backward(dout, u, bias, seed, ctx.activation, ctx.dropout)
    return du, None if bias is None else dbias[0].to(bias.dtype), None, None, None


_bias_act.register_autograd(_bias_act_gradient, setup_context=_bias_act_setup)


def check_activation(activation: str) -> None:
    """Raise ValueError for a name outside `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")


def bias_act(
    u: Tensor,
    bias: Tensor | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """`dropout(activation(u + bias))`.

    Args:
        u: (..., F) pre-activation.
        bias: (F,), or None where the projection added it already.
        activation: one of `ACTIVATIONS`; `gelu` is x·Φ(x) with erf, `gelu_tanh` its tanh approximation.
        dropout: probability to zero an entry; 0 outside training.
        backend: `auto`, `reference` or `triton`; None takes `MACARON_BACKEND`.

    Returns:
        (..., F) in the dtype of `u`.

    Raises:
        ValueError: unknown activation or backend, a bias of another width, a dropout outside [0, 1).
        RuntimeError: a requested backend that cannot run.
    """
    if not torch.jit.is_scripting():
        check_activation(activation)
        if bias is not None and bias.shape != u.shape[-1:]:
            raise ValueError(
                f"bias_act: bias has shape {tuple(bias.shape)}; expected {tuple(u.shape[-1:])}, the width of u"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"bias_act: dropout={dropout} is not a probability in [0, 1); 0 switches it off")
        if use_triton("bias_act", u, _bias_act, backend):
            return _bias_act(u, bias, draw_seed(u) if dropout > 0.0 else None, activation, dropout)
    return bias_act_reference(u, bias, activation, dropout)
