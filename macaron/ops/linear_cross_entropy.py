"""Output projection and label-smoothed cross-entropy in one, without the logits of all tokens at once.

From top to bottom: reference, kernel, chunk loop, custom operator with its gradient, public function.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macaron.ops._backend import use_triton
from macaron.ops._triton import OPTIONS, device_of, jit, next_power_of_2, tl

# Shapes: N tokens, C channels, V entries of the vocabulary; "..." is any shape with N elements.

REDUCTIONS = ("sum", "mean", "none")


def linear_cross_entropy_reference(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """The same with all logits (N, V) at once, written as in fairseq."""
    logits = F.linear(x, weight, bias)
    lprobs = F.log_softmax(logits, dim=-1, dtype=None if logits.dtype == torch.float64 else torch.float32)
    ignored = target.eq(ignore_index)
    nll = -lprobs.gather(-1, target.masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1).masked_fill(ignored, 0.0)
    eps_i = label_smoothing / max(1, weight.size(0) - 1)
    loss = (1.0 - label_smoothing - eps_i) * nll
    if label_smoothing > 0.0:  # else 0 · ∞ for labels that a bias of −∞ takes out
        loss = loss - eps_i * lprobs.sum(-1).masked_fill(ignored, 0.0)
    if reduction == "none":
        return loss, nll
    tokens = (~ignored).sum() if reduction == "mean" else 1
    return loss.sum() / tokens, nll.sum() / tokens


@jit
def _cross_entropy_kernel(
    logits_ptr,  # (N, V); with GRAD overwritten by d loss / d logits
    target_ptr,  # (N,)
    row_grad_ptr,  # (N,), what multiplies the gradient of a row; None for 1
    loss_ptr,  # (N,)
    nll_ptr,  # (N,)
    label_smoothing,
    eps_i,  # label_smoothing / (V − 1)
    ignore_index,
    V: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program, BLOCK logits at a time: once for the sums, and with GRAD once more for the gradient.

    d loss / d logit_j = softmax_j − eps_i − [j = target] (1 − label_smoothing − eps_i)
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    target = tl.load(target_ptr + row)
    real = target != ignore_index
    # a target outside the vocabulary gives NaN, not memory of someone else
    known = (target >= 0) & (target < V)
    at_target = tl.load(logits_ptr + target, mask=known, other=float("nan")).to(tl.float32)

    highest = -3.4e38  # finite, since -inf − (-inf) is NaN
    total = 0.0  # Σ exp(logit − highest)
    plain = 0.0  # Σ logit
    for start in range(0, V, BLOCK):
        col = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + col, mask=col < V, other=-float("inf")).to(tl.float32)
        above = tl.maximum(highest, tl.max(logits, axis=0))
        total = total * tl.exp(highest - above) + tl.sum(tl.exp(logits - above), axis=0)
        plain += tl.sum(tl.where(col < V, logits, 0.0), axis=0)
        highest = above
    lse = highest + tl.log(total)
    nll = lse - at_target
    loss = (1.0 - label_smoothing - eps_i) * nll
    if eps_i > 0.0:
        loss += eps_i * (V * lse - plain)
    tl.store(nll_ptr + row, tl.where(real, nll, 0.0))
    tl.store(loss_ptr + row, tl.where(real, loss, 0.0))

    if GRAD:
        factor = tl.where(real, 1.0, 0.0)
        if row_grad_ptr is not None:
            factor *= tl.load(row_grad_ptr + row)
        for start in range(0, V, BLOCK):
            col = start + tl.arange(0, BLOCK)
            logits = tl.load(logits_ptr + col, mask=col < V, other=0.0).to(tl.float32)
            grad = tl.exp(logits - lse) - eps_i
            grad = tl.where(col == target, grad - (1.0 - label_smoothing - eps_i), grad)
            grad = tl.where(real, grad * factor, 0.0)
            tl.store(logits_ptr + col, grad, mask=col < V)


def _cross_entropy_triton(
    logits: Tensor,
    target: Tensor,
    row_grad: Tensor | None,
    loss: Tensor,
    nll: Tensor,
    rule: tuple[float, int],
    grad: bool,
) -> Tensor:
    (n, V), (label_smoothing, ignore_index) = logits.shape, rule
    block = min(4096, next_power_of_2(V))
    launch = {"V": V, "GRAD": grad, "BLOCK": block, "num_warps": max(1, min(8, block // 512)), **OPTIONS}
    rates = (label_smoothing, label_smoothing / max(1, V - 1), ignore_index)
    with device_of(logits):
        _cross_entropy_kernel[(n,)](logits, target, row_grad, loss, nll, *rates, **launch)
    return logits


def _cross_entropy_torch(
    logits: Tensor,
    target: Tensor,
    row_grad: Tensor | None,
    loss: Tensor,
    nll: Tensor,
    rule: tuple[float, int],
    grad: bool,
) -> Tensor:
    """The kernel in torch, over the memory of `logits` too where that is float32 or wider."""
    (_, V), (label_smoothing, ignore_index) = logits.shape, rule
    eps_i = label_smoothing / max(1, V - 1)
    wide = logits.to(loss.dtype)  # (n, V)
    ignored = target.eq(ignore_index)  # (n,)
    index = target.masked_fill(ignored, 0).unsqueeze(-1)  # (n, 1)
    lse = torch.logsumexp(wide, -1)  # (n,)
    torch.sub(lse, wide.gather(-1, index).squeeze(-1), out=nll)
    torch.mul(nll, 1.0 - label_smoothing - eps_i, out=loss)
    if eps_i > 0.0:
        loss.add_(V * lse - wide.sum(-1), alpha=eps_i)
    nll.masked_fill_(ignored, 0.0)
    loss.masked_fill_(ignored, 0.0)
    if not grad:
        return logits
    wide.sub_(lse.unsqueeze(-1)).exp_().sub_(eps_i)
    wide.scatter_add_(-1, index, wide.new_full((1, 1), -(1.0 - label_smoothing - eps_i)).expand_as(index))
    if row_grad is not None:
        wide.mul_(row_grad.unsqueeze(-1))
    return wide.masked_fill_(ignored.unsqueeze(-1), 0.0).to(logits.dtype)


def _default_chunk(x: Tensor, vocabulary: int) -> int:
    """Tokens at a time: 64 Mi logits on an accelerator, which keeps its products large, and 4 Mi on a CPU.

    But at least 128, since the weights and their gradient pass through memory once for each chunk.
    """
    return max(128, (2**22 if x.device.type == "cpu" else 2**26) // vocabulary)


# Custom operator. One pass over the chunks yields the losses and, as asked in `grads`, the gradients of their sum, or
# of Σ row_grad · loss, with respect to x, weight and bias; what is not asked for comes back empty.


@torch.library.custom_op("macaron::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    row_grad: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    chunk: int,
    compute_dtype: torch.dtype,
    triton: bool,
    rows: bool,
    grads: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss and nll, each (N,) if `rows`, else their sums (); dx, dweight, dbias in the dtypes of x, weight, bias."""
    n, V = x.size(0), weight.size(0)
    wide = torch.float64 if compute_dtype == torch.float64 else torch.float32
    cross_entropy = _cross_entropy_triton if triton else _cross_entropy_torch
    loss, nll = (torch.empty(n, dtype=wide, device=x.device) for _ in range(2))
    dx = torch.empty(x.shape if grads[0] else (0,), dtype=x.dtype, device=x.device)
    dweight = torch.zeros(weight.shape if grads[1] else (0,), dtype=wide, device=x.device)
    dbias = torch.zeros(V if grads[2] else 0, dtype=wide, device=x.device)
    target = target.contiguous()
    with torch.autocast(x.device.type, enabled=False):
        w = weight.to(compute_dtype)
        b = None if bias is None else bias.to(compute_dtype)
        for part in (slice(i, min(i + chunk, n)) for i in range(0, n, chunk)):
            xs = x[part].to(compute_dtype)
            logits = F.linear(xs, w, b)  # (chunk, V)
            row = None if row_grad is None else row_grad[part]
            rule = (label_smoothing, ignore_index)
            dlogits = cross_entropy(logits, target[part], row, loss[part], nll[part], rule, any(grads))
            if grads[0]:
                dx[part] = dlogits @ w
            if grads[1] and dlogits.dtype == wide:
                dweight.addmm_(dlogits.t(), xs)
            elif grads[1]:
                dweight += dlogits.t() @ xs
            if grads[2]:
                dbias += dlogits.sum(0, dtype=wide)
    if not rows:
        loss, nll = loss.sum(), nll.sum()
    return loss, nll, dx, dweight.to(weight.dtype), dbias if bias is None else dbias.to(bias.dtype)


