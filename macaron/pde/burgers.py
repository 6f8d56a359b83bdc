"""Burgers' equation in two dimensions, u_t = −u u_x − v u_y + ν Δu and the same for v, as PDE-Net 2.0 generates it."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from macaron.dynamics import HEUN, Tableau, follow


def velocity(u: Tensor, dx: float, viscosity: float, order: int = 2) -> Tensor:
    """du/dt of fields (B, 2, H, W), periodic: upwind convection, five-point Laplacian. u goes along the last axis.

    Args:
        order: of the one-sided differences, 1 or 2.

    Raises:
        ValueError: another order, or no fields of floating-point numbers (B, 2, H, W).
    """
    check_fields(u)
    if order not in (1, 2):
        raise ValueError(f"order={order} of the upwind differences must be 1 or 2")
    total = torch.zeros_like(u)
    for speed, axis in ((u[:, :1], -1), (u[:, 1:], -2)):
        forward = torch.roll(u, -1, axis) - u
        backward = torch.roll(forward, 1, axis)
        total = torch.add(total, forward - backward, alpha=viscosity / dx**2)
        if order == 2:
            forward = torch.sub(1.5 * forward, torch.roll(forward, -1, axis), alpha=0.5)
            backward = torch.sub(1.5 * backward, torch.roll(backward, 1, axis), alpha=0.5)
        total = torch.addcmul(total, speed, torch.where(speed > 0, backward, forward), value=-1 / dx)
    return total


def solve(
    u: Tensor, time: float, dx: float, viscosity: float, max_dt: float, order: int = 2, solver: Tableau = HEUN
) -> Tensor:
    """The fields after `time`, in ⌈time / max_dt⌉ equal steps.

    Raises:
        ValueError: see `velocity`; a negative time, or max_dt that is not positive.
    """
    steps = steps_of(time, max_dt)
    for _ in range(steps):
        u = follow(partial(velocity, dx=dx, viscosity=viscosity, order=order), u, time / steps, solver)
    return u


def check_fields(u: Tensor) -> None:
    if u.dim() != 4 or u.shape[1] != 2 or not u.is_floating_point():
        raise ValueError(
            f"fields of shape {tuple(u.shape)} and {u.dtype}, but (B, 2, H, W) of floating-point numbers are needed"
        )


def steps_of(time: float, max_dt: float) -> int:
    """⌈time / max_dt⌉."""
    if not (math.isfinite(time) and time >= 0):
        raise ValueError(f"time={time!r} must be a finite number, 0 or more")
    if not (max_dt > 0 and math.isfinite(time / max_dt)):
        raise ValueError(f"max_dt={max_dt!r} must be a positive number, and not nothing beside time={time!r}")
    return math.ceil(time / max_dt)


def smooth(noise: Tensor, frequency: int) -> Tensor:
    """White noise (…, H, W) cut to the waves |k| ≤ frequency in both axes, scaled to a largest magnitude of 1."""
    spectrum = torch.fft.ifft2(noise)
    for axis in (-2, -1):
        size = noise.shape[axis]
        k = torch.fft.fftfreq(size, 1 / size, device=noise.device, dtype=noise.dtype).abs()
        keep = k <= frequency
        spectrum = spectrum * (keep[:, None] if axis == -2 else keep)
    field = torch.fft.fft2(spectrum).real
    return field / field.abs().amax((-2, -1), keepdim=True)
