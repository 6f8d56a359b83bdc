"""Multi-head softmax attention: one call in front of torch's scaled-dot-product kernels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from macaron.ops._backend import use_triton

# Shapes: B sentences, H heads, T queries, S keys, D channels a head.


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


def _attention_with_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    scores = torch.matmul(q * (q.size(-1) ** -0.5), k.transpose(-2, -1))  # (B, H, T, S)
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        else:
            scores = scores + mask
    wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores.to(wide), dim=-1)
    if mask is not None:
        # a query that sees no key gets weights 0, as in torch's kernels, instead of 0/0
        weights = weights.masked_fill(scores == -math.inf, 0.0)
    kept = F.dropout(weights, dropout, training=True) if dropout > 0.0 else weights
    return torch.matmul(kept.to(v.dtype), v), weights


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    need_weights: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of every query over the keys that it may see.

        out = dropout(softmax(q kᵀ / sqrt(D) + mask)) v

    Vaswani et al. 2017 (arXiv:1706.03762), eq. 1. A query that sees no key gets zeros.

    Args:
        q: (B, H, T, D).
        k, v: (B, H, S, D); any strides.
        key_padding_mask: (B, S) bool, True at padding; padding is not seen.
        attn_mask: broadcastable to (B, H, T, S); bool, True where a key is seen, or added to the scores.
        is_causal: the last query sees every key, the one before it all but the last key, and so on; with
            S = T, query t sees keys 0 … t.
        dropout: probability to zero an attention weight; 0 outside training.
        need_weights: also return the weights; this computes them explicitly, so ask only when they are used.
        backend: `auto` or `reference` take torch's kernels; `triton` raises until there is a packed kernel.

    Returns:
        out (B, H, T, D) and the weights before dropout (B, H, T, S) in float32 or wider, or None.

    Raises:
        ValueError: shapes that do not fit each other, a key padding mask that is not bool, an unknown backend.
        RuntimeError: a requested backend that cannot run.
    """
    if not torch.jit.is_scripting():
        _check(q, k, v, key_padding_mask, dropout)
        if use_triton("attention", q, None, backend):
            raise AssertionError("unreachable: no kernel is registered")
    is_causal = is_causal and q.size(2) > 1  # a single newest query sees everything
    if need_weights:
        mask = _visible(q, k, key_padding_mask, attn_mask, is_causal)
        return _attention_with_weights(q, k, v, mask, dropout)
    if key_padding_mask is None and attn_mask is None and (not is_causal or q.size(2) == k.size(2)):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal), None
    mask = _visible(q, k, key_padding_mask, attn_mask, is_causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), None


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