@_linear_cross_entropy.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    row_grad: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    chunk: int,
    compute_dtype: torch.dtype,
    triton: bool,
    rows: bool,
    grads: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64 if compute_dtype == torch.float64 else torch.float32
    loss, nll = (x.new_empty((x.size(0),) if rows else (), dtype=wide) for _ in range(2))
    dx = x.new_empty(x.shape if grads[0] else (0,))
    dweight = weight.new_empty(weight.shape if grads[1] else (0,))
    dbias = x.new_empty(weight.size(0) if grads[2] else 0, dtype=wide if bias is None else bias.dtype)
    return loss, nll, dx, dweight, dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, target, bias, _, *ctx.options, ctx.rows, ctx.grads = inputs
    _, nll, dx, dweight, dbias = output
    ctx.mark_non_differentiable(nll, dx, dweight, dbias)
    ctx.set_materialize_grads(False)  # zeros of the size of dweight, say
    # the sum of the losses has one factor in its backward, and `none` one for each row, unknown until then
    ctx.save_for_backward(*((x, weight, target, bias) if ctx.rows else (dx, dweight, dbias)))


def _gradient(ctx: Any, dloss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 12
    if ctx.rows:
        x, weight, target, bias = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], ctx.needs_input_grad[3]]
        _, _, *grads = _linear_cross_entropy(x, weight, target, bias, dloss.contiguous(), *ctx.options, True, wanted)
    else:
        wanted = ctx.grads
        # in the loss's float32 and then rounded: a loss scale of 2¹⁶ is infinite in float16
        grads = [(grad.to(dloss.dtype) * dloss).to(grad.dtype) for grad in ctx.saved_tensors]
    dx, dweight, dbias = (grad if given else None for grad, given in zip(grads, wanted, strict=True))
    return dx, dweight, None, dbias, *(None,) * 8


