"""One layer of Macaron BERT, repeated: for a fixed time, or for each sentence until a policy stops it.

    x_{n+1} = Φ(x_n),  n = 0 … τ − 1,  1 ≤ τ ≤ L      Φ: a Macaron layer, L: `num_hidden_layers`
    τ = min {n ≥ 1: Q(x_n, on) ≤ cost} or L           Q: `HorizonPolicy`, cost: `horizon_cost`

The moving endpoint of Zhang et al. 2018 (arXiv:1805.07709), see `macaron.dynamics.horizon`, for text. A sentence that
has stopped leaves the batch, padded or packed, so that its further steps are not computed.

Shapes: B sentences, T particles, N particles of packed sentences, C channels, L steps.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from macaron.dynamics.horizon import returns_ahead
from macaron.hf.context import LayerContext
from macaron.hf.losses import mean_loss
from macaron.hf.packing import first_particle
from macaron.particles.surroundings import Packed

WIDTH = 64  # hidden channels of the policy


@dataclass
class MacaronBertHorizonOutput(BaseModelOutputWithPooling):
    """Fields:
    horizon_steps: (B,) τ of each sentence, int64; not in training.
    depth_sentences: (L, B, C) what stands for each sentence after 1 … L steps; in training only.
    depth_q: (L − 1, B) Q(x_n, on), n = 1 … L − 1; in training only.
    """

    horizon_steps: Tensor | None = None
    depth_sentences: Tensor | None = None
    depth_q: Tensor | None = None


@dataclass
class MacaronBertHorizonClassifierOutput(SequenceClassifierOutput):
    """Fields:
    logits: (B, num_labels) at τ.
    horizon_steps: (B,) τ of each sentence, int64.
    depth_logits: (L, B, num_labels) after 1 … L steps; in training only.
    depth_q: (L − 1, B), as in `MacaronBertHorizonOutput`; in training only.
    """

    horizon_steps: Tensor | None = None
    depth_logits: Tensor | None = None
    depth_q: Tensor | None = None


class HorizonPolicy(nn.Module):
    """Q(x_n, on), the loss that a sentence is expected to be spared by going on; that of stopping is 0.

        Q = w · gelu(W [LN(first particle); LN(mean of the particles)] + E[n]) + b

    The first particle is what classifiers read. At the start w = 0 and b = 1, so that every sentence takes all steps
    (while `horizon_cost` < 1) until the policy has learned something else.

    Args:
        dim: C.
        steps: L.
    """

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.dim = dim
        self.fc1 = nn.Linear(2 * dim, WIDTH)
        self.steps = nn.Embedding(steps - 1, WIDTH)
        self.fc2 = nn.Linear(WIDTH, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.fc1.weight, std=(2 * self.dim) ** -0.5)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.steps.weight)
        nn.init.zeros_(self.fc2.weight)
        nn.init.ones_(self.fc2.bias)

    def forward(self, first: Tensor, mean: Tensor, n: int) -> Tensor:
        """(B, C) of x_n, twice, and n = 1 … L − 1 → (B,), at least float32."""
        dtype = self.fc1.weight.dtype
        seen = torch.cat([F.layer_norm(part, (self.dim,)) for part in (first, mean)], -1).to(dtype)
        q = self.fc2(F.gelu(self.fc1(seen) + self.steps.weight[n - 1])).squeeze(-1)
        return q if q.dtype == torch.float64 else q.float()


class Sentences(NamedTuple):
    """Those of a batch that still go on, padded or packed.

    Fields:
        x: (B, T, C), or packed (N, C).
        context: what the layer sees besides.
        real: (B, T) bool where some of the particles are padding; None where none are, and of packed ones.
        place: where each row of x was in the first batch.
    """

    x: Tensor
    context: LayerContext
    real: Tensor | None
    place: Tensor

    @classmethod
    def of(cls, x: Tensor, context: LayerContext, real: Tensor | None) -> "Sentences":
        packed = context.surroundings.packed
        return cls(x, context, None if packed is not None else real, torch.arange(x.size(0), device=x.device))

    @property
    def number(self) -> int:
        """Of the sentences."""
        packed = self.context.surroundings.packed
        return self.x.size(0) if packed is None else len(packed.offsets) - 1

    def step(self, layer: nn.Module) -> "Sentences":
        return self._replace(x=layer(self.x, self.context))

    def pooled(self) -> tuple[Tensor, Tensor]:
        """(B, C) the first particle of each sentence, and the mean over its particles, this without gradient."""
        x, packed = self.x, self.context.surroundings.packed
        still = x.detach()
        if packed is not None:
            lengths = packed.offsets.diff().long()
            if x.size(0) == 0:  # rows with nothing in them
                return x.new_zeros(len(lengths), x.size(-1)), still.new_zeros(len(lengths), x.size(-1))
            begins = packed.offsets[:-1].long().clamp(max=x.size(0) - 1)
            first = x[begins].masked_fill((lengths == 0).unsqueeze(-1), 0.0)
            wide = still if still.dtype == torch.float64 else still.float()
            total = torch.segment_reduce(wide, "sum", lengths=lengths, axis=0, unsafe=True)
            return first, (total / lengths.clamp(min=1).unsqueeze(-1)).to(x.dtype)
        if self.real is None:
            return x[:, 0], still.mean(1)
        real = self.real.to(x.device).unsqueeze(-1)  # (B, T, 1)
        first = first_particle(x, self.real).masked_fill(~real.any(1), 0.0)
        return first, still.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)

    def take(self, kept: Tensor) -> "Sentences":
        """The sentences of these numbers, which rise."""
        around = self.context.surroundings
        if around.packed is None:
            count = self.number

            def select(t: Any) -> Any:  # a mask may hold for all sentences at once
                return t if t is None or (t.size(0) == 1 and count > 1) else t.index_select(0, kept.to(t.device))

            around = around._replace(mask=around.mask._replace(pairs=select(around.mask.pairs)))
            context = self.context._replace(surroundings=around, attention_mask=select(self.context.attention_mask))
            rows, real = kept, select(self.real)
        else:
            lengths = around.packed.offsets.diff().long()
            stays = torch.zeros(len(lengths), dtype=torch.bool, device=kept.device).index_fill(0, kept, True)
            rows = stays.repeat_interleave(lengths, output_size=self.x.size(0)).nonzero().squeeze(1)
            lengths = lengths[kept]
            offsets = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
            context = self.context._replace(surroundings=around._replace(packed=Packed(offsets, int(lengths.max()))))
            real = None
        return Sentences(self.x.index_select(0, rows), context, real, self.place[rows])


def together(parts: list[Sentences], x: Tensor) -> Tensor:
    """The states of sentences that ended at different times, in the shape and order of x."""
    if len(parts) == 1:
        return parts[0].x
    places, states = torch.cat([part.place for part in parts]), torch.cat([part.x for part in parts])
    return torch.zeros_like(x, dtype=states.dtype).index_copy(0, places, states)


def first_stop(q: Tensor, cost: float) -> Tensor:
    """τ by Q(x_n, on), n = 1 … L − 1: (L − 1, B) → (B,)."""
    going = (q > cost).long().cumprod(0)
    return 1 + going.sum(0)


def horizon_loss(
    losses: Tensor,
    q: Tensor,
    cost: float = 0.0,
    *,
    weights: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """What unit and policy are trained on together; the gradient of each goes to it alone.

        unit      (L(x_τ) + mean over n of L(x_n)) / 2
        policy    mean over n < L of (Q(x_n, on) − G_n)²,   G_n = L(x_n) − L(x_m)

    τ is the policy's, and m > n where it stops when it decides anew from n + 1 on: the sum of the rewards
    L(x_n) − L(x_{n+1}) on the way, see `macaron.dynamics.horizon.returns_ahead`. The mean over n keeps depths of use
    that the policy does not choose now.

    Args:
        losses: the task's loss of each sentence after 1 … L steps, (L, B).
        q: (L − 1, B), as `depth_q` of a model's output.
        cost: `horizon_cost`.
        weights: how many items each sentence's loss is the mean of, (B,), such as 0 for one without a label; 1 if none.
        num_items_in_batch: of the whole update, from the Trainer; None divides by the sum of the weights.

    Raises:
        ValueError: numbers that are not finite, or shapes that do not match.
    """
    if losses.dim() != 2 or q.shape != (losses.size(0) - 1, losses.size(1)):
        raise ValueError(
            f"horizon_loss: losses {tuple(losses.shape)} and q {tuple(q.shape)}, but (L, B) and (L − 1, B) are needed"
        )
    decided = q.detach()
    times = first_stop(decided, cost)
    gains = returns_ahead(losses, decided <= cost)
    unit = (losses.gather(0, times.unsqueeze(0) - 1)[0] + losses.mean(0)) / 2
    policy = (q - gains.to(q.dtype)).square().mean(0)
    weights = losses.new_ones(losses.size(1)) if weights is None else weights.to(losses.dtype)
    return mean_loss((weights * (unit + policy)).sum(), weights.sum(), num_items_in_batch)


__all__ = ["HorizonPolicy", "MacaronBertHorizonClassifierOutput", "MacaronBertHorizonOutput", "horizon_loss"]
