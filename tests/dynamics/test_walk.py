"""Solvers and the walk over a splitting: what they evaluate, and where the particles are after each substep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from macaron.dynamics.solvers import (
    BACKWARD_EULER,
    EULER,
    HEUN,
    MIDPOINT,
    RK4,
    SOLVERS,
    Tableau,
    follow,
    get_solver,
    register_solver,
)
from macaron.dynamics.splitting import FFN, LIE, SELF_ATTENTION, STRANG
from macaron.dynamics.walk import walk

A = torch.tensor([[0.3, -1.0, 0.2], [0.5, 0.1, 0.0], [-0.7, 0.4, 0.9]], dtype=torch.float64)
X = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize(
    ("solver", "terms"),
    [
        (EULER, (1.0, 1.0)),
        (BACKWARD_EULER, (1.0, 1.0, 1.0)),  # PolyNet: 1 + F + F²
        (MIDPOINT, (1.0, 1.0, 1 / 2)),
        (HEUN, (1.0, 1.0, 1 / 2)),
        (RK4, (1.0, 1.0, 1 / 2, 1 / 6, 1 / 24)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_solver_on_a_linear_field_is_its_stability_polynomial(solver: Tableau, terms: tuple[float, ...]) -> None:
    h = 0.7
    expected = sum(c * h**k * torch.linalg.matrix_power(A, k) @ X for k, c in enumerate(terms))
    torch.testing.assert_close(follow(lambda x: A @ x, X, h, solver), expected)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_the_field_is_evaluated_once_a_stage_and_gradients_pass(solver: Tableau) -> None:
    calls = []

    def field(x: Tensor) -> Tensor:
        calls.append(x)
        return torch.tanh(A @ x)

    follow(field, X, 0.5, solver)
    assert len(calls) == solver.stages and calls[0] is X
    assert torch.autograd.gradcheck(lambda x: follow(field, x, 0.5, solver), (X.clone().requires_grad_(),))
    half = follow(lambda x: x, X.bfloat16(), 0.5, solver)
    assert half.dtype == torch.bfloat16


def test_errors_of_a_tableau() -> None:
    with pytest.raises(ValueError, match=r"rows have \[0, 2\] entries for 2 stages; an explicit method"):
        Tableau("implicit", ((), (0.5, 0.5)), (0.5, 0.5), order=2)
    with pytest.raises(ValueError, match=r"rows have \[0\] entries for 2 stages"):
        Tableau("short", ((),), (0.5, 0.5), order=2)
    with pytest.raises(ValueError, match=r"b add up to 0.5, but must add up to 1"):
        Tableau("half", ((),), (0.5,), order=1)
    for a, b in ((1.0, (float("nan"), 1.0)), (float("inf"), (0.5, 0.5))):
        with pytest.raises(ValueError, match="its entries must be finite numbers"):
            Tableau("endless", ((), (a,)), b, order=1)
    with pytest.raises(ValueError, match=r"solver='rk5' is unknown; choose one of euler, backward_euler, midpoint"):
        get_solver("rk5")
    assert get_solver("heun") is HEUN and get_solver(RK4) is RK4


def test_a_solver_of_ones_own() -> None:
    ralston = Tableau("ralston", ((), (2 / 3,)), (1 / 4, 3 / 4), order=2)
    assert register_solver(ralston) is register_solver(ralston) is get_solver("ralston")
    try:
        with pytest.raises(ValueError, match="solver='ralston' is registered already"):
            register_solver(Tableau("ralston", ((), (1.0,)), (1 / 2, 1 / 2), order=2))
        with pytest.raises(ValueError, match="solver='two words' cannot be a name"):
            register_solver(Tableau("two words", ((),), (1.0,), order=1))
    finally:
        del SOLVERS["ralston"]


def test_every_substep_is_seen() -> None:
    fields = {FFN: lambda x: A @ x, SELF_ATTENTION: torch.sin}
    seen = list(walk(STRANG, fields, X, dt=0.4))
    assert tuple(substep for substep, _ in seen) == STRANG.substeps
    y = X + 0.2 * (A @ X)
    torch.testing.assert_close(seen[0][1], y)
    y = y + 0.4 * y.sin()
    torch.testing.assert_close(seen[1][1], y)
    torch.testing.assert_close(seen[2][1], y + 0.2 * (A @ y))


def test_a_field_for_each_substep() -> None:
    one, two = (lambda x: A @ x), torch.sin
    by_place = list(walk(STRANG, [one, two, torch.cos], X))
    by_name = list(walk(STRANG, {FFN: one, SELF_ATTENTION: two}, X))
    torch.testing.assert_close(by_place[1][1], by_name[1][1], rtol=0, atol=0)  # the same operations: to the bit
    assert not torch.equal(by_place[2][1], by_name[2][1])


def test_errors_of_a_walk() -> None:
    with pytest.raises(ValueError, match=r"2 fields were given for the 3 substeps of splitting 'strang' \(ffn/2 att"):
        list(walk(STRANG, [torch.sin, torch.sin], X))
    with pytest.raises(ValueError, match=r"'lie' follows ffn, but the fields given are self_attention; give a field"):
        list(walk(LIE, {SELF_ATTENTION: torch.sin}, X))
