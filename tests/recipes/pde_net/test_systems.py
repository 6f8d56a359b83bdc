"""The data that the recipe makes."""

from __future__ import annotations

import pytest
import torch

from macaron.pde import burgers
from recipes.pde_net import systems
from recipes.pde_net.pipeline import TEST
from recipes.pde_net.settings import settings_for

SMALL = {"samples": 4, "grid": 8, "max_dt": 0.01}


def test_data_of_a_block_are_fresh_and_repeatable():
    settings = settings_for("burgers", **SMALL, run_up=0.05, noise=0.0)
    u = systems.observed(settings, 1, 2)
    assert u.shape == (3, 4, 2, 8, 8) and u.dtype == torch.float64
    assert torch.equal(u, systems.observed(settings, 1, 2))
    for other in (systems.observed(settings, 2, 2), systems.observed(settings, 1, 3)):
        assert not torch.isclose(u[0], other[0]).any()


def test_no_block_has_a_test_trajectory():
    first = {systems.generator(TEST, i).initial_seed() for i in range(8)}
    assert len(first) == 8
    assert not first & {systems.generator(seed, block).initial_seed() for seed in range(1, 50) for block in range(20)}


def test_half_of_the_samples_have_run_up():
    with_run, without = (
        systems.observed(settings_for("burgers", **SMALL, run_up=run_up, noise=0.0), 1, 1)
        for run_up in (0.05, 0.0)
    )  # fmt: skip
    assert torch.equal(with_run[:, 0], without[:, 0]) and torch.equal(with_run[:, 2], without[:, 2])
    assert not torch.equal(with_run[:, 1], without[:, 1])


def test_a_step_is_the_fine_grid_s_own():
    settings = settings_for("burgers", **SMALL)
    first, second = systems.trajectory(settings, systems.generator(5), False, 1, 0.02)
    random = systems.generator(5)
    white = torch.randn(1, 2, 32, 32, generator=random, dtype=torch.float64)
    shift = torch.rand(1, 2, 1, 1, generator=random, dtype=torch.float64)
    u = 2 * burgers.smooth(white, 4) + 4 * shift - 2
    torch.testing.assert_close(first, u[0, :, ::4, ::4])
    after = burgers.solve(u, 0.02, 2 * torch.pi / 32, 0.05, 0.01)
    torch.testing.assert_close(second, after[0, :, ::4, ::4])


@pytest.mark.parametrize("system", ["burgers", "reaction_diffusion"])
def test_noise_is_measured_by_the_initial_field(system):
    clean, noisy = (
        systems.observed(settings_for(system, **SMALL, run_up=0.0, noise=noise), 1, 3) for noise in (0.0, 0.01)
    )  # fmt: skip
    scale = clean[0].std((-2, -1), correction=0, keepdim=True)
    ratio = ((noisy - clean) / scale).std((1, 2, 3, 4))  # of every time: 512 numbers, 3 % of sampling error
    torch.testing.assert_close(ratio, torch.full((4,), 0.01, dtype=torch.float64), rtol=0.15, atol=0)


@pytest.mark.parametrize("system", ["burgers", "reaction_diffusion"])
def test_the_equations_are_those_of_the_data(system):
    """The polynomial, of derivatives by central differences on the fine grid, is the solver's velocity."""
    from macaron.pde import PDENet, reaction_diffusion
    from recipes.pde_net.evaluation import term_of

    settings = settings_for(system)
    n = 128
    dx = systems.LENGTH / n
    white = torch.randn(1, 2, n, n, generator=systems.generator(1), dtype=torch.float64)
    u = burgers.smooth(white, 2)
    net = PDENet(dx=dx, scheme="central")
    known = systems.system_of(settings).equations
    with torch.no_grad():
        features = net.features(u)
    got = torch.stack(
        [sum(c * term_of(m, net.symnets[0].channels, features) for m, c in equation.items()) for equation in known], 1
    )
    want = burgers.velocity(u, dx, 0.05) if system == "burgers" else reaction_diffusion.velocity(u, dx)
    # Second-order differences of waves k ≤ 2: k³dx²/3 = 6e-3 of a first derivative, of fields up to 1.
    torch.testing.assert_close(got, want, atol=2e-2, rtol=0)
    assert want.abs().max() > 0.5
