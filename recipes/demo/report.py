"""The report: one HTML file that needs no network, and result.json with the same figures."""

from __future__ import annotations

import html
import logging
import os
import random
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import macaron
from recipes.common import commands
from recipes.common.page import STYLE, png, table
from recipes.common.provenance import environment
from recipes.common.workspace import read_json, read_lines, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recipes.demo.pipeline import Demo

PACKAGES = ("macaron-net", "torch", "fairseq-fixed", "sentencepiece", "sacrebleu", "numpy")
SAMPLES = 20


def write_report(demo: Demo) -> list[Path]:
    """Write result.json and report.html; returns both paths."""
    for library in ("fairseq", "matplotlib"):  # hydra, which fairseq starts, lets everything through to the terminal
        logging.getLogger(library).setLevel(logging.WARNING)
    result = collect(demo)
    curves = commands.learning_curve(demo.train_log)
    figures = [("Learning curve", curve_figure(curves)), ("Cross-attention", attention_figure(demo, result))]
    page = demo.folder / "report.html"
    partial = page.with_suffix(".part")
    partial.write_text(render(result, figures), encoding="utf-8")
    os.replace(partial, page)
    result["learning_curve_bits_per_token"] = curves
    target = demo.folder / "result.json"
    write_json(target, result)
    return [target, page]


def collect(demo: Demo) -> dict[str, Any]:
    """Everything a row of results needs: scores, settings, commands, times, versions, hardware."""
    scores = read_json(demo.folder / "scores.json")
    exact = scores.pop("exact_match_percent")
    stamps = {stage: demo.space.stamp(stage) or {} for stage in ("prepare", "train", "translate", "score")}
    texts = [read_lines(path) for path in (demo.text / "test.de", demo.text / "test.en", demo.folder / "test.hyp.en")]
    rows = list(zip(*texts, strict=True))
    chosen = random.Random(demo.settings.seed).sample(rows, min(SAMPLES, len(rows)))
    return {
        "corpus": demo.settings.corpus,
        "scores": scores,
        "exact_match_percent": exact,
        "parameters": stamps["train"]["parameters"],
        "updates": stamps["train"]["updates"],
        "sentences": stamps["prepare"]["sizes"],
        "seconds": {
            "training": stamps["train"]["train_seconds"],
            **{stage: stamp["seconds"] for stage, stamp in stamps.items()},
        },
        "settings": read_json(demo.folder / "settings.json"),
        "commands": {stage: stamps[stage]["command"] for stage in ("train", "translate")},
        "environment": environment(shlex.join(["python", "-m", "recipes.demo", *sys.argv[1:]]), PACKAGES),
        "samples": [dict(zip(("source", "reference", "hypothesis"), row, strict=True)) for row in chosen],
    }


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


def attention_figure(demo: Demo, result: dict[str, Any]) -> Figure:
    """Where the decoder looks while it produces one test sentence: last layer, mean over the heads."""
    from matplotlib.figure import Figure

    sample = attention_sample(result["samples"])
    source, target, weights = cross_attention(demo, sample["source"], sample["hypothesis"])
    figure = Figure(figsize=(0.45 * len(source) + 2.5, 0.32 * len(target) + 2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights, cmap="Blues", aspect="auto", vmin=0)
    axes.set_xticks(range(len(source)), source, rotation=60, ha="right")
    axes.set_yticks(range(len(target)), target)
    axes.set(xlabel="German (encoder)", ylabel="English (decoder)")
    return figure


def attention_sample(samples: list[dict[str, str]]) -> dict[str, str]:
    """The longest correct translation that still fits a figure, else the shortest of all."""
    fitting = [sample for sample in samples if len(sample["source"].split()) <= 14]
    correct = [sample for sample in fitting if sample["hypothesis"] == sample["reference"]]
    if correct or fitting:
        return max(correct or fitting, key=lambda sample: len(sample["source"]))
    return min(samples, key=lambda sample: len(sample["source"]))


def cross_attention(demo: Demo, source: str, target: str) -> tuple[list[str], list[str], Any]:
    """(source pieces S, target pieces T, weights (T, S)) from one pass with the target given."""
    import sentencepiece
    import torch
    from fairseq import checkpoint_utils

    macaron.register_fairseq()
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(demo.folder / "model.pt")], arg_overrides={"data": str(demo.data_bin)}
    )
    model.eval()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(demo.spm))
    sides = []
    for text, dictionary in ((source, task.source_dictionary), (target, task.target_dictionary)):
        line = " ".join(pieces.encode(text, out_type=str))
        sides.append(dictionary.encode_line(line, add_if_not_exist=False).long())
    src, tgt = sides
    previous = torch.cat([tgt[-1:], tgt[:-1]])  # fairseq starts a target with </s>
    with torch.no_grad():
        _, extra = model(src[None], torch.tensor([len(src)]), previous[None])
    weights = extra["attn"][0][0].float().numpy()  # (B, T, S) → (T, S)
    names = [[task.source_dictionary[index] for index in side.tolist()] for side in sides]
    return names[0], names[1], weights


def render(result: dict[str, Any], figures: list[tuple[str, Figure]]) -> str:
    scores = [[name, f"{s['score']:.2f}", s["signature"]] for name, s in result["scores"].items()]
    samples = result["samples"]
    rows = [[s["source"], s["reference"], s["hypothesis"]] for s in samples]
    wrong = [s["reference"] != s["hypothesis"] for s in samples]
    sizes = ", ".join(f"{split} {size:,}" for split, size in result["sentences"].items())
    images = [
        f'<h2>{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{png(figure)}">' for title, figure in figures
    ]
    scheme = {"strang": "Macaron (Strang–Marchuk splitting)", "lie": "Transformer (Lie–Trotter splitting)"}
    facts = [
        ["model", scheme.get(result["settings"]["splitting"], result["settings"]["splitting"])],
        ["parameters", f"{result['parameters']:,}"],
        ["updates", f"{result['updates']:,}"],
        ["sentence pairs", sizes],
        ["training time", f"{result['seconds']['training']:.0f} s"],
        ["exact matches on test", f"{result['exact_match_percent']} %"],
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Macaron demo</title>',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>Macaron demo: {html.escape(result['corpus'])}, German → English</h1>",
            f'<p class="big">BLEU {result["scores"]["BLEU"]["score"]:.2f}</p>',
            table(scores, ["metric", "score", "signature"]),
            table(facts),
            images[0],
            "<p>Cross-entropy without label smoothing; the training curve is measured with dropout.</p>",
            "<h2>Samples</h2>",
            "<p>Drawn at random from the test set; shaded where translation and reference differ.</p>",
            table(rows, ["source", "reference", "translation"], wrong),
            images[1],
            "<p>Rows: the pieces of the translation; columns: those of the source. "
            "Last decoder layer, mean over its heads.</p>",
            "<h2>How it was made</h2>",
            table([[name, str(value)] for name, value in result["environment"].items()]),
            *(f"<h3>{name}</h3><pre>{html.escape(c)}</pre>" for name, c in result["commands"].items()),
            "<h3>settings</h3>",
            table([[name, str(value)] for name, value in result["settings"].items()]),
            "<h3>seconds</h3>",
            table([[name, str(value)] for name, value in result["seconds"].items()]),
            "</body></html>\n",
        ]
    )
