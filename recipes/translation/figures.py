"""Figures of a translation report: learning curves, and where the decoder looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import macaron

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_figure(curves: dict[str, list[tuple[int, float]]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=name) if points else None
    axes.set(xlabel="updates", ylabel="loss (bits per token)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def attention_sample(samples: Sequence[dict[str, str]]) -> dict[str, str]:
    """The longest correct translation that still fits a figure, else the longest that fits, else the shortest."""
    fitting = [sample for sample in samples if len(sample["source"].split()) <= 14]
    correct = [sample for sample in fitting if sample["hypothesis"] == sample["reference"]]
    if correct or fitting:
        return max(correct or fitting, key=lambda sample: len(sample["source"]))
    return min(samples, key=lambda sample: len(sample["source"]))


def attention_figure(
    source: Sequence[str], target: Sequence[str], weights: Any, languages: tuple[str, str] = ("German", "English")
) -> Figure:
    """weights: (T, S), of S source pieces for each of T target pieces."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.45 * len(source) + 2.5, 0.32 * len(target) + 2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights, cmap="Blues", aspect="auto", vmin=0)
    axes.set_xticks(range(len(source)), source, rotation=60, ha="right")
    axes.set_yticks(range(len(target)), target)
    axes.set(xlabel=f"{languages[0]} (encoder)", ylabel=f"{languages[1]} (decoder)")
    return figure


def cross_attention(model: Path, data_bin: Path, source: str, target: str) -> tuple[list[str], list[str], Any]:
    """(source pieces S, target pieces T, weights (T, S)) from one pass with the target given.

    Args:
        model: a checkpoint.
        source, target: pieces, separated by spaces.
    """
    import torch
    from fairseq import checkpoint_utils

    macaron.register_fairseq()
    (network,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(model)], arg_overrides={"data": str(data_bin)}
    )
    network.eval()
    dictionaries = (task.source_dictionary, task.target_dictionary)
    src, tgt = (
        dictionary.encode_line(line, add_if_not_exist=False).long()
        for line, dictionary in zip((source, target), dictionaries, strict=True)
    )
    previous = torch.cat([tgt[-1:], tgt[:-1]])  # fairseq starts a target with </s>
    with torch.no_grad():
        _, extra = network(src[None], torch.tensor([len(src)]), previous[None])
    weights = extra["attn"][0][0].float().numpy()  # (B, T, S) → (T, S)
    names = [[dictionary[i] for i in side.tolist()] for side, dictionary in zip((src, tgt), dictionaries, strict=True)]
    return names[0], names[1], weights
