"""PDE-Net 2.0: derivatives by constrained filters, their combination by a SymNet a component, steps of a solver."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from macaron.dynamics import EULER, Tableau, follow
from macaron.pde.filters import DerivativeFilter
from macaron.pde.symnet import SymNet

ONE_SIDED = {0: -1.5, 1: 2.0, 2: -0.5}
CENTRAL = {-1: -0.5, 1: 0.5}
SECOND = {-1: 1.0, 0: -2.0, 1: 1.0}
SCHEMES = ("upwind", "central")


class PDENet(nn.Module):
    """du/dt = SymNet(u, u_x, u_y, …) for each component.

    Args:
        components: names, in the order of the fields' channels.
        dx: distance of the grid's points.
        size: of the filters, one odd number.
        max_order: of the derivatives, at most 9: a channel's name has a digit an axis.
        layers: products of each SymNet.
        constraint: of the filters, see `DerivativeFilter`.
        scheme: "upwind" starts from one-sided filters and mirrors them against the wind; "central" never mirrors.

    Raises:
        ValueError: see there; an even size, an unknown scheme, or names from which no equation can be read.
    """

    def __init__(
        self,
        components: Sequence[str] = ("u", "v"),
        dx: float = 1.0,
        size: int = 5,
        max_order: int = 2,
        layers: int = 5,
        constraint: int | str = 2,
        scheme: str = "upwind",
    ) -> None:
        super().__init__()
        if size % 2 == 0 or size < 3 + 2 * (scheme == "upwind"):
            raise ValueError(f"size={size} must be odd, at least 5 with the scheme upwind and 3 with central")
        if scheme not in SCHEMES:
            raise ValueError(f"scheme={scheme!r} is unknown; choose one of {', '.join(SCHEMES)}")
        if not 1 <= max_order <= 9:
            raise ValueError(f"max_order={max_order} must be at least 1 and at most 9")
        if not components or len(set(components)) < len(components):
            raise ValueError(f"components={list(components)!r} must be names, each once")
        if wrong := [name for name in components if not re.fullmatch(r"[A-Za-z]+", name)]:
            raise ValueError(f"components: {wrong[0]!r} is no name in an equation; take letters from A to Z")
        self.components, self.scheme = list(components), scheme
        self.orders = [(a, total - a) for total in range(max_order + 1) for a in range(total + 1)]
        self.filters = nn.ModuleDict(
            {f"fd{a}{b}": DerivativeFilter((a, b), size, dx, constraint) for a, b in self.orders}
        )
        for name, stencil in initial_stencils(scheme).items():
            if name in self.filters:
                self.filter(name).set_kernel(embedded(stencil, size, along=-2 if name[-2] != "0" else -1))
        channels = [f"{component}{a}{b}" for component in components for a, b in self.orders]
        self.symnets = nn.ModuleList(SymNet(channels, layers) for _ in components)

    def filter(self, name: str) -> DerivativeFilter:
        return self.filters[name]  # type: ignore[return-value]

    def features(self, u: Tensor) -> Tensor:
        """(B, components, H, W) → (B, H, W, channels), with the filters as they are."""
        return self._derivatives(u, {})[0]

    def forward(self, u: Tensor) -> Tensor:
        """du/dt, shape of `u`: a field for `follow`."""
        features, mirrored = self._derivatives(u, {"fd01": -1, "fd10": -2} if self.scheme == "upwind" else {})
        if self.scheme == "upwind":
            features = self._against_the_wind(features, mirrored)
        return torch.stack([symnet(features) for symnet in self.symnets], 1)

    def _derivatives(self, u: Tensor, mirrors: dict[str, int]) -> tuple[Tensor, Tensor]:
        """(B, H, W, channels), and (B, components, mirrors, H, W) of negative mirror images along an axis each.

        All filters are taken in one pass over the fields; in memory the points of a channel lie together.
        """
        if u.dim() != 4 or u.shape[1] != len(self.components):
            raise ValueError(f"fields of shape {tuple(u.shape)}, but (B, {len(self.components)}, H, W) are needed")
        if u.dtype != (dtype := self.filter("fd00").moment.dtype):
            raise ValueError(f"fields of {u.dtype} for a network of {dtype}; convert the fields, or the network")
        names = [f"fd{a}{b}" for a, b in self.orders]
        kernels = {name: self.filter(name).kernel() * self.filter(name).scale for name in names}
        stacked = [*kernels.values(), *(-kernels[name].flip(axis) for name, axis in mirrors.items())]
        batch, count, height, width = u.shape
        size = stacked[0].shape[-1]
        if min(height, width) < size:
            raise ValueError(f"fields of {height} x {width} points are smaller than the filters, {size} x {size}")
        below = (size - 1) // 2
        padded = F.pad(u.flatten(0, 1)[:, None], (below, size - 1 - below) * 2, mode="circular")
        found = F.conv2d(padded, torch.stack(stacked)[:, None]).view(batch, count, len(stacked), height, width)
        plain, mirrored = found.split([len(names), len(mirrors)], 2)
        channels = plain.permute(1, 2, 0, 3, 4).reshape(count * len(names), batch, height, width)
        return channels.movedim(0, -1), mirrored

    def _against_the_wind(self, features: Tensor, mirrored: Tensor) -> Tensor:
        """Each component's own first derivatives, mirrored where the SymNet falls with them; not differentiated."""
        columns = list(features.unbind(-1))
        for c, symnet in enumerate(self.symnets):
            with torch.inference_mode(False), torch.enable_grad():
                fixed = (features.clone() if features.is_inference() else features.detach()).requires_grad_()
                (slope,) = torch.autograd.grad(symnet(fixed).sum(), fixed)
            for i, order in enumerate(((0, 1), (1, 0))):
                column = c * len(self.orders) + self.orders.index(order)
                columns[column] = torch.where(slope[..., column] > 0, columns[column], mirrored[:, c, i])
        return torch.stack(columns).movedim(0, -1)

    def advance(self, u: Tensor, dt: float, solver: Tableau = EULER) -> Tensor:
        """One δt-block."""
        return follow(self, u, dt, solver)

    def equations(self, digits: int = 3, precision: int = 6, degree: int | None = None) -> list[str]:
        """One line a component: u_t = …"""
        return [
            symnet.formula(f"{name}_t", digits, precision, degree)  # type: ignore[operator]
            for name, symnet in zip(self.components, self.symnets, strict=True)
        ]


