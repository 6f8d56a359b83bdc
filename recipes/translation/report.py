"""The report of a run: a folder with index.html and its figures as PNG, which opens without a network."""

from __future__ import annotations

import base64
import html
import os
import random
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.common import multistep
from recipes.common.page import STYLE, png, table
from recipes.common.provenance import environment
from recipes.common.schemes import Variant
from recipes.common.workspace import read_json, write_json
from recipes.translation import commands
from recipes.translation.checkpoints import load
from recipes.translation.figures import attention_figure, attention_sample, cross_attention, curve_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recipes.translation.pipeline import Pipeline

PACKAGES = (
    *("macaron-net", "torch", "fairseq-fixed", "numpy", "sacremoses", "subword-nmt", "sentencepiece"),
    *("sacrebleu", "hydra-core", "omegaconf"),
)
SAMPLES = 20
NAMES = {"de": "German", "en": "English"}


def write_report(run: Pipeline) -> list[Path]:
    """report/index.html, its figures, and result.json with the same figures; returns their paths."""
    result = collect(run)
    figures = {
        "curves": curve_figure(result["learning_curve_bits_per_token"]),
        "length": length_figure(result["by_length"]),
        "attention": attention_of(run, result["samples"]),
    }
    if result.get("multistep"):
        figures["multistep"] = multistep.figure(result["multistep"])
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    files = {f"{name}.png": base64.b64decode(png(figure)) for name, figure in figures.items()}
    files["index.html"] = render(result).encode()
    for name, content in files.items():
        partial = folder / f"{name}.part"
        partial.write_bytes(content)
        os.replace(partial, folder / name)
    write_json(folder / "result.json", result)
    return [folder / name for name in (*files, "result.json")]


def collect(run: Pipeline) -> dict[str, Any]:
    """Everything a row of results needs: scores, data, settings, commands, times, versions, hardware."""
    from recipes.translation.scoring import bleu_by_length

    stages = ("prepare", "train", "average", "translate", "score")
    stamps = {stage: run.space.stamp(stage) or {} for stage in stages}
    texts = [run.lines("raw", language=run.source), run.lines("raw"), run.lines("hyp")]
    pieces = [best.pieces for _, best in sorted(commands.hypotheses(run.folder / "generate/generate-test.txt").items())]
    rows = list(zip(*texts, run.lines("bpe", language=run.source), pieces, strict=True))
    names = ("source", "reference", "hypothesis", "source pieces", "hypothesis pieces")
    two_step = dict(run.recipe.scheme.options).get("depth_rule") == "multistep"
    chosen = random.Random(1).sample(rows, min(SAMPLES, len(rows)))
    return {
        "recipe": run.recipe.name,
        "languages": [run.source, run.target],
        "scores": run.scores(),
        "by_length": bleu_by_length(*run.words()),
        "data": {key: value for key, value in stamps["prepare"].items() if key not in ("files", "seconds")},
        "parameters": stamps["train"]["parameters"],
        "updates": stamps["train"]["updates"],
        "processes": stamps["train"]["processes"],
        "averaged": stamps["average"]["averaged"],
        "seconds": {
            "training, over all attempts": stamps["train"]["train_seconds"],
            **{stage: stamp["seconds"] for stage, stamp in stamps.items()},
        },
        "settings": read_json(run.folder / "settings.json"),
        "commands": {name: stamps[name]["command"] for name in ("train", "average", "translate")},
        "configuration": (run.folder / "conf" / "train.yaml").read_text(encoding="utf-8"),
        "environment": environment(shlex.join(["python", "-m", f"recipes.{run.recipe.name}", *sys.argv[1:]]), PACKAGES),
        "samples": [dict(zip(names, row, strict=True)) for row in chosen],
        "learning_curve_bits_per_token": commands.learning_curve(run.train_log),
        **({"multistep": multistep.weights(load(run.model)["model"], run.model)} if two_step else {}),
    }


def bucket(entry: dict[str, Any]) -> str:
    return f"{entry['from']}–{entry['to']}" if entry["to"] is not None else f"≥ {entry['from']}"


