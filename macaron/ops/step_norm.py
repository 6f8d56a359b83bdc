"""One explicit Euler sub-step, and the same fused with the layer normalisation next to it.

From top to bottom: references, kernels, custom operators with their gradients, public functions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macaron.ops._backend import LEAST, use_triton
from macaron.ops._dropout import draw_seed, dropout_reference, keep
from macaron.ops._operator import operator
from macaron.ops._triton import (
    OPTIONS,
    as_rows,
    ceil_div,
    device_of,
    jit,
    next_power_of_2,
    resident_programs,
    tl,
)

# Shapes: C channels; "..." is (T, B) under fairseq and (B, T) under Hugging Face; N = T · B rows.

MAX_WIDTH = 8192  # a row stays in registers, between its statistics and its normalisation


def euler_step_reference(x: Tensor, v: Tensor, step: float, dropout: float) -> Tensor:
    return torch.add(x, dropout_reference(v, dropout), alpha=step).to(x.dtype)


def step_norm_reference(
    x: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None, step: float, dropout: float, eps: float
) -> tuple[Tensor, Tensor]:
    y = euler_step_reference(x, v, step, dropout)
    # torch normalises half precision with float32 statistics; int, since the exporter to ONNX wants a constant
    return y, F.layer_norm(y, (int(y.size(-1)),), weight, bias, eps)


# Kernels. A program holds ROWS whole rows of BLOCK ≥ C channels; a pointer that is None leaves its term out, and
# all arithmetic is float32. C is a compile-time constant, so that widths divisible by 16 load 16 bytes at a time.


@jit(do_not_specialize=["n_rows", "inner"])
def _step_norm_fwd_kernel(
    x_ptr,  # (N, C), strided
    v_ptr,  # (N, C), strided
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    seed_ptr,  # ()
    y_ptr,  # (N, C)
    z_ptr,  # (N, C), or None: no normalisation
    statistics_ptr,  # (2, N): mean, rstd
    n_rows,
    inner,
    x_outer_stride,
    x_inner_stride,
    v_outer_stride,
    v_inner_stride,
    scale,  # step / (1 − dropout)
    dropout,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # (ROWS, 1)
    col = tl.arange(0, BLOCK)[None, :]  # (1, BLOCK)
    real = (row < n_rows) & (col < C)
    tile = tl.zeros((ROWS, 1), tl.int32) + col  # (ROWS, BLOCK); loaded whole, a parameter gets the layout of the data
    outer = (row // inner).to(tl.int64)
    inside = (row % inner).to(tl.int64)

    v = tl.load(v_ptr + outer * v_outer_stride + inside * v_inner_stride + col, mask=real, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + outer * x_outer_stride + inside * x_inner_stride + col, mask=real, other=0.0).to(tl.float32)
    if seed_ptr is not None:
        kept = keep(seed_ptr, row, tl.arange(0, BLOCK // 8)[None, :], dropout, ROWS, BLOCK)
        v = tl.where(kept, v, 0.0)
    here = row.to(tl.int64) * C + col
    y = (x + scale * v).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + here, y, mask=real)

    if z_ptr is not None:
        # of y as it was rounded: what eager normalises, and what the backward reads
        y = y.to(tl.float32)
        mean = tl.sum(tl.where(real, y, 0.0), axis=1)[:, None] / C
        centred = tl.where(real, y - mean, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1)[:, None] / C + eps)
        z = centred * rstd
        if weight_ptr is not None:
            z *= tl.load(weight_ptr + tile, mask=real, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            z += tl.load(bias_ptr + tile, mask=real, other=0.0).to(tl.float32)
        tl.store(z_ptr + here, z, mask=real)
        tl.store(statistics_ptr + row, mean, mask=row < n_rows)
        tl.store(statistics_ptr + n_rows + row, rstd, mask=row < n_rows)


@jit(do_not_specialize=["n_rows"])
def _step_norm_bwd_kernel(
    dy_ptr,  # (N, C), or None: y was not used
    dz_ptr,  # (N, C), or None: no normalisation, or z was not used
    y_ptr,  # (N, C)
    statistics_ptr,  # (2, N): mean, rstd
    weight_ptr,  # (C,)
    seed_ptr,  # ()
    dx_ptr,  # (N, C), or None: it equals dy
    dv_ptr,  # (N, C)
    dweight_ptr,  # (programs, C): sums over the rows of a program
    dbias_ptr,  # (programs, C)
    n_rows,
    scale,  # step / (1 − dropout)
    dropout,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """With ẑ = (y − mean) · rstd and g = weight · dz, and ⟨·⟩ the mean over a row:

    dx = dy + rstd · (g − ⟨g⟩ − ẑ ⟨g ẑ⟩)        dv = scale · mask · dx
    dweight = Σ dz · ẑ        dbias = Σ dz        over all rows
    """
    col = tl.arange(0, BLOCK)[None, :]
    tile = tl.zeros((ROWS, 1), tl.int32) + col  # (ROWS, BLOCK); loaded whole, the weight gets the layout of the data
    if dweight_ptr is not None:
        dweight = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    if dbias_ptr is not None:
        dbias = tl.zeros((ROWS, BLOCK), dtype=tl.float32)

    for start in range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        real = (row < n_rows) & (col < C)
        here = row.to(tl.int64) * C + col
        if dz_ptr is not None:
            g = tl.load(dz_ptr + here, mask=real, other=0.0).to(tl.float32)
            y = tl.load(y_ptr + here, mask=real, other=0.0).to(tl.float32)
            mean = tl.load(statistics_ptr + row, mask=row < n_rows, other=0.0)
            rstd = tl.load(statistics_ptr + n_rows + row, mask=row < n_rows, other=0.0)
            normal = (y - mean) * rstd
            if dweight_ptr is not None:
                dweight += g * normal
            if dbias_ptr is not None:
                dbias += g
            if weight_ptr is not None:
                # again for each row, since the cache has room for it and registers have not
                g *= tl.load(weight_ptr + tile, mask=real, other=0.0).to(tl.float32)
        if dy_ptr is not None:
            # here, when the tile of the weight is used up and its registers are free
            dx = tl.load(dy_ptr + here, mask=real, other=0.0).to(tl.float32)
        else:
            dx = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        if dz_ptr is not None:
            dx += rstd * g  # before the sums over the row, so that g need not outlive them
            along = tl.sum(g * normal, axis=1)[:, None] / C  # g is 0 outside the row
            dx -= rstd * (tl.sum(g, axis=1)[:, None] / C + normal * along)
        if dx_ptr is not None:
            tl.store(dx_ptr + here, dx, mask=real)
        dv = scale * dx
        if seed_ptr is not None:
            kept = keep(seed_ptr, row, tl.arange(0, BLOCK // 8)[None, :], dropout, ROWS, BLOCK)
            dv = tl.where(kept, dv, 0.0)
        tl.store(dv_ptr + here, dv, mask=real)

    partial = tl.program_id(0) * C + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < C
    if dweight_ptr is not None:
        tl.store(dweight_ptr + partial, tl.sum(dweight, axis=0), mask=inside)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + partial, tl.sum(dbias, axis=0), mask=inside)


def _tile(width: int, entries: int, min_warps: int) -> dict[str, Any]:
    """Launch settings for rows of this width: so many entries a thread, for 16-byte loads of half precision.

    At most 8 where a row does not start at 16 bytes: then each entry has an address and a mask of its own in registers.
    """
    block = max(16, next_power_of_2(width))
    entries = 32 * (entries if width % 8 == 0 else 8)  # of a warp
    num_warps = min(16, max(min_warps, block // entries))
    rows = max(1, entries * num_warps // block)
    return {"C": width, "ROWS": rows, "BLOCK": block, "num_warps": num_warps, **OPTIONS}


def _forward(
    x: Tensor,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    z: Tensor | None,
    step: float,
    dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """y and the statistics (mean, rstd) (2, N); writes `z` too, unless it is None."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    n = x.numel() // max(1, x.size(-1))
    statistics = torch.empty(2, n if z is not None else 0, dtype=torch.float32, device=x.device)
    if x.numel():
        x, inner, x_outer, x_inner = as_rows(x)
        v, _, v_outer, v_inner = as_rows(v)
        weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
        tile = _tile(x.size(-1), entries=16, min_warps=1)
        tensors = (x, v, weight, bias, seed, y, z, statistics)
        strides = (x_outer, x_inner, v_outer, v_inner)
        rates = (step / (1 - dropout), dropout, eps)
        with device_of(x):
            _step_norm_fwd_kernel[(ceil_div(n, tile["ROWS"]),)](*tensors, n, inner, *strides, *rates, **tile)
    return y, statistics


