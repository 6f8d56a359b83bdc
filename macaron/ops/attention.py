"""Multi-head softmax attention: one call in front of torch's scaled-dot-product kernels, and one in front of the
variable-length kernels, for sentences that lie one after another without padding.
"""

import contextlib
import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from macaron.ops._backend import launches_are_free, on_accelerator
from macaron.ops._cpu import written_out_is_faster
from macaron.ops._dropout import dropout_reference

# Shapes: B sentences, H heads, T queries, S keys, D channels a head; packed, N particles in all.


def _visible(
    q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None, is_causal: bool
) -> Tensor | None:
    """All masks in one: a bool mask (True where a key is seen), or an additive one if `attn_mask` is; or None."""
    mask: Tensor | None = None
    if is_causal:
        past = k.size(2) - q.size(2)
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril(past)  # (T, S)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            mask = attn_mask if mask is None else mask & attn_mask
        else:
            additive = attn_mask.to(q.dtype)
            mask = additive if mask is None else additive.masked_fill(~mask, -math.inf)
    if key_padding_mask is not None:
        real = ~key_padding_mask[:, None, None, :]  # (B, 1, 1, S)
        if mask is None:
            mask = real
        elif mask.dtype == torch.bool:
            mask = mask & real  # (B, 1, T, S)
        else:
            mask = mask.masked_fill(~real, -math.inf)
    return mask


def _lowest(scores: Tensor) -> float:
    """What stands for −∞ among the scores: finite, since −∞ − (−∞) is NaN."""
    return -65504.0 if scores.dtype == torch.float16 else -3e38