_linear_cross_entropy.register_autograd(_gradient, setup_context=_setup)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "sum",
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross-entropy of `softmax(x weightᵀ + bias)`, a chunk of tokens at a time.

        p = softmax(x weightᵀ + bias)
        nll = −log p[target]
        loss = (1 − ε − ε_i) nll − ε_i Σ_j log p[j],    ε_i = ε / (V − 1)

    ε is `label_smoothing` as fairseq counts it, the probability of all wrong labels together; torch's
    `cross_entropy` spreads its own over all V labels, so its `label_smoothing` is ε V / (V − 1). With ε = 0 the three
    agree. Memory is O(chunk × V) instead of O(N × V): the gradients are computed chunk by chunk together with the
    loss, and its backward only scales them. With `reduction="none"` the backward computes the logits once more.

    Under autocast the products run in its dtype, as those of a linear layer; softmax and loss, and the sums over
    chunks, are float32 or wider.

    Args:
        x: (..., C) features.
        weight: (V, C) output projection; may be tied to an embedding.
        target: (...) int64 labels.
        bias: (V,) of the projection.
        label_smoothing: ε in [0, 1).
        ignore_index: label of tokens that count nowhere, fairseq's padding.
        reduction: `sum` over tokens, `mean` over those not ignored, or `none`.
        chunk_size: tokens at a time; None takes about 64 Mi logits on a GPU and 4 Mi on a CPU.
        backend: `auto`, `reference` (the chunk in torch) or `triton`; None takes `MACARON_BACKEND`.

    Returns:
        (loss, nll), () or with `none` (...), float32 or wider; nll is for logging and has no gradient.

    Raises:
        ValueError: shapes or dtypes that do not fit, a label smoothing outside [0, 1), an unknown reduction or
            backend, a chunk size below 1.
        RuntimeError: a requested backend that cannot run.
    """
    _check(x, weight, target, bias, label_smoothing, reduction, chunk_size)
    compute_dtype = x.dtype
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        compute_dtype = torch.get_autocast_dtype(x.device.type)
    triton = use_triton("linear_cross_entropy", x, _linear_cross_entropy, backend)
    flat = x.reshape(-1, x.size(-1))
    rows = reduction == "none"
    learns = torch.is_grad_enabled() and not rows
    grads = [learns and t is not None and t.requires_grad for t in (x, weight, bias)]
    chunk = _default_chunk(x, weight.size(0)) if chunk_size is None else chunk_size
    options = (label_smoothing, ignore_index, chunk, compute_dtype, triton, rows, grads)
    loss, nll, _, _, _ = _linear_cross_entropy(flat, weight, target.reshape(-1), bias, None, *options)
    if rows:
        return loss.view(target.shape), nll.view(target.shape)
    if reduction == "mean":
        tokens = target.ne(ignore_index).sum()
        return loss / tokens, nll / tokens
    return loss, nll


def _check(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    label_smoothing: float,
    reduction: str,
    chunk_size: int | None,
) -> None:
    op = "linear_cross_entropy"
    if weight.dim() != 2 or x.size(-1) != weight.size(1) or (bias is not None and bias.shape != weight.shape[:1]):
        given = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        given += "" if bias is None else f", bias {tuple(bias.shape)}"
        raise ValueError(f"{op}: {given} do not fit; expected (..., C), (V, C) and (V,)")
    if target.shape != x.shape[:-1] or target.dtype != torch.int64:
        raise ValueError(
            f"{op}: target is {target.dtype} {tuple(target.shape)}; expected torch.int64 {tuple(x.shape[:-1])}, one "
            f"label per feature vector"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"{op}: label_smoothing={label_smoothing} is not in [0, 1); 0 switches it off")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction={reduction!r} is unknown; choose one of {', '.join(REDUCTIONS)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{op}: chunk_size={chunk_size} must be positive; None chooses one")