def _backward(
    dy: Tensor | None,
    dz: Tensor | None,
    y: Tensor | None,
    statistics: Tensor | None,
    weight: Tensor | None,
    seed: Tensor | None,
    dx: Tensor | None,
    dv: Tensor,
    sums: list[bool],
    step: float,
    dropout: float,
) -> Tensor:
    """Writes dx, unless it is None, and dv; returns the sums asked for of (dweight, dbias)."""
    C = dv.size(-1)
    if not dv.numel():
        return torch.zeros(sum(sums), C, dtype=torch.float32, device=dv.device)
    n = dv.numel() // C
    # more warps where entries are masked: Triton 3.7 runs out of registers there on sm_100
    tile = _tile(C, entries=8, min_warps=4 if next_power_of_2(C) == C else 8)
    programs = ceil_div(n, tile["ROWS"])
    if any(sums):  # a program sums over several tiles
        programs = min(programs, resident_programs(dv.device, tile["num_warps"]))
    partial = torch.empty(sum(sums), programs, C, dtype=torch.float32, device=dv.device)
    rows = iter(partial)
    dweight, dbias = (next(rows) if wanted else None for wanted in sums)
    dy, dz, weight = (None if t is None else t.contiguous() for t in (dy, dz, weight))
    tensors = (dy, dz, y, statistics, weight, seed, dx, dv, dweight, dbias)
    with device_of(dv):
        _step_norm_bwd_kernel[(programs,)](*tensors, n, step / (1 - dropout), dropout, **tile)
    return partial.sum(1)


