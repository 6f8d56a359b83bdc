"""Equations read off, and roll-outs."""

from __future__ import annotations

import math

import pytest
import torch

from macaron.pde import PDENet
from recipes.pde_net import evaluation


def linear(coefficients: dict[str, float]) -> PDENet:
    """u_t = Σ c · channel."""
    net = PDENet(["u"], layers=1, scheme="central")
    symnet = net.symnets[0]
    with torch.no_grad():
        for parameter in symnet.parameters():
            parameter.zero_()
        for name, c in coefficients.items():
            symnet.layer_final.weight[0, symnet.channels.index(name)] = c
    return net


def polynomial(coefficients: dict[str, float], net: PDENet, features: torch.Tensor) -> torch.Tensor:
    terms = [c * evaluation.term_of(name, net.symnets[0].channels, features) for name, c in coefficients.items()]
    return torch.stack(terms).sum(0)


def test_polynomial_and_what_is_beyond_it():
    torch.manual_seed(3)
    net = PDENet(["v"], layers=2, scheme="central")
    u = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        features = net.features(u)
        whole = net.symnets[0].coefficients(precision=30)
        torch.testing.assert_close(polynomial(whole, net, features), net.symnets[0](features))
        full, cut = evaluation.equations(net, u, 4), evaluation.equations(net, u, 1)
    assert full[0]["beyond"] < 1e-3  # what is below 1e-6 is dropped on the way
    high = {name: c for name, c in whole.items() if name.count("*") and name != "1"}
    with torch.no_grad():
        rest = polynomial(high, net, features)
        share = (rest.square().mean() / net.symnets[0](features).square().mean()).sqrt().item()
    assert cut[0]["beyond"] == pytest.approx(share, rel=1e-3) and share > 0.01
    assert cut[0]["formula"].startswith("v_t = ") and all("*" not in name for name in cut[0]["coefficients"])


def truth(rate: float, frames: int, dt: float, starts: tuple[float, ...] = (1.0, 2.0)) -> torch.Tensor:
    """u_t = rate · u from uniform fields: (frames + 1, B, 1, 8, 8)."""
    grown = torch.tensor([math.exp(rate * dt * i) for i in range(frames + 1)], dtype=torch.float64)
    return torch.einsum("t,b->tb", grown, torch.tensor(starts, dtype=torch.float64))[..., None, None, None].expand(
        -1, -1, 1, 8, 8
    )


def test_error_of_a_roll_out():
    """Each frame is two Euler steps: 1.1² against e^0.2."""
    found = evaluation.roll_out(linear({"u00": 1.0}), truth(1.0, 4, 0.2), 0.1, 2, "euler")
    want = [((1.21**n - math.exp(0.2 * n)) / math.exp(0.2 * n)) ** 2 for n in (1, 2, 3, 4)]
    assert found.times == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for trajectory in (0, 1):
        assert found.error[:, trajectory].tolist() == pytest.approx(want)
    assert found.blown_up == [None, None]
    assert found.last.unique().item() == pytest.approx(1.21**2)
    better = evaluation.roll_out(linear({"u00": 1.0}), truth(1.0, 4, 0.2), 0.1, 2, "heun")
    assert (better.error < found.error / 50).all()  # h²/6 in the place of h/2, squared, is 900


def test_the_time_of_a_blow_up():
    """u_t = 10 u with steps of 0.1 doubles: more than ten times the truth's largest value after 4 steps."""
    constant = truth(0.0, 8, 0.1, (2.0, 1.0))
    found = evaluation.roll_out(linear({"u00": 10.0}), constant, 0.1, 1, "euler")
    assert found.blown_up == pytest.approx([0.4, 0.4])
    assert found.error[:3].isfinite().all() and found.error[3:].isnan().all()
    record = found.record()
    assert record["error"][3] == [None, None] and record["error"][0] == pytest.approx([1.0, 1.0])


def test_nan_is_a_blow_up_and_the_others_go_on():
    net = linear({"u00": -1.0})
    start = truth(-1.0, 3, 0.1)
    calls = 0
    advance = net.advance

    def spoiled(u, dt, solver):
        nonlocal calls
        calls += 1
        after = advance(u, dt, solver)
        if calls == 2:
            after[0] = math.nan
        return after

    net.advance = spoiled
    found = evaluation.roll_out(net, start, 0.1, 1, "euler")
    assert found.blown_up == [0.2, None]
    assert found.error[:, 1].isfinite().all() and found.error[1:, 0].isnan().all()


def test_units_do_not_change_the_equation():
    """u = 3w, v = 5z, t = 2τ: w_τ = 7 w z² + 11 z is u_t = 3/2 · (7/3/25 u v² + 11/5 v)."""
    units = evaluation.Units((3.0, 5.0), 2.0)
    assert 7 * units.of("u00*v00**2", 0, ["u", "v"]) == pytest.approx(1.5 * 7 / 75)
    assert 11 * units.of("v01", 0, ["u", "v"]) == pytest.approx(1.5 * 11 / 5)
    assert units.of("1", 1, ["u", "v"]) == pytest.approx(2.5)


def test_units_are_those_of_the_data():
    random = torch.Generator().manual_seed(1)
    u = torch.randn(3, 4, 2, 8, 8, generator=random, dtype=torch.float64)
    units = evaluation.units_of(u * torch.tensor([1000.0, 1e-3])[:, None, None], 1e-5)
    assert units.fields == pytest.approx((1000.0, 1e-3), rel=0.1)
    assert units.time == pytest.approx(1e-5 / 2**0.5, rel=0.1)  # two independent times differ by √2


def test_terms_in_the_data_s_units_go_by_their_share():
    net = linear({"u00": 1.0, "u01": 1e-5})
    u = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    (found,) = evaluation.equations(net, u, 2, evaluation.Units((10.0,), 1e6))
    assert found["formula"] == "u_t = 1e-06 u"
    assert found["shares"]["u00"] == pytest.approx(1.0, abs=1e-3) and found["shares"]["u01"] < 1e-4
    assert found["coefficients"]["u00"] == pytest.approx(1e-6) and found["beyond"] == pytest.approx(0, abs=1e-6)