def initial_stencils(scheme: str) -> dict[str, dict[int, float]]:
    """The original's own start; 00 and 11 start from their moment."""
    first = ONE_SIDED if scheme == "upwind" else CENTRAL
    return {"fd01": first, "fd10": first, "fd02": SECOND, "fd20": SECOND}


def embedded(stencil: dict[int, float], size: int, along: int) -> Tensor:
    """A kernel (size, size) with the stencil, offset ↦ weight, through its centre."""
    centre = (size - 1) // 2
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for offset, weight in stencil.items():
        kernel[(centre + offset, centre) if along == -2 else (centre, centre + offset)] = weight
    return kernel


def data_loss(states: Iterable[Tensor], observed: Iterable[Tensor], dt: float) -> Tensor:
    """Σ over the steps of mean(((u − observed)/dt)²).

    Raises:
        ValueError: numbers of states, or their shapes, that differ; dt that is not positive.
    """
    if not dt > 0:
        raise ValueError(f"dt={dt!r} must be a positive number")
    states, observed = list(states), list(observed)
    shapes = [[tuple(u.shape) for u in each] for each in (states, observed)]
    if not states or shapes[0] != shapes[1]:
        raise ValueError(f"states of shapes {shapes[0]} and observed ones of {shapes[1]}; they must be the same")
    terms = [((u - o) / dt).square().mean() for u, o in zip(states, observed, strict=True)]
    return torch.stack(terms).sum()


def sparsity(parameters: Iterable[Tensor], s: float) -> Tensor:
    """Σ p²/(2s) below s, |p| − s/2 above.

    Raises:
        ValueError: s is not positive.
    """
    if not s > 0:
        raise ValueError(f"s={s!r} must be a positive number")
    return torch.stack(
        [torch.where(p.abs() < s, p.square() / (2 * s), p.abs() - s / 2).sum() for p in parameters]
    ).sum()


def stability_loss(states: Sequence[Tensor], size: int) -> Tensor:
    """How far each state, from the second on, leaves the range of its neighbourhood in the state before.

    Args:
        states: two or more, (B, C, H, W).
        size: points of the neighbourhood along an axis, odd.

    Raises:
        ValueError: an even size, or fewer than two states.
    """
    if size < 1 or size % 2 == 0 or len(states) < 2:
        raise ValueError(f"size={size} must be odd, and {len(states)} states two or more")

    def highest(u: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(u, (size // 2,) * 4, mode="circular"), size, stride=1)

    terms = [
        (after - highest(before)).relu().square().sum() + (-after - highest(-before)).relu().square().sum()
        for before, after in itertools.pairwise(states)
    ]
    return torch.stack(terms).sum()
