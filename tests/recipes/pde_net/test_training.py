"""A block: what BFGS may change, the loss it sees, and what it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from macaron.pde import PDENet
from recipes.common.errors import RecipeError
from recipes.pde_net import systems, training
from recipes.pde_net.settings import PDESettings, PDEVariant, settings_for

DX = systems.LENGTH / 12


def settings(**more) -> PDESettings:
    return settings_for("data", **({"layers": 1, "samples": 3, "scheme": "central", "iterations": 60} | more))


def small(constraint: int | str = 2, solver: str = "euler", seed: int = 1, **more) -> PDENet:
    import dataclasses

    s = dataclasses.replace(settings(**more), components=("u",))
    return training.network(s, PDEVariant(constraint, solver), DX, seed)


def smooth_data(steps: int, components: int = 1) -> torch.Tensor:
    from macaron.pde.burgers import smooth

    white = torch.randn(steps + 1, 3, components, 12, 12, generator=systems.generator(7), dtype=torch.float64)
    return smooth(white, 2)


def test_seeds_begin_alike_in_all_variants():
    first, second, other = small(2), small("frozen", "heun"), small(2, seed=2)
    for a, b, c in zip(*(net.symnets.parameters() for net in (first, second, other)), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    state = torch.random.get_rng_state()
    small()
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_is_free():
    def count(constraint, filters):
        return len(training.Free(small(constraint), filters).vector())

    symnets = sum(p.numel() for p in small().symnets.parameters())
    assert [count(2, True), count(2, False), count("frozen", True)] == [symnets + 105, symnets, symnets]
    assert count("free", True) == symnets + 150


def test_load_and_vector_agree_and_leave_held_moments():
    net = small()
    before = {name: net.filter(name).moment.detach().clone() for name in net.filters}
    free = training.Free(net, True)
    x = np.arange(len(free.vector()), dtype=np.float64)
    free.load(x)
    assert np.array_equal(free.vector(), x)
    for name, moment in before.items():
        f = net.filter(name)
        assert torch.equal(f.moment[f.held], moment[f.held]) and not torch.equal(f.moment[~f.held], moment[~f.held])


@pytest.mark.parametrize("block, solver", [(0, "euler"), (2, "euler"), (2, "heun")])
def test_gradient_is_that_of_the_loss(block, solver):
    net, u, s = small(solver=solver), smooth_data(max(block, 1)), settings()
    free = training.Free(net, filters=block > 0)
    x = free.vector()

    def loss(y):
        free.load(y)
        return training.losses(net, u, block, 0.05, solver, s)[0]

    loss(x).backward()
    got = free.gradient()
    for i in range(0, len(x), 9):
        step = 1e-6 * np.eye(len(x))[i]
        want = (loss(x + step).item() - loss(x - step).item()) / 2e-6
        # Differences of a loss of some hundred have an error of 1e-14 · 100 / 1e-6.
        assert got[i] == pytest.approx(want, abs=1e-4, rel=1e-4)


def test_loss_of_a_block_as_published():
    """The data term is a sum over the steps; both others count once a step; the warm-up has none."""
    net, u, s = small(), smooth_data(2), settings(sparsity=0.3, moment_sparsity=0.07)
    states = [u[0]]
    for _ in range(2):
        states.append(states[-1] + 0.05 * net(states[-1]))
    data = sum((((a - b) / 0.05) ** 2).mean() for a, b in zip(states[1:], u[1:], strict=True))

    def huber(values, knee):
        return sum(float(abs(v) - knee / 2 if abs(v) >= knee else v * v / (2 * knee)) for v in values)

    symnets = huber(torch.cat([p.detach().flatten() for p in net.symnets.parameters()]).tolist(), 1e-3)
    moments = huber(torch.cat([net.filter(n).projected().detach().flatten() for n in net.filters]).tolist(), 1e-2)
    total, alone = training.losses(net, u, 2, 0.05, "euler", s)
    assert alone.item() == pytest.approx(data.item(), rel=1e-12)
    assert total.item() == pytest.approx(data.item() + 2 * (0.3 * symnets + 0.07 * moments), rel=1e-12)
    total, alone = training.losses(net, u[:2], 0, 0.05, "euler", s)
    assert total.item() == alone.item() == pytest.approx((((states[1] - u[1]) / 0.05) ** 2).mean().item())


def test_warm_up_leaves_the_filters_and_a_block_moves_what_is_free():
    net, s = small(), settings(iterations=5)
    u = smooth_data(1)
    kernels = {name: net.filter(name).kernel().detach().clone() for name in net.filters}
    first = training.train_block(net, u, 0, 0.05, "euler", s)
    assert first["iterations"] == 5 and "iterations" in first["stopped"].lower()
    assert all(torch.equal(net.filter(name).kernel(), kernel) for name, kernel in kernels.items())
    told = []
    training.train_block(net, u, 1, 0.05, "euler", s, told.append)
    assert told == [1, 2, 3, 4, 5]
    assert not any(torch.equal(net.filter(name).kernel(), kernel) for name, kernel in kernels.items())
    for name in net.filters:
        f = net.filter(name)
        assert torch.equal(f.projected()[f.held], f.target[f.held])

    frozen = small("frozen")
    training.train_block(frozen, u, 1, 0.05, "euler", s)
    assert all(torch.equal(frozen.filter(name).kernel(), kernel) for name, kernel in kernels.items())


def test_where_the_steps_overflow_bfgs_turns_back(monkeypatch):
    net, u, s = small(), smooth_data(1), settings(iterations=5)
    real, calls = training.losses, 0

    def losses(*arguments):
        nonlocal calls
        calls += 1
        total, data = real(*arguments)
        return (total * torch.nan if calls == 3 else total), data

    monkeypatch.setattr(training, "losses", losses)
    result = training.train_block(net, u, 1, 0.05, "euler", s)
    assert result["overflows"] == 1 and np.isfinite(result["loss"])
    assert result["loss"] < real(small(), u, 1, 0.05, "euler", s)[0].item()


def test_a_network_that_blows_up_at_once_is_an_error():
    net = small()
    with torch.no_grad():
        net.symnets[0].layer_final.bias.fill_(1e200)
    with pytest.raises(RecipeError, match="blows up within 3 steps"):
        training.train_block(net, smooth_data(3), 3, 0.05, "euler", settings())


def test_inputs_are_weighed_by_their_spread():
    net, u = small(), 1000 * smooth_data(1)[0]
    training.normalize(net, u)
    features = net.features(u) * net.symnets[0].nw
    torch.testing.assert_close(
        features.flatten(0, -2).std(0).detach(), torch.ones(6, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_a_derivative_that_is_only_rounding_is_not_weighed_up():
    """u_xy of f(x) + g(y) is nothing: its weight stays 1, and is not the inverse of rounding errors."""
    net = PDENet(["u"], 0.1, scheme="central")
    x = torch.arange(16, dtype=torch.float64) * 2 * torch.pi / 16
    u = (torch.sin(x)[:, None] + torch.cos(2 * x))[None, None]
    training.normalize(net, u)
    symnet = net.symnets[0]
    weights = dict(zip(symnet.channels, symnet.nw.tolist(), strict=True))
    assert weights["u11"] == 1.0 and weights["u01"] != 1.0 and max(weights.values()) < 10
