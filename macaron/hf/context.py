"""What attention has around it under transformers: masks, an attention function, and records of its weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.utils.output_capturing import capture_outputs

from macaron.ops.attention import attention
from macaron.particles.surroundings import Surroundings


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The library's attention, written out: (B, H, T, D) → (B, T, H, D) and weights (B, H, T, T)."""
    out, weights = attention(query, key, value, attn_mask=attention_mask, dropout=dropout, need_weights=True)
    assert weights is not None
    return out.transpose(1, 2), weights


class LayerContext(NamedTuple):
    """What a layer sees besides its particles: `surroundings` for the flows of the library, and for transformers'
    attention functions their mask and keyword arguments."""

    surroundings: Surroundings
    attention_mask: Any
    options: dict[str, Any]


class IsRecorded(nn.Module):
    """What transformers records the output of, by hooks that cannot be pickled and are made anew."""

    def __getstate__(self) -> dict[str, Any]:
        hooks = self._forward_hooks
        kept = {key: hook for key, hook in hooks.items() if hook.__module__ != capture_outputs.__module__}
        return {**super().__getstate__(), "_forward_hooks": type(hooks)(kept)}


def lookup(mask: Tensor) -> Callable[..., Tensor]:
    """A mask function of transformers from a table, (B, 1, T, T) bool."""
    table = mask[:, 0]  # by tensors alone, as older torch asks for in flex attention
    return lambda batch, head, query, key: table[batch, query, key]
