"""All choices as one value, read alike from both hosts' options."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import FrozenInstanceError

import pytest

from macaron.dynamics import EULER, LIE, STRANG, Scheme, get_splitting


def test_defaults_and_options_by_name() -> None:
    assert Scheme.of(Namespace()) == Scheme() == Scheme(STRANG, EULER, "euler", 1.0)
    scheme = Scheme.of(Namespace(splitting="lie", solver="rk4", dt=0.5, hidden_size=3))
    assert (scheme.splitting, scheme.solver.name, scheme.dt) == (LIE, "rk4", 0.5)
    assert Scheme.of(Namespace(splitting="ffn/2 attention ffn/2")).splitting.substeps == STRANG.substeps
    with pytest.raises(FrozenInstanceError):
        scheme.dt = 2.0


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("splitting", "yoshida", "splitting='yoshida' is unknown"),
        ("solver", "rk5", "solver='rk5' is unknown"),
        ("depth_rule", "leapfrog", "depth_rule='leapfrog' is unknown"),
        ("dt", 0.0, "dt=0.0 is not a step"),
        ("dt", -1.0, "dt=-1.0 is not a step"),
        ("dt", float("nan"), "dt=nan is not a step"),
        ("dt", float("inf"), "dt=inf is not a step"),
        ("dt", "fast", "dt='fast' is not a step"),
        ("dt", 10**400, "dt=an integer of many digits is not a step"),
        ("dt", 1e39, r"dt=1e\+39 is not a step; it must be positive and finite, from 1\.18e-38 to 1\.7e\+38"),
        ("dt", 1e-39, "dt=1e-39 is not a step"),
        ("dt", None, "dt=None is not a step"),
        ("splitting", None, "splitting=None is neither a name nor a notation"),
        ("splitting", ["ffn"], r"splitting=\['ffn'\] is neither a name nor a notation"),
        ("solver", [], r"solver=\[\] is unknown"),
        ("depth_rule", {}, r"depth_rule=\{\} is unknown"),
    ],
)
def test_errors_name_value_rule_and_remedy(option: str, value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Scheme.of(Namespace(**{option: value}))


def test_which_ffn_is_the_first() -> None:
    def read(notation: str) -> list[str | None]:
        return list(Scheme(get_splitting(notation)).per_ffn("first", "later"))

    assert read("strang") == ["first", None, "later"]
    assert read("lie") == [None, "later"]
    assert read("attention/2 ffn/2 attention/2 ffn/2") == [None, "later", None, "later"]
    assert read("ffn/3 ffn/3 attention ffn/3") == ["first", "first", None, "later"]
    assert Scheme(STRANG).ffn_width(2048) == 1024 and Scheme(LIE).ffn_width(2048) == 2048
