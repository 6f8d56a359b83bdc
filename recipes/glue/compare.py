"""Two models side by side: mean ± sd per task, a paired bootstrap over dev examples, a paired t-test over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..common.errors import RecipeError
from ..common.main import module
from ..common.statistics import Difference, Summary, paired_bootstrap, paired_t_test, summary
from .finetune import load_predictions
from .metrics import main_figure, of_rows
from .results import read_results
from .tasks import METRIC_NAMES, TASKS, Task

LEAST_SEEDS = 3  # for a t-test: of two differences the spread says next to nothing


@dataclass(frozen=True)
class Comparison:
    """One task. `difference` is second − first of the task's main figure, the mean of its metrics."""

    task: Task
    first: Summary
    second: Summary
    examples: Difference
    seeds: Difference | None
    note: str = ""


class Side:
    """Finished runs of one model: one --out folder, or several (one per pre-training seed).

    Raises:
        RecipeError: a folder without results, or with a result.json that this recipe did not write.
    """

    def __init__(self, folders: list[Path]):
        self.folders = folders
        self.tables: list[dict[str, Entry]] = []
        names: list[str] = []
        for folder in folders:
            result = read_results(folder)
            try:
                self.tables.append({task: entry_of(result["tasks"][task]) for task in TASKS if task in result["tasks"]})
                names.append(str(result["name"]))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise RecipeError(
                    f"{folder / 'result.json'}: not what python -m {module('glue')} writes ({error!r}); "
                    f"give the --out folder of one that has ended"
                ) from error
        self.name = names[0]

    def runs(self, task: Task) -> dict[tuple[int, int], tuple[Path, float]]:
        """{(folder number, seed): (predictions, main figure)}"""
        found = {}
        for number, (folder, table) in enumerate(zip(self.folders, self.tables, strict=True)):
            for run, seed, figure in table[task.name].runs if task.name in table else []:
                found[number, seed] = folder / "runs" / run / "predictions.npz", figure
        return found

    def setting(self, task: Task) -> object:
        return next(table[task.name].setting for table in self.tables if task.name in table)


class Entry(NamedTuple):
    setting: object
    runs: list[tuple[str, int, float]]  # folder, seed, main figure


def entry_of(entry: dict[str, Any]) -> Entry:
    """Of a task in result.json. Its folders are names, not paths that lead elsewhere."""
    values = {name: [float(value) for value in column] for name, column in entry["values"].items()}
    runs = []
    for index, (run, seed) in enumerate(zip(entry["runs"], entry["seeds"], strict=True)):
        if Path(run).name != run:
            raise ValueError(f"{run!r} is no name of a run")
        if not all(math.isfinite(column[index]) for column in values.values()):
            raise ValueError(f"a figure of {run} is not finite")
        runs.append((run, int(seed), main_figure({name: column[index] for name, column in values.items()})))
    return Entry(entry["setting"], runs)


def compare(first: Side, second: Side, samples: int = 1000) -> list[Comparison]:
    """All tasks that both have, in the order of GLUE.

    Raises:
        RecipeError: if there is none, or the dev sets differ.
    """
    rows = []
    for task in tqdm(TASKS.values(), desc="compare", unit="task", leave=False):
        a, b = first.runs(task), second.runs(task)
        common = sorted(a.keys() & b.keys())
        if not common:
            continue
        labels, predictions_a = stacked(task, [a[key][0] for key in common])
        other_labels, predictions_b = stacked(task, [b[key][0] for key in common])
        if not np.array_equal(labels, other_labels):
            raise RecipeError(f"{task.title}: the two were scored on different dev sets; use the same --data-dir")
        figures = [[side[key][1] for key in common] for side in (a, b)]
        rows.append(
            Comparison(
                task,
                summary(figures[0]),
                summary(figures[1]),
                paired_bootstrap(of_rows(task), predictions_a, predictions_b, samples=samples),
                paired_t_test(*figures, range_of(task)) if len(common) >= LEAST_SEEDS else None,
                "; ".join(remarks(task, first, second, len(labels))),
            )
        )
    if not rows:
        raise RecipeError(
            "compare: no task with equal seeds on both sides; fine-tune both with the same --task, --seeds"
        )
    return rows


def range_of(task: Task) -> tuple[float, float]:
    """Of the mean of its figures, in per cent: correlations may be negative, those of one task are of one kind."""
    return (-100.0 if {"mcc", "pearson", "spearman"} & set(task.metrics) else 0.0), 100.0


def remarks(task: Task, first: Side, second: Side, examples: int) -> list[str]:
    part = [] if examples in task.size("dev") else [f"{examples} of {task.dev_size} dev examples"]
    return part + ([] if first.setting(task) == second.setting(task) else ["settings differ"])


def stacked(task: Task, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(labels (N,), rows (N, 1 + seeds) of labels and decoded predictions)"""
    labels, columns = None, []
    for path in paths:
        arrays = load_predictions(path)
        try:
            mine, logits = arrays[f"{task.name}.dev.labels"], arrays[f"{task.name}.dev.logits"]
        except KeyError as error:
            raise RecipeError(f"{path}: holds no {error}; have the run done again") from error
        labels = mine if labels is None else labels
        if not np.array_equal(mine, labels) or logits.shape != (len(labels), task.num_labels):
            raise RecipeError(f"{path}: scored on another dev set of {task.title} than {paths[0]}; have one done again")
        if not np.isfinite(logits).all():
            raise RecipeError(f"{path}: {task.title} has outputs that are not finite: its training diverged")
        columns.append(task.decode(logits))
    return labels, np.stack([labels, *columns], axis=1)


def comparison_table(first: str, second: str, rows: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    head = ["task (dev)", first, second, "difference", "95 % over examples", "p (examples)", "95 % over seeds"]
    head += ["p (seeds)", "seeds"]
    lines = []
    for row in rows:
        metric = "/".join(METRIC_NAMES[name] for name in row.task.metrics)
        t = row.seeds
        lines.append(
            [
                f"{row.task.title}, {metric}" + (f" ({row.note})" if row.note else ""),
                str(row.first),
                str(row.second),
                f"{row.examples.value:+.2f}",
                f"{row.examples.low:+.2f} … {row.examples.high:+.2f}",
                f"{row.examples.p:.3f}",
                f"{t.low:+.2f} … {t.high:+.2f}" if t else "–",
                f"{t.p:.3f}" if t else "–",
                str(row.first.n),
            ]
        )
    means = [float(np.mean([getattr(row, side).mean for row in rows])) for side in ("first", "second")]
    lines.append(
        [f"mean of {len(rows)}", f"{means[0]:.2f}", f"{means[1]:.2f}", f"{means[1] - means[0]:+.2f}"] + ["–"] * 5
    )
    return head, lines


EXPLANATION = (
    "Difference: second − first, of the mean of a task's metrics. Over examples: paired bootstrap of the dev set, "
    "which asks whether other examples would show the difference too, for the models at hand. Over seeds: paired "
    f"t-test, which asks whether other fine-tunings would (from {LEAST_SEEDS} seeds on)."
)