def written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, wide: bool
) -> tuple[Tensor, Tensor]:
    """Attention by its parts: output, and weights, these in float32 if `wide`; `mask` as from `_visible`."""
    scores = torch.matmul(q * (q.size(-1) ** -0.5), k.transpose(-2, -1))  # (B, H, T, S)
    blind: Tensor | None = None  # queries that see no key get 0, as in torch's kernels, instead of 0/0
    if mask is not None:
        lowest = _lowest(scores)
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, lowest)
            blind = ~mask.any(-1, keepdim=True)
        else:
            scores = (scores + mask).clamp(min=lowest)
            blind = mask.amax(-1, keepdim=True) == -math.inf
    if wide and scores.dtype != torch.float64:
        scores = scores.to(torch.float32)
    weights = torch.softmax(scores, dim=-1)  # its sums are float32 or wider
    if blind is not None:
        weights = weights.masked_fill(blind, 0.0)
    return torch.matmul(dropout_reference(weights, dropout).to(v.dtype), v), weights


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of every query over the keys that it may see.

        out = dropout(softmax(q kᵀ / sqrt(D) + mask)) v

    Vaswani et al. 2017 (arXiv:1706.03762), eq. 1. A query that sees no key gets zeros. What stands in keys and values
    that no query sees matters nowhere, on a CPU also Inf and NaN, and a query that is not finite itself gets NaN and no
    gradient. On an accelerator, which would have to be waited for or to copy all of it, padding has to be finite: a NaN
    there makes NaN.

    Args:
        q: (B, H, T, D).
        k, v: (B, H, S, D); any strides.
        key_padding_mask: (B, S) bool, True at padding; padding is not seen.
        attn_mask: broadcastable to (B, H, T, S); bool, True where a key is seen, or added to the scores.
        is_causal: the last query sees every key, the one before it all but the last key, and so on; with
            S = T, query t sees keys 0 … t.
        dropout: probability to zero an attention weight; 0 outside training.
        need_weights: also return the weights; this computes them explicitly, so ask only when they are used.

    Returns:
        out (B, H, T, D) and the weights before dropout (B, H, T, S) in float32 or wider, or None.

    Raises:
        ValueError: shapes that do not fit each other, a key padding mask that is not bool, a dropout outside [0, 1).
    """
    if not torch.jit.is_scripting():
        _check(q, k, v, key_padding_mask, dropout)
    if q.size(2) == 1:  # a statement, since torch.compile would make `and` a symbol
        is_causal = False  # a single newest query sees everything
    if (key_padding_mask is not None or attn_mask is not None) and q.device.type == "cpu":
        if not _has_values(k):
            return _shielded(q, k, v, key_padding_mask, attn_mask, is_causal, dropout, need_weights)
        if dropout == 0.0 and not torch.is_grad_enabled():  # one newest query is less to look at than its keys
            out, weights = _attend(q, k, v, key_padding_mask, attn_mask, is_causal, dropout, need_weights)
            if _finite([out]):
                return out, weights
        if not _finite([q, k, v]):
            return _shielded(q, k, v, key_padding_mask, attn_mask, is_causal, dropout, need_weights)
    return _attend(q, k, v, key_padding_mask, attn_mask, is_causal, dropout, need_weights)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    dropout: float,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    if need_weights or written_out_is_faster(q, k, dropout):
        mask = _visible(q, k, key_padding_mask, attn_mask, is_causal)
        out, weights = written_out(q, k, v, mask, dropout, need_weights)
        return out, weights if need_weights else None
    if key_padding_mask is None and attn_mask is None and (not is_causal or q.size(2) == k.size(2)):
        return sdpa(q, k, v, None, dropout, is_causal), None
    return sdpa(q, k, v, _visible(q, k, key_padding_mask, attn_mask, is_causal), dropout, False), None


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, is_causal: bool = False
) -> Tensor:
    """torch's own, without cuDNN's kernels where shapes may be new in each call.

    cuDNN makes a plan for each shape, 0.11 to 0.16 s on an H200, where a call takes 0.14 to 0.34 ms and torch's other
    kernels 0.6 to 1.8 times that (torch 2.11, bf16, forward and backward, 33 to 136 tokens). A graph keeps its shape.
    With a mask and 64 keys more than a multiple of 128 its backward may make NaN (pytorch/pytorch#196678). Where
    torch.compile traces, numbers of keys are symbols, so it is left out wherever there is a mask.
    """
    if not torch.jit.is_scripting() and on_accelerator(q):
        if torch.compiler.is_compiling():
            if mask is not None and _all_allowed():
                with sdpa_kernel(_OTHERS):
                    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        elif not launches_are_free() or _at_fault(k, mask):
            with _without_cudnn():
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)


_OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _all_allowed() -> bool:
    """Whether nobody has chosen among torch's kernels."""
    cuda = torch.backends.cuda
    chosen = (cuda.cudnn_sdp_enabled, cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled)
    return all(allowed() for allowed in chosen)


_all_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]  # switches cannot be traced


def _at_fault(k: Tensor, mask: Tensor | None) -> bool:
    return mask is not None and k.size(2) % 128 == 64


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    """But who allows cuDNN's kernels alone gets them."""
    cuda = torch.backends.cuda
    change = cuda.cudnn_sdp_enabled() and (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled())
    if change:
        cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if change:
            cuda.enable_cudnn_sdp(True)


def _has_values(k: Tensor) -> bool:
    """Whether it can be looked at: what is traced or scripted has no values."""
    has_values = True
    if not torch.jit.is_scripting():
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        has_values = not traced and type(k) is Tensor
    return has_values


def _finite(tensors: list[Tensor]) -> bool:
    """Whether their sums say so; a sum that overflows says no."""
    total = 0.0
    for t in tensors:
        total += float(t.detach().sum(dtype=torch.float32))
    return math.isfinite(total)


