"""schemes.png: one layer as Lie–Trotter and as Strang–Marchuk splitting, and what the two do to a system that is known.

    python docs/figures/schemes.py

The blocks are drawn from `LIE` and `STRANG` themselves; the paths on the right are walked by `macaron.dynamics.walk`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from macaron.dynamics import LIE, RK4, STRANG, Splitting, walk

COLOURS = {"ffn": "#e07b1a", "self_attention": "#2f6fde"}
NAMES = {"ffn": "FFN", "self_attention": "attention"}
SCHEMES = {"Lie–Trotter: the Transformer": LIE, "Strang–Marchuk: Macaron": STRANG}
INK = "#2b2b33"
STEPS = 3

# dx/dt = (F + G) x: F turns, G stretches one axis and shrinks the other; they do not commute.
F = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
G = torch.tensor([[0.5, 0.0], [0.0, -0.5]], dtype=torch.float64)
START, TIME = torch.tensor([1.0, 0.0], dtype=torch.float64), 2.4


def exact(t: float) -> Tensor:
    return torch.matrix_exp(t * (F + G)) @ START


def path(splitting: Splitting) -> list[tuple[str, Tensor]]:
    """The flow and the points of each substep, its flow followed (nearly) exactly by many small steps of RK4."""
    fields = {"self_attention": lambda x: F @ x, "ffn": lambda x: G @ x}
    x, parts = START, []
    for _ in range(STEPS):
        for substep in splitting.substeps:
            alone, points = Splitting.parse(substep.flow), [x]
            for _ in range(20):
                ((_, x),) = walk(alone, fields, x, dt=substep.share * TIME / STEPS / 20, solver=RK4)
                points.append(x)
            parts.append((substep.flow, torch.stack(points)))
    return parts


def blocks(axis: Any, title: str, splitting: Splitting) -> None:
    """A layer from below: its substeps as boxes, as high as their share, each with its residual connection."""
    axis.set(xlim=(-1.15, 0.95), ylim=(-0.35, 3.15))
    axis.set_axis_off()
    axis.set_title(title, fontsize=11, color=INK, weight="bold")
    gap = 0.28
    unit = (2.8 - gap * (len(splitting.substeps) - 1)) / sum(substep.share for substep in splitting.substeps)
    y = 0.0
    axis.annotate("", (0, 3.12), (0, -0.35), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2}, zorder=0)
    for substep in splitting.substeps:
        height, colour = unit * substep.share, COLOURS[substep.flow]
        axis.add_patch(
            FancyBboxPatch((-0.62, y), 1.24, height, boxstyle="round,pad=0,rounding_size=0.08", fc=colour, ec="white")
        )
        share = "for Δt" if substep.share == 1 else f"for Δt/{1 / substep.share:g}"
        text = f"{NAMES[substep.flow]}\n{share}"
        axis.text(0, y + height / 2, text, ha="center", va="center", color="white", fontsize=10)
        below, above, beside = y - 0.09, y + height + 0.14, -0.85  # the residual connection
        axis.plot([0, beside, beside], [below, below, above], color="gray", lw=1.2)
        axis.annotate("", (0, above), (beside, above), arrowprops={"arrowstyle": "-|>", "color": "gray", "shrinkB": 0})
        y += height + gap


def paths(axis: Any) -> None:
    curve = torch.stack([exact(TIME * i / 200) for i in range(201)])
    axis.plot(*curve.T, color=INK, lw=2.2, label="exact")
    for (title, splitting), dashes in zip(SCHEMES.items(), ("--", "-"), strict=True):
        parts = path(splitting)
        for flow, points in parts:
            axis.plot(*points.T, color=COLOURS[flow], ls=dashes, lw=1.2)
        end = parts[-1][1][-1]
        error = (end - exact(TIME)).norm()
        name = title.partition(":")[0]
        axis.plot([], [], color="gray", ls=dashes, label=f"{name}: {error:.3f} off after {STEPS} steps")
        axis.plot(*end, "o", color="gray", ms=4)
    axis.plot(*exact(TIME), "o", color=INK, ms=5)
    axis.plot(*START, "o", color=INK, ms=5, mfc="white")
    axis.set_title("dx/dt = F x + G x, one particle in the plane", fontsize=11, color=INK, weight="bold")
    axis.set_aspect("equal", adjustable="datalim")
    axis.tick_params(labelsize=8, colors="gray")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="lower left")


def draw(file: Path) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 2.3))
    for axis, (title, splitting) in zip((left, middle), SCHEMES.items(), strict=True):
        blocks(axis, title, splitting)
    paths(right)
    figure.savefig(file, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