def length_figure(by_length: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(range(len(by_length)), [entry["BLEU"] for entry in by_length])
    axes.bar_label(bars, [f"{entry['sentences']:,}" for entry in by_length], fontsize=8)
    axes.set_xticks(range(len(by_length)), [bucket(entry) for entry in by_length])
    axes.set(xlabel="words of the source sentence (above the bars: sentences)", ylabel="tokenized BLEU")
    axes.grid(alpha=0.3, axis="y")
    return figure


def attention_of(run: Pipeline, samples: list[dict[str, str]]) -> Figure:
    """Where the decoder looks while it produces one test sentence: last layer, mean over the heads."""
    sample = attention_sample(samples)
    found = cross_attention(run.model, run.data_bin, sample["source pieces"], sample["hypothesis pieces"])
    source, target = (NAMES.get(language, language) for language in (run.source, run.target))
    return attention_figure(*found, languages=(source, target))


def two_step_section(found: multistep.Weights) -> list[str]:
    image = ['<img alt="k over the layers" src="multistep.png">'] if found else []
    words = f"<p>{html.escape(multistep.RULE)}. {html.escape(multistep.verdict(found))}</p>"
    return ["<h2>The two-step rule</h2>", *image, words, table(multistep.rows(found), multistep.HEAD)]


def render(result: dict[str, Any]) -> str:
    source, target = (NAMES.get(language, language) for language in result["languages"])
    title = html.escape(f"{result['recipe']}: {source} → {target}")
    scores = list(result["scores"].values())
    rows = [
        [s["title"], f"{s['score']:.2f}", f"{s['low']:.2f} to {s['high']:.2f}" if "low" in s else "", s["signature"]]
        for s in scores
    ]
    data, settings = result["data"], result["settings"]
    sizes = ", ".join(f"{split} {size:,}" for split, size in data["sizes"].items())
    facts = [
        ["model", f"{settings['model._name']}, {Variant.of_settings(settings).described}"],
        ["parameters", f"{result['parameters']:,}"],
        ["updates", f"{result['updates']:,} of {settings['batch_tokens']:,} tokens, seed {settings['common.seed']}"],
        ["processes", str(result["processes"])],
        ["averaged checkpoints", ", ".join(result["averaged"])],
        ["corpus", data["kind"]],
        ["sentence pairs", sizes],
        ["dictionary", ", ".join(f"{language} {count:,}" for language, count in data["dictionary"].items())],
        ["training time", f"{result['seconds']['training, over all attempts']:.0f} s"],
    ]
    lengths = [[bucket(entry), f"{entry['sentences']:,}", f"{entry['BLEU']:.2f}"] for entry in result["by_length"]]
    samples = [[s[name] for name in ("source", "reference", "hypothesis")] for s in result["samples"]]
    wrong = [s["reference"] != s["hypothesis"] for s in result["samples"]]
    notice = f"<p><strong>{html.escape(data['notice'])}.</strong></p>" if data.get("notice") else ""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            f'<p class="big">{html.escape(scores[0]["title"])} {scores[0]["score"]:.2f}</p>',
            notice,
            table(rows, ["metric", "score", "95 % interval (bootstrap over sentences)", "signature"]),
            table(facts),
            "<h2>Learning curves</h2>",
            '<img alt="learning curves" src="curves.png">',
            "<p>Cross-entropy without label smoothing; the training curve is measured with dropout.</p>",
            *(two_step_section(result["multistep"]) if "multistep" in result else ()),
            "<h2>By length of the source sentence</h2>",
            '<img alt="BLEU by sentence length" src="length.png">',
            table(lengths, ["words", "sentences", "tokenized BLEU"]),
            "<h2>Samples</h2>",
            "<p>Drawn at random from the test set; shaded where translation and reference differ.</p>",
            table(samples, ["source", "reference", "translation"], wrong),
            "<h2>Cross-attention</h2>",
            '<img alt="cross-attention" src="attention.png">',
            "<p>Rows: the pieces of the translation; columns: those of the source. "
            "Last decoder layer, mean over its heads.</p>",
            "<h2>How it was made</h2>",
            table([[name, str(value)] for name, value in result["environment"].items()]),
            *(f"<h3>{name}</h3><pre>{html.escape(c)}</pre>" for name, c in result["commands"].items()),
            f"<h3>conf/train.yaml</h3><pre>{html.escape(result['configuration'])}</pre>",
            "<h3>settings</h3>",
            table([[name, str(value)] for name, value in result["settings"].items()]),
            "<h3>seconds</h3>",
            table([[name, str(value)] for name, value in result["seconds"].items()]),
            "</body></html>\n",
        ]
    )
