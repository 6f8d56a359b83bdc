"""What a run leaves to read: result.json, two plots, one HTML page that needs no network, the model card."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import multistep
from ..common.main import command_shown
from ..common.provenance import environment
from ..common.report import Figure, Report, Table, Text, write_all
from ..common.workspace import read_json, write_json
from .settings import scheme_of, shared_layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from ..common.schemes import Variant

PACKAGES = ("macaron-net", "torch", "transformers", "datasets", "tokenizers", "accelerate", "numpy")
SAMPLES = (
    "the prime minister said that the [MASK] would not be changed.",
    "he opened the [MASK] and went into the room.",
    "the film is [MASK] , but the acting is good .",
    "she was born in the [MASK] of london.",
    "shares of the company rose by ten [MASK].",
)
MEANING = {
    "mlm_loss": "loss of a masked token, nats",
    "mlm_perplexity": "its exponential",
    "mlm_accuracy": "masked tokens predicted right",
    "nsp_loss": "loss of a sentence pair, nats",
    "nsp_accuracy": "sentence pairs told right",
}


def write_report(folder: Path, prepared: Path, trained: Mapping[str, Any]) -> list[Path]:
    """All files of the report; the model card goes into the model's folder.

    Args:
        folder: of the run.
        prepared: of its data.
        trained: the stamp of the training.
    """
    result = collect(folder, prepared, trained)
    metrics = read_metrics(folder / "metrics.csv")
    report = report_of(result, metrics)
    target = folder / "result.json"
    made = [*report.write(folder), *write_all(folder / "model", {"README.md": model_card(result)}), target]
    write_json(target, result)
    return made


def collect(folder: Path, prepared: Path, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a row of results needs."""
    stamps = {stage: read_json(prepared / "stamps" / f"{stage}.json") for stage in ("clean", "examples")}
    rates = [row["tokens_per_second"] for row in read_metrics(folder / "metrics.csv") if "tokens_per_second" in row]
    settings = read_json(folder / "settings.json")
    examples = stamps["examples"]["train"]
    training = settings["training"]
    return {
        "preset": settings["preset"],
        "splitting": settings["model"]["splitting"],
        "scheme": scheme_of(settings).name + shared_layer(settings),
        "seed": training["seed"],
        "results": {name: trained["final"][name] for name in MEANING if name in trained["final"]},
        "parameters": trained["parameters"],
        "updates": trained["updates"],
        "passes": round(training["updates"] * training["batch_size"] / examples["examples"], 2),
        "training_tokens": round(training["updates"] * training["batch_size"] * examples["tokens_per_example"]),
        "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        "processes": trained["processes"],
        "device_batch": trained["device_batch"],
        "accumulation": trained["accumulation"],
        "seconds": {stage: facts["seconds"] for stage, facts in {**stamps, "train": trained}.items()},
        "data": {
            **{k: stamps["clean"][k] for k in ("sources", "documents", "short", "repeated", "held_out", "characters")},
            "examples": {split: stamps["examples"][split] for split in ("train", "valid")},
        },
        "settings": settings,
        "environment": environment(command_shown("bert_pretrain"), PACKAGES),
        "samples": samples(folder / "model"),
        **two_step(folder / "model", scheme_of(settings)),
    }


def two_step(model: Path, scheme: Variant) -> dict[str, Any]:
    """The k of the rule multistep, read off the model; nothing under another."""
    from safetensors.torch import load_file

    if scheme.values["depth_rule"] != "multistep":
        return {}
    return {"multistep": multistep.weights(load_file(model / "model.safetensors"), model)}


