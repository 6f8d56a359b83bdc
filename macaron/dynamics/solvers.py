"""Explicit solvers: how one flow is followed for a while, given its velocity field.

A solver is data, an explicit Runge–Kutta tableau (Butcher 1964). With h the step and F the field:

    k_i = F(x + h Σ_{j<i} a_ij k_j),   i = 1 … s
    y   = x + h Σ_i b_i k_i

    EULER            k₁                       order 1: a residual block
    BACKWARD_EULER   F(x + h F(x))            order 1: PolyNet's x + F + F², two terms of (1 − hF)⁻¹ for a linear F
    MIDPOINT         F(x + ½h F(x))           order 2
    HEUN             ½ (k₁ + F(x + h k₁))     order 2
    RK4              the classical one        order 4
    HEUN_LEARNED     Heun's stages, weighed by a gate that is learned (`Gate`), as the ODE Transformer's RK2 is
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Field = Callable[[Tensor], Tensor]  # x ↦ dx/dt, of one shape
Weighing = Callable[[list[Tensor]], Sequence[Tensor]]  # velocities of the stages ↦ their weights, summing to 1


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge–Kutta method of s stages.

    Args:
        name: how options and messages call it.
        a: for each stage the weights of the stages before it: (), (a₂₁,), (a₃₁, a₃₂), …
        b: s weights of the result; they add up to 1.
        order: of convergence.
        learned: `b` is where the weights of the result begin; a `Gate` learns others.

    Raises:
        ValueError: numbers that make no explicit, consistent method.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    learned: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", tuple(map(tuple, self.a)))
        object.__setattr__(self, "b", tuple(self.b))
        lengths = [len(row) for row in self.a]
        if not self.b or lengths != list(range(len(self.b))):
            raise ValueError(
                f"Tableau {self.name!r}: its rows have {lengths} entries for {len(self.b)} stages; an explicit method "
                f"has one row a stage, of 0, 1, 2 … entries"
            )
        if not all(math.isfinite(weight) for row in (*self.a, self.b) for weight in row):
            raise ValueError(f"Tableau {self.name!r}: its entries must be finite numbers")
        if abs(sum(self.b) - 1.0) > 1e-9:
            raise ValueError(
                f"Tableau {self.name!r}: its weights b add up to {sum(self.b):g}, but must add up to 1, or it follows "
                f"another equation; rescale them"
            )
        if self.learned and self.b != (1 / 2, 1 / 2):
            raise ValueError(f"Tableau {self.name!r}: weights that are learned belong to two stages, from ½ each")

    @property
    def stages(self) -> int:
        """How often the field is evaluated in a step."""
        return len(self.b)


EULER = Tableau("euler", ((),), (1.0,), order=1)
BACKWARD_EULER = Tableau("backward_euler", ((), (1.0,)), (0.0, 1.0), order=1)
MIDPOINT = Tableau("midpoint", ((), (1 / 2,)), (0.0, 1.0), order=2)
HEUN = Tableau("heun", ((), (1.0,)), (1 / 2, 1 / 2), order=2)
RK4 = Tableau("rk4", ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)
HEUN_LEARNED = Tableau("heun_learned", ((), (1.0,)), (1 / 2, 1 / 2), order=1, learned=True)

_BUILT_IN = (EULER, BACKWARD_EULER, MIDPOINT, HEUN, HEUN_LEARNED, RK4)
SOLVERS = {solver.name: solver for solver in _BUILT_IN}


class Gate(nn.Module):
    """The learned weights of two stages (Li et al. 2022, ODE Transformer, arXiv:2203.09176), one pair a particle.

        g = σ(w · [k₁; k₂] + b),   y = x + h (g k₁ + (1 − g) k₂)

    w and b begin at 0, so that training begins with Heun's method. A step is of second order where g = ½, else first.

    Args:
        dim: C, the last dimension of the velocities.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * dim))
        self.bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, velocities: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Two of (…, C) → two of (…, 1)."""
        first, second = velocities
        a, b = self.weight.chunk(2)
        g = torch.sigmoid((first * a + second * b).sum(-1, keepdim=True) + self.bias)
        return g, 1 - g


def register_solver(solver: Tableau) -> Tableau:
    """Let both hosts' `solver` take `solver.name`; registering the same again changes nothing.

    Raises:
        ValueError: a name that means another solver, or that is none.
    """
    if SOLVERS.get(solver.name, solver) != solver:
        raise ValueError(f"solver={solver.name!r} is registered already; choose another name")
    if not isinstance(solver.name, str) or not solver.name.isidentifier():
        raise ValueError(f"solver={solver.name!r} cannot be a name; use letters, digits and underscores")
    SOLVERS[solver.name] = solver
    return solver


def is_built_in_solver(name: str) -> bool:
    """Whether every installation of this package knows the solver."""
    return name in [solver.name for solver in _BUILT_IN]


def get_solver(name: str | Tableau) -> Tableau:
    """The solver of that name; a tableau of one's own is taken as it is.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(name, Tableau):
        return name
    if not isinstance(name, str) or name not in SOLVERS:
        raise ValueError(f"solver={name!r} is unknown; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def follow(field: Field, x: Tensor, step: float, solver: Tableau = EULER, weighing: Weighing | None = None) -> Tensor:
    """One step of `solver` along `field`.

    Args:
        field: x ↦ dx/dt. It is evaluated `solver.stages` times, so whatever is random in it must be drawn before.
        x: any shape.
        step: h, in units of time.
        weighing: from the velocities of all stages to weights in the place of `solver.b`; a solver that is `learned`
            has its `Gate` here, and without one is that of its `b`.

    Returns:
        Where the particles are then, shape and dtype of `x`.
    """
    velocities: list[Tensor] = []
    for row in solver.a:
        velocities.append(field(_moved(x, velocities, row, step)))
    if weighing is not None:
        weights = weighing(velocities)
        return x + step * sum(w * velocity for w, velocity in zip(weights, velocities, strict=True))
    return _moved(x, velocities, solver.b, step)


def _moved(x: Tensor, velocities: list[Tensor], weights: tuple[float, ...], step: float) -> Tensor:
    """x + h Σ w_i k_i, without the terms that are zero."""
    for velocity, weight in zip(velocities, weights, strict=True):
        if weight:
            x = x.add(velocity, alpha=step * weight)
    return x
