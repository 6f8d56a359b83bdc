"""Splittings: validation, the named ones, their notation and their registry."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macaron.dynamics import splitting as module
from macaron.dynamics.splitting import (
    CROSS_ATTENTION,
    FFN,
    LIE,
    SELF_ATTENTION,
    STRANG,
    Splitting,
    Substep,
    get_splitting,
    register_splitting,
)


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
    for flow in ("", "f g", "f/2", None):
        with pytest.raises(ValueError, match="is no name; use letters, digits and underscores"):
            Substep(flow, 1.0)
    for share in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
            Substep(FFN, share)
    with pytest.raises(ValueError, match=r"shares of 'ffn' add up to 0.5, but .* rescale"):
        Splitting("half", (Substep(SELF_ATTENTION, 1.0), Substep(FFN, 0.5)))
    with pytest.raises(ValueError, match="has no substeps; give at least one"):
        Splitting("empty", ())


def test_a_flow_may_have_any_name() -> None:
    advection = Splitting("mine", (Substep("diffusion", 0.5), Substep("advection", 1.0), Substep("diffusion", 0.5)))
    assert advection.flows == ("diffusion", "advection") and advection.order == 2
    assert advection.notation == "diffusion/2 advection diffusion/2"


# --- notation ---------------------------------------------------------------------------------------------------


def test_the_notation_of_the_named_ones() -> None:
    assert STRANG.notation == "ffn/2 attention ffn/2" and LIE.notation == "attention ffn"
    assert get_splitting("ffn/2 attention ffn/2").substeps == STRANG.substeps
    assert get_splitting("attention ffn").substeps == LIE.substeps
    assert get_splitting("  self_attention \t ffn ").name == "self_attention ffn"
    assert STRANG.with_cross_attention().notation == "ffn/2 attention cross_attention ffn/2"
    assert get_splitting(LIE) is LIE and get_splitting(" strang\n") is STRANG


@pytest.mark.parametrize(
    ("notation", "reason"),
    [
        ("ffn/2 attention", r"the shares of 'ffn' add up to 0.5"),
        ("ffn attention ffn", r"the shares of 'ffn' add up to 2"),
        ("ffn/0 attention", r"'ffn/0' is no substep"),
        ("ffn/0.5 attention", r"'ffn/0.5' is no substep"),
        ("ffn/-2 attention ffn/2", r"'ffn/-2' is no substep"),
        ("ffn/2/2 attention", r"'ffn/2/2' is no substep"),
        ("ffn/two attention", r"'ffn/two' is no substep"),
        ("ffn/1e0 attention", r"'ffn/1e0' is no substep"),
        ("ffn/² attention", r"'ffn/²' is no substep"),
        ("ffn*2 attention", r"'ffn\*2' is no substep"),
        ("ffn, attention", r"'ffn,' is no substep"),
        ("__import__('os') ffn", r"is no substep; write a flow"),
        ("ffn/nan attention", r"'ffn/nan' is no substep"),
        ("", "has no substeps"),
    ],
)
def test_a_notation_that_does_not_hold_together(notation: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        get_splitting(notation)


def test_a_host_says_which_flows_it_has_and_needs() -> None:
    host = {"known": (FFN, SELF_ATTENTION), "needed": (FFN, SELF_ATTENTION)}
    assert STRANG.check_flows(**host) is STRANG
    with pytest.raises(ValueError, match=r"flow 'conv' is unknown here; choose from ffn, attention"):
        get_splitting("conv ffn attention").check_flows(**host)
    with pytest.raises(ValueError, match=r"no substep follows 'attention', which every layer needs"):
        get_splitting("ffn/2 ffn/2").check_flows(**host)
    decoder = STRANG.with_cross_attention()
    assert decoder.without(CROSS_ATTENTION).substeps == STRANG.substeps


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPLITTINGS", dict(module.SPLITTINGS))


@pytest.mark.usefixtures("registry")
def test_registering_a_splitting() -> None:
    double = Splitting.parse("attention/2 ffn/2 attention/2 ffn/2", name="double_lie")
    assert register_splitting(double) is double and get_splitting("double_lie") is double
    register_splitting(double)  # the same again
    with pytest.raises(
        ValueError, match=r"'double_lie' is registered as 'attention/2 ffn/2 attention/2 ffn/2' already"
    ):
        register_splitting(Splitting("double_lie", LIE.substeps))
    with pytest.raises(ValueError, match=r"'strang' is registered"):
        register_splitting(Splitting("strang", LIE.substeps))
    for name in ("ffn", "attention", "two words", "a/2", ""):
        with pytest.raises(ValueError, match="cannot be a name"):
            register_splitting(Splitting(name, LIE.substeps))
    with pytest.raises(ValueError, match="choose one of strang, lie, double_lie"):
        get_splitting("yoshida")


@st.composite
def splittings(draw: st.DrawFn) -> Splitting:
    """Three flows, each divided into equal parts, in any order."""
    parts = {flow: draw(st.integers(1, 7)) for flow in (FFN, SELF_ATTENTION, "drift")}
    substeps = [Substep(flow, 1 / n) for flow, n in parts.items() for _ in range(n)]
    return Splitting("drawn", tuple(draw(st.permutations(substeps))))


@given(splittings())
def test_notation_and_pickle_go_both_ways(splitting: Splitting) -> None:
    again = Splitting.parse(splitting.notation, name=splitting.name)
    assert again.flows == splitting.flows and again.notation == splitting.notation
    assert [s.share for s in again.substeps] == [s.share for s in splitting.substeps]
    assert pickle.loads(pickle.dumps(splitting)) == splitting
