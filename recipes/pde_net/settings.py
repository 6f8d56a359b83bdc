"""What a run is: one frozen record, every number of it in the report. This file does not import torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..common.errors import RecipeError

WORDS = ("frozen", "moment", "free")
MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class PDESettings:
    """The settings that a result depends on, but for constraint, solver and seed, which make the runs of a folder."""

    system: str  # burgers, reaction_diffusion or data
    blocks: tuple[int, ...]  # steps of Δt in each block, in the order of training; 0: the warm-up
    samples: int  # trajectories of a block
    iterations: int  # of BFGS in a block, at most
    size: int  # of the filters
    max_order: int  # of the derivatives
    layers: int  # products of a SymNet
    scheme: str  # upwind or central
    sparsity: float  # weight of the SymNets' parameters in the loss of a step
    moment_sparsity: float  # and of the moments
    degree: int  # of the monomials that are read
    noise: float  # times the standard deviation of the initial field
    grid: int | None = None  # points of an axis; None for data of one's own, as all that follows but held_out
    dt: float | None = None  # Δt
    max_dt: float | None = None  # longest step of the solver that makes the data
    run_up: float | None = None  # time after which half of the trajectories are observed
    viscosity: float | None = None  # of Burgers' equation
    test: int | None = None  # trajectories of the roll-outs
    horizon: float | None = None  # of the roll-outs
    held_out: float | None = None  # share of the samples, or of the times of a single one
    data: str | None = None  # sha256 of the file
    components: tuple[str, ...] = ("u", "v")

    def check(self) -> None:
        """
        Raises:
            RecipeError: a number that no run can have.
        """
        least = {"samples": 1, "iterations": 1, "layers": 0, "degree": 1, "max_order": 1, "size": 3}
        least |= {"grid": 5, "test": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise RecipeError(f"--{flag(name)} {value}: must be at least {low}")
        for name in ("sparsity", "moment_sparsity", "noise", "run_up"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise RecipeError(f"--{flag(name)} {value}: must be a finite number, 0 or more")
        for name in ("dt", "max_dt", "viscosity", "horizon"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RecipeError(f"--{flag(name)} {value}: must be a positive, finite number")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise RecipeError(f"--held-out {self.held_out}: is a share and must lie between 0 and 1")
        if self.horizon is not None and self.dt is not None and self.horizon < self.dt:
            raise RecipeError(f"--horizon {self.horizon}: must be at least --dt {self.dt}")
        for whole, part in (("dt", "max_dt"), ("run_up", "max_dt"), ("horizon", "dt")):
            time, step = getattr(self, whole), getattr(self, part)
            if time is not None and step is not None and time > MOST_STEPS * step:
                raise RecipeError(
                    f"--{flag(whole)} {time:g} in steps of --{flag(part)} {step:g} has more than {MOST_STEPS:,}; "
                    f"take longer steps"
                )


def flag(name: str) -> str:
    return name.replace("_", "-")


PRESETS = {
    "burgers": PDESettings(
        system="burgers",
        blocks=(0, 1, 2, 3, 4),
        samples=12,
        iterations=400,
        size=5,
        max_order=2,
        layers=5,
        scheme="upwind",
        sparsity=0.005,
        moment_sparsity=0.001,
        degree=2,
        noise=0.001,
        grid=32,
        dt=0.01,
        max_dt=1 / 400,
        run_up=1.0,
        viscosity=0.05,
        test=8,
        horizon=4.0,
    ),
    "reaction_diffusion": PDESettings(
        system="reaction_diffusion",
        blocks=(0, 1, 2, 3),
        samples=12,
        iterations=400,
        size=5,
        max_order=2,
        layers=5,
        scheme="central",
        sparsity=0.005,
        moment_sparsity=0.001,
        degree=3,
        noise=0.001,
        grid=32,
        dt=0.01,
        max_dt=1 / 100,
        run_up=1.0,
        test=8,
        horizon=4.0,
    ),
    "data": PDESettings(
        system="data",
        blocks=(0, 1, 2, 3),
        samples=12,
        iterations=400,
        size=5,
        max_order=2,
        layers=5,
        scheme="upwind",
        sparsity=0.005,
        moment_sparsity=0.001,
        degree=2,
        noise=0.0,
        held_out=0.2,
        components=(),
    ),
}


def settings_for(system: str, **overrides: Any) -> PDESettings:
    """The preset with the given values (None: keep) in place of its own.

    Raises:
        RecipeError: a value that no run can have, or one that this system does not know.
    """
    preset = PRESETS[system]
    given = {name: value for name, value in overrides.items() if value is not None}
    for name in given:
        if getattr(preset, name) is None and name != "data":
            what = "--data, whose file says it" if system == "data" else f"--system {system}"
            raise RecipeError(f"--{flag(name)} {given[name]}: does not go with {what}; leave it out")
    settings = dataclasses.replace(preset, **given)
    settings.check()
    return settings


def blocks(text: str) -> tuple[int, ...]:
    """ "0-6,9,12" → (0, 1, 2, 3, 4, 5, 6, 9, 12).

    Raises:
        RecipeError: another notation, or numbers that do not rise.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})(?:-(\d{1,3}))?\s*", part)
        if not match:
            raise RecipeError(f"--blocks {text}: {part!r} is no number of steps and no range; write such as 0-6,9,12")
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1) if last >= first else [first, last]
    if any(later <= earlier for earlier, later in itertools.pairwise(found)):
        raise RecipeError(f"--blocks {text}: the numbers of steps must rise; write such as 0-6,9,12")
    return tuple(found)


def constraint(text: str) -> int | str:
    """A word or a number from 1, as `DerivativeFilter` takes it."""
    if text in WORDS:
        return text
    if not re.fullmatch(r"[1-9]\d?", text):
        raise RecipeError(f"--constraint {text}: is none; choose a number from 1, or one of {', '.join(WORDS)}")
    return int(text)


@dataclass(frozen=True)
class PDEVariant:
    """What is compared on equal data."""

    constraint: int | str
    solver: str

    @property
    def name(self) -> str:
        return f"{self.constraint}-{self.solver}"

    @property
    def title(self) -> str:
        kind = {"frozen": "frozen filters", "free": "free filters"}.get(
            str(self.constraint), f"trained filters, constraint {self.constraint}"
        )
        return f"{kind}, {self.solver}"


def constraints_for(settings: PDESettings) -> tuple[str, str]:
    """Burgers' as in the talk. Where u itself is a term, its filter must have no moment to be a derivative with.

    A filter of order m whose moments are held below order m + c may be any mixture with derivatives of order m + c
    and higher, and the coefficients do not tell: c is taken above the highest derivative.
    """
    return ("frozen", "2" if settings.system == "burgers" else str(settings.max_order + 1))


def variants(constraints: Sequence[str], solvers: Sequence[str]) -> list[PDEVariant]:
    """Each once, in the order given."""
    return list(dict.fromkeys(PDEVariant(constraint(c), s) for s in solvers for c in constraints))
