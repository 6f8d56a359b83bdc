"""What training made of the two-step rule: its k read off a checkpoint, judged, and drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import RecipeError
from .report import Figure, Part, Table, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Weights = dict[str, list[float]]  # side ↦ k_1 … k_{depth−1}; layer 0 has none

_K = re.compile(r"(?:^|\.)(?:(encoder|decoder)\.)?layers\.rule\.bias$")
HEAD = ["side", "layer", "k", "zero-stable"]
RULE = "x_{n+1} = (1 − k_n) x_n + k_n x_{n−1} + Δ_n(x_n), layers counted from 0; zero-stable for −1 < k ≤ 1"


def weights(parameters: Mapping[str, Any], where: object) -> Weights:
    """The k of each side, from the parameters of a model of either host; {} where no side has more than one layer.

    Raises:
        RecipeError: a k that is no finite number.
    """
    found: Weights = {}
    for name, tensor in parameters.items():
        if match := _K.search(name):
            found[match[1] or "encoder"] = [float(k) for k in tensor.reshape(-1).tolist()]
    if wrong := [
        f"{side} layer {n}: {k}" for side, ks in found.items() for n, k in enumerate(ks, 1) if not math.isfinite(k)
    ]:
        raise RecipeError(f"{where}: the k of the two-step rule are not finite ({wrong[0]}); the training has diverged")
    return found


def is_k(parameter: str) -> bool:
    """Whether a parameter of that name holds k, which weight decay leaves alone: it would pull towards k = 0."""
    return _K.search(parameter) is not None


def extremes(parameters: Mapping[str, Any]) -> dict[str, float]:
    """For a training log: the smallest and the greatest k of all layers; {} without any."""
    ks = [float(k) for name, tensor in parameters.items() if is_k(name) for k in tensor.reshape(-1).tolist()]
    return {"k_min": round(min(ks), 4), "k_max": round(max(ks), 4)} if ks else {}


def rows(found: Weights) -> list[list[str]]:
    """A line per layer, under HEAD."""
    from macaron.dynamics.multistep import is_zero_stable

    return [
        [side, str(n), f"{k:+.4f}", "yes" if is_zero_stable(k) else "NO"]
        for side, ks in found.items()
        for n, k in enumerate(ks, 1)
    ]


def verdict(found: Weights) -> str:
    """Whether each step is zero-stable, so that no perturbation grows with the depth; in words."""
    from macaron.dynamics.multistep import is_zero_stable

    ks = [(side, n, k) for side, of_side in found.items() for n, k in enumerate(of_side, 1)]
    if not ks:
        return "No side has a second layer, so there is no k."
    unstable = [f"{side} layer {n} (k = {k:+.3f})" for side, n, k in ks if not is_zero_stable(k)]
    if unstable:
        return f"NOT zero-stable in {', '.join(unstable)}: there a perturbation grows with the depth."
    values = [k for *_, k in ks]
    return f"Zero-stable in every layer: k from {min(values):+.3f} to {max(values):+.3f}, all in (−1, 1]."


def parts(found: Weights | None) -> list[Part]:
    """Of a report, under a heading of its own; none where another rule was trained."""
    if found is None:
        return []
    words = Text(f"{RULE}. {verdict(found)}")
    return [Figure("multistep", figure(found)), words, Table(rows(found), HEAD)] if found else [words]


def figure(found: Weights) -> Drawing:
    """k over the layers, with the limits of zero-stability."""
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import MaxNLocator

    fig = Drawing(figsize=(7, 3.2), layout="constrained")
    axes = fig.subplots()
    for side, ks in found.items():
        axes.plot(range(1, len(ks) + 1), ks, marker="o", label=side)
    axes.axhspan(-1, 1, color="tab:green", alpha=0.08, label="zero-stable: −1 < k ≤ 1")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="layer, from 0", ylabel="k")
    most = max(map(len, found.values()), default=1)
    axes.set_xlim(0.5, most + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(min(most, 12), integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()
    return fig
