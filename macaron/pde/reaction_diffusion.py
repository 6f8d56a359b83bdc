"""FitzHugh–Nagumo's reaction and diffusion in two dimensions (FitzHugh 1961; Nagumo et al. 1962).

u_t = D_u Δu + u − u³ − v,   v_t = D_v Δv + ε (u − a v)
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from macaron.dynamics import RK4, Tableau, follow
from macaron.pde.burgers import check_fields, steps_of


def velocity(
    u: Tensor, dx: float, diffusion: tuple[float, float] = (0.05, 0.1), rate: float = 0.5, decay: float = 0.5
) -> Tensor:
    """du/dt of fields (B, 2, H, W), periodic: fourth-order Laplacian.

    Args:
        diffusion: (D_u, D_v).
        rate: ε.
        decay: a.

    Raises:
        ValueError: no fields of floating-point numbers (B, 2, H, W), or not two diffusions.
    """
    check_fields(u)
    if len(diffusion) != 2:
        raise ValueError(f"diffusion={diffusion!r} must be two numbers, of u and v")
    total = torch.zeros_like(u)
    for axis in (-1, -2):
        near = torch.roll(u, 1, axis) + torch.roll(u, -1, axis)
        far = torch.roll(u, 2, axis) + torch.roll(u, -2, axis)
        total = total + (16 * near - far - 30 * u) / (12 * dx**2)
    first, second = u.unbind(1)
    reaction = torch.stack([first - first**3 - second, rate * (first - decay * second)], 1)
    return total * torch.tensor(diffusion, dtype=u.dtype, device=u.device)[:, None, None] + reaction


def solve(u: Tensor, time: float, dx: float, max_dt: float, solver: Tableau = RK4) -> Tensor:
    """The fields after `time`, in ⌈time / max_dt⌉ equal steps.

    Raises:
        ValueError: see `velocity`; a negative time, or max_dt that is not positive.
    """
    steps = steps_of(time, max_dt)
    for _ in range(steps):
        u = follow(partial(velocity, dx=dx), u, time / steps, solver)
    return u
