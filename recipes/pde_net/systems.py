"""Equations whose fields the recipe makes itself: what they are, and their trajectories on a coarse grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from macaron.pde import burgers, reaction_diffusion

from ..common.errors import RecipeError
from .settings import PDESettings

LENGTH = 2 * math.pi  # of an axis, periodic
WAVES = 4  # of the initial fields, an axis
Equation = dict[str, float]  # monomial of the SymNet's channels ↦ coefficient


@dataclass(frozen=True)
class System:
    """
    Args:
        title: for people.
        equations: one for each component; what is left out has the coefficient 0.
        amplitude: of the waves of an initial field.
        offset: of an initial field, uniform in [−offset, offset].
        refined: the data are made on a grid so many times finer.
        solve: fields (1, C, H, W), time, dx ↦ the fields after that time.
    """

    title: str
    equations: list[Equation]
    amplitude: float
    offset: float
    refined: int
    solve: Callable[[Tensor, float, float], Tensor]


def system_of(settings: PDESettings) -> System:
    if settings.system == "burgers":
        nu, max_dt = settings.viscosity, settings.max_dt
        assert nu is not None and max_dt is not None
        return System(
            "Burgers' equation",
            [
                {"u00*u01": -1.0, "u10*v00": -1.0, "u02": nu, "u20": nu},
                {"u00*v01": -1.0, "v00*v10": -1.0, "v02": nu, "v20": nu},
            ],
            2.0,
            2.0,
            4,
            lambda u, time, dx: burgers.solve(u, time, dx, nu, max_dt),
        )
    longest = settings.max_dt
    assert longest is not None
    return System(
        "FitzHugh–Nagumo reaction–diffusion",
        [
            {"u02": 0.05, "u20": 0.05, "u00": 1.0, "u00**3": -1.0, "v00": -1.0},
            {"v02": 0.1, "v20": 0.1, "u00": 0.5, "v00": -0.25},
        ],
        1.5,
        0.5,
        2,
        lambda u, time, dx: reaction_diffusion.solve(u, time, dx, longest),
    )


def generator(*key: int) -> torch.Generator:
    """Random numbers that belong to a key: seed, block and the like."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def trajectory(settings: PDESettings, random: torch.Generator, run_up: bool, times: int, dt: float) -> Iterator[Tensor]:
    """`times` + 1 states (C, H, W) on the coarse grid, without noise.

    Args:
        run_up: whether the first is taken after settings.run_up from the random initial field, not at once.
    """
    system = system_of(settings)
    assert settings.grid is not None and settings.run_up is not None
    fine = settings.grid * system.refined
    white = torch.randn(1, len(settings.components), fine, fine, generator=random, dtype=torch.float64)
    shift = torch.rand(1, len(settings.components), 1, 1, generator=random, dtype=torch.float64)
    u = system.amplitude * burgers.smooth(white, WAVES) + system.offset * (2 * shift - 1)
    if run_up and settings.run_up > 0:
        u = system.solve(u, settings.run_up, LENGTH / fine)
    for n in range(times + 1):
        if n:
            u = system.solve(u, dt, LENGTH / fine)
        if not u.isfinite().all():
            raise RecipeError(
                f"--max-dt {settings.max_dt:g}: the solver that makes the data overflows with steps so long on "
                f"{fine} x {fine} points; make it shorter"
            )
        yield u[0, :, :: system.refined, :: system.refined]


def observed(settings: PDESettings, seed: int, block: int) -> Tensor:
    """Fresh data of a block: (steps + 1, samples, C, H, W), half of it after the run-up, with noise on every time."""
    assert settings.dt is not None
    random, steps = generator(seed, block), max(block, 1)
    samples = [
        torch.stack(list(trajectory(settings, random, sample % 2 == 1, steps, settings.dt)))
        for sample in range(settings.samples)
    ]
    u = torch.stack(samples, 1)
    scale = settings.noise * u[0].std((-2, -1), correction=0, keepdim=True)
    return u + scale * torch.randn(u.shape, generator=random, dtype=u.dtype)
