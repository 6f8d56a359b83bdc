"""What was learned: coefficients, and roll-outs with their error and the time at which they blow up."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from macaron.dynamics import get_solver
from macaron.pde import PDENet, SymNet

BLOWN_UP = 10.0  # times the largest value that the true trajectory ever has


def equations(net: PDENet, u: Tensor, degree: int) -> list[dict[str, Any]]:
    """Of each component: its monomials up to a degree, as a line too, and the share of du/dt that is beyond them.

    Args:
        u: (B, C, H, W), where that share is taken: r.m.s. of the difference by r.m.s. of the SymNet.
    """
    found = []
    with torch.no_grad():
        features = net.features(u)
        for name, symnet in zip(net.components, net.symnets, strict=True):
            assert isinstance(symnet, SymNet)
            coefficients = symnet.coefficients(degree=degree)
            whole = symnet(features)
            rest = (whole - polynomial(coefficients, symnet.channels, features)).square().mean().sqrt()
            size = whole.square().mean().sqrt()
            found.append(
                {
                    "coefficients": coefficients,
                    "formula": symnet.formula(f"{name}_t", 3, degree=degree),
                    "beyond": (rest / size).item() if size > 0 else 0.0,
                }
            )
    return found


def polynomial(coefficients: Mapping[str, float], channels: list[str], features: Tensor) -> Tensor:
    """Σ c · monomial on features (…, channels)."""
    total = torch.zeros_like(features[..., 0])
    for monomial, c in coefficients.items():
        term = torch.full_like(total, c)
        for factor in re.split(r"(?<!\*)\*(?!\*)", monomial) if monomial != "1" else ():
            name, _, power = factor.partition("**")
            term = term * features[..., channels.index(name)] ** int(power or 1)
        total = total + term
    return total


@dataclass(frozen=True)
class RollOut:
    """
    Args:
        times: of the frames after the first.
        error: (frames, B): Σ (û − u)² / Σ u² over a frame; NaN from the blow-up on.
        blown_up: (B,) the time at which the values left BLOWN_UP times the truth's range or became NaN; None: never.
        last: (C, H, W) of the first trajectory in the middle of the time, where it is still there.
    """

    times: list[float]
    error: Tensor
    blown_up: list[float | None]
    last: Tensor

    def record(self) -> dict[str, Any]:
        """For JSON, in which NaN is null."""
        rows = [[value if math.isfinite(value) else None for value in row] for row in self.error.tolist()]
        return {"times": self.times, "error": rows, "blown_up": self.blown_up}


@torch.no_grad()
def roll_out(net: PDENet, truth: Tensor, dt: float, every: int, solver: str) -> RollOut:
    """Follow the learned equation from the first frame on, a trajectory until it blows up.

    Args:
        truth: (frames + 1, B, C, H, W), `every` steps of dt apart.
    """
    frames, count = len(truth) - 1, truth.shape[1]
    limit = BLOWN_UP * truth.abs().amax((0, 2, 3, 4))
    u, alive = truth[0].clone(), torch.ones(count, dtype=torch.bool)
    error = torch.full((frames, count), math.nan, dtype=truth.dtype)
    blown_up: list[float | None] = [None] * count
    middle = truth[0, 0]
    for frame in range(frames):
        for step in range(every):
            index = alive.nonzero()[:, 0]
            if len(index):
                u[index] = net.advance(u[index], dt, get_solver(solver))
            size = u.abs().amax((1, 2, 3))
            gone = alive & ~(size <= limit)  # also where it is NaN
            for i in gone.nonzero()[:, 0].tolist():
                blown_up[i] = round((frame * every + step + 1) * dt, 10)
            alive &= ~gone
        there = truth[frame + 1]
        whole = (u - there).square().sum((1, 2, 3)) / there.square().sum((1, 2, 3))
        error[frame, alive] = whole[alive]
        if frame + 1 == (frames + 1) // 2:
            middle = torch.where(alive[0], u[0], math.nan)
    times = [round((frame + 1) * every * dt, 10) for frame in range(frames)]
    return RollOut(times, error, blown_up, middle)
