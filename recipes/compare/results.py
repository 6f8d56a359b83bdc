"""From finished runs to figures: mean ± sd, differences with their tests; as tables, statements and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.schemes import Variant
from ..common.statistics import paired_t_test, summary
from ..common.workspace import read_json, read_lines
from ..translation import commands, scoring
from ..translation.recipe import Recipe
from ..translation.scoring import Output
from . import matched
from .cost import Cost
from .cost import read as read_costs
from .experiment import MatchedExperiment, MatchedRun

METRICS = ("paper", "sacreBLEU", "chrF2")  # the first where there are papers about the corpus
PER_CENT = (0.0, 100.0)  # the range of each
Results = dict[str, Any]


def row(run: MatchedRun) -> dict[str, Any]:
    """What one finished run says of itself."""
    train = read_json(run.folder / "stamps" / "train.json")
    curve = commands.learning_curve(run.folder / "train.log")
    binary = read_json(run.folder / "stamps" / "prepare-binary.json")
    scores = read_json(run.folder / "scores.json")
    valid_bits = min((number(loss) for _, loss in curve["valid"]), default=None)
    check_losses(run.folder / "train.log")
    matched.windows(run.folder / "train.log")  # its lines must have what is compared later
    return {
        "variant": run.variant,
        "splitting": Variant.parse(run.variant).splitting,
        "seed": run.seed,
        "scores": {name: score_of(scores[name]) for name in METRICS if name in scores or name != "paper"},
        "valid_bits": valid_bits,
        "curve": curve,
        "data": {name: value for name, value in binary["files"].items() if name.endswith((".bin", ".idx"))},
        **{name: number(train[name]) for name in ("parameters", "updates", "train_seconds")},
    }


def check_losses(log: Path) -> None:
    """Every loss counts here, since the curve is drawn; of an update done twice the later."""
    last = {(kind, stats.get(f"{kind}_num_updates")): stats for kind, stats in commands.events(log)}
    for (kind, update), stats in last.items():
        if (loss := stats.get(f"{kind}_nll_loss")) is not None and not math.isfinite(float(loss)):
            raise ValueError(f"{log}: {kind}_nll_loss at update {update} is {loss}")


def score_of(entry: Any) -> dict[str, Any]:
    return {**entry, "score": number(entry["score"]), **{key: text(entry[key]) for key in ("title", "signature")}}


def number(value: Any) -> Any:
    """`value`, if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def read(run: MatchedRun, recipe: Recipe, reference: Output) -> tuple[dict[str, Any], Output]:
    """A finished run: its figures, and its translations of the test set.

    Raises:
        RecipeError: a file is missing, cut off or not what it was, so that the run cannot be taken into account.
    """
    try:
        figures = row(run)
        made = output(recipe, run.folder / "hyp" / "test", run.folder / "hyp" / "test.tok")
        for ours, theirs in ((made.raw, reference.raw), (made.tokenized, reference.tokenized)):
            if ours is not None and theirs is not None and len(ours) != len(theirs):
                raise ValueError(f"{len(ours)} translations of {len(theirs)} test sentences")
    except (RecipeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RecipeError(f"{reason}. Move {run.folder} away, and the same command does this run again") from error
    return figures, made


def collect(experiment: MatchedExperiment, recipe: Recipe, samples: int = scoring.SAMPLES) -> Results:
    """Everything about the seeds that all variants have finished; runs that cannot be read are named and left out."""
    baseline, *others = experiment.variants
    try:
        reference = output(recipe, experiment.data / "raw" / "test", experiment.data / "text" / "test")
    except (RecipeError, OSError, ValueError) as error:
        raise RecipeError(
            f"{experiment.data}: the references of the test set cannot be read ({error}); move the folder away, and "
            f"the same command prepares it again"
        ) from error
    done: dict[int, dict[str, tuple[dict[str, Any], Output]]] = {run.seed: {} for run in experiment.runs}
    unreadable = {}
    for run in experiment.runs:
        if run.finished:
            try:
                done[run.seed][run.variant] = read(run, recipe, reference)
            except RecipeError as error:
                unreadable[run.name] = str(error)
    seeds = [seed for seed, runs in done.items() if len(runs) == len(experiment.variants)]
    rows, texts = (
        {variant: [done[seed][variant][part] for seed in seeds] for variant in experiment.variants} for part in (0, 1)
    )
    differences = {}
    metrics = scoring.metric_set(recipe.metrics, recipe.text)
    if seeds:
        for other in others:
            differences[other] = difference(
                rows[baseline], rows[other], texts[baseline], texts[other], reference, metrics, samples
            )
    return {
        "recipe": recipe.title,
        "baseline": baseline,
        "seeds": seeds,
        "unfinished": [run.name for run in experiment.runs if not run.finished],
        "unreadable": unreadable,
        "costs": {name: dataclasses.asdict(cost) for name, cost in costs_of(experiment).items()},
        "systems": {variant: system(group) for variant, group in rows.items()} if seeds else {},
        "differences": differences,
        "runs": [r for group in rows.values() for r in group],
    }


def costs_of(experiment: MatchedExperiment) -> dict[str, Cost]:
    """Of an update of each variant, where these were measured; {} under equal updates."""
    if experiment.equal == "updates":
        return {}
    known = read_costs(experiment.cost, experiment.variants[0])
    return {variant: known[variant] for variant in experiment.variants}


def check(experiment: MatchedExperiment, results: Results, recipe: Recipe) -> dict[str, Any]:
    """Whether the runs of each seed were matched, from their logs and stamps."""
    of_seed: dict[int, dict[str, Any]] = {seed: {} for seed in results["seeds"]}
    logs: dict[int, dict[str, Path]] = {seed: {} for seed in results["seeds"]}
    folders = {(run.seed, run.variant): run.folder for run in experiment.runs}
    for r in results["runs"]:
        of_seed[r["seed"]][r["variant"]] = r
        logs[r["seed"]][r["variant"]] = folders[r["seed"], r["variant"]] / "train.log"
    planned = {variant: budget.updates for variant, budget in experiment.budgets.items()}
    return matched.check_all(
        of_seed, logs, recipe.get("common.log_interval", 100), planned if experiment.equal == "cost" else None
    )


def output(recipe: Recipe, raw: Path, tokenized: Path) -> Output:
    """`raw`.en and, where the recipe works on Moses' tokens, `tokenized`.en."""
    paths = [path.with_name(f"{path.name}.{recipe.text.target}") for path in (raw, tokenized)]
    return Output(read_lines(paths[0]), read_lines(paths[1]) if recipe.text.tokenizer == "moses" else None)


def system(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One variant over its seeds."""
    metrics = list(rows[0]["scores"])
    figures = {name: [r["scores"][name]["score"] for r in rows] for name in metrics}
    figures["train_minutes"] = [r["train_seconds"] / 60 for r in rows]
    if all(r["valid_bits"] is not None for r in rows):
        figures["valid_bits"] = [r["valid_bits"] for r in rows]
    titles = {name: {key: rows[0]["scores"][name][key] for key in ("title", "signature")} for name in metrics}
    return {
        "parameters": rows[0]["parameters"],
        "updates": rows[0]["updates"],
        **{
            name: {**titles.get(name, {}), **dataclasses.asdict(summary(values)), "values": values}
            for name, values in figures.items()
        },
    }


def difference(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    first_texts: Sequence[Output],
    second_texts: Sequence[Output],
    reference: Output,
    metrics: scoring.MetricSet,
    samples: int,
) -> dict[str, Any]:
    """second − first, per metric: over seeds (t-test), over sentences (bootstrap of the means); and seed by seed."""
    over_sentences = scoring.compare_over_seeds(first_texts, second_texts, reference, metrics, samples)
    result = {}
    for name in over_sentences:
        values = [[r["scores"][name]["score"] for r in rows] for rows in (first, second)]
        result[name] = {
            "title": first[0]["scores"][name]["title"],
            "over_sentences": dataclasses.asdict(over_sentences[name]),
            "over_seeds": dataclasses.asdict(paired_t_test(*values, PER_CENT)) if len(first) > 1 else None,
            "per_seed": {r["seed"]: {"difference": b - a} for r, a, b in zip(first, *values, strict=True)},
        }
    losses = [[r["valid_bits"] for r in rows] for rows in (first, second)]
    if len(first) > 1 and None not in (*losses[0], *losses[1]):
        result["valid_bits"] = {"title": VALID, "over_seeds": dataclasses.asdict(paired_t_test(*losses))}
    return result


# --- tables -----------------------------------------------------------------------------------------------------

VALID = "best validation loss, bits per token"
Table = tuple[list[str], list[list[str]]]


def systems_table(results: Results) -> Table:
    """A line per variant: mean ± sd over seeds; where an update has a cost, that and the cost of all."""
    systems = results["systems"]
    first = next(iter(systems.values()))
    costs = results["costs"]
    spent = [f"cost of an update, {results['baseline']} = 1", "cost in all"] if costs else []
    metrics = metrics_of(results)
    titles = [first[name]["title"] for name in metrics]
    head = [kind(results), "parameters", "updates", *spent, *titles, VALID, "training, min"]
    rows = [
        [
            name,
            f"{s['parameters']:,}",
            f"{s['updates']:,}",
            *(cost_cells(costs[name], s["updates"] / first["updates"]) if costs else ()),
            *(plus_minus(s[metric]) for metric in metrics),
            plus_minus(s["valid_bits"], 3) if "valid_bits" in s else "not validated",
            plus_minus(s["train_minutes"], 1),
        ]
        for name, s in systems.items()
    ]
    return head, rows


def metrics_of(results: Results) -> list[str]:
    """By which the runs are scored."""
    return [name for name in METRICS if all(name in r["scores"] for r in results["runs"])]


def kind(results: Results) -> str:
    """What the rows are called by."""
    return "splitting" if all(Variant.parse(name).is_splitting for name in results["systems"]) else "variant"


def cost_cells(cost: Mapping[str, float], share: float) -> list[str]:
    return [f"{cost['ratio']:.3f} [{cost['low']:.3f}, {cost['high']:.3f}]", f"{cost['ratio'] * share:.3f}"]


def differences_table(results: Results) -> Table:
    """A line per pair of variants and metric: the difference, judged over seeds and over sentences."""
    head = [
        "difference",
        "metric",
        "mean",
        "over seeds: 95 % interval, p (t-test)",
        "over test sentences: 95 % interval, p (paired bootstrap)",
        "seed by seed",
    ]
    rows = []
    for other, metrics in results["differences"].items():
        for entry in metrics.values():
            seeds, sentences = entry.get("over_seeds"), entry.get("over_sentences")
            digits = 2 if sentences else 3
            each = [f"{e['difference']:+.2f}" for e in entry.get("per_seed", {}).values()]
            rows.append(
                [
                    f"{other} − {results['baseline']}",
                    entry["title"],
                    f"{(sentences or seeds)['value']:+.{digits}f}",
                    verdict(seeds, digits) if seeds else "one seed: unknown",
                    verdict(sentences, digits) if sentences else "",
                    ", ".join(each),
                ]
            )
    return head, rows


def runs_table(results: Results) -> Table:
    metrics = metrics_of(results)
    head = [kind(results), "seed", *metrics, VALID, "training, min"]
    rows = [
        [
            r["variant"],
            str(r["seed"]),
            *(f"{r['scores'][name]['score']:.2f}" for name in metrics),
            "" if r["valid_bits"] is None else f"{r['valid_bits']:.3f}",
            f"{r['train_seconds'] / 60:.1f}",
        ]
        for r in results["runs"]
    ]
    return head, rows


def plus_minus(s: Mapping[str, Any], digits: int = 2) -> str:
    return f"{s['mean']:.{digits}f}" + ("" if s["sd"] is None else f" ± {s['sd']:.{digits}f}")


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def verdict(d: Mapping[str, Any], digits: int) -> str:
    return f"[{d['low']:+.{digits}f}, {d['high']:+.{digits}f}], {p_value(d['p'])}"


def statements(results: Results) -> list[str]:
    """What must stand beside the tables, in words."""
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [results["notice"]] if results.get("notice") else []
    lines += [f"Unfinished and left out: {', '.join(results['unfinished'])}."] if results["unfinished"] else []
    lines += [f"NOT READABLE and left out: {name}: {reason}." for name, reason in results["unreadable"].items()]
    if not results["seeds"]:
        return [*lines, "No seed is finished with every splitting yet, so there is nothing to compare."]
    checks = results["matched"]
    lines += [f"NOT MATCHED: {what}" for what in checks["violations"]]
    lines += [f"NOT CHECKED: {what}" for what in checks["unknown"]]
    if not checks["violations"] and not checks["unknown"]:
        windows, due = (sum(checks[name].values()) for name in ("windows", "due"))
        fewer = f" ({due} were due; what resuming cut in two is left out, or a log is cut off)" if windows < due else ""
        plain = all(Variant.parse(name).is_splitting for name in results["systems"])
        learned = "" if plain else " (and what its rule or solver learns: k, gates)"
        lines.append(
            f"Matched: parameters within {100 * checks['parameters']:.3f} % of {results['baseline']}, the norms and "
            f"biases of the scheme itself{learned}, and all weight matrices of equal size; the same binarised data; "
            + (
                f"per seed the same batches in all {windows} windows of updates that fairseq logged of all{fewer}; "
                f"updates in proportion to what one costs."
                if results["costs"]
                else f"per seed the same batches and learning rates in all {windows} windows of updates that fairseq "
                f"logged{fewer}; the same number of updates."
            )
        )
        lines += [cost_statement(results)] if results["costs"] else []
    return [*lines, f"Seeds {seeds}; mean ± sample standard deviation over them."]


def cost_statement(results: Results) -> str:
    measured = {cost["updates"] for name, cost in results["costs"].items()}
    return (
        f"Equal cost: the time of an update was measured with the variants in turn on the same batches "
        f"({', '.join(map(str, sorted(measured)))} updates; mean over them, with 95 % interval), and the updates of "
        f"{results['baseline']} divided by it. Learning-rate schedules that follow the number of updates are shorter "
        f"accordingly; warm-ups are the same."
    )


def csv_text(results: Results) -> str:
    """A line per run: what other programs want."""
    file = io.StringIO()
    names = ["recipe", "splitting", "seed", "parameters", "updates", "train_seconds", "valid_bits"]
    last = ["variant", "cost_of_an_update"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, *METRICS, *(f"{name}_signature" for name in METRICS), *last])
    for r in results["runs"]:
        values = {"recipe": results["recipe"], **r}
        scores = [r["scores"].get(name, {}).get(key, "") for key in ("score", "signature") for name in METRICS]
        ratio = results["costs"][r["variant"]]["ratio"] if results["costs"] else ""
        writer.writerow([*(values[name] for name in names), *scores, r["variant"], ratio])
    return file.getvalue()
