"""PSNR of a set of images at a level: by number of steps, where the policy stops, and by the baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from macaron.dynamics.horizon import GO_ON, STOP
from macaron.vision import PolicyUnit

from .images import Array, degraded, psnr
from .models import batch_of
from .settings import RestorationSettings
from .training import states_and_losses

Restored = dict[str, Array]  # method ↦ image, (H, W) in 0 … 255


def to_image(x: Tensor) -> Array:
    """(1, 1, H, W) in 0 … 1 → (H, W) in 0 … 255, clipped."""
    return np.asarray((x[0, 0] * 255).clamp(0, 255).cpu(), dtype=np.float32)


@torch.no_grad()
def stopping_step(policy: PolicyUnit, states: list[Tensor]) -> int:
    """Where the greedy policy stops on x_0 … x_N; N if nowhere before."""
    memory = None
    for n, x in enumerate(states[:-1]):
        q, memory = policy(x, memory)
        if bool(q[0, STOP] >= q[0, GO_ON]):
            return n
    return len(states) - 1


@torch.no_grad()
def evaluate(
    models: Mapping[str, nn.Module],
    images: Mapping[str, Array],
    level: float,
    settings: RestorationSettings,
    device: torch.device,
    progress: Callable[[], None] = lambda: None,
    keep: Callable[[str, Restored], None] = lambda name, restored: None,
) -> dict[str, Any]:
    """
    Args:
        models: `unit`, `policy` if there is one, `dncnn`, `dncnn_free`.
        images: clean ones.
        progress: is told after each image.
        keep: is given each image's name and what was made of it.

    Returns:
        level, images: {name: {"noisy", "dncnn", "dncnn_free": PSNR, "durr": PSNR of x_0 … x_most, "policy": where it
        stopped}}, seconds: {method: of all images}.
    """
    found: dict[str, Any] = {}
    seconds = dict.fromkeys(("durr", "dncnn", "dncnn_free"), 0.0)
    for name, clean in images.items():
        noisy = degraded(settings.task, name, clean, level)
        y = batch_of(noisy[None], device)
        restored: Restored = {"clean": clean, "noisy": noisy.clip(0, 255)}
        record: dict[str, Any] = {"noisy": psnr(noisy, clean, clip=False)}
        started = time.perf_counter()
        states, _ = states_and_losses(models["unit"], batch_of(clean[None], device), y, settings.most)
        steps = [to_image(x) for x in states]
        record["durr"] = [psnr(image, clean) for image in steps]
        stop = settings.fixed if settings.horizon == "fixed" else settings.steps_at(level)
        if "policy" in models:
            policy = models["policy"]
            assert isinstance(policy, PolicyUnit)
            record["policy"] = stop = stopping_step(policy, states)
        restored["durr"] = steps[stop]
        seconds["durr"] += time.perf_counter() - started
        for method in ("dncnn", "dncnn_free"):
            started = time.perf_counter()
            restored[method] = to_image(models[method](y))
            seconds[method] += time.perf_counter() - started
            record[method] = psnr(restored[method], clean)
        found[name] = record
        keep(name, restored)
        progress()
    return {"level": level, "images": found, "seconds": {key: round(value, 2) for key, value in seconds.items()}}


def bm3d(images: Mapping[str, Array], level: float, progress: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """PSNR of BM3D (Dabov et al. 2007), which is told σ: level, images: {name: PSNR}, seconds."""
    from bm3d import bm3d as restore

    started, found = time.perf_counter(), {}
    for name, clean in images.items():
        noisy = degraded("gaussian", name, clean, level)
        found[name] = psnr(255 * np.asarray(restore(noisy / np.float32(255), level / 255), dtype=np.float64), clean)
        progress()
    return {"level": level, "images": found, "seconds": round(time.perf_counter() - started, 1)}
