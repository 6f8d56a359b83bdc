"""The report: one HTML file that needs no network, and result.json with the same figures."""

from __future__ import annotations

import html
import os
import random
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.common.page import STYLE, png, table
from recipes.common.provenance import environment
from recipes.common.schemes import described
from recipes.common.workspace import read_json, read_lines, write_json
from recipes.translation import commands
from recipes.translation.figures import attention_figure, attention_sample, cross_attention, curve_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recipes.demo.pipeline import Demo

PACKAGES = ("macaron-net", "torch", "fairseq-fixed", "sentencepiece", "sacrebleu", "numpy")
SAMPLES = 20


def write_report(demo: Demo) -> list[Path]:
    """Write result.json and report.html; returns both paths."""
    commands.quiet()
    result = collect(demo)
    curves = commands.learning_curve(demo.train_log)
    figures = [("Learning curve", curve_figure(curves)), ("Cross-attention", attention_of(demo, result["samples"]))]
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


def attention_of(demo: Demo, samples: list[dict[str, str]]) -> Figure:
    """Where the decoder looks while it produces one test sentence: last layer, mean over the heads."""
    import sentencepiece

    sample = attention_sample(samples)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(demo.spm))
    lines = [" ".join(pieces.encode(sample[side], out_type=str)) for side in ("source", "hypothesis")]
    return attention_figure(*cross_attention(demo.folder / "model.pt", demo.data_bin, *lines))


def render(result: dict[str, Any], figures: list[tuple[str, Figure]]) -> str:
    scores = [[name, f"{s['score']:.2f}", s["signature"]] for name, s in result["scores"].items()]
    samples = result["samples"]
    rows = [[s["source"], s["reference"], s["hypothesis"]] for s in samples]
    wrong = [s["reference"] != s["hypothesis"] for s in samples]
    sizes = ", ".join(f"{split} {size:,}" for split, size in result["sentences"].items())
    images = [
        f'<h2>{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{png(figure)}">' for title, figure in figures
    ]
    facts = [
        ["model", described(result["settings"]["splitting"])],
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
