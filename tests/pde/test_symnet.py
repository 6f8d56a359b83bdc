"""SymNet is its polynomial."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from macaron.pde import SymNet

EXACT = {"rtol": 0, "atol": 1e-13}  # float64 and numbers of up to 10, by sums in another order


def evaluated(coefficients: Mapping[str, float], values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(next(iter(values.values())))
    for monomial, c in coefficients.items():
        term = torch.full_like(total, c)
        for factor in monomial.replace("**", "^").split("*") if monomial != "1" else ():
            name, _, power = factor.partition("^")
            term = term * values[name] ** int(power or 1)
        total = total + term
    return total


def loaded(stored: Mapping[str, torch.Tensor], name: str, channels: list[str]) -> SymNet:
    own = {key.removeprefix(f"{name}/"): value for key, value in stored.items() if key.startswith(f"{name}/")}
    layers = sum(key.startswith("layer") and key.endswith(".bias") for key in own) - 1
    net = SymNet(channels, layers)
    state = {key: own.get(key, value) for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    return net


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_the_expansion_is_the_network(layers):
    net = SymNet(["u00", "u01", "v10"], layers)
    x = torch.randn(20, 3, dtype=torch.float64)
    got = evaluated(net.coefficients(14), dict(zip(net.channels, x.T, strict=True)))
    torch.testing.assert_close(got, net(x).detach(), rtol=0, atol=5e-12)  # terms below 1e-14 are dropped, some hundred


def test_a_lower_degree_leaves_the_other_coefficients():
    net = SymNet(["a", "b"], 3)
    whole, low = net.coefficients(15), net.coefficients(15, degree=2)
    assert set(low) <= {"1", "a", "b", "a**2", "b**2", "a*b"}
    assert low == pytest.approx({name: whole[name] for name in low})


def test_a_dense_network_is_refused_in_time_and_read_up_to_a_degree():
    net = SymNet([f"c{i}" for i in range(12)], 5)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    with pytest.raises(ValueError, match="monomials"):
        net.coefficients(12)
    assert net.coefficients(12, degree=2)


def test_the_formula():
    net = SymNet(["u00", "u01", "u12"], 1)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        net.get_submodule("layer0").weight[0, 0] = 1.0
        net.get_submodule("layer0").weight[1, 1] = 1.0
        net.get_submodule("layer0").weight[1, 0] = 0.5
        net.layer_final.weight[0] = torch.tensor([0.0, 0.0, 0.05, -1.0])
    assert net.formula("u_t") == "u_t = -1.000 u u_x - 0.500 u^2 + 0.050 u_xxy"


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match="names"):
        SymNet(["u", "u"])
    with pytest.raises(ValueError, match="layers=-1"):
        SymNet(["u"], -1)
    for nw in ([1.0], [1.0, 0.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="2 finite numbers"):
            SymNet(["u", "v"]).renormalize(nw)


def test_networks_of_the_original(golden, facts):
    stored = golden("symnet")
    names = sorted({key.split("/")[0] for key in stored})
    assert names
    for name in names:
        channels = facts.get(f"symnet/{name}", facts["full_size"])["channels"]
        net = loaded(stored, name, channels)
        x = stored[f"{name}/input"].requires_grad_()
        y = net(x)
        torch.testing.assert_close(y, stored[f"{name}/output"], **EXACT)
        expansions = [k for k in facts if k.startswith((f"{name}/coeffs", f"symnet/{name}/coeffs"))]
        assert expansions
        for key in expansions:
            got = net.coefficients(int(key.rpartition("calprec")[2]))
            assert got == pytest.approx(dict(facts[key]), abs=EXACT["atol"]), key
        if f"{name}/nw" not in stored:
            continue
        y.sum().backward()
        torch.testing.assert_close(x.grad, stored[f"{name}/input_grad"], **EXACT)
        for key, parameter in net.named_parameters():
            torch.testing.assert_close(parameter.grad, stored[f"{name}/grad/{key}"], **EXACT)
        net.renormalize(stored[f"{name}/renormalize_to"])
        for key, parameter in net.named_parameters():
            if f"{name}/renormalized/{key}" in stored:
                torch.testing.assert_close(parameter.detach(), stored[f"{name}/renormalized/{key}"], **EXACT)
        torch.testing.assert_close(net(x), stored[f"{name}/output_after_renormalize"], **EXACT)


def test_degree_nothing_is_the_constant():
    torch.manual_seed(0)
    net = SymNet(["u", "v"], 2)
    assert net.coefficients(degree=0) == pytest.approx({"1": net(torch.zeros(2, dtype=torch.float64)).item()}, abs=1e-6)
    with pytest.raises(ValueError, match="degree=-1"):
        net.coefficients(degree=-1)


def test_what_has_no_polynomial_is_refused():
    for name in ("u*v", "1", ""):
        with pytest.raises(ValueError, match="monomial"):
            SymNet([name])
    net = SymNet(["u", "v"], 1)
    for shape in ((4, 3), (3, 4, 1), ()):
        with pytest.raises(ValueError, match="2"):
            net(torch.zeros(shape, dtype=torch.float64))
    net.layer0.bias.data[0] = math.nan
    with pytest.raises(ValueError, match=r"layer0\.bias"):
        net.formula()
