"""Restorers by their squared error after the last step; then the policy by Q-learning, the unit being fixed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from macaron import checkpoint
from macaron.dynamics import trajectory, unroll
from macaron.dynamics.horizon import epsilon_greedy, horizons, q_loss
from macaron.vision import DnCNN, PolicyUnit, RestorationUnit

from ..common.errors import RecipeError
from .images import Array, compressed
from .models import batch_of
from .settings import RestorationSettings

SAVE_EVERY = 20.0  # seconds between two states that a run can go on from
WARM_UP = 0.05  # share of the updates in which the rate rises
LAST_RATE = 0.01  # of the highest, at the end of the cosine
LONGEST_GRADIENT = 1.0  # its norm; through ten steps of a unit that begins at random it may be thousands
LEAST_ERROR = 1e-10  # mean squared error of numbers in 0 … 1 that is taken to be 100 dB
FAR = 8.0  # of pixels that are meant to lie in 0 … 1; noise of σ = 255 stays within
DRAWS = {"restorer": 0, "policy": 1}  # restorers of a seed meet the same patches


class Progress(Protocol):
    def __call__(self, done: int, loss: float | None, /) -> None: ...


class Patches:
    """Batches of training patches; each is a function of seed, kind and number of the update alone."""

    def __init__(self, images: Mapping[str, Array], settings: RestorationSettings) -> None:
        self.settings = settings
        self.images = list(images.values())
        self.compressed: dict[float, list[Array]] = {}
        if settings.task == "jpeg":
            self.compressed = {
                level: [compressed(image, int(level)) for image in self.images] for level in settings.levels
            }

    def draw(self, kind: str, seed: int, update: int, size: int, count: int) -> tuple[Array, Array, Array]:
        """(clean, degraded), each (count, size, size) in 0 … 255, and their levels, (count,)."""
        random = np.random.default_rng([seed, DRAWS[kind], update])
        clean = np.empty((count, size, size), np.float32)
        bad = np.empty_like(clean)
        levels = random.choice(self.settings.levels, count)
        for i, level in enumerate(levels):
            number = int(random.integers(len(self.images)))
            image = self.images[number]
            top, left = (int(random.integers(side - size + 1)) for side in image.shape)
            turns, mirrored = int(random.integers(4)), bool(random.integers(2))

            def cut(
                whole: Array, top: int = top, left: int = left, turns: int = turns, mirrored: bool = mirrored
            ) -> Array:
                part = np.rot90(whole[top : top + size, left : left + size], turns)
                return part[:, ::-1] if mirrored else part

            clean[i] = cut(image)
            if self.compressed:
                bad[i] = cut(self.compressed[float(level)][number])
        if not self.compressed:
            noise = random.standard_normal(clean.shape, dtype=np.float32)
            bad = clean + levels.astype(np.float32)[:, None, None] * noise
        return clean, bad, levels


# --- losses ----------------------------------------------------------------------------------------------------


def restoration_loss(
    model: nn.Module, clean: Tensor, bad: Tensor, levels: Array, settings: RestorationSettings
) -> Tensor:
    """Mean of (x_τ − clean)²; τ by the table of the settings, 1 for a DnCNN."""
    if isinstance(model, DnCNN):
        return (model(bad) - clean).square().mean()
    times = horizons(settings.table, levels.tolist())
    restored, _ = unroll(model, bad, times, settings.most, bad)
    return (restored - clean).square().mean()


def loss_in_db(x: Tensor, clean: Tensor) -> Tensor:
    """L of the rewards: 10 log₁₀ of the mean squared error, that is −PSNR, of each image, (B,).

    The return L(x_0) − L(x_τ) is then what an episode gains in PSNR, and Q(x_n, on) what there is still to gain.
    """
    error = (x.clamp(0, 1) - clean).square().mean((1, 2, 3))
    return 10 * error.clamp_min(LEAST_ERROR).log10()


@torch.no_grad()
def states_and_losses(unit: nn.Module, clean: Tensor, bad: Tensor, most: int) -> tuple[list[Tensor], Tensor]:
    """x_0 … x_most, and L of each, (most + 1, B)."""
    # What a unit does far beyond the steps it was trained with may overflow; that is as bad as can be, and no NaN.
    states = [x.nan_to_num().clamp(-FAR, FAR) for x in trajectory(unit, bad, most, bad)]
    return states, torch.stack([loss_in_db(x, clean) for x in states])


def explored(q: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Where episodes along known trajectories stop, (B,), from Q at x_0 … x_{N−1}, (N, B, 2).

    As `unroll` under `epsilon_greedy`; the unit being fixed, stopping changes nothing of the states before.
    """
    stops = torch.stack([epsilon_greedy(values, epsilon, generator) for values in q.detach().cpu()])
    never = torch.ones_like(stops[:1])
    return torch.cat([stops, never]).int().argmax(0)