def _shielded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    dropout: float,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """`_attend` where hidden keys, and queries of padding, may hold Inf or NaN: 0 · ∞ would be NaN for all.

    Zeros take their place, so that no gradient passes either.
    """
    hidden = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=k.device)  # (B, H, S, 1), True where no query looks
    if key_padding_mask is not None:
        hidden = key_padding_mask[:, None, :, None]
    if attn_mask is not None:
        # an additive mask may hide by the lowest finite number, as transformers' do
        seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(q.dtype) > _lowest(q)
        seen = seen.expand(q.size(0), q.size(1), q.size(2), k.size(2))
        hidden = hidden | ~seen.any(2)[..., None]
    k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
    # a NaN in a traced graph fails torch's own check of it
    if not torch.is_grad_enabled() or (not torch.jit.is_scripting() and torch.jit.is_tracing()):
        return _attend(q, k, v, key_padding_mask, attn_mask, is_causal, dropout, need_weights)
    lost = ~q.detach().isfinite().all(-1, keepdim=True)  # (B, H, T, 1)
    q = q.masked_fill(lost, 0.0)
    out, weights = _attend(q, k, v, key_padding_mask, attn_mask, is_causal, dropout, need_weights)
    out = out.masked_fill(lost, math.nan)
    if weights is not None:
        weights = weights.masked_fill(lost, math.nan)
    return out, weights


def _check(q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, dropout: float) -> None:
    if q.dim() != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.size(-1) != k.size(-1):
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit; expected "
            f"(B, H, T, D) for q and (B, H, S, D) for both k and v"
        )
    if key_padding_mask is not None:
        expected = (k.size(0), k.size(2))
        if key_padding_mask.dtype != torch.bool or tuple(key_padding_mask.shape) != expected:
            raise ValueError(
                f"attention: key_padding_mask is {key_padding_mask.dtype} {tuple(key_padding_mask.shape)}; "
                f"expected torch.bool {expected} (B, S), True at padding"
            )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"attention: dropout={dropout} is not a probability in [0, 1); 0 switches it off")


# Packed sentences: implementations, choice between them, public function.


def _per_sentence(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], dropout: float, is_causal: bool) -> Tensor:
    """One call for each run of neighbouring sentences of equal lengths, so that nothing is padded or masked.

    Of what was tried on a CPU the fastest: recipes/bench/README.md.
    """
    runs = [(len(list(run)), T) for T, run in groupby(lengths)]
    runs = runs or [(1, 0)]  # without sentences, so that q, k and v get their (empty) gradients
    parts = (t.split([n * T for n, T in runs]) for t in (q, k, v))
    outs = []
    for run, *qkv in zip(runs, *parts, strict=True):
        a, b, c = (t.unflatten(0, run).transpose(1, 2) for t in qkv)  # (n, H, T, D)
        out, _ = attention(a, b, c, is_causal=is_causal, dropout=dropout)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


def _padded(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, T: int, dropout: float, is_causal: bool) -> Tensor:
    """One call for a padded batch. The host reads no offset, so it need not wait for an accelerator."""
    B, lengths, place = offsets.numel() - 1, offsets.diff(), torch.arange(T, device=q.device)
    shift = torch.arange(B, device=q.device) * T - offsets[:-1]
    # (N,) where each particle stands in the padded batch
    rows = torch.arange(q.size(0), device=q.device) + torch.repeat_interleave(shift, lengths, output_size=q.size(0))

    def pad(t: Tensor) -> Tensor:
        batch = t.new_zeros(B * T, *t.shape[1:]).index_copy(0, rows, t)
        return batch.unflatten(0, (B, T)).transpose(1, 2)  # (B, H, T, D)

    seen = place < lengths[:, None, None, None]  # (B, 1, 1, T)
    if is_causal:
        seen = seen & (place <= place[:, None])  # (B, 1, T, T)
    out = sdpa(pad(q), pad(k), pad(v), seen, dropout, False)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, rows)


