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
from .results import attack_of, attacked_logits, read_results
from .tasks import METRIC_NAMES, TASKS, Task

LEAST_SEEDS = 3  # for a t-test: of two differences the spread says next to nothing


@dataclass(frozen=True)
class Comparison:
    """One task, clean or under attack. The difference is second − first of its main figure, the mean of its metrics."""

    task: Task
    first: Summary
    second: Summary
    examples: Difference
    seeds: Difference | None
    note: str = ""
    attack: str = ""


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

    def runs(self, task: Task, attack: str = "") -> dict[tuple[int, int], tuple[Path, float]]:
        """{(folder number, seed): (predictions, main figure)}, of the dev set as it is or under an attack."""
        found = {}
        for number, (folder, table) in enumerate(zip(self.folders, self.tables, strict=True)):
            for run, seed, clean, attacked in table[task.name].runs if task.name in table else []:
                figure = attacked if attack else clean
                if figure is not None and attack in ("", attack_of(table[task.name].setting)):
                    found[number, seed] = folder / "runs" / run / "predictions.npz", figure
        return found

    def attack(self, task: Task) -> str:
        """That of the first folder with this task, in words."""
        return attack_of(self.setting(task))

    def setting(self, task: Task) -> object:
        return next(table[task.name].setting for table in self.tables if task.name in table)


class Entry(NamedTuple):
    setting: object
    runs: list[tuple[str, int, float, float | None]]  # folder, seed, main figure, and that under attack


def entry_of(entry: dict[str, Any]) -> Entry:
    """Of a task in result.json. Its folders are names, not paths that lead elsewhere."""
    clean, attacked = (
        {name: [float(value) for value in column] for name, column in entry.get(kind, {}).items()}
        for kind in ("values", "attacked")
    )
    attack = attack_of(entry["setting"])
    if not clean or (attacked and not attack):
        raise ValueError("no figures, or figures under an attack that its setting does not name")
    runs = []
    for index, (run, seed) in enumerate(zip(entry["runs"], entry["seeds"], strict=True)):
        if Path(run).name != run:
            raise ValueError(f"{run!r} is no name of a run")
        if not all(math.isfinite(column[index]) for values in (clean, attacked) for column in values.values()):
            raise ValueError(f"a figure of {run} is not finite")
        figures = [main_figure({name: column[index] for name, column in values.items()}) if values else None
                   for values in (clean, attacked)]  # fmt: skip
        runs.append((run, int(seed), *figures))
    return Entry(entry["setting"], runs)


def compare(first: Side, second: Side, samples: int = 1000) -> list[Comparison]:
    """All tasks that both have, in the order of GLUE.

    Raises:
        RecipeError: if there is none, or the dev sets differ.
    """
    rows = []
    for task in tqdm(TASKS.values(), desc="compare", unit="task", leave=False):
        clean = compared(task, first, second, samples)
        rows += [clean] if clean else []
        attack = first.attack(task) if clean else ""
        if attack and (attacked := compared(task, first, second, samples, attack)):
            rows.append(attacked)
    if not rows:
        raise RecipeError(
            "compare: no task with equal seeds on both sides; fine-tune both with the same --task, --seeds"
        )
    return rows


def compared(task: Task, first: Side, second: Side, samples: int, attack: str = "") -> Comparison | None:
    """One task with the seeds that both have, as it is or under an attack; None without any."""
    a, b = first.runs(task, attack), second.runs(task, attack)
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    labels, predictions_a = stacked(task, [a[key][0] for key in common], bool(attack))
    other_labels, predictions_b = stacked(task, [b[key][0] for key in common], bool(attack))
    if not np.array_equal(labels, other_labels):
        raise RecipeError(f"{task.title}: the two were scored on different dev sets; use the same --data-dir")
    figures = [[side[key][1] for key in common] for side in (a, b)]
    return Comparison(
        task,
        summary(figures[0]),
        summary(figures[1]),
        paired_bootstrap(of_rows(task), predictions_a, predictions_b, samples=samples),
        paired_t_test(*figures, range_of(task)) if len(common) >= LEAST_SEEDS else None,
        "; ".join(remarks(task, first, second, len(labels))),
        attack,
    )


def range_of(task: Task) -> tuple[float, float]:
    """Of the mean of its figures, in per cent: correlations may be negative, those of one task are of one kind."""
    return (-100.0 if {"mcc", "pearson", "spearman"} & set(task.metrics) else 0.0), 100.0


def remarks(task: Task, first: Side, second: Side, examples: int) -> list[str]:
    part = [] if examples in task.size("dev") else [f"{examples} of {task.dev_size} dev examples"]
    if first.attack(task) != second.attack(task):
        part.append("attacks differ, which is not compared")
    return part + ([] if first.setting(task) == second.setting(task) else ["settings differ"])


def stacked(task: Task, paths: list[Path], attacked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(labels (N,), rows (N, 1 + seeds) of labels and decoded predictions)"""
    labels, columns = None, []
    outputs = attacked_logits(task.name) if attacked else f"{task.name}.dev.logits"
    for path in paths:
        arrays = load_predictions(path)
        try:
            mine, logits = arrays[f"{task.name}.dev.labels"], arrays[outputs]
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
                f"{row.task.title}, {metric}"
                + (f" under {row.attack}" if row.attack else "")
                + (f" ({row.note})" if row.note else ""),
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
    for kind in ("", " under attack"):
        chosen = [row for row in rows if bool(row.attack) == bool(kind)]
        if chosen:
            first_mean, second_mean = (
                float(np.mean([getattr(row, side).mean for row in chosen])) for side in ("first", "second")
            )
            values = [f"{first_mean:.2f}", f"{second_mean:.2f}", f"{second_mean - first_mean:+.2f}"]
            lines.append([f"mean of {len(chosen)}{kind}", *values, *["–"] * 5])
    return head, lines


EXPLANATION = (
    "Difference: second − first, of the mean of a task's metrics. Over examples: paired bootstrap of the dev set, "
    "which asks whether other examples would show the difference too, for the models at hand. Over seeds: paired "
    f"t-test, which asks whether other fine-tunings would (from {LEAST_SEEDS} seeds on)."
)
