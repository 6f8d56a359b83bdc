"""Stochastic depth: its coins, its mean, and how its moments tend to those of the equation."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from macaron.dynamics import Depth, LinearMultistep, Scheme, StochasticDepth
from macaron.dynamics.noise import survival, third_moment

B, C = 6, 4


class Layer(nn.Module):
    """x + rate · x, and how often it was called."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.rate, self.calls = rate, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.rate * x


def run(stack: Depth, x: Tensor) -> Tensor:
    with torch.no_grad():
        for layer in stack:
            x = layer(x)
    return x


def test_schedules() -> None:
    assert survival(0.5, 5, "lm_resnet") == [1.0, 0.875, 0.75, 0.625, 0.5]
    assert survival(0.5, 5, "torch") == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])  # 1 − 0.5 n/5, rounded
    assert survival(0.5, 3, "constant") == [0.5] * 3
    assert survival(0.5, 1, "lm_resnet") == [0.5]


@pytest.mark.parametrize("unit", ["batch", "sentence"])
def test_coins(unit: str) -> None:
    """Δ = x: a layer that survives with p = ½ makes x(1 + 1/p) = 3x of it, one that is dropped x."""
    torch.manual_seed(1)
    layer = Layer()
    stack = Depth([layer], noise=StochasticDepth(1, 0.5, unit=unit))
    x = torch.ones(B, C, dtype=torch.float64)
    seen = [run(stack, x) for _ in range(400)]
    rows = torch.stack(seen)[..., 0]  # (400, B)
    assert set(rows.flatten().tolist()) == {1.0, 3.0}
    assert all(torch.equal(y, y[:, :1].expand(B, C)) for y in seen)
    alike = (rows == rows[:, :1]).all(1)
    assert alike.all() if unit == "batch" else not alike.all()
    share = (rows == 3.0).double().mean().item()
    # a binomial's four standard deviations, of 400 coins or 2400
    assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(400 if unit == "batch" else 400 * B))
    assert layer.calls == (int((rows[:, 0] == 3.0).sum()) if unit == "batch" else 400)


def test_evaluation_of_the_scaled_form_is_the_rule_itself() -> None:
    layers = [Layer(0.3), Layer(0.2)]
    stack = Depth(layers, noise=StochasticDepth(2, 0.5)).eval()
    assert list(stack) == layers and torch.equal(run(stack, torch.ones(1, 2)), run(Depth(layers), torch.ones(1, 2)))
    torch.jit.script(Depth([nn.Tanh()], noise=StochasticDepth(1, 0.5)).eval())
    with pytest.raises(ValueError, match="nor noise in training"):
        torch.jit.script(Depth([nn.Tanh()], noise=StochasticDepth(1, 0.5)))
    sde = StochasticDepth(2, 0.5, form="sde", schedule="constant", dt=0.25)
    torch.testing.assert_close(run(Depth([Layer(0.3)], noise=sde).eval(), torch.ones(1, 2)), torch.full((1, 2), 1.15))


def test_a_dropped_multistep_layer_keeps_its_memory() -> None:
    multistep = LinearMultistep(2, 0.25).double()
    stack = Depth([Layer(1.0), Layer(1.0)], multistep, noise=StochasticDepth(2, 0.5))
    x, found = torch.ones(1, 1, dtype=torch.float64), set()
    torch.manual_seed(2)
    for _ in range(30):
        found.add(round(float(run(stack, x)), 9))
    # x_1 = 2; then 2 + ¼(1 − 2) = 1.75, and with the layer 2 · 2 more
    assert found == {1.75, 5.75}


