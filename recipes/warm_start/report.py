"""What a warm start leaves to read: result.json, a figure, one HTML page, the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bert_pretrain.report import PACKAGES, SOURCES, read_metrics, series, sources
from ..common.main import command_shown
from ..common.provenance import environment
from ..common.report import Figure, Report, Table, Text, write_all
from ..common.workspace import Workspace, read_json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MEANING = {
    "distance": "of the last states from the teacher's, relative, on held-out sentences",
    "cosine": "of mean-pooled sentence vectors, mean over held-out sentences",
}
TRIED = ["start", "distance", "cosine", "meaning"]


def write_report(folder: Path, prepared: Path, space: Workspace) -> list[Path]:
    """All files of the report; the model card goes into the model's folder."""
    result = collect(folder, prepared, space)
    target = folder / "result.json"
    metrics = read_metrics(folder / "metrics.csv")
    made = [
        *report_of(result, metrics).write(folder),
        *write_all(folder / "model", {"README.md": card(result)}),
        target,
    ]
    write_json(target, result)
    return made


def collect(folder: Path, prepared: Path, space: Workspace) -> dict[str, Any]:
    stamps = {stage: space.stamp(stage) or {} for stage in ("teacher", "start", "budget", "distil")}
    text = {stage: read_json(prepared / "stamps" / f"{stage}.json") for stage in ("clean", "examples")}
    settings, start = read_json(folder / "settings.json"), read_json(folder / "start.json")
    rates = [row["tokens_per_second"] for row in read_metrics(folder / "metrics.csv") if "tokens_per_second" in row]
    updates, examples = stamps["distil"]["updates"], text["examples"]["train"]
    seen = updates * settings["distill"]["batch_size"]
    return {
        "teacher": settings["teacher"],
        "results": {name: stamps["distil"]["final"][name] for name in MEANING},
        "start": start,
        "parameters": {"teacher": stamps["teacher"]["parameters"], "student": stamps["distil"]["parameters"]},
        "updates": updates,
        "examples_seen": seen,
        "passes": round(seen / examples["examples"], 3),
        "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        "seconds": {stage: stamp["seconds"] for stage, stamp in stamps.items()},
        "data": {"sources": text["clean"]["sources"], "examples": text["examples"]},
        "settings": settings,
        "environment": environment(command_shown("warm_start"), PACKAGES),
    }


def scores(result: dict[str, Any]) -> list[list[str]]:
    chosen = result["start"]["chosen"]
    start = next(row for row in result["start"]["tried"] if row["name"] == chosen)
    return [[name, f"{start[name]:.4f}", f"{result['results'][name]:.4f}", MEANING[name]] for name in MEANING]


def tried(result: dict[str, Any]) -> list[list[str]]:
    return [
        [row["name"], f"{row['distance']:.4f}", f"{row['cosine']:.4f}", row["meaning"]]
        for row in result["start"]["tried"]
    ]


SCORES = ["figure", "at the start", "at the end", "meaning"]


def facts(result: dict[str, Any]) -> list[list[str]]:
    first, second = result["start"]["widths"]
    rate, numbers = result["tokens_per_second"], result["parameters"]
    exact = "; the start is the teacher's function" if result["start"]["exact"] else ""
    return [
        ["teacher", f"{result['teacher']['name']} (sha256 {result['teacher']['sha256'][:16]}…)"],
        ["FFNs", f"{first} neurons ahead of the attention, {second} behind it{exact}"],
        ["parameters", f"{numbers['student']:,}; the teacher has {numbers['teacher']:,}"],
        ["updates", f"{result['updates']:,} of {result['settings']['distill']['batch_size']} examples"],
        ["examples seen", f"{result['examples_seen']:,} ({result['passes']} passes)"],
        ["throughput, median", f"{rate:,.0f} tokens per second" if rate else "not logged"],
        ["time of the last start of the training", f"{result['seconds']['distil']:.0f} s"],
    ]


def figure(metrics: list[dict[str, float]]) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(10, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    left.plot(*series(metrics, "distance"), marker="o", label="distance, held out")
    left.plot(*series(metrics, "loss"), label="training loss")
    right.plot(*series(metrics, "cosine"), marker="o", label="cosine, held out")
    for axes in (left, right):
        axes.set(xlabel="updates")
        axes.grid(alpha=0.3)
        axes.legend()
    left.set_ylim(0, None)
    return drawing


def report_of(result: dict[str, Any], metrics: list[dict[str, float]]) -> Report:
    title = f"Macaron BERT, warm-started from {result['teacher']['name']}, seed {result['settings']['distill']['seed']}"
    report = Report(title)
    drawn = Figure("distance", figure(metrics), "distance from the teacher")
    report.section("Distance from the teacher", Table(scores(result), SCORES), drawn, Table(facts(result)))
    report.section("Possibilities at the start", Table(tried(result), TRIED))
    report.section("Text", Table(sources(result), SOURCES))
    report.section("How it was made", Table.of(result["environment"]))
    settings = {
        name: value for part in ("text", "start", "distill") for name, value in result["settings"][part].items()
    }
    return report.add(Text("settings", "subheading"), Table.of(settings))


def card(result: dict[str, Any]) -> str:
    e = result["environment"]
    return f"""---
library_name: transformers
tags: [macaron, bert, distillation]
---

# Macaron BERT, warm-started from {result["teacher"]["name"]}

The layers of a published BERT read as those of a Macaron (Lu et al. 2019, arXiv:1906.02762), half an FFN ahead of the
attention and half behind it, then distilled on text without labels by `recipes.warm_start` of Macaron. It is near its
teacher, not equal to it: fine-tune and measure before you trust it in its place.

```python
import macaron.bert  # registers with the Auto classes
from transformers import AutoModel, AutoTokenizer

model, tokenizer = AutoModel.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")
```

## Distance from the teacher

{Table(scores(result), SCORES).markdown()}

## How it was made

{Table(facts(result)).markdown()}

### Possibilities at the start

{Table(tried(result), TRIED).markdown()}

## Text

{Table(sources(result), SOURCES).markdown()}

The licences of the teacher and of the texts hold for this model too; check them before you pass it on.

## Environment

Command: `{e["command"]}`

{Table.of({name: value for name, value in e.items() if name != "command"}).markdown()}
"""
