"""The flows of the particle system. Each maps positions x to velocities dx/dt: no residual, no step, no outer norm.

A flow is called as `flow(x, surroundings)` and returns `(velocity, attention weights or None)`, so that a layer
can walk any sequence of them. What it sees besides the particles is its own affair; a layer hands it on.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, SELF_ATTENTION, Substep
from macaron.ops.act_dropout import act_dropout, check_activation
from macaron.ops.attention import attention, packed_attention
from macaron.particles.dropout import Dropout
from macaron.particles.surroundings import Packed, Surroundings

# Shapes: B sentences, T particles, S particles of the memory, C channels, H heads, D = C / H.
# x is (T, B, C), or (B, T, C) with batch_first, or (N, C) where N particles of all sentences are packed.


FLOWS: dict[str, Callable[[int], nn.Module]] = {}  # of one's own


def register_flow(kind: str, make: Callable[[int], nn.Module]) -> None:
    """Let the splittings of both hosts walk a flow of one's own by its name.

    Args:
        kind: the name; the module has it as its attribute `kind`.
        make: from C, the width of the particles, to the module, which is called as `flow(x, context)` and returns
            velocities of the shape of x, and attention weights or None. A layer has one for each substep.

    Raises:
        ValueError: a name that is taken, or that no splitting can have.
    """
    if kind in (FFN, SELF_ATTENTION, CROSS_ATTENTION, "attention", *FLOWS):
        raise ValueError(f"flow {kind!r} is there already; choose another name")
    Substep(kind, 1.0)  # checks the name
    FLOWS[kind] = make


def _linear(in_features: int, out_features: int, bias: bool = True, blocks: int = 1) -> nn.Linear:
    """A projection, Xavier uniform with zero bias; `blocks` row blocks stand for projections of their own."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    for block in linear.weight.chunk(blocks):
        nn.init.xavier_uniform_(block)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class FeedForward(nn.Module):
    """Each particle by itself:  dx/dt = W₂ dropout(act(W₁ x + b₁)) + b₂.

    Args:
        dim: C.
        hidden_dim: inner width F.
        activation: one of `macaron.ops.act_dropout.ACTIVATIONS`.
        dropout: probability after the activation.
    """

    kind = FFN

    def __init__(self, dim: int, hidden_dim: int, *, activation: str = "relu", dropout: float = 0.0) -> None:
        super().__init__()
        if dim < 1 or hidden_dim < 1:
            raise ValueError(f"FeedForward: dim={dim} and hidden_dim={hidden_dim} must be positive")
        check_activation(activation)
        self.activation = activation
        self.fc1 = _linear(dim, hidden_dim)
        self.fc2 = _linear(hidden_dim, dim)
        self.dropout_module = Dropout(dropout)

    def forward(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        """(…, C) → (…, C), None."""
        u = act_dropout(self.fc1(x), activation=self.activation, dropout=self.dropout_module.rate())  # (…, F)
        return self.fc2(u), None


class _MultiHead(nn.Module):
    """What self- and cross-attention share: heads, their layout, and the output projection."""

    def __init__(self, dim: int, num_heads: int, dropout: float, batch_first: bool) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads != 0:
            raise ValueError(
                f"{type(self).__name__}: dim={dim} does not divide into num_heads={num_heads}; "
                f"choose a width that is a multiple of the number of heads"
            )
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.batch_first = batch_first
        self.dropout_module = Dropout(dropout)
        self.cache_suffix = ""  # of its keys in a cache, where a layer has several of the kind

    def split(self, packed: Tensor, n: int) -> list[Tensor]:
        """(T, B, n·C) or (B, T, n·C) → n times (B, H, T, D), views; in the backward one copy joins their gradients."""
        a, b = packed.size(0), packed.size(1)
        parts = packed.view(a, b, n, self.num_heads, self.head_dim).unbind(2)
        if self.batch_first:
            return [part.transpose(1, 2) for part in parts]
        return [part.permute(1, 2, 0, 3) for part in parts]

    def merge(self, out: Tensor) -> Tensor:
        """(B, H, T, D) → (T, B, C) or (B, T, C)."""
        return (out.transpose(1, 2) if self.batch_first else out.permute(2, 0, 1, 3)).flatten(2)


class SelfAttention(_MultiHead):
    """The particles of a sentence interact:  dx_i/dt = W_o Σ_j softmax_j(q_i·k_j / √D) v_j + b_o.

    Queries, keys and values come from one packed product.

    Args:
        dim: C.
        num_heads: H, a divisor of C.
        dropout: probability on the attention weights.
        batch_first: x is (B, T, C) instead of (T, B, C).
    """

    kind = SELF_ATTENTION

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0, batch_first: bool = False) -> None:
        super().__init__(dim, num_heads, dropout, batch_first)
        # Xavier on the stacked (3C, C) matrix, as the original and, by its gain 1/√2, fairseq
        self.qkv_proj = _linear(dim, 3 * dim)
        self.out_proj = _linear(dim, dim)

    def forward(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        """(T, B, C) → (T, B, C) and, if needed, weights (B, H, T, T); with batch_first (B, T, C); packed (N, C)."""
        return self.attend(x, surroundings)

    def attend(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        """`forward` under a name that a scriptable sub-class can call."""
        if not torch.jit.is_scripting() and surroundings.packed is not None:
            return self._attend_packed(x, surroundings, surroundings.packed), None
        q, k, v = self.split(self.qkv_proj(x), 3)  # (B, H, T, D)
        padding_mask = surroundings.mask.padding
        cache = surroundings.caches.own
        if not torch.jit.is_scripting():
            attend = getattr(cache, "attend", None)
            if attend is not None:
                return self.out_proj(self.merge(attend(self.cache_suffix, q, k, v))), None
        if cache is not None:
            k, v, padding_mask = _extend(cache, self.cache_suffix, k, v, padding_mask)
        out, weights = attention(
            q,
            k,
            v,
            key_padding_mask=padding_mask,
            attn_mask=surroundings.mask.pairs,
            is_causal=surroundings.mask.causal,
            dropout=self.dropout_module.rate(),
            need_weights=surroundings.need_weights,
        )
        return self.out_proj(self.merge(out)), weights

    def _attend_packed(self, x: Tensor, surroundings: Surroundings, packed: Packed) -> Tensor:
        """(N, C) → (N, C)."""
        mask = surroundings.mask
        if surroundings.need_weights or any(t is not None for t in (mask.padding, mask.pairs, surroundings.caches.own)):
            raise ValueError(
                "SelfAttention: packed particles have no mask of padding or pairs, no cache and no weights; "
                "leave these out, or pad the particles to a batch"
            )
        q, k, v = self.qkv_proj(x).view(-1, 3, self.num_heads, self.head_dim).unbind(1)  # (N, H, D)
        rate = self.dropout_module.rate()
        out = packed_attention(q, k, v, packed.offsets, packed.max_length, dropout=rate, is_causal=mask.causal)
        return self.out_proj(out.flatten(1))


def _extend(
    cache: dict[str, Tensor | None], suffix: str, k: Tensor, v: Tensor, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Append keys, values and padding of the newest particles to the cache, and return them all."""
    if "k" + suffix in cache:
        old_k, old_v, old_padding = cache["k" + suffix], cache["v" + suffix], cache["padding" + suffix]
        assert old_k is not None and old_v is not None
        if padding_mask is not None or old_padding is not None:
            if old_padding is None:
                old_padding = torch.zeros(old_k.size(0), old_k.size(2), dtype=torch.bool, device=k.device)
            if padding_mask is None:
                padding_mask = torch.zeros(k.size(0), k.size(2), dtype=torch.bool, device=k.device)
            padding_mask = torch.cat([old_padding, padding_mask], dim=1)
        k = torch.cat([old_k, k], dim=2)
        v = torch.cat([old_v, v], dim=2)
    cache["k" + suffix], cache["v" + suffix], cache["padding" + suffix] = k, v, padding_mask
    return k, v, padding_mask


class CrossAttention(_MultiHead):
    """Particles interact with those of a memory, the encoder's output; keys and values come from one product.

    Args:
        dim: C.
        num_heads: H, a divisor of C.
        memory_dim: C' of the memory; None means C.
        dropout: probability on the attention weights.
        batch_first: x is (B, T, C) and the memory (B, S, C'), instead of (T, B, C) and (S, B, C').
    """

    kind = CROSS_ATTENTION

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        memory_dim: int | None = None,
        dropout: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, dropout, batch_first)
        memory_dim = dim if memory_dim is None else memory_dim
        self.q_proj = _linear(dim, dim)
        self.kv_proj = _linear(memory_dim, 2 * dim, blocks=2)
        self.out_proj = _linear(dim, dim)
        if memory_dim == dim:
            # the same distribution as Xavier on the stacked (3C, C) matrix
            with torch.no_grad():
                self.q_proj.weight.mul_(math.sqrt(1 / 2))
                self.kv_proj.weight.mul_(math.sqrt(1 / 2))

    def forward(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        """(T, B, C) → (T, B, C) and, if needed, weights (B, H, T, S); with batch_first (B, T, C)."""
        assert surroundings.packed is None, "cross-attention takes padded batches; packed particles have no memory"
        q = self.split(self.q_proj(x), 1)[0]
        cache = surroundings.caches.memory
        suffix = self.cache_suffix
        if not torch.jit.is_scripting():
            attend = getattr(cache, "attend_memory", None)
            if attend is not None:
                return self.out_proj(self.merge(attend(suffix, q))), None
        if cache is not None and "k" + suffix in cache:
            k, v = cache["k" + suffix], cache["v" + suffix]
            assert k is not None and v is not None
        else:
            memory = surroundings.memory.particles
            assert memory is not None, "cross-attention needs a memory: the encoder's output"
            k, v = self.split(self.kv_proj(memory), 2)  # (B, H, S, D)
            if cache is not None:
                cache["k" + suffix], cache["v" + suffix] = k, v
        out, weights = attention(
            q,
            k,
            v,
            key_padding_mask=surroundings.memory.padding,
            dropout=self.dropout_module.rate(),
            need_weights=surroundings.need_memory_weights,
        )
        return self.out_proj(self.merge(out)), weights
