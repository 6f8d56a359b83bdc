"""Linear multistep depth: the next state remembers the one before (LM-ResNet, Lu et al. 2018, arXiv:1710.10121)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from macaron.dynamics.depth import Step

ORIGINAL = "lm_resnet"


def start_of(init: float | str) -> float | str:
    """The initial value of every k as a number, or the name of the original's distribution.

    Raises:
        ValueError: neither, or a number outside of (−1, 1].
    """
    if init == ORIGINAL:
        return ORIGINAL
    try:
        value = math.nan if isinstance(init, bool) else float(init)
    except (TypeError, ValueError):
        value = math.nan
    if not -1.0 < value <= 1.0:  # also where it is no number
        raise ValueError(
            f"multistep_init={init!r} is neither {ORIGINAL!r} nor a number in (−1, 1], where the scheme is "
            f"zero-stable; 0 begins as the plain model"
        )
    return value


class LinearMultistep(nn.Module):
    """The two-step rule

        x_{n+1} = (1 − k_n) x_n + k_n x_{n−1} + Δ_n(x_n),        x_1 = x_0 + Δ_0(x_0)

    with a k_n that is learned for each layer but the first. k = 0 is the plain model, k = 1 the leapfrog scheme. The
    roots of its characteristic polynomial z² − (1 − k) z − k are 1 and −k, so it is zero-stable for −1 < k ≤ 1. Its
    modified equation is (1 + k) u̇ + (1 − k) ½Δt ü = F(u): a k < 0 gives a step more weight and more inertia.

    The original stores 1 − k. Here k itself is stored, under the name `bias`, by which optimisers' groups commonly
    leave a parameter out of weight decay. In the original decay pulls towards k = 1.

    Args:
        depth: how many layers there are.
        init: where every k begins, or "lm_resnet" for the original's distribution, k ~ U(−0.1, 0].
    """

    def __init__(self, depth: int, init: float | str = 0.0) -> None:
        super().__init__()
        self.init = start_of(init)
        self.bias = nn.Parameter(torch.empty(depth - 1)) if depth > 1 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.bias is None:
            return
        if self.init == ORIGINAL:
            nn.init.uniform_(self.bias, -0.1, 0.0)
        else:
            nn.init.constant_(self.bias, float(self.init))

    @property
    def k(self) -> list[float]:
        """k_1 … k_{depth−1}."""
        return [] if self.bias is None else self.bias.detach().float().tolist()

    def forward(self, step: Step) -> Tensor:
        moved = step.layer(step.x)
        if step.previous is None or self.bias is None or step.n == 0:
            return moved
        return moved + self.bias[step.n - 1] * (step.previous - step.x)

    def extra_repr(self) -> str:
        return f"k={[round(k, 4) for k in self.k]}"


def is_zero_stable(k: float) -> bool:
    """Whether the two-step rule with this k is: whether −1 < k ≤ 1, so that no perturbation grows with the depth."""
    return -1.0 < k <= 1.0
