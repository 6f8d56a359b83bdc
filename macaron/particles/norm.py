"""The normalisation of a substep, as a module that is called."""

import torch.nn.functional as F
from torch import Tensor, nn

from macaron.ops.step_norm import step_norm


class StepNorm(nn.LayerNorm):
    """Layer normalisation fused with the step of the particles that comes before it.

        y = x + step · dropout(velocity)                         y = x without a velocity
        z = weight · (y − mean(y)) / sqrt(var(y) + eps) + bias

    It is a `torch.nn.LayerNorm` by class, parameters and initialisation, and its layer calls it, so that whatever
    watches, replaces, shards or offloads modules (forward hooks, peft, FSDP, accelerate) meets it as any other.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, velocity: Tensor | None = None, step: float = 0.0, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Move and normalise.

        Args:
            x: (…, C) positions.
            velocity: (…, C), or None: the particles stay where they are.
            step: share of Δt, dimensionless.
            dropout: probability on the velocity; 0 outside training.

        Returns:
            (y, z), each (…, C): the moved particles, and the same normalised.
        """
        if velocity is None:
            return x, F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return step_norm(x, velocity, self.weight, self.bias, step=step, dropout=dropout, eps=self.eps)
