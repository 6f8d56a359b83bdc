"""The rules across depth that the library has, against loops and closed forms of our own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from macaron.dynamics import HEUN, RK4, Depth, LinearMultistep, RungeKutta, Scheme, get_rule
from macaron.dynamics.multistep import is_zero_stable
from macaron.dynamics.rules import RULES

C, DEPTH = 4, 5
EXACT = {"rtol": 1e-13, "atol": 1e-13}  # float64, a few operations in another order


class Layer(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(C, C), scale

    def delta(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.linear(x))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.delta(x)


@pytest.fixture
def layers() -> list[Layer]:
    torch.manual_seed(1)
    return [Layer().double() for _ in range(DEPTH)]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def run(stack: Depth, x: Tensor) -> Tensor:
    for layer in stack:
        x = layer(x)
    return x


def test_multistep(layers: list[Layer], x: Tensor) -> None:
    rule = get_rule("multistep", DEPTH, multistep_init="lm_resnet").double()
    assert isinstance(rule, LinearMultistep) and all(-0.1 <= k <= 0.0 for k in rule.k) and len(set(rule.k)) == 4
    states = [x, x + layers[0].delta(x)]
    for n in range(1, DEPTH):
        k = rule.bias[n - 1]
        states.append((1 - k) * states[-1] + k * states[-2] + layers[n].delta(states[-1]))
    y = run(Depth(layers, rule), x)
    torch.testing.assert_close(y, states[-1], **EXACT)
    y.sum().backward()
    assert (rule.bias.grad != 0).all()


def test_multistep_begins_as_the_plain_model(layers: list[Layer], x: Tensor) -> None:
    assert torch.equal(run(Depth(layers, get_rule("multistep", DEPTH)), x), run(Depth(layers), x))
    assert list(get_rule("multistep", 1).parameters()) == []
    assert torch.equal(run(Depth(layers[:1], get_rule("multistep", 1)), x), layers[0](x))


def test_k_of_one_is_the_leapfrog_scheme() -> None:
    """Of second order: x_{n+1} = x_{n−1} + Δ_n with Δ = 2hF, here along a rotation, whose length it keeps."""
    errors = []
    for n in (40, 80):
        h = 1.0 / n
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        first, two_steps = torch.linalg.matrix_exp(h * turn), torch.eye(2).double() + 2 * h * turn
        rule = LinearMultistep(n, 1.0).double()
        y = torch.tensor([1.0, 0.0], dtype=torch.float64)
        with torch.no_grad():
            y = run(Depth([_Map(first.mv), *[_Map(two_steps.mv) for _ in range(n - 1)]], rule), y)
        errors.append((y - torch.tensor([math.cos(1), math.sin(1)], dtype=torch.float64)).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)  # the next term is a hundredth


class _Map(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("k", [-1.5, -1.0, -0.9, 0.0, 0.5, 1.0, 1.1])
def test_zero_stability_is_that_of_the_recursion(k: float) -> None:
    """With Δ = 0 a perturbation stays bounded exactly where the rule is called stable."""
    rule = LinearMultistep(400, 0.0).double()
    nn.init.constant_(rule.bias, k)
    moved = lambda y: y + 1.0  # noqa: E731
    with torch.no_grad():
        y = run(Depth([_Map(moved), *[_Map(lambda y: y) for _ in range(399)]], rule), torch.zeros(1).double())
    assert is_zero_stable(k) == (abs(float(y)) < 20)


@pytest.mark.parametrize("name", ["rk2", "rk4", "rk2_learned"])
def test_whole_layer_runge_kutta(name: str, layers: list[Layer], x: Tensor) -> None:
    rule = get_rule(name, DEPTH, dim=C).double()
    assert isinstance(rule, RungeKutta)
    if name == "rk2_learned":
        for gate in rule.gates:
            nn.init.normal_(gate.weight)
            nn.init.normal_(gate.bias)
    expected = x
    for n, layer in enumerate(layers):
        f = layer.delta
        f1 = f(expected)
        if name == "rk4":
            f2 = f(expected + f1 / 2)
            f3 = f(expected + f2 / 2)
            f4 = f(expected + f3)
            expected = expected + (f1 + 2 * f2 + 2 * f3 + f4) / 6
        else:
            f2 = f(expected + f1)
            g = torch.tensor(0.5, dtype=torch.float64)
            if name == "rk2_learned":
                gate = rule.gates[n]
                g = torch.sigmoid(torch.cat([f1, f2], -1) @ gate.weight + gate.bias).unsqueeze(-1)
            expected = expected + g * f1 + (1 - g) * f2
    y = run(Depth(layers, rule), x)
    torch.testing.assert_close(y, expected, **EXACT)
    y.sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in rule.parameters())


@pytest.mark.parametrize(("solver", "order"), [(HEUN, 2), (RK4, 4)], ids=["rk2", "rk4"])
def test_the_order_of_a_stack_of_layers(solver, order: int) -> None:
    """Along dx/dt = tanh(Wx): the same layer n times with Δ = F/n, against a step of a hundredth."""
    torch.manual_seed(4)
    linear, x = nn.Linear(C, C).double(), torch.randn(C, dtype=torch.float64)

    def at_one(n: int) -> Tensor:
        field = _Map(lambda y: y + torch.tanh(2 * linear(y)) / n)
        with torch.no_grad():
            return run(Depth([field] * n, RungeKutta(n, solver, C)), x)

    exact, errors = at_one(400), []
    for n in (8, 16):
        errors.append((at_one(n) - exact).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)  # the next term at a step of 1/8


def test_a_learned_rule_begins_as_heuns(layers: list[Layer], x: Tensor) -> None:
    plain, learned = (run(Depth(layers, get_rule(name, DEPTH, dim=C).double()), x) for name in ("rk2", "rk2_learned"))
    torch.testing.assert_close(learned, plain, **EXACT)


@pytest.mark.parametrize("name", ["multistep", "rk2", "rk2_learned", "rk4"])
def test_post_norm_has_no_increment(name: str) -> None:
    assert name in RULES and Scheme(depth_rule=name).check_increments(True)
    with pytest.raises(ValueError, match=f"depth_rule={name!r} needs the increment"):
        Scheme(depth_rule=name).check_increments(False)
    with pytest.raises(ValueError, match="stochastic_depth needs the increment"):
        Scheme(stochastic_depth=0.1).check_increments(False)
    assert Scheme(solver=HEUN).check_increments(False)


@pytest.mark.parametrize("init", ["lm-resnet", -1.0, 1.5, math.nan, "inf", None, True])
def test_where_k_cannot_begin(init: object) -> None:
    with pytest.raises(ValueError, match=r"multistep_init=.* is neither 'lm_resnet' nor a number in \(−1, 1\]"):
        Scheme(depth_rule="multistep", multistep_init=init)