# Custom operators. Their outputs are contiguous; `seed` is None without dropout.


@operator("macaron::euler_step")
def _euler_step(x: Tensor, v: Tensor, seed: Tensor | None, step: float, dropout: float) -> Tensor:
    return _forward(x, v, None, None, seed, None, step, dropout, 0.0)[0]


@_euler_step.register_fake
def _(x: Tensor, v: Tensor, seed: Tensor | None, step: float, dropout: float) -> Tensor:
    return x.new_empty(x.shape)


@operator("macaron::euler_step_backward")
def _euler_step_backward(dy: Tensor, seed: Tensor | None, step: float, dropout: float, v_dtype: torch.dtype) -> Tensor:
    dv = torch.empty(dy.shape, dtype=v_dtype, device=dy.device)
    _backward(dy, None, None, None, None, seed, None, dv, [False, False], step, dropout)
    return dv


@_euler_step_backward.register_fake
def _(dy: Tensor, seed: Tensor | None, step: float, dropout: float, v_dtype: torch.dtype) -> Tensor:
    return dy.new_empty(dy.shape, dtype=v_dtype)


def _euler_step_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, v, seed, ctx.step, ctx.dropout = inputs
    ctx.v_dtype = v.dtype
    ctx.save_for_backward(seed)


def _euler_step_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (seed,) = ctx.saved_tensors
    return dy, _euler_step_backward(dy, seed, ctx.step, ctx.dropout, ctx.v_dtype), None, None, None


_euler_step.register_autograd(_euler_step_gradient, setup_context=_euler_step_setup)


@operator("macaron::step_norm")
def _step_norm(
    x: Tensor,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    step: float,
    dropout: float,
    eps: float,
    z_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.empty(x.shape, dtype=z_dtype, device=x.device)
    y, statistics = _forward(x, v, weight, bias, seed, z, step, dropout, eps)
    return y, z, statistics


@_step_norm.register_fake
def _(
    x: Tensor,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    step: float,
    dropout: float,
    eps: float,
    z_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(2, x.shape[:-1].numel(), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=z_dtype), statistics


@operator("macaron::step_norm_backward")
def _step_norm_backward(
    dy: Tensor | None,
    dz: Tensor | None,
    y: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    seed: Tensor | None,
    step: float,
    dropout: float,
    v_dtype: torch.dtype,
    sums: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    dv = torch.empty(y.shape, dtype=v_dtype, device=y.device)
    return dx, dv, _backward(dy, dz, y, statistics, weight, seed, dx, dv, sums, step, dropout)


@_step_norm_backward.register_fake
def _(
    dy: Tensor | None,
    dz: Tensor | None,
    y: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    seed: Tensor | None,
    step: float,
    dropout: float,
    v_dtype: torch.dtype,
    sums: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    reduced = y.new_empty(sum(sums), y.size(-1), dtype=torch.float32)
    return y.new_empty(y.shape), y.new_empty(y.shape, dtype=v_dtype), reduced


def _step_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, v, weight, bias, seed, ctx.step, ctx.dropout, _, _ = inputs
    y, _, statistics = output
    ctx.v_dtype = v.dtype
    ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]
    ctx.set_materialize_grads(False)  # an output that was not used has no gradient to read
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(y, statistics, weight, seed)


def _step_norm_gradient(ctx: Any, dy: Tensor | None, dz: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None and dz is None:
        return (None,) * 9
    y, statistics, weight, seed = ctx.saved_tensors
    # without dz nothing depends on weight and bias
    wanted = [dtype is not None and dz is not None for dtype in ctx.dtypes]
    dx, dv, sums = _step_norm_backward(dy, dz, y, statistics, weight, seed, ctx.step, ctx.dropout, ctx.v_dtype, wanted)
    rows = iter(sums.unbind())
    small = [next(rows).to(dtype) if given else None for given, dtype in zip(wanted, ctx.dtypes, strict=True)]
    return dx, dv, *small, None, None, None, None, None


_step_norm.register_autograd(_step_norm_gradient, setup_context=_step_norm_setup)


def _check(op: str, x: Tensor, v: Tensor, dropout: float, small: dict[str, Tensor | None]) -> None:
    if x.shape != v.shape:
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)} but v has {tuple(v.shape)}; a flow returns one velocity per "
            f"particle, so check that it kept the shape of its input"
        )
    for name, t in small.items():
        if t is not None and t.shape != x.shape[-1:]:
            raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}; expected {tuple(x.shape[-1:])}, the width of x")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{op}: dropout={dropout} is not a probability in [0, 1); 0 switches it off")


