"""One block: BFGS over the parameters that are free, on n steps of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from macaron.dynamics import get_solver
from macaron.pde import PDENet, data_loss, sparsity

from ..common.errors import RecipeError
from .settings import PDESettings, PDEVariant
from .systems import generator

SYMNET_KNEE, MOMENT_KNEE = 1e-3, 1e-2  # where the sparsity goes from square to absolute value
GRADIENT_TOLERANCE = 1e-5  # scipy's own
ROUNDING = 1e-14  # of a sum in float64, relative to its largest terms
FAR = 10.0  # times the first loss: what BFGS is told where the steps overflow


def network(settings: PDESettings, variant: PDEVariant, dx: float, seed: int) -> PDENet:
    """As it starts; the SymNets of a seed are the same in all variants.

    Raises:
        RecipeError: sizes that do not go together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed).initial_seed())
        try:
            return PDENet(
                settings.components, dx, settings.size, settings.max_order, settings.layers, variant.constraint,
                settings.scheme,
            )  # fmt: skip
        except ValueError as error:
            raise RecipeError(f"the network cannot be built: {error}") from error


@torch.no_grad()
def normalize(net: PDENet, u: Tensor) -> None:
    """Weigh the SymNets' inputs by their spread, so that no unit of the data makes them large or small.

    A derivative that is nothing but rounding has no spread to be weighed by.
    """
    spread = net.features(u).flatten(0, -2).std(0)
    largest = u.abs().amax((0, 2, 3))
    weights = [net.filter(f"fd{a}{b}").kernel().abs().sum() * net.filter(f"fd{a}{b}").scale for a, b in net.orders]
    rounding = ROUNDING * (largest[:, None] * torch.stack(weights)).flatten()
    for symnet in net.symnets:
        symnet.nw.copy_(torch.where(spread > rounding, 1 / spread, 1.0))  # type: ignore[union-attr, operator]


class Free:
    """The numbers that BFGS may change, as one vector: all of the SymNets, and the moments that nothing holds."""

    def __init__(self, net: PDENet, filters: bool) -> None:
        for name in net.filters:
            learned = filters and net.filter(name).constraint != "frozen"
            net.filter(name).moment.requires_grad_(learned)
        self.parameters: list[tuple[nn.Parameter, Tensor]] = []
        masks = {net.filter(name).moment: ~net.filter(name).held for name in net.filters}
        for parameter in net.parameters():
            if parameter.requires_grad:
                self.parameters.append((parameter, masks.get(parameter, torch.ones_like(parameter, dtype=torch.bool))))

    def vector(self) -> np.ndarray:
        return torch.cat([p.detach()[mask] for p, mask in self.parameters]).numpy()

    @torch.no_grad()
    def load(self, x: np.ndarray) -> None:
        values = torch.from_numpy(np.array(x, dtype=np.float64))
        parts = values.split([int(mask.sum()) for _, mask in self.parameters])
        for (parameter, mask), part in zip(self.parameters, parts, strict=True):
            parameter[mask] = part
            parameter.grad = None

    def gradient(self) -> np.ndarray:
        return torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad)[mask] for p, mask in self.parameters]
        ).numpy()


def states(net: PDENet, u: Tensor, steps: int, dt: float, solver: str) -> Iterator[Tensor]:
    """`steps` states after u, by the solver."""
    every = accumulate(range(steps), lambda x, _: net.advance(x, dt, get_solver(solver)), initial=u)
    next(every)
    return every


def losses(net: PDENet, u: Tensor, block: int, dt: float, solver: str, settings: PDESettings) -> tuple[Tensor, Tensor]:
    """(total, of the data alone):

        Σ_{i=1…n} mean(((u_i − observed_i)/Δt)²) + n λ₁ Σ h(SymNets) + n λ₂ Σ h(moments),    n = block

    Args:
        u: (n + 1, samples, C, H, W) observed. Block 0 is a step without the other two terms.
    """
    data = data_loss(states(net, u[0], max(block, 1), dt, solver), u[1:], dt)
    symnets = sparsity(net.symnets.parameters(), SYMNET_KNEE)
    moments = sparsity([net.filter(name).projected() for name in net.filters], MOMENT_KNEE)
    return data + block * (settings.sparsity * symnets + settings.moment_sparsity * moments), data


def train_block(
    net: PDENet,
    u: Tensor,
    block: int,
    dt: float,
    solver: str,
    settings: PDESettings,
    progress: Callable[[int], None] = lambda iterations: None,
) -> dict[str, Any]:
    """Minimise the loss of a block; the network is left at the minimum.

    Args:
        progress: is told the number of iterations after each.

    Returns:
        iterations, evaluations, loss, data_loss, why it stopped, and how often the steps overflowed.

    Raises:
        RecipeError: the loss is no number where it starts.
    """
    from scipy.optimize import minimize

    free = Free(net, filters=block > 0)
    overflows = 0
    start = losses(net, u, block, dt, solver, settings)[0].item()
    if not np.isfinite(start):
        raise RecipeError(
            f"block {block}: the loss is {start} at its beginning, the learned equation blows up within {block} steps; "
            f"take shorter blocks, more --samples, or the next smaller --constraint"
        )

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal overflows
        free.load(x)
        total, _ = losses(net, u, block, dt, solver, settings)
        total.backward()
        gradient = free.gradient()
        if not (np.isfinite(total.item()) and np.isfinite(gradient).all()):
            overflows += 1
            return FAR * (1 + abs(start)), np.zeros_like(gradient)
        return total.item(), gradient

    count = 0

    def callback(x: np.ndarray) -> None:
        nonlocal count
        count += 1
        progress(count)

    first = free.vector()
    found = minimize(
        loss, first, jac=True, method="BFGS", callback=callback,
        options={"maxiter": settings.iterations, "gtol": GRADIENT_TOLERANCE},
    )  # fmt: skip
    free.load(found.x)
    with torch.no_grad():
        total, data = losses(net, u, block, dt, solver, settings)
    if not np.isfinite(total.item()) or total.item() > start:
        free.load(first)
        raise RecipeError(f"block {block}: BFGS ended at the loss {total.item()} above {start} where it began; "
                          f"give more --samples")  # fmt: skip
    return {
        "iterations": int(found.nit),
        "evaluations": int(found.nfev),
        "loss": total.item(),
        "data_loss": data.item(),
        "stopped": str(found.message).rstrip("."),
        "overflows": overflows,
    }