def policy_loss(
    policy: PolicyUnit, lagging: PolicyUnit, states: Sequence[Tensor], losses: Tensor, epsilon: float,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """`q_loss` of episodes that ε-greedy exploration stops, targets by the copy that lags behind."""
    q = policy.values(states[:-1])
    with torch.no_grad():
        behind = lagging.values(states[:-1])
    times = explored(q, epsilon, generator)
    return q_loss(q, losses, times.to(q.device), lagging=behind)


# --- the loop --------------------------------------------------------------------------------------------------


def rate_at(update: int, updates: int, highest: float) -> float:
    """A rise, then a cosine."""
    rise = max(1, round(WARM_UP * updates))
    if update < rise:
        return highest * (update + 1) / rise
    phase = (update - rise) / max(1, updates - rise)
    return highest * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * phase)))


def optimise(
    learner: nn.Module,
    loss_at: Callable[[int], Tensor],
    updates: int,
    rate: float,
    path: Path,
    progress: Progress,
    lagging: nn.Module | None = None,
    lag: int = 0,
) -> dict[str, Any]:
    """Adam, from the state in `path` on, if there is one; the state is kept there until the end.

    Args:
        loss_at: the loss of an update, a function of its number and the parameters.
        progress: is told the number of updates done, at the beginning too, and the mean loss of late.
        lagging: a copy of the learner that gets its parameters every `lag` updates.

    Returns:
        updates, seconds, and the curve: means of the loss over 50 shares of the training.

    Raises:
        RecipeError: the loss is no number, or the state is damaged.
    """
    optimiser = torch.optim.Adam(learner.parameters(), lr=rate)
    done, spent, curve = 0, 0.0, []
    device = next(learner.parameters()).device
    if path.exists():
        done, spent, curve = resume(path, learner, optimiser, lagging)
    progress(done, curve[-1][1] if curve else None)
    started = saved = time.monotonic()
    total = torch.zeros((), device=device)  # not read at each update: that would wait for a GPU
    counted, share = 0, max(1, math.ceil(updates / 50))
    while done < updates:
        if lagging is not None and done % lag == 0:
            lagging.load_state_dict(learner.state_dict())
        for group in optimiser.param_groups:
            group["lr"] = rate_at(done, updates, rate)
        loss = loss_at(done)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), LONGEST_GRADIENT)
        optimiser.step()
        done += 1
        total, counted = total + loss.detach(), counted + 1
        if done % share and done < updates:
            continue
        mean = total.item() / counted
        if not math.isfinite(mean):
            raise RecipeError(f"the loss is {mean} after {done} updates: training diverged; take a lower --rate or "
                              f"--policy-rate, or fewer --steps, with another --out")  # fmt: skip
        curve.append([done, mean])
        total, counted = torch.zeros((), device=device), 0
        progress(done, mean)
        if done < updates and time.monotonic() - saved > SAVE_EVERY:
            saved = time.monotonic()
            keep(path, learner, optimiser, lagging, done, spent + saved - started, curve)
    return {"updates": updates, "seconds": round(spent + time.monotonic() - started, 1), "curve": curve}


def keep(
    path: Path, learner: nn.Module, optimiser: torch.optim.Adam, lagging: nn.Module | None, done: int, spent: float,
    curve: list[list[float]],
) -> None:  # fmt: skip
    state = {"model": learner.state_dict(), "optimizer": optimiser.state_dict(), "done": done, "spent": spent}
    state |= {"curve": curve} | ({} if lagging is None else {"lagging": lagging.state_dict()})
    checkpoint.save(state, path)


def resume(
    path: Path, learner: nn.Module, optimiser: torch.optim.Adam, lagging: nn.Module | None
) -> tuple[int, float, list[list[float]]]:
    try:
        state = checkpoint.load(path)
        learner.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimizer"])
        if lagging is not None:
            lagging.load_state_dict(state["lagging"])
        return int(state["done"]), float(state["spent"]), list(state["curve"])
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise RecipeError(f"{path}: is damaged or of another run ({error}); delete it to have this stage begin "
                          f"anew") from error  # fmt: skip


def train_restorer(
    model: nn.Module, patches: Patches, seed: int, path: Path, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """A unit or a baseline. Its state is kept in `path`."""
    settings = patches.settings

    def loss_at(update: int) -> Tensor:
        clean, bad, levels = patches.draw("restorer", seed, update, settings.patch, settings.batch)
        return restoration_loss(model, batch_of(clean, device), batch_of(bad, device), levels, settings)

    return optimise(model, loss_at, settings.updates, settings.rate, path, progress)


def train_policy(
    policy: PolicyUnit,
    unit: RestorationUnit,
    patches: Patches,
    seed: int,
    path: Path,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """By Q-learning on trajectories of the unit, which stays as it is."""
    settings = patches.settings
    lagging = copy.deepcopy(policy)

    def loss_at(update: int) -> Tensor:
        clean, bad, _ = patches.draw("policy", seed, update, settings.policy_patch, settings.policy_batch)
        states, losses = states_and_losses(unit, batch_of(clean, device), batch_of(bad, device), settings.most)
        coins = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 2, update]).generate_state(1)[0]))
        return policy_loss(policy, lagging, states, losses, settings.epsilon, coins)

    return optimise(
        policy, loss_at, settings.policy_updates, settings.policy_rate, path, progress, lagging, settings.lag
    )
