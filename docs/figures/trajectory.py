"""trajectory.png: the words of a sentence on their way through the encoder of a trained model.

    python docs/figures/trajectory.py RELEASE "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."

RELEASE is a released translation model; recipes/trajectories/README.md has the command that made the one of the figure.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from macaron.analysis import principal_plane
from recipes.trajectories.models import open_model

COLOURS = {"ffn": "#e07b1a", "self_attention": "#2f6fde"}
NAMES = {"ffn": "FFN, half a step each", "self_attention": "attention"}
INK = "#2b2b33"


def draw(release: Path, sentence: str, file: Path) -> None:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq asks everybody for more
    with torch.no_grad():
        view = next(
            view for view in open_model(release, None, {}, "cpu").views(sentence, None) if view.side == "encoder"
        )
        points, explained = principal_plane(view.trajectory.states)  # (K + 1, N, 2)
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for k, move in enumerate(view.trajectory.moves):
        for n in range(points.size(1)):
            axis.plot(*points[k : k + 2, n].T, color=COLOURS[move.flow], lw=1.6, solid_capstyle="round")
    axis.plot(*points[0].T, "o", color="lightgray", ms=4)
    axis.plot(*points[-1].T, "o", color=INK, ms=4)
    for word, (x, y) in zip(view.tokens, points[-1].tolist(), strict=True):
        axis.annotate(
            word.removesuffix("@@"), (x, y), (5, 3), textcoords="offset points", fontsize=10, color=INK, weight="bold"
        )
    for flow, colour in COLOURS.items():
        axis.plot([], [], color=colour, label=NAMES[flow])
    layers = len(view.trajectory.layers)
    axis.set_title(
        f"The words of a sentence, through {layers} layers of a trained encoder", fontsize=11, color=INK, weight="bold"
    )
    axis.set_xlabel(f"first principal component, {explained[0]:.0%} of the variance", color="gray")
    axis.set_ylabel(f"second, {explained[1]:.0%}", color="gray")
    axis.tick_params(labelsize=8, colors="gray")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the words of a sentence on their way through an encoder.")
    parser.add_argument("release", type=Path, metavar="RELEASE", help="the folder of a released translation model")
    parser.add_argument("sentence", metavar="SENTENCE", help="in its source language, raw text")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), metavar="FILE")
    args = parser.parse_args()
    draw(args.release, args.sentence, args.out)