def test_expectation_over_all_coins() -> None:
    """The mean over the coins of linear layers is the plain stack, exactly."""
    layers, rates = [Layer(r) for r in (0.5, -0.4, 0.3)], survival(0.4, 3, "torch")
    total = torch.zeros(1, 1, dtype=torch.float64)
    for number in range(8):
        coins = [number >> n & 1 for n in range(3)]
        weight = math.prod(p if coin else 1 - p for coin, p in zip(coins, rates, strict=True))
        noise = StochasticDepth(3, 0.4, schedule="torch")
        with pytest.MonkeyPatch.context() as patch:
            values = iter([0.0 if coin else 1.0 for coin in coins])
            patch.setattr(torch, "rand", lambda *a, values=values: torch.tensor(next(values)))
            total += weight * run(Depth(layers, noise=noise), torch.ones(1, 1, dtype=torch.float64))
    plain = run(Depth(layers), torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(total, plain, rtol=1e-13, atol=0)  # float64


def moments(p: float, n: int, form: str) -> tuple[float, float]:
    """E[x²], E[x³] after n layers of F(x) = −x, T = 1, from the library's own steps with both faces of each coin.

    A step is linear in x, so that its factors for η = 0 and 1 give the recursion of the moments without sampling.
    """
    dt = 1.0 / n
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noise = StochasticDepth(1, 1 - p, form=form, schedule="constant", dt=dt)
    factors = []
    for face in (0.0, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *a, face=face, **k: torch.tensor(1.0 - face))
            factors.append(float(run(Depth([Layer(-dt)], noise=noise), torch.ones(1, 1, dtype=torch.float64))))
    no, yes = factors
    return ((1 - p) * no**2 + p * yes**2) ** n, ((1 - p) * no**3 + p * yes**3) ** n


def exact(p: float) -> tuple[float, float]:
    """Of dX = −pX dt + √(p(1−p)) X dB, X(0) = 1, at T = 1: E[X^m] = exp(−mp + ½ m(m−1) p(1−p))."""
    return math.exp(-2 * p + p * (1 - p)), math.exp(-3 * p + 3 * p * (1 - p))


@pytest.mark.parametrize(("p", "order"), [(0.5, 1.0), (0.8, 0.5)])
def test_weak_order_of_the_stochastic_form(p: float, order: float) -> None:
    errors = [abs(moments(p, n, "sde")[1] - exact(p)[1]) for n in (10**4, 10**6)]
    # the next term at Δt = 1e-4, half an order on, is about √Δt; measured to 0.006, and the two orders are 0.5 apart
    assert math.log(errors[0] / errors[1]) / math.log(100) == pytest.approx(order, abs=0.05)
    second = [abs(moments(p, n, "sde")[0] - exact(p)[0]) for n in (100, 10_000)]
    # the second moment does not see the third, and keeps order 1; the next term at Δt = 0.01 is of that size
    assert math.log(second[0] / second[1]) / math.log(100) == pytest.approx(1.0, abs=0.02)


def test_the_scaled_form_tends_to_the_ordinary_equation() -> None:
    """dx/dt = −x: E[x²] → e^{−2}, without what a stochastic equation adds, p(1 − p)."""
    # p = ½: (1 − 2Δt + 2Δt²)ⁿ = e^{−2} (1 + 4/3 Δt² + …). Without the division by p it would be e^{−1}.
    assert moments(0.5, 100_000, "scaled")[0] == pytest.approx(math.exp(-2), rel=1e-9)
    # (1 − Δt + ½Δt²) … of the stochastic form tends to e^{−2p + p(1−p)} as O(Δt)
    assert moments(0.5, 100_000, "sde")[0] == pytest.approx(exact(0.5)[0], rel=1e-4)


def test_a_third_moment_is_told() -> None:
    # p(1 − p)(1 − 2p) is largest at p = ½ − √3/6, at √3/18; a grid of 1/1000 misses that by less than 1e-6
    assert max(map(third_moment, (n / 1000 for n in range(1001)))) == pytest.approx(math.sqrt(3) / 18, abs=1e-6)
    with pytest.warns(UserWarning, match=r"p = 0\.8, where the noise has third moment p\(1 − p\)\(1 − 2p\) = -0\.096"):
        Scheme(stochastic_depth=0.2, stochastic_depth_form="sde").noise(6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scheme(stochastic_depth=0.5, stochastic_depth_form="sde", stochastic_depth_schedule="constant").noise(6)
        Scheme(stochastic_depth=0.2).noise(6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stochastic_depth": 1.0}, r"stochastic_depth=1.0 is no drop rate in \[0, 1\)"),
        ({"stochastic_depth": -0.1}, "is no drop rate"),
        ({"stochastic_depth": math.nan}, "is no drop rate"),
        ({"stochastic_depth": True}, "is no drop rate"),
        ({"stochastic_depth": "0.1"}, "is no drop rate"),
        ({"stochastic_depth": 0.1, "stochastic_depth_form": "ito"}, "choose one of scaled, sde"),
        ({"stochastic_depth": 0.1, "stochastic_depth_unit": "token"}, "choose one of batch, sentence"),
        ({"stochastic_depth": 0.1, "stochastic_depth_schedule": None}, "choose one of lm_resnet, torch, constant"),
        ({"stochastic_depth_form": "sde"}, "means nothing without stochastic depth"),
        ({"multistep_init": 0.5}, r"depth_rule='euler' has none"),
        ({"dt": True}, "dt=True is not a step"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheme(**options)
