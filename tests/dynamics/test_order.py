"""The mathematics: orders of convergence of the library's own steps, on systems whose solution is known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from macaron.dynamics.solvers import BACKWARD_EULER, EULER, HEUN, MIDPOINT, RK4, Field, Tableau, follow
from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, LIE, SELF_ATTENTION, STRANG, Splitting, Substep
from macaron.dynamics.walk import walk

SOLVERS = (EULER, BACKWARD_EULER, MIDPOINT, HEUN, RK4)

# Of an error C hᵖ (1 + c hᵏ + …), steps h and h/2 measure p + c hᵏ (1 − 2⁻ᵏ) / ln 2: tolerances are for this next term.
# At h = 1/64 it is 0.011 c where k = 1, and 0.0003 c where k = 2, as for a symmetric splitting of (nearly) exact flows.
# Another order is away by 1.
NEXT = 0.05  # c ≤ 4
NEXT_OF_SYMMETRIC = 5e-3  # c ≤ 19


def integrate(splitting: Splitting, fields: Mapping[str, Field], x: Tensor, n: int, solver: Tableau) -> Tensor:
    """n steps over a time of 1: what a stack of n layers does."""
    for _ in range(n):
        *_, (_, x) = walk(splitting, fields, x, dt=1 / n, solver=solver)
    return x


def measured_order(
    splitting: Splitting, fields: Mapping[str, Field], x: Tensor, exact: Tensor, solver: Tableau
) -> float:
    errors = [(integrate(splitting, fields, x, n, solver) - exact).norm() for n in (64, 128)]
    return math.log2(errors[0] / errors[1])


def linear_system(n_flows: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """dx/dt = (Σ A_f) x with matrices that do not commute; its solution is exp(Σ A_f) x₀."""
    names = (FFN, SELF_ATTENTION, CROSS_ATTENTION)[:n_flows]
    generator = torch.Generator().manual_seed(1906)
    matrices = {name: torch.randn(5, 5, dtype=torch.float64, generator=generator) for name in names}
    x = torch.randn(5, dtype=torch.float64, generator=generator)
    return matrices, x, torch.linalg.matrix_exp(sum(matrices.values())) @ x


def fields_of(matrices: Mapping[str, Tensor]) -> dict[str, Field]:
    return {name: lambda x, a=a: a @ x for name, a in matrices.items()}


def pendulum(x: Tensor) -> Tensor:
    return torch.stack([x[1], -torch.sin(x[0])])


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_a_solver_is_of_its_order_on_a_nonlinear_field(solver: Tableau) -> None:
    def solve(n: int, by: Tableau) -> Tensor:
        x = torch.tensor([1.0, 0.5], dtype=torch.float64)
        for _ in range(n):
            x = follow(pendulum, x, 1 / n, by)
        return x

    exact = solve(1 << 11, RK4)  # its own error is below 1e-14
    errors = [(solve(n, solver) - exact).norm() for n in (16, 32)]
    # the next term, k = 1 and h = 1/16: 0.045 c with c ≤ 2
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.1)


@pytest.mark.parametrize(
    ("splitting", "solver", "order"),
    [
        (LIE, EULER, 1),
        (LIE, MIDPOINT, 1),
        (LIE, RK4, 1),
        (STRANG, EULER, 1),
        (STRANG, BACKWARD_EULER, 1),
        (STRANG, MIDPOINT, 2),
        (STRANG, HEUN, 2),
        (STRANG, RK4, 2),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_order_of_a_splitting_with_a_solver(splitting: Splitting, solver: Tableau, order: int) -> None:
    matrices, x, exact = linear_system(2)
    # twice the usual, for Euler's steps along matrices of norm 5
    assert measured_order(splitting, fields_of(matrices), x, exact, solver) == pytest.approx(order, abs=2 * NEXT)


def test_the_decoders_form_is_of_first_order_unless_the_attentions_are_one_flow() -> None:
    matrices, x, exact = linear_system(3)
    decoder = STRANG.with_cross_attention()
    assert decoder.order == 1
    assert measured_order(decoder, fields_of(matrices), x, exact, RK4) == pytest.approx(1, abs=NEXT)
    together = {FFN: matrices[FFN], SELF_ATTENTION: matrices[SELF_ATTENTION] + matrices[CROSS_ATTENTION]}
    assert measured_order(STRANG, fields_of(together), x, exact, RK4) == pytest.approx(2, abs=NEXT_OF_SYMMETRIC)


def test_strang_on_a_harmonic_oscillator_is_verlet() -> None:
    """dq/dt = p and dp/dt = −q, split into the two: a nilpotent field is followed exactly by Euler's step."""
    kick = torch.tensor([[0.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    drift = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    exact = torch.tensor([math.cos(1.0), -math.sin(1.0)], dtype=torch.float64)
    fields = fields_of({FFN: kick, SELF_ATTENTION: drift})
    assert measured_order(STRANG, fields, x, exact, EULER) == pytest.approx(2, abs=NEXT_OF_SYMMETRIC)
    assert measured_order(LIE, fields, x, exact, EULER) == pytest.approx(1, abs=NEXT)


def test_orders_on_an_interacting_particle_system() -> None:
    """Particles drawn to their mean (interaction) with logistic growth (alone)."""
    fields: dict[str, Field] = {SELF_ATTENTION: lambda x: 2 * (x.mean() - x), FFN: lambda x: x * (1 - x)}
    x = torch.tensor([0.1, 0.3, 0.35, 0.8], dtype=torch.float64)
    exact = integrate(STRANG, fields, x, 1 << 12, RK4)  # error (64/4096)² of what is measured
    assert measured_order(STRANG, fields, x, exact, RK4) == pytest.approx(2, abs=NEXT_OF_SYMMETRIC)
    assert measured_order(STRANG, fields, x, exact, MIDPOINT) == pytest.approx(2, abs=NEXT)  # not symmetric
    assert measured_order(LIE, fields, x, exact, RK4) == pytest.approx(1, abs=NEXT)


@st.composite
def splittings(draw: st.DrawFn) -> Splitting:
    """FFN and self-attention in alternation, each divided at random; symmetric ones among them."""
    weights = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    if draw(st.booleans()):
        weights = weights + weights[-2::-1]
    total = [sum(weights[0::2]), sum(weights[1::2])]
    kinds = (FFN, SELF_ATTENTION)
    return Splitting("drawn", tuple(Substep(kinds[i % 2], w / total[i % 2]) for i, w in enumerate(weights)))


@settings(max_examples=30)  # an example is a thousand small steps
@given(splittings())
def test_order_is_what_is_measured(splitting: Splitting) -> None:
    matrices, x, exact = linear_system(2)
    measured = measured_order(splitting, fields_of(matrices), x, exact, RK4)
    # a nearly symmetric splitting converges faster at first than in the end
    assert measured == pytest.approx(2, abs=NEXT) if splitting.order == 2 else measured < 1.9
