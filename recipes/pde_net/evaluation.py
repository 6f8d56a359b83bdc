"""What was learned: coefficients, and roll-outs with their error and the time at which they blow up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from macaron.dynamics import get_solver
from macaron.pde import PDENet, SymNet
from macaron.pde.symnet import factors_of, formula

LEAST_SHARE = 1e-3  # r.m.s. of a term by that of du/dt, to be printed
BLOWN_UP = 10.0  # times the largest value that the true trajectory ever has


@dataclass(frozen=True)
class Units:
    """What the network calls 1: `fields` of each component, `time` and `length`, in the units of the data."""

    fields: tuple[float, ...]
    time: float = 1.0
    length: float = 1.0

    def of(self, monomial: str, component: int, components: Sequence[str]) -> float:
        """What a coefficient of the network is to be multiplied with in du/dt of a component."""
        factor = self.fields[component] / self.time
        for part in factors_of(monomial):
            name, _, power = part.partition("**")
            order = int(name[-2]) + int(name[-1])
            one = self.fields[list(components).index(name[:-2])] / self.length**order
            factor /= one ** int(power or 1)
        return factor


def units_of(u: Tensor, dt: float, dx: float = 1.0) -> Units:
    """Such that fields, their rates of change and their slopes are of the size 1; nothing hangs on the data's units.

    Args:
        u: (samples, T, C, H, W).
    """
    spread = u.std((0, 1, 3, 4))
    scaled = u / spread[:, None, None]
    rate = (scaled.diff(dim=1) / dt).square().mean().sqrt().item()
    slopes = [(scaled.roll(-1, axis) - scaled).square().mean() for axis in (-2, -1)]
    slope = (sum(slopes, torch.zeros((), dtype=u.dtype)) / 2).sqrt().item() / dx
    return Units(tuple(spread.tolist()), 1 / rate if rate > 0 else 1.0, 1 / slope if slope > 0 else 1.0)


def equations(net: PDENet, u: Tensor, degree: int, units: Units | None = None) -> list[dict[str, Any]]:
    """Of each component: its monomials up to a degree, how much of du/dt each makes, and what is beyond the degree.

    Args:
        u: (B, C, H, W), where shares are taken: r.m.s. of the term by r.m.s. of the SymNet.
        units: those of the data, where the network has others. The line then has its terms by their share, down to
            `LEAST_SHARE`; without them as the original prints it, three decimals by magnitude.
    """
    found = []
    with torch.no_grad():
        features = net.features(u)
        for index, (name, symnet) in enumerate(zip(net.components, net.symnets, strict=True)):
            assert isinstance(symnet, SymNet)
            coefficients = symnet.coefficients(degree=degree)
            whole = symnet(features)
            size = whole.square().mean().sqrt().clamp_min(1e-300)
            terms = {m: term_of(m, symnet.channels, features) * c for m, c in coefficients.items()}
            shares = {m: (term.square().mean().sqrt() / size).item() for m, term in terms.items()}
            rest = whole - torch.stack([torch.zeros_like(whole), *terms.values()]).sum(0)
            line = symnet.formula(f"{name}_t", 3, degree=degree)
            if units is not None:
                coefficients = {m: c * units.of(m, index, net.components) for m, c in coefficients.items()}
                kept = sorted((m for m in coefficients if shares[m] >= LEAST_SHARE), key=lambda m: -shares[m])
                line = formula({m: coefficients[m] for m in kept}, f"{name}_t", ".3g")
            beyond = (rest.square().mean().sqrt() / size).item()
            found.append({"coefficients": coefficients, "shares": shares, "formula": line, "beyond": beyond})
    return found


def term_of(monomial: str, channels: Sequence[str], features: Tensor) -> Tensor:
    """The monomial on features (…, channels)."""
    term = torch.ones_like(features[..., 0])
    for factor in factors_of(monomial):
        name, _, power = factor.partition("**")
        term = term * features[..., channels.index(name)] ** int(power or 1)
    return term


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
def roll_out(net: PDENet, truth: Tensor, dt: float, every: int, solver: str, clock: float | None = None) -> RollOut:
    """Follow the learned equation from the first frame on, a trajectory until it blows up.

    Args:
        truth: (frames + 1, B, C, H, W), `every` steps of dt apart.
        clock: what a step is in the times that are told, where the network has other units.
    """
    clock = dt if clock is None else clock
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
                blown_up[i] = rounded((frame * every + step + 1) * clock)
            alive &= ~gone
        there = truth[frame + 1]
        whole = (u - there).square().sum((1, 2, 3)) / there.square().sum((1, 2, 3))
        error[frame, alive] = whole[alive]
        if frame + 1 == (frames + 1) // 2:
            middle = torch.where(alive[0], u[0], math.nan)
    times = [rounded((frame + 1) * every * clock) for frame in range(frames)]
    return RollOut(times, error, blown_up, middle)


def rounded(time: float) -> float:
    """0.30000000000000004 is 0.3."""
    return float(f"{time:.12g}")