def _varlen(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, T: int, dropout: float, is_causal: bool) -> Tensor:
    """torch's own, since 2.10; it knows no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    causal: dict[str, Any] = {"window_size": (-1, 0)} if torch.__version__ >= "2.11" else {"is_causal": True}
    return cast(Tensor, varlen_attn(q, k, v, offsets, offsets, T, T, **(causal if is_causal else {})))


def _flash(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, T: int, dropout: float, is_causal: bool) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,unused-ignore]

    out: Tensor = flash_attn_varlen_func(q, k, v, offsets, offsets, T, T, dropout_p=dropout, causal=is_causal)
    return out


# Looked for once, without importing them.
_VARLEN_INSTALLED = importlib.util.find_spec("torch.nn.attention.varlen") is not None
_FLASH_INSTALLED = importlib.util.find_spec("flash_attn") is not None


def _packed_kernel(q: Tensor, dropout: float) -> Callable[..., Tensor]:
    """What runs on an accelerator."""
    D = q.size(-1)
    if torch.version.cuda is None or torch.cuda.get_device_capability(q.device) < (8, 0):
        reason = "they need an NVIDIA GPU of compute capability 8.0 or later"
    elif q.dtype not in (torch.float16, torch.bfloat16):
        reason = f"they take float16 and bfloat16, not {q.dtype}"
    elif D > 256 or D % 8 != 0:
        reason = f"they take heads of up to 256 channels, in multiples of 8, not {D}"
    elif _VARLEN_INSTALLED and dropout == 0.0:
        return _varlen
    elif _FLASH_INSTALLED:
        return _flash
    else:
        reason = "with dropout on the weights they need flash-attn" if dropout else "install torch 2.10 or flash-attn"
    if not torch.compiler.is_compiling():
        _announce(reason)
    return _padded


@functools.cache
def _announce(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "packed_attention pads its sentences on this device: variable-length kernels cannot run; %s", reason
    )


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_length: int,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """`attention` within each of B sentences that lie one after another, without padding: self-attention.

        out[o_b : o_b+1] = dropout(softmax(q_b k_bᵀ / sqrt(D))) v_b        for each sentence b, from o_b to o_b+1

    On a GPU by `torch.nn.attention.varlen` or flash-attn, where they are and take the input; else by exact
    implementations in torch: sentence by sentence on a CPU, padded to one batch on an accelerator, which is logged
    once. Under `torch.compile` the padded one replaces that of the CPU, which reads the offsets.

    Args:
        q, k, v: (N, H, D) of all sentences; any strides with neighbouring channels.
        offsets: (B + 1,) int32 on the device of `q`: 0, then the sum of the first 1 … B lengths; lengths may be 0.
        max_length: at least the greatest length; a greater one costs time, a smaller one is an error, which only
            a CPU notices.
        dropout: probability to zero an attention weight; 0 outside training.
        is_causal: the last query of a sentence sees all of its keys, the one before it all but the last, and so on.

    Returns:
        (N, H, D).

    Raises:
        ValueError: shapes or offsets that do not fit.
    """
    _check_packed(q, k, v, offsets, dropout)
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        return _per_sentence(q, k, v, _lengths(offsets, q.size(0), max_length), dropout, is_causal)
    op = _padded if q.device.type == "cpu" else _packed_kernel(q, dropout)
    return op(q, k, v, offsets, max_length, dropout, is_causal)


def _check_packed(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, dropout: float) -> None:
    if q.dim() != 3 or not q.shape == k.shape == v.shape:
        raise ValueError(
            f"packed_attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit; expected "
            f"(N, H, D) for all three"
        )
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or not len(offsets) or offsets.device != q.device:
        raise ValueError(
            f"packed_attention: offsets is {offsets.dtype} {tuple(offsets.shape)} on {offsets.device}; expected "
            f"torch.int32 (B + 1,) on {q.device}"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"packed_attention: dropout={dropout} is not a probability in [0, 1); 0 switches it off")


def _lengths(offsets: Tensor, total: int, max_length: int) -> list[int]:
    """Lengths of the sentences, checked."""
    lengths = offsets.diff().tolist()
    if int(offsets[0]) != 0 or sum(lengths) != total or min(lengths, default=0) < 0:
        raise ValueError(
            f"packed_attention: offsets={offsets.tolist()} do not describe {total} tokens; they start at 0, do not "
            f"fall, and end at the number of tokens"
        )
    if max(lengths, default=0) > max_length:
        raise ValueError(f"packed_attention: a sentence has {max(lengths)} tokens, max_length={max_length}")
    return lengths
