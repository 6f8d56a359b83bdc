"""Stochastic depth: layers that are dropped at random, as the noise of a stochastic differential equation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from macaron.dynamics.depth import Step

# Drop rate of layer n of `depth`, as a part of the last one's.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "lm_resnet": lambda n, depth: n / (depth - 1) if depth > 1 else 1.0,  # the first is never dropped
    "torch": lambda n, depth: (n + 1) / depth,  # Huang et al. 2016, arXiv:1603.09382, as their code in Torch
    "constant": lambda n, depth: 1.0,
}
FORMS = ("scaled", "sde", "unscaled")
UNITS = ("batch", "sentence")


def survival(rate: float, depth: int, schedule: str) -> list[float]:
    """p_n of each layer, where `rate` is 1 − p of the last."""
    return [1.0 - rate * SCHEDULES[schedule](n, depth) for n in range(depth)]


def third_moment(p: float) -> float:
    """E[(η − p)³] = p (1 − p)(1 − 2p) of a coin η that is 1 with probability p."""
    return p * (1.0 - p) * (1.0 - 2.0 * p)


class StochasticDepth(nn.Module):
    """Layers x + Δ_n(x) that are noisy in training, by a coin η_n that is 1 with probability p_n, else 0:

        scaled      x + (η/p) Δ(x)                      mean x + Δ; in evaluation x + Δ, the layer itself
        sde         x + p Δ(x) + (η − p) Δ(x) / √Δt     mean x + pΔ; in evaluation x + pΔ
        unscaled    x + η Δ(x)                          the same mean and evaluation; as Huang et al. have it

    With Δ = Δt F the scaled noise has variance O(Δt²) a step and vanishes as Δt → 0: its limit is an ordinary equation.
    The sde form, x + Δt p F + √Δt (η − p) F, tends to dX = p F dt + √(p(1 − p)) F dB (Lu et al. 2018,
    arXiv:1710.10121). An Euler–Maruyama step has third moment 0, a coin p(1 − p)(1 − 2p): convergence is of weak
    order 1 where that is O(√Δt), as at p = ½, and ½ elsewhere.

    Whatever the rule, a coin is tossed once a step, also where the rule evaluates its layer several times; a rule with
    memory keeps it, so that a dropped multistep layer leaves (1 − k) x_n + k x_{n−1}. A layer that is dropped for a
    whole batch is not evaluated, and leaves no gradient: under DistributedDataParallel add find_unused_parameters.

    Args:
        depth: how many layers there are.
        rate: 1 − p of the last layer, in [0, 1).
        schedule: of the others: "lm_resnet" n/(depth − 1) · rate, "torch" (n + 1)/depth · rate, "constant" rate.
        form: "scaled", "sde" or "unscaled".
        unit: one coin for a "batch", or for each "sentence" (each system of particles).
        dt: Δt, for the sde form.
        first, total: where these are layers first … first + depth − 1 of a network of `total`, by which the schedule
            then counts.

    Raises:
        ValueError: a value that is none of these, or layers that the network has not.
    """

    def __init__(
        self,
        depth: int,
        rate: float,
        *,
        schedule: str = "lm_resnet",
        form: str = "scaled",
        unit: str = "batch",
        dt: float = 1.0,
        first: int = 0,
        total: int | None = None,
    ) -> None:
        super().__init__()
        check_noise(rate, schedule, form, unit)
        total = depth if total is None else total
        if not 0 <= first <= first + depth <= total:
            raise ValueError(f"layers {first} … {first + depth - 1} are not among the {total} of total={total}")
        self.form, self.unit, self.dt = form, unit, dt
        self.survival = survival(rate, total, schedule)[first : first + depth]
        worst = max(self.survival, key=lambda p: abs(third_moment(p)))
        if form == "sde" and abs(third_moment(worst)) > 0.01:
            warnings.warn(
                f"stochastic depth: a layer survives with p = {worst:.3g}, where the noise has third moment "
                f"p(1 − p)(1 − 2p) = {third_moment(worst):.3g} and that of the stochastic equation has 0; refining the "
                f"depth then converges with weak order ½ instead of 1. It is 0 at p = ½ (stochastic_depth=0.5 with "
                f"stochastic_depth_schedule='constant') and p = 1, and greatest, 0.096, at p = 0.789",
                stacklevel=2,
            )

    @property
    def active(self) -> bool:
        """Whether anything is done now."""
        return self.training or self.form != "scaled"

    def forward(self, step: Step) -> Step:
        """The step with a noisy layer."""
        p = self.survival[step.n]
        if p == 1.0:
            return step
        if self.training and self.unit == "sentence":
            count, spread = step.systems()
            coins = (torch.rand(count, device=step.x.device) < p).to(step.x.dtype)
            factor: Any = spread(self._factor(coins, p))
        else:  # the coin on the CPU, so that a device need not be waited for
            factor = self._factor(float(torch.rand(()).item() < p) if self.training else p, p)
        dropped = isinstance(factor, float) and factor == 0.0

        def noisy(x: Tensor) -> Tensor:
            if dropped:
                return x
            moved = step.layer(x)
            return x + (moved - x) * factor

        return replace(step, layer=noisy)

    def _factor(self, coin: Any, p: float) -> Any:
        """What multiplies Δ."""
        match self.form:
            case "scaled":
                return coin / p
            case "sde":
                return p + (coin - p) / math.sqrt(self.dt)
        return coin

    def extra_repr(self) -> str:
        return f"{self.form}, p={[round(p, 4) for p in self.survival]}, a coin for each {self.unit}"


def check_noise(rate: float, schedule: str, form: str, unit: str) -> None:
    """Raises: ValueError: a rate outside [0, 1), or a name that is unknown."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 <= rate < 1.0:
        raise ValueError(
            f"stochastic_depth={rate!r} is no drop rate in [0, 1), that of the last layer; 0 switches it off"
        )
    for option, value, known in (
        ("stochastic_depth_schedule", schedule, tuple(SCHEDULES)),
        ("stochastic_depth_form", form, FORMS),
        ("stochastic_depth_unit", unit, UNITS),
    ):
        if value not in known:
            raise ValueError(f"{option}={value!r} is unknown; choose one of {', '.join(known)}")
