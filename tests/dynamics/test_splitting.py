"""Splittings: validation, the named ones, and the mathematics: measured orders of convergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from macaron.dynamics.splitting import (
    CROSS_ATTENTION,
    FFN,
    LIE,
    SELF_ATTENTION,
    STRANG,
    Splitting,
    Substep,
    get_splitting,
)

Flow = Callable[[torch.Tensor, float], torch.Tensor]  # (position, time) → position


def test_named_splittings() -> None:
    assert [(s.flow, s.share) for s in LIE.substeps] == [(SELF_ATTENTION, 1.0), (FFN, 1.0)]
    assert [(s.flow, s.share) for s in STRANG.substeps] == [(FFN, 0.5), (SELF_ATTENTION, 1.0), (FFN, 0.5)]
    decoder = STRANG.with_cross_attention()
    assert [s.flow for s in decoder.substeps] == [FFN, SELF_ATTENTION, CROSS_ATTENTION, FFN]
    assert decoder.with_cross_attention() is decoder
    assert get_splitting("strang") is STRANG and get_splitting("lie") is LIE
    assert STRANG.count(FFN) == 2 and LIE.count(FFN) == 1 and LIE.count(CROSS_ATTENTION) == 0


def test_errors_name_value_rule_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"splitting='yoshida' is unknown; choose one of strang, lie"):
        get_splitting("yoshida")
    with pytest.raises(ValueError, match=r"flow='conv' is unknown; choose one of ffn"):
        Substep("conv", 1.0)
    for share in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
            Substep(FFN, share)
    with pytest.raises(ValueError, match=r"shares of 'ffn' add up to 0.5, but .* rescale"):
        Splitting("half", (Substep(SELF_ATTENTION, 1.0), Substep(FFN, 0.5)))
    with pytest.raises(ValueError, match="has no substeps; give at least one"):
        Splitting("empty", ())


# --- order of convergence ---------------------------------------------------------------------------------------


def advance(splitting: Splitting, flows: Mapping[str, Flow], x: torch.Tensor, time: float, n: int) -> torch.Tensor:
    """n steps of a splitting over `time`: what a stack of n layers does."""
    for _ in range(n):
        for substep in splitting.substeps:
            x = flows[substep.flow](x, substep.share * time / n)
    return x


def measured_order(splitting: Splitting, flows: Mapping[str, Flow], x: torch.Tensor, exact: torch.Tensor) -> float:
    errors = [(advance(splitting, flows, x, 1.0, n) - exact).norm() for n in (64, 128)]
    return math.log2(errors[0] / errors[1])


def linear_system(n_flows: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """dx/dt = (Σ A_f) x with matrices that do not commute; its solution is exp(Σ A_f) x₀."""
    names = (FFN, SELF_ATTENTION, CROSS_ATTENTION)[:n_flows]
    generator = torch.Generator().manual_seed(1906)
    matrices = {name: torch.randn(5, 5, dtype=torch.float64, generator=generator) for name in names}
    x = torch.randn(5, dtype=torch.float64, generator=generator)
    return matrices, x, torch.linalg.matrix_exp(sum(matrices.values())) @ x


def exact_flows(matrices: Mapping[str, torch.Tensor]) -> dict[str, Flow]:
    return {name: lambda x, t, a=a: torch.linalg.matrix_exp(a * t) @ x for name, a in matrices.items()}


def euler_flows(matrices: Mapping[str, torch.Tensor]) -> dict[str, Flow]:
    return {name: lambda x, t, a=a: x + t * (a @ x) for name, a in matrices.items()}


def test_strang_is_of_second_order_with_exact_flows_and_lie_of_first() -> None:
    matrices, x, exact = linear_system(2)
    assert measured_order(STRANG, exact_flows(matrices), x, exact) == pytest.approx(2, abs=0.05)
    assert measured_order(LIE, exact_flows(matrices), x, exact) == pytest.approx(1, abs=0.05)


def test_every_splitting_is_of_first_order_with_euler_substeps() -> None:
    matrices, x, exact = linear_system(2)
    for splitting in (STRANG, LIE):
        assert measured_order(splitting, euler_flows(matrices), x, exact) == pytest.approx(1, abs=0.1)


def test_the_decoders_form_is_of_first_order_unless_the_attentions_are_one_flow() -> None:
    matrices, x, exact = linear_system(3)
    decoder = STRANG.with_cross_attention()
    assert decoder.order == 1
    assert measured_order(decoder, exact_flows(matrices), x, exact) == pytest.approx(1, abs=0.05)
    together = {FFN: matrices[FFN], SELF_ATTENTION: matrices[SELF_ATTENTION] + matrices[CROSS_ATTENTION]}
    assert measured_order(STRANG, exact_flows(together), x, exact) == pytest.approx(2, abs=0.05)


def test_strang_on_a_harmonic_oscillator_is_verlet() -> None:
    """dq/dt = p and dp/dt = −q, split into the two: exact flows are shears, and the solution a rotation."""
    kick = torch.tensor([[0.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    drift = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    exact = torch.tensor([math.cos(1.0), -math.sin(1.0)], dtype=torch.float64)
    flows = euler_flows({FFN: kick, SELF_ATTENTION: drift})  # a nilpotent flow is its own Euler step
    assert measured_order(STRANG, flows, x, exact) == pytest.approx(2, abs=0.05)
    assert measured_order(LIE, flows, x, exact) == pytest.approx(1, abs=0.05)


def test_orders_on_an_interacting_particle_system() -> None:
    """Particles drawn to their mean (interaction) with logistic growth (alone): both flows are known exactly."""

    def attraction(x: torch.Tensor, t: float) -> torch.Tensor:
        mean = x.mean()
        return mean + (x - mean) * math.exp(-2.0 * t)

    def growth(x: torch.Tensor, t: float) -> torch.Tensor:
        return x * math.exp(t) / (1 + x * (math.exp(t) - 1))

    x = torch.tensor([0.1, 0.3, 0.35, 0.8], dtype=torch.float64)
    flows = {SELF_ATTENTION: attraction, FFN: growth}
    exact = advance(STRANG, flows, x, 1.0, 1 << 14)  # error (64/16384)² of what is measured
    assert measured_order(STRANG, flows, x, exact) == pytest.approx(2, abs=0.05)
    assert measured_order(LIE, flows, x, exact) == pytest.approx(1, abs=0.05)


@st.composite
def splittings(draw: st.DrawFn) -> Splitting:
    """FFN and self-attention in alternation, each divided at random; symmetric ones among them."""
    weights = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    if draw(st.booleans()):
        weights = weights + weights[-2::-1]
    total = [sum(weights[0::2]), sum(weights[1::2])]
    kinds = (FFN, SELF_ATTENTION)
    return Splitting("drawn", tuple(Substep(kinds[i % 2], w / total[i % 2]) for i, w in enumerate(weights)))


@given(splittings())
def test_order_is_what_is_measured(splitting: Splitting) -> None:
    matrices, x, exact = linear_system(2)
    measured = measured_order(splitting, exact_flows(matrices), x, exact)
    # a nearly symmetric splitting converges faster at first than in the end
    assert measured == pytest.approx(2, abs=0.1) if splitting.order == 2 else measured < 1.9
