"""Output projection and label-smoothed cross-entropy in one, without the logits of all tokens at once.

From top to bottom: reference, kernel, chunk loop, custom operator with its gradient, public function.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macaron.ops._backend import use_triton
from macaron.ops._triton import OPTIONS, ceil_div, device_of, jit, next_power_of_2, tl

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
    tokens = (~ignored).sum().clamp(min=1) if reduction == "mean" else 1
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
) -> None:
    (n, V), (label_smoothing, ignore_index) = logits.shape, rule
    block = min(4096, next_power_of_2(V))
    launch = {"V": V, "GRAD": grad, "BLOCK": block, "num_warps": max(1, min(8, block // 512)), **OPTIONS}
    rates = (label_smoothing, label_smoothing / max(1, V - 1), ignore_index)
    with device_of(logits):
        _cross_entropy_kernel[(n,)](logits, target, row_grad, loss, nll, *rates, **launch)


def _cross_entropy_torch(
    logits: Tensor,
    target: Tensor,
    row_grad: Tensor | None,
    loss: Tensor,
    nll: Tensor,
    rule: tuple[float, int],
    grad: bool,
) -> None:
    """The kernel in torch; on a CPU so few rows at a time that they stay in the cache."""
    (n, V), (label_smoothing, ignore_index) = logits.shape, rule
    eps_i = label_smoothing / max(1, V - 1)
    cpu = logits.device.type == "cpu"
    ignored = target.eq(ignore_index)  # (n,)
    some = not cpu or bool(ignored.any())  # an accelerator would have to be waited for
    index = target.masked_fill(ignored, 0).unsqueeze(-1)  # (n, 1)
    rows = max(1, 2**20 // V) if cpu else n
    lprobs = torch.empty(min(rows, n), V, dtype=loss.dtype, device=logits.device)
    for part in (slice(i, min(i + rows, n)) for i in range(0, n, rows)):
        block, at = lprobs[: part.stop - part.start], index[part]
        torch.log_softmax(logits[part], -1, dtype=loss.dtype, out=block)
        torch.neg(block.gather(-1, at).squeeze(-1), out=nll[part])
        torch.mul(nll[part], 1.0 - label_smoothing - eps_i, out=loss[part])
        if eps_i > 0.0:
            loss[part].sub_(block.sum(-1), alpha=eps_i)
        if grad:
            block.exp_().sub_(eps_i)
            block.scatter_add_(-1, at, block.new_full((1, 1), -(1.0 - label_smoothing - eps_i)).expand_as(at))
            if row_grad is not None:
                block.mul_(row_grad[part].unsqueeze(-1))
            logits[part] = block.masked_fill_(ignored[part].unsqueeze(-1), 0.0) if some else block
    if some:
        nll.masked_fill_(ignored, 0.0)
        loss.masked_fill_(ignored, 0.0)


def _default_chunk(x: Tensor, compute_dtype: torch.dtype, vocabulary: int) -> int:
    """Tokens at a time: 64 Mi logits on an accelerator, which keeps its products large, and 4 Mi on a CPU.

    But at least as many as fill the memory of the weights' gradient, (V, C) in float32: that passes through the
    processor once for each chunk.
    """
    return max(x.size(-1) * 4 // compute_dtype.itemsize, (2**22 if x.device.type == "cpu" else 2**26) // vocabulary)


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
    dweight = torch.zeros(weight.shape if grads[1] and not n else (0,), dtype=wide, device=x.device)
    dbias = torch.zeros(V if grads[2] else 0, dtype=wide, device=x.device)
    target = target.contiguous()
    count = ceil_div(n, chunk)
    chunk = ceil_div(n, max(1, count))  # so that all are of nearly one size
    rule = (label_smoothing, ignore_index)
    with torch.autocast(x.device.type, enabled=False):
        w = weight.to(compute_dtype)
        b = None if bias is None else bias.to(compute_dtype)
        # one piece of memory for all chunks: on a CPU fresh pages take a good part of the time of a product
        memory = torch.empty(chunk, V, dtype=compute_dtype, device=x.device)
        for i in range(count):
            part = slice(i * chunk, min((i + 1) * chunk, n))
            xs, logits = x[part].to(compute_dtype), memory[: part.stop - part.start]
            if b is None:
                torch.mm(xs, w.t(), out=logits)
            else:
                torch.addmm(b, xs, w.t(), out=logits)
            row = None if row_grad is None else row_grad[part]
            cross_entropy(logits, target[part], row, loss[part], nll[part], rule, any(grads))  # logits → their gradient
            if grads[0]:
                dx[part] = logits @ w
            if grads[1] and i == 0:
                dweight = (logits.t() @ xs).to(wide if count > 1 else weight.dtype)
            elif grads[1] and compute_dtype == wide:
                dweight.addmm_(logits.t(), xs)
            elif grads[1]:
                dweight += logits.t() @ xs
            if grads[2]:
                dbias += logits.sum(0, dtype=wide)
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
    _, nll, *grads = output
    ctx.mark_non_differentiable(nll, *grads)
    ctx.set_materialize_grads(False)  # zeros of the size of dweight, say
    # The sum of the losses has one factor in its backward, and `none` one for each row, unknown until then. The first
    # backward gives the gradients away, so that they become someone's `.grad` without a copy; another computes anew.
    # A graph that is traced keeps them as saved tensors.
    ctx.traced = not ctx.rows and type(grads[0]) is not Tensor
    ctx.ready = None if ctx.rows or ctx.traced else grads
    ctx.save_for_backward(*(grads if ctx.traced else (x, weight, target, bias)))


def _gradient(ctx: Any, dloss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 12
    grads, ctx.ready = ctx.saved_tensors if ctx.traced else ctx.ready, None
    wanted = [*ctx.needs_input_grad[:2], ctx.needs_input_grad[3]] if ctx.rows else ctx.grads
    if grads is None:
        x, weight, target, bias = ctx.saved_tensors
        row_grad = dloss.contiguous() if ctx.rows else None
        _, _, *grads = _linear_cross_entropy(x, weight, target, bias, row_grad, *ctx.options, ctx.rows, wanted)
    if not ctx.rows:
        grads = [_scaled(grad, dloss) for grad in grads]
    dx, dweight, dbias = (grad if given else None for grad, given in zip(grads, wanted, strict=True))
    return dx, dweight, None, dbias, *(None,) * 8


def _scaled(grad: Tensor, dloss: Tensor) -> Tensor:
    """grad · dloss, in its memory where it can be."""
    if type(dloss) is Tensor and dloss.device.type == "cpu" and dloss.item() == 1.0:
        return grad  # at the root of a graph; to ask costs an accelerator a wait, and what is traced has no value
    if type(grad) is Tensor and grad.dtype == dloss.dtype:
        return grad.mul_(dloss)
    # in the loss's float32 and then rounded: a loss scale of 2¹⁶ is infinite in float16
    return (grad.to(dloss.dtype) * dloss).to(grad.dtype)


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
        reduction: `sum` over tokens, `mean` over those not ignored (0 if there are none), or `none`.
        chunk_size: tokens at a time, at most; None takes about 64 Mi logits on a GPU and 4 Mi on a CPU, or as much
            memory for them as the gradient of `weight` takes in float32, if this is more.
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
    triton = use_triton("linear_cross_entropy", x, backend)
    flat, labels = x.reshape(-1, x.size(-1)), target.reshape(-1)
    rows = reduction == "none"
    # a CPU leaves out what is ignored; an accelerator would have to wait until it is counted
    real = None if x.device.type != "cpu" or torch.compiler.is_compiling() else labels.ne(ignore_index)
    if real is not None and not real.all():
        flat, labels = flat[real], labels[real]
    learns = torch.is_grad_enabled() and not rows
    grads = [learns and t is not None and t.requires_grad for t in (x, weight, bias)]
    chunk = _default_chunk(x, compute_dtype, weight.size(0)) if chunk_size is None else chunk_size
    options = (label_smoothing, ignore_index, chunk, compute_dtype, triton, rows, grads)
    loss, nll, _, _, _ = _linear_cross_entropy(flat, weight, labels, bias, None, *options)
    if rows:
        if real is not None and len(labels) < target.numel():
            loss, nll = (t.new_zeros(target.numel()).masked_scatter(real, t) for t in (loss, nll))
        return loss.view(target.shape), nll.view(target.shape)
    if reduction == "mean":
        tokens = target.ne(ignore_index).sum().clamp(min=1)
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
