"""The report of a run, from its plain result: what there is to read of it, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..common import multistep
from ..common.report import Figure, Report, Table, Text
from ..common.schemes import Variant
from .data.prepare import counts, listed
from .figures import attention_figure, curve_figure
from .languages import NAMES
from .noise import noise_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PACKAGES = (
    *("macaron-net", "torch", "fairseq-fixed", "numpy", "sacremoses", "subword-nmt", "sentencepiece"),
    *("sacrebleu", "hydra-core", "omegaconf"),
)
SAMPLES = 20
SCORES = ("metric", "score", "95 % interval (bootstrap over sentences)", "signature")


def page(result: dict[str, Any], attention: tuple[list[str], list[str], Any] | None = None) -> Report:
    """
    Args:
        result: of `Pipeline.result`.
        attention: (source pieces S, target pieces T, weights (T, S)) of one sentence.
    """
    source, target = (NAMES.get(language, language) for language in result["languages"])
    scores = list(result["scores"].values())
    report = Report(f"{result['title']}: {source} → {target}")
    report.add(Text(f"{scores[0]['title']} {scores[0]['score']:.2f}", "big"))
    if notice := result["data"].get("notice"):
        report.add(Text(f"{notice}.", "warning"))
    report.add(Table([score_row(entry) for entry in scores], SCORES), Table(facts(result)))
    if noised := result.get("noised"):
        rows = [score_row(entry) for entry in noised["scores"].values()]
        report.section("With noise", Text(f"The test set with {noise_words(noised)}"), Table(rows, SCORES))
    report.section(
        "Learning curves",
        Figure("curves", curve_figure(result["learning_curve_bits_per_token"]), "learning curves"),
        Text("Cross-entropy without label smoothing; the training curve is measured with dropout."),
    )
    report.section("The two-step rule", *multistep.parts(result.get("multistep")))
    lengths = [[bucket(entry), f"{entry['sentences']:,}", f"{entry['BLEU']:.2f}"] for entry in result["by_length"]]
    title = bleu_title(result)
    report.section(
        "By length of the source sentence",
        Figure("length", length_figure(result["by_length"], title), "BLEU by sentence length"),
        Table(lengths, ["words", "sentences", title]),
    )
    samples = result["samples"]
    report.section(
        "Samples",
        Text("Drawn at random from the test set; shaded where translation and reference differ."),
        Table(
            [[sample[name] for name in ("source", "reference", "hypothesis")] for sample in samples],
            ["source", "reference", "translation"],
            [sample["reference"] != sample["hypothesis"] for sample in samples],
        ),
    )
    if attention:
        report.section(
            "Cross-attention",
            Figure("attention", attention_figure(*attention, languages=(source, target)), "cross-attention"),
            Text(
                "Rows: the pieces of the translation; columns: those of the source. Last decoder layer, mean over its "
                "heads."
            ),
        )
    report.section("How it was made", Table.of(result["environment"]))
    for name, command in result["commands"].items():
        report.add(Text(name, "subheading"), Text(command, "code"))
    report.add(Text("conf/train.yaml", "subheading"), Text(result["configuration"], "code"))
    report.add(Text("settings", "subheading"), Table.of(result["settings"]))
    return report.add(Text("seconds", "subheading"), Table.of(result["seconds"]))


def score_row(entry: dict[str, Any]) -> list[str]:
    interval = f"{entry['low']:.2f} to {entry['high']:.2f}" if "low" in entry else ""
    return [entry["title"], f"{entry['score']:.2f}", interval, entry["signature"]]


def facts(result: dict[str, Any]) -> list[list[str]]:
    data, settings = result["data"], result["settings"]
    return [
        ["model", f"{settings['model._name']}, {Variant.of_settings(settings).described}"],
        ["parameters", f"{result['parameters']:,}"],
        *beginning_and_end(result),
        ["updates", f"{result['updates']:,} of {settings['batch_tokens']:,} tokens, seed {settings['common.seed']}"],
        ["processes", str(result["processes"])],
        ["averaged checkpoints", ", ".join(result["averaged"])],
        ["corpus", data["kind"]],
        ["sentence pairs", ", ".join(f"{split} {size:,}" for split, size in data["sizes"].items())],
        ["training pairs dropped", listed(counts(data["dropped"]))],
        ["dictionary", ", ".join(f"{language} {count:,}" for language, count in data["dictionary"].items())],
        ["unknown pieces", ", ".join(f"{name} {share}" for name, share in data["unknown"].items())],
        ["training time", f"{result['seconds']['training, over all attempts']:.0f} s"],
    ]


def beginning_and_end(result: dict[str, Any]) -> list[list[str]]:
    """Rows about fine-tuning and early stopping, where there was any."""
    settings, rows = result["settings"], []
    if total := settings.get("init_from"):
        rows.append(["fine-tuned from", f"the released model with sha256 {total}"])
    if (patience := settings.get("checkpoint.patience", -1)) > 0:
        metric, best = settings["checkpoint.best_checkpoint_metric"], result.get("best_validation")
        words = f"after {patience} validations without a better {metric}"
        rows.append(["stops early", words if best is None else f"{words}; best {metric} {best:.2f}"])
    return rows


def bleu_title(result: dict[str, Any]) -> str:
    """Of the BLEU by length."""
    return "tokenized BLEU" if "paper" in result["scores"] else "sacreBLEU"


def bucket(entry: dict[str, Any]) -> str:
    return f"{entry['from']}–{entry['to']}" if entry["to"] is not None else f"≥ {entry['from']}"


def length_figure(by_length: list[dict[str, Any]], title: str = "tokenized BLEU") -> Drawing:
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(range(len(by_length)), [entry["BLEU"] for entry in by_length])
    axes.bar_label(bars, [f"{entry['sentences']:,}" for entry in by_length], fontsize=8)
    axes.set_xticks(range(len(by_length)), [bucket(entry) for entry in by_length])
    axes.set(xlabel="words of the source sentence (above the bars: sentences)", ylabel=title)
    axes.grid(alpha=0.3, axis="y")
    return figure
