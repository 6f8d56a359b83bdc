"""The data of Burgers' equation."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from macaron.dynamics import EULER, HEUN, RK4
from macaron.pde import burgers, reaction_diffusion

EXACT = {"rtol": 0, "atol": 5e-13}  # float64 and numbers of up to 20, by sums in another order


def test_velocity_of_a_wave():
    """With v = 0 and u of x alone: −u u_x + ν u_xx."""
    n = 256
    dx = 2 * math.pi / n
    x = (torch.arange(n, dtype=torch.float64) * dx).expand(8, n)
    u = torch.stack([torch.sin(x), torch.zeros_like(x)])[None]
    got = burgers.velocity(u, dx, 0.05)
    want = -torch.sin(x) * torch.cos(x) - 0.05 * torch.sin(x)
    # the next term of the upwind difference, ⅓ dx² |u u_xxx| ≤ 1e-4; a difference of first order is away by 6e-3
    torch.testing.assert_close(got[0, 0], want, rtol=0, atol=1.2e-4)
    assert not got[0, 1].any()


def test_the_axes_are_treated_alike():
    u = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    other = burgers.velocity(u.flip(1).transpose(-1, -2), 0.5, 0.05).flip(1).transpose(-1, -2)
    torch.testing.assert_close(burgers.velocity(u, 0.5, 0.05), other)


def test_other_orders_are_refused():
    with pytest.raises(ValueError, match="order=3"):
        burgers.velocity(torch.zeros(1, 2, 8, 8), 1.0, 0.1, order=3)


def test_fields_of_the_original(golden, facts):
    stored, settings = golden("burgers"), facts["burgers"]
    noise = torch.stack([stored[f"white_noise/{i}"] for i in range(4)])

    def close(got: torch.Tensor, key: str) -> None:
        torch.testing.assert_close(got, stored[key], **EXACT)

    smooth = burgers.smooth(noise, settings["freq"])
    close(smooth, "initgen")
    start = (2 * smooth + stored["offset"][:, None, None]).reshape(2, 2, *noise.shape[1:])
    close(start, "u0")
    dx, nu, max_dt = 2 * math.pi / settings["mesh"], settings["viscosity"], settings["max_dt"]
    schemes = sorted({key.split("/")[0] for key in stored if key.endswith("/rhs")})
    assert schemes
    for scheme in schemes:
        time, space = scheme.split("_")
        solver, order = {"euler": EULER, "rk2": HEUN, "rk4": RK4}[time], int(space[-1])
        close(burgers.velocity(start, dx, nu, order), f"{scheme}/rhs")
        u = start
        for i in (1, 2, 3):
            u = burgers.solve(u, settings["T_step"], dx, nu, max_dt, order, solver)
            close(u, f"{scheme}/t{i}")
        if scheme == "rk4_uw2":
            close(u[..., ::4, ::4], "downsampled_t3")
        if f"{scheme}/T1" in stored:
            close(burgers.solve(start, settings["t_long"], dx, nu, max_dt, order, solver), f"{scheme}/T1")
    deviation = burgers_start(start).std((-2, -1), correction=0, keepdim=True)
    for part, field in (("start", burgers_start(start)), ("end", stored["downsampled_t3"])):
        close(field + settings["noise"] * deviation * stored[f"noise_{part}"], f"noisy_{part}")


def burgers_start(u: torch.Tensor) -> torch.Tensor:
    return u[..., ::4, ::4]


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 1, 8, 8), (1, 3, 8, 8)])
@pytest.mark.parametrize("solve", [partial(burgers.solve, viscosity=0.05), reaction_diffusion.solve])
def test_other_fields_and_times_are_refused(solve, shape):
    with pytest.raises(ValueError, match="B, 2, H, W"):
        solve(torch.ones(shape), time=0.1, dx=0.1, max_dt=0.1)
    fields = torch.ones(1, 2, 8, 8)
    for time, max_dt, message in (
        (-1.0, 0.1, "time=-1"),
        (math.nan, 0.1, "time=nan"),
        (1.0, 0.0, "max_dt=0"),
        (1.0, 1e-320, "max_dt=1e-320"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(fields, time=time, dx=0.1, max_dt=max_dt)
