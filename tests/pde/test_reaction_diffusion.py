"""FitzHugh–Nagumo's fields."""

from __future__ import annotations

import math

import pytest
import torch

from macaron.dynamics import EULER
from macaron.pde import reaction_diffusion


def test_velocity_of_waves():
    n = 64
    dx = 2 * math.pi / n
    x = torch.arange(n, dtype=torch.float64) * dx
    u, v = torch.sin(2 * x).expand(n, n), torch.cos(3 * x)[:, None].expand(n, n)
    got = reaction_diffusion.velocity(torch.stack([u, v])[None], dx, (0.05, 0.1), rate=0.5, decay=0.5)
    # The Laplacian's error is k⁶ dx⁴/90, 7.5e-4 for k = 3, times 0.1.
    torch.testing.assert_close(got[0, 0], -4 * 0.05 * u + u - u**3 - v, atol=1e-4, rtol=0)
    torch.testing.assert_close(got[0, 1], -9 * 0.1 * v + 0.5 * (u - 0.5 * v), atol=1e-4, rtol=0)


def test_a_uniform_field_follows_the_reaction():
    """With a step of 0.001 Euler's error is about 1e-3, that of the fourth-order solver nothing."""
    u = torch.tensor([0.3, -0.1], dtype=torch.float64)[None, :, None, None].expand(1, 2, 8, 8)
    fine = reaction_diffusion.solve(u, 1.0, 0.5, 0.1)
    euler = reaction_diffusion.solve(u, 1.0, 0.5, 0.001, EULER)
    assert fine.var((-2, -1)).max() < 1e-24
    torch.testing.assert_close(fine, euler, atol=2e-3, rtol=0)
    assert (fine - u).abs().max() > 0.1


def test_the_error_falls_with_the_fourth_order():
    x = torch.arange(8, dtype=torch.float64) * 0.7
    u = torch.stack(
        [torch.sin(2 * math.pi * x / 5.6).expand(8, 8), torch.cos(2 * math.pi * x / 5.6)[:, None].expand(8, 8)]
    )
    coarse, middle, fine = (reaction_diffusion.solve(u[None], 2.0, 0.7, dt) for dt in (1 / 4, 1 / 8, 1 / 16))
    ratio = (coarse - middle).norm() / (middle - fine).norm()
    assert math.log2(ratio) == pytest.approx(4, abs=0.4)