def euler_step(
    x: Tensor,
    v: Tensor,
    step: float,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Move the particles by `step` along their velocity.

        y = x + step · dropout(v)

    One explicit Euler sub-step (Lu et al. 2019, arXiv:1906.02762).

    Args:
        x: (..., C) positions.
        v: (..., C) velocity, as returned by a flow.
        step: share of Δt, dimensionless; ½ for each FFN of the Strang scheme.
        dropout: probability to zero an entry of the velocity; 0 outside training.
        backend: `auto`, `reference` or `triton`; None takes `MACARON_BACKEND`.

    Returns:
        y: (..., C) in the dtype of `x`.

    Raises:
        ValueError: shapes that differ, a dropout outside [0, 1), an unknown backend.
        RuntimeError: a requested backend that cannot run.
    """
    if not torch.jit.is_scripting():
        _check("euler_step", x, v, dropout, {})
        if use_triton("euler_step", x, backend, MAX_WIDTH, LEAST):
            return _euler_step(x, v, draw_seed(x) if dropout > 0.0 else None, step, dropout)
    return euler_step_reference(x, v, step, dropout)


def step_norm(
    x: Tensor,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    step: float,
    dropout: float = 0.0,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Move the particles by `step` along `v`, then layer-normalise them.

        y = x + step · dropout(v)
        z = weight · (y − mean(y)) / sqrt(var(y) + eps) + bias

    An explicit Euler sub-step (Lu et al. 2019, arXiv:1906.02762) together with the normalisation next to it.
    Pre-norm layers use y and z, post-norm layers only z.

    Args:
        x: (..., C) positions.
        v: (..., C) velocity, as returned by a flow.
        weight, bias: (C,) gain and offset of the normalisation, or None for a plain one.
        step: share of Δt, dimensionless; ½ for each FFN of the Strang scheme.
        dropout: probability to zero an entry of the velocity; 0 outside training.
        eps: added to the variance, in units of x².
        backend: `auto`, `reference` or `triton`; None takes `MACARON_BACKEND`.

    Returns:
        (y, z), each (..., C); y in the dtype of `x`, and z too, save that under autocast on a GPU z is float32,
        as from torch's layer_norm. The statistics are taken in float32 or wider.

    Raises:
        ValueError: shapes that differ, a dropout outside [0, 1), an unknown backend.
        RuntimeError: a requested backend that cannot run.
    """
    if not torch.jit.is_scripting():
        _check("step_norm", x, v, dropout, {"weight": weight, "bias": bias})
        if use_triton("step_norm", x, backend, MAX_WIDTH, LEAST):
            seed = draw_seed(x) if dropout > 0.0 else None
            # as torch: layer_norm is on CUDA's autocast list of float32 functions, and not on the CPU's
            wide = x.is_cuda and torch.is_autocast_enabled("cuda")
            z_dtype = torch.float32 if wide else x.dtype
            y, z, _ = _step_norm(x, v, weight, bias, seed, step, dropout, eps, z_dtype)
            return y, z
    return step_norm_reference(x, v, weight, bias, step, dropout, eps)
