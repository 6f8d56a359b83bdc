"""Explicit solvers: how one flow is followed for a while, given its velocity field.

A solver is data, an explicit Runge–Kutta tableau (Butcher 1964). With h the step and F the field:

    k_i = F(x + h Σ_{j<i} a_ij k_j),   i = 1 … s
    y   = x + h Σ_i b_i k_i

    EULER            k₁                       order 1: a residual block
    BACKWARD_EULER   F(x + h F(x))            order 1: PolyNet's x + F + F², two terms of (1 − hF)⁻¹ for a linear F
    MIDPOINT         F(x + ½h F(x))           order 2
    HEUN             ½ (k₁ + F(x + h k₁))     order 2
    RK4              the classical one        order 4
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Field = Callable[[Tensor], Tensor]  # x ↦ dx/dt, of one shape


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge–Kutta method of s stages.

    Args:
        name: how options and messages call it.
        a: for each stage the weights of the stages before it: (), (a₂₁,), (a₃₁, a₃₂), …
        b: s weights of the result; they add up to 1.
        order: of convergence.

    Raises:
        ValueError: numbers that make no explicit, consistent method.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

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

    @property
    def stages(self) -> int:
        """How often the field is evaluated in a step."""
        return len(self.b)


EULER = Tableau("euler", ((),), (1.0,), order=1)
BACKWARD_EULER = Tableau("backward_euler", ((), (1.0,)), (0.0, 1.0), order=1)
MIDPOINT = Tableau("midpoint", ((), (1 / 2,)), (0.0, 1.0), order=2)
HEUN = Tableau("heun", ((), (1.0,)), (1 / 2, 1 / 2), order=2)
RK4 = Tableau("rk4", ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)

SOLVERS = {solver.name: solver for solver in (EULER, BACKWARD_EULER, MIDPOINT, HEUN, RK4)}


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


def follow(field: Field, x: Tensor, step: float, solver: Tableau = EULER) -> Tensor:
    """One step of `solver` along `field`.

    Args:
        field: x ↦ dx/dt. It is evaluated `solver.stages` times, so whatever is random in it must be drawn before.
        x: any shape.
        step: h, in units of time.

    Returns:
        Where the particles are then, shape and dtype of `x`.
    """
    velocities: list[Tensor] = []
    for row in solver.a:
        velocities.append(field(_moved(x, velocities, row, step)))
    return _moved(x, velocities, solver.b, step)


def _moved(x: Tensor, velocities: list[Tensor], weights: tuple[float, ...], step: float) -> Tensor:
    """x + h Σ w_i k_i, without the terms that are zero."""
    for velocity, weight in zip(velocities, weights, strict=True):
        if weight:
            x = x.add(velocity, alpha=step * weight)
    return x