def samples(model: Path) -> list[dict[str, Any]]:
    """What the model puts in the place of [MASK], read back from its folder as a user would."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
    from transformers.utils import logging

    import macaron.bert  # noqa: F401  registers with the Auto classes

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # the next-sentence head is not used here
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        fill = pipeline("fill-mask", AutoModelForMaskedLM.from_pretrained(model), tokenizer=tokenizer, device="cpu")
        fitting = [text for text in SAMPLES if len(tokenizer(text)["input_ids"]) <= tokenizer.model_max_length]
        return [{"text": text, "words": [guess["token_str"] for guess in fill(text, top_k=5)]} for text in fitting]
    finally:
        logging.set_verbosity(before)


# --- figures ----------------------------------------------------------------------------------------------------


def read_metrics(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def series(metrics: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    rows = [row for row in metrics if name in row]
    return [row["update"] for row in rows], [row[name] for row in rows]


def loss_figure(metrics: list[dict[str, float]]) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*series(metrics, "loss"), label="training, with pairs" if has_pairs(metrics) else "training")
    left.plot(*series(metrics, "valid_mlm_loss"), marker="o", label="held out, masked tokens")
    if has_pairs(metrics):
        left.plot(*series(metrics, "valid_nsp_loss"), marker="s", label="held out, pairs")
        right.plot(*series(metrics, "valid_nsp_accuracy"), marker="s", color="C2", label="pairs")
    right.plot(*series(metrics, "valid_mlm_accuracy"), marker="o", color="C1", label="masked tokens")
    left.set(xlabel="updates", ylabel="loss (nats)", ylim=(0, None))
    right.set(xlabel="updates", ylabel="accuracy on held-out text", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def has_pairs(metrics: list[dict[str, float]]) -> bool:
    return any("valid_nsp_loss" in row for row in metrics)


def throughput_figure(metrics: list[dict[str, float]]) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(10, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*series(metrics, "tokens_per_second"), marker=".")
    left.set(xlabel="updates", ylabel="tokens per second", ylim=(0, None))
    right.plot(*series(metrics, "learning_rate"), label="learning rate", color="C3")
    right.set(xlabel="updates", ylabel="learning rate", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


# --- pages ------------------------------------------------------------------------------------------------------


def facts(result: dict[str, Any]) -> list[list[str]]:
    examples = result["data"]["examples"]["train"]
    rate = result["tokens_per_second"]
    return [
        ["model", scheme_of(result["settings"]).described + shared_layer(result["settings"])],
        ["parameters", f"{result['parameters']['all']:,} ({result['parameters']['embeddings']:,} in embeddings)"],
        ["objective", result["settings"]["data"]["objective"]],
        ["updates", f"{result['updates']:,} of {result['settings']['training']['batch_size']} examples"],
        ["tokens seen", f"{result['training_tokens']:,} ({result['passes']} passes)"],
        ["examples", f"{examples['examples']:,} of {examples['tokens_per_example']:.1f} tokens on average"],
        ["throughput, median", f"{rate:,.0f} tokens per second" if rate else "not logged"],
        ["processes × examples × accumulation",
         f"{result['processes']} × {result['device_batch']} × {result['accumulation']}"],
        ["training time of the last start", f"{result['seconds']['train']:.0f} s"],
    ]  # fmt: skip


def scores(result: dict[str, Any]) -> list[list[str]]:
    return [[name, f"{value:.4f}", MEANING[name]] for name, value in result["results"].items()]


def sources(result: dict[str, Any]) -> list[list[str]]:
    return [[s["name"], f"{s['documents']:,}", f"{s['bytes']:,}", s["sha256"]] for s in result["data"]["sources"]]


SOURCES = ["file", "documents", "bytes", "sha256"]


def cleaned(result: dict[str, Any]) -> str:
    d = result["data"]
    return (
        f"{d['documents']:,} documents; dropped {d['repeated']:,} repeated and {d['short']:,} short ones; held out "
        f"{d['held_out']:,}. {d['examples']['train']['tokens']:,} tokens for training, "
        f"{d['examples']['train']['unknown'] / max(1, d['examples']['train']['tokens']):.3%} of them unknown."
    )


def report_of(result: dict[str, Any], metrics: list[dict[str, float]]) -> Report:
    settings = {k: v for part in ("data", "model", "training") for k, v in result["settings"][part].items()}
    guesses = [[sample["text"], ", ".join(sample["words"])] for sample in result["samples"]]
    report = Report(f"Macaron BERT: {result['preset']}, {result['scheme']}, seed {result['seed']}")
    report.section(
        "On held-out documents",
        Table(scores(result), ["figure", "value", "meaning"]),
        Figure("loss", loss_figure(metrics), "losses and accuracies"),
        Figure("throughput", throughput_figure(metrics), "throughput and learning rate"),
        Text("The training loss is measured with dropout and includes that of the pairs, if there are any."),
        Table(facts(result)),
    )
    report.section("The two-step rule", *multistep.parts(result.get("multistep")))
    report.section("What it puts in the place of [MASK]", Table(guesses, ["text", "most probable first"]))
    report.section("Data", Table(sources(result), SOURCES), Text(cleaned(result)))
    report.section("How it was made", Table.of(result["environment"]))
    return report.add(Text("settings", "subheading"), Table.of(settings))


def two_step_section(result: dict[str, Any]) -> str:
    """The same for the model card, which has no figures."""
    parts = [part.markdown() for part in multistep.parts(result.get("multistep")) if not isinstance(part, Figure)]
    return "\n\n".join(["## The two-step rule", *parts, ""]) + "\n" if parts else ""


def model_card(result: dict[str, Any]) -> str:
    e = result["environment"]
    first = SAMPLES[1]
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [macaron, bert, masked-lm]
---

# Macaron BERT, {result["preset"]}, {result["scheme"]}, seed {result["seed"]}

A BERT whose layer is one step of a splitting scheme (Lu et al. 2019, arXiv:1906.02762), pre-trained by
`recipes.bert_pretrain` of Macaron.

```python
import macaron.bert  # registers with the Auto classes
from transformers import pipeline

pipeline("fill-mask", model="FOLDER")("{first}")
```

## Results on held-out documents

{Table(scores(result), ["figure", "value", "meaning"]).markdown()}

## Model and training

{Table(facts(result)).markdown()}

Settings: `{
        shlex.join(f"{k}={v}" for part in ("data", "model", "training") for k, v in result["settings"][part].items())
    }`

{two_step_section(result)}## Data

{Table(sources(result), SOURCES).markdown()}

{cleaned(result)}

The model repeats what is in these texts, prejudice and error included; nothing was done against that. Check the
licences of the texts before you pass it on.

## Environment

Command: `{e["command"]}`

{Table.of({name: value for name, value in e.items() if name != "command"}).markdown()}
"""
