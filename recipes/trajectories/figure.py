"""layers.png: the quantities along depth, mean and middle half of the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .measure import Mean

FLOWS = {"ffn": "#e07b1a", "self_attention": "#2f6fde", "cross_attention": "#1d9a6c"}
OTHER = "#8a4fbf"
SIDES = {"encoder": "-", "decoder": "--"}
INK = "#2b2b33"


def draw(path: Path, means: dict[str, Mean], title: str) -> None:
    """Six panels; one side is a full line, the other a broken one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 7.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    for axis, panel in zip(axes.flat, (length, speed, ratio, angle, local, lens), strict=True):
        for side, mean in means.items():
            panel(axis, mean, side, len(means) > 1)
        finish(axis, means, ABSENT.get(panel, ""))
    tokens = ", ".join(f"{side} {m.particles:,} tokens" for side, m in means.items())
    figure.suptitle(f"{title}\nmean and middle half of the tokens ({tokens})", fontsize=11, color=INK)
    figure.savefig(path, dpi=110)


def finish(axis: Any, means: dict[str, Mean], absent: str) -> None:
    """Axes and legend, or the reason why there is nothing to be seen."""
    if not axis.collections:
        axis.set_axis_off()
        axis.text(0.5, 0.5, absent, ha="center", transform=axis.transAxes, color="gray")
        return
    if axis.get_yscale() == "linear" and axis.get_ylim()[1] > 0:
        axis.set_ylim(bottom=0)
    layers = max(m.substeps[-1][0] for m in means.values())
    axis.set_xticks(range(layers + 1))
    axis.set_xlim(-0.02 * layers, 1.02 * layers)
    axis.set_xlabel("layers passed", color=INK)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)


def depths(mean: Mean) -> np.ndarray:
    """(K + 1,): each state's place along depth, its layers passed; substeps are spread evenly over their layer."""
    places = [0.0]
    for layer in sorted({n for n, *_ in mean.substeps}):
        count = sum(n == layer for n, *_ in mean.substeps)
        places += [layer - 1 + (i + 1) / count for i in range(count)]
    return np.array(places)


def line(axis: Any, mean: Mean, name: str, chosen: np.ndarray, side: str, color: str, label: str | None) -> None:
    """The mean, and a band between the quartiles."""
    there = chosen & ~np.isnan(mean.mean[name])
    if not there.any():
        return
    x = depths(mean)[there]
    style = SIDES.get(side, ":")
    axis.plot(x, mean.mean[name][there], style, marker="o", markersize=3.5, color=color, label=label, linewidth=1.6)
    if name == "lens_agrees":  # yes or no, whose quartiles say nothing
        return
    axis.fill_between(x, mean.low[name][there], mean.high[name][there], color=color, alpha=0.12, linewidth=0)


def everywhere(mean: Mean) -> np.ndarray:
    return np.ones(len(mean.substeps) + 1, dtype=bool)


def named(side: str, several: bool, text: str = "") -> str | None:
    return ", ".join(part for part in (text, side if several else "") if part) or None


def length(axis: Any, mean: Mean, side: str, several: bool) -> None:
    axis.set_title("length of the state  ‖x‖", color=INK)
    line(axis, mean, "length", everywhere(mean), side, INK, named(side, several))


def speed(axis: Any, mean: Mean, side: str, several: bool) -> None:
    axis.set_title("velocity along each flow  ‖dx/dt‖", color=INK)
    for flow in dict.fromkeys(flow for _, flow, _ in mean.substeps):
        chosen = np.array([False, *(f == flow for _, f, _ in mean.substeps)])
        text = flow.replace("_", "-").replace("ffn", "FFN")
        line(axis, mean, "speed", chosen, side, FLOWS.get(flow, OTHER), named(side, several, text))


def ratio(axis: Any, mean: Mean, side: str, several: bool) -> None:
    axis.set_title("interaction to convection  ‖F‖ / ‖G‖", color=INK)
    line(axis, mean, "ratio", everywhere(mean), side, FLOWS["self_attention"], named(side, several))
    axis.axhline(1.0, color="gray", linewidth=0.8)


def angle(axis: Any, mean: Mean, side: str, several: bool) -> None:
    axis.set_title("angle between successive velocities", color=INK)
    line(axis, mean, "angle", everywhere(mean), side, INK, named(side, several))
    axis.axhline(90.0, color="gray", linewidth=0.8)
    axis.set_ylim(0, 180)
    axis.set_yticks(range(0, 181, 45), [f"{degrees}°" for degrees in range(0, 181, 45)])


def local(axis: Any, mean: Mean, side: str, several: bool) -> None:
    axis.set_title("one step of a layer, relative to ‖x‖", color=INK)
    names = {"splitting_error": "two half steps instead", "commutator_relative": "F after G against G after F"}
    for (name, text), color in zip(names.items(), ("#b3261e", OTHER), strict=True):
        line(axis, mean, name, everywhere(mean), side, color, named(side, several, text))
    axis.set_yscale("log")


def lens(axis: Any, mean: Mean, side: str, several: bool) -> None:
    axis.set_title("logit lens", color=INK)
    chosen = everywhere(mean)
    line(axis, mean, "lens_agrees", chosen, side, "#2f6fde", named(side, several, "reads the final word"))
    line(axis, mean, "lens_final", chosen, side, "#1d9a6c", named(side, several, "probability of the final word"))
    axis.set_ylim(0, 1.02)


ABSENT = {local: "post-norm layers have none", lens: "no output layer here"}
