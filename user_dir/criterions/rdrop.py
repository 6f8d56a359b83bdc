"""R-Drop: how far two passes of one sentence, under two dropout masks, lie apart."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Shapes: N target tokens, C channels, V symbols.

CHUNK = 2**22  # logits of one chunk and one pass


def duplicate(net_input: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every sentence twice, the second copies behind all first ones."""
    return {k: torch.cat([v, v]) if isinstance(v, Tensor) else v for k, v in net_input.items()}


def linear_symmetric_kl(x: Tensor, weight: Tensor, bias: Tensor | None, ignored: Tensor) -> Tensor:
    """Mean of the two Kullback–Leibler divergences between the passes, summed over tokens.

        p, q = softmax(x weightᵀ + bias) of the first and the second pass
        kl = Σ_tokens (KL(p‖q) + KL(q‖p)) / 2 = Σ_tokens Σ_j (p_j − q_j) (log p_j − log q_j) / 2

    Wu et al. 2021 (arXiv:2106.14448), eq. 2. The logits exist for a chunk of tokens at a time and are computed
    again in the backward.

    Args:
        x: (2N, C) features, the second pass behind the first.
        weight, bias: (V, C) and (V,) output projection.
        ignored: (N,) bool, true where a token counts not.
    """
    first, second = x.chunk(2)
    step = max(1, CHUNK // weight.size(0))
    chunks = zip(first.split(step), second.split(step), ignored.split(step), strict=True)
    # nothing is drawn within; and while a CUDA graph is recorded, random states cannot be read
    options = {"use_reentrant": False, "preserve_rng_state": False}
    parts = [checkpoint(_chunk, a, b, weight, bias, skip, **options) for a, b, skip in chunks]
    return torch.stack(parts).sum() if parts else x.new_zeros((), dtype=torch.float32)


def _chunk(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, ignored: Tensor) -> Tensor:
    log_p, log_q = (_log_softmax(F.linear(side, weight, bias)) for side in (a, b))
    distance = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    return distance.masked_fill(ignored, 0.0).sum() / 2


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 or wider."""
    return F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
