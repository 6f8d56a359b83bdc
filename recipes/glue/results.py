"""From finished runs to tables: choose a setting per task, mean ± sd over seeds, the line of the paper's table."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import RecipeError
from ..common.main import module
from ..common.statistics import Summary, summary
from ..common.workspace import Workspace, read_json
from .metrics import main_figure
from .tasks import METRIC_NAMES, TASKS, Task

# Columns of the paper's table, and the tasks in each; the average is over these (BERT's authors left WNLI out too).
COLUMNS = {
    "CoLA": ("cola",),
    "SST-2": ("sst2",),
    "MRPC": ("mrpc",),
    "STS-B": ("stsb",),
    "QQP": ("qqp",),
    "MNLI-m/mm": ("mnli", "mnli-mm"),
    "QNLI": ("qnli",),
    "RTE": ("rte",),
    "WNLI": ("wnli",),
}
NOT_IN_AVERAGE = ("WNLI",)

Result = dict[str, Any]


def finished(space: Workspace) -> list[Result]:
    """result.json of every stamped run, with its folder's name as `run`."""
    results = []
    for path in sorted(space.folder.glob("runs/*/result.json")):
        if space.stamp(path.parent.name) is not None:
            results.append({"run": path.parent.name, **read_json(path)})
    return results


def by_task(results: Sequence[Result], settings: dict[str, list[dict[str, Any]]] | None = None) -> dict[str, Result]:
    """{task: the chosen setting, its runs over seeds, the best run, and all settings by their mean}.

    The setting with the best mean over its seeds is chosen; the best single run, which is what the paper chose and
    what a submission sends, is named beside it.

    Args:
        settings: {task: settings that were planned for it}, where tasks share runs (MNLI-m, MNLI-mm).
    """
    table: dict[str, Result] = {}
    for task in TASKS.values():
        groups: dict[str, list[Result]] = defaultdict(list)
        for result in results:
            planned = (settings or {}).get(task.name)
            if task.name in result["scores"] and (planned is None or result["setting"] in planned):
                groups[result["run"].rpartition("-s")[0]].append(result)
        if not groups:
            continue
        ranked = sorted(groups.values(), key=lambda runs: -mean_figure(task, runs))
        chosen = sorted(ranked[0], key=lambda run: run["seed"])
        best = max((run for runs in ranked for run in runs), key=lambda run: main_figure(run["scores"][task.name]))
        table[task.name] = {
            "setting": chosen[0]["setting"],
            "seeds": [run["seed"] for run in chosen],
            "runs": [run["run"] for run in chosen],
            "values": {name: [run["scores"][task.name][name] for run in chosen] for name in task.metrics},
            **under_attack(task, chosen),
            "best": {"run": best["run"], "seed": best["seed"], "scores": best["scores"][task.name]},
            "searched": [
                {"setting": runs[0]["setting"], "seeds": len(runs), "mean": mean_figure(task, runs)} for runs in ranked
            ],
            "examples": chosen[0]["examples"],
            **{
                name: float(np.mean([run[name] for run in chosen]))
                for name in ("train_seconds", "train_cpu_seconds")
                if all(name in run for run in chosen)
            },
        }
    return table


def under_attack(task: Task, runs: Sequence[Result]) -> Result:
    """The figures of a task under the attack that its runs were scored under, beside its values; else nothing."""
    found = [run.get("attacked", {}).get(task.name) for run in runs]
    if not all(found):
        return {}
    return {"attacked": {name: [scores[name] for scores in found] for name in task.metrics}}


def attack_of(setting: Any) -> str:
    """The attack of a run's setting in words, or nothing: `pgd-5, l2, step 0.1, radius 0.3, start 0`."""
    if not isinstance(setting, dict) or not setting.get("attack"):
        return ""
    radius = "none" if setting["attack_radius"] is None else f"{setting['attack_radius']:g}"
    return (
        f"{setting['attack']}, {setting['attack_norm']}, step {setting['attack_step_size']:g}, radius {radius}, "
        f"start {setting['attack_init']:g}"
    )


def attacked_logits(task: str) -> str:
    """The name of a task's outputs under attack in predictions.npz."""
    return f"{task}.dev.attacked.logits"


def mean_figure(task: Task, runs: Sequence[Result]) -> float:
    return float(np.mean([main_figure(run["scores"][task.name]) for run in runs]))


def summaries(entry: Result, values: str = "values") -> dict[str, Summary]:
    """{metric: mean ± sd over the seeds}; of "attacked" those under attack, where there was one."""
    return {name: summary(column) for name, column in entry.get(values, {}).items()}


def cell(name: str, table: dict[str, Result], kind: str, values: str = "values") -> str:
    """One cell of the table: metrics of a task, or both MNLI accuracies, joined by a slash."""
    parts = []
    for task in COLUMNS[name]:
        if task not in table:
            continue
        if kind == "best":
            parts += [f"{value:.1f}" for value in table[task]["best"]["scores"].values()]
        elif kind == "mean":
            parts += [f"{s.mean:.1f}" for s in summaries(table[task], values).values()]
        else:
            parts += ["–" if s.sd is None else f"{s.sd:.1f}" for s in summaries(table[task], values).values()]
    return "/".join(parts) or "–"


def average(table: dict[str, Result], kind: str) -> tuple[float, int] | None:
    """(mean over columns, columns there). MRPC, STS-B and QQP enter with the mean of their metrics, MNLI of its two."""
    values = []
    for name, tasks in COLUMNS.items():
        there = [table[task] for task in tasks if task in table]
        if there and name not in NOT_IN_AVERAGE:
            figures = [
                main_figure(entry["best"]["scores"])
                if kind == "best"
                else float(np.mean([s.mean for s in summaries(entry).values()]))
                for entry in there
            ]
            values.append(float(np.mean(figures)))
    return (float(np.mean(values)), len(values)) if values else None


def dev_table(tables: dict[str, dict[str, Result]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) in the paper's format: for each model the mean, its sd over seeds, and the best runs; where dev
    sets were attacked mean and sd under that, too."""
    columns = [name for name in COLUMNS if any(set(COLUMNS[name]) & table.keys() for table in tables.values())]
    rows = []
    for model, table in tables.items():
        for kind, label in (("mean", "mean over seeds"), ("sd", "± sd"), ("best", "best dev run")):
            whole = average(table, kind) if kind != "sd" else None
            rows.append([f"{model}, {label}", *(cell(name, table, kind) for name in columns)])
            rows[-1].append(f"{whole[0]:.1f} ({whole[1]} of 8)" if whole else "–")
        attacks = dict.fromkeys(attack_of(entry["setting"]) for entry in table.values() if "attacked" in entry)
        for kind, label in (("mean", "mean"), ("sd", "± sd")) if attacks else ():
            cells = (cell(name, table, kind, "attacked") for name in columns)
            rows.append([f"{model}, {label} under {'; '.join(attacks)}", *cells, "–"])
    return ["dev set", *columns, "average"], rows


def details(table: dict[str, Result]) -> tuple[list[str], list[list[str]]]:
    """(header, rows), one row per task and metric: CSV and report."""
    rows = []
    for name, entry in table.items():
        s = entry["setting"]
        setting = f"{s['epochs']} epochs, batch {s['batch_size']}, lr {s['lr']:g}, wd {s['weight_decay']:g}"
        if not s.get("dropout", True):
            setting += ", no dropout"
        if s.get("adversary"):
            setting += f", {s['adversary']} {s['adversary_norm']} {s['adversary_step_size']:g}"
        for values, attack in (("values", ""), ("attacked", attack_of(s))):
            for metric, figure in summaries(entry, values).items():
                best = entry["best"]
                rows.append(
                    [
                        TASKS[name].title,
                        METRIC_NAMES[metric],
                        f"{figure.mean:.2f}",
                        "" if figure.sd is None else f"{figure.sd:.2f}",
                        " ".join(map(str, entry["seeds"])),
                        " ".join(f"{value:.2f}" for value in entry[values][metric]),
                        "" if attack else f"{best['scores'][metric]:.2f}",
                        "" if attack else str(best["seed"]),
                        setting,
                        str(entry["examples"]),
                        f"{entry['train_seconds']:.0f}",
                        f"{entry['train_cpu_seconds']:.0f}" if "train_cpu_seconds" in entry else "",
                        attack,
                    ]
                )
    head = ["task", "metric", "mean", "sd", "seeds", "values", "best run", "its seed", "setting", "examples", "seconds"]
    return [*head, "CPU seconds", "under attack"], rows


def as_text(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows])


def as_csv(head: list[str], rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([head, *rows])
    return buffer.getvalue()


def read_results(folder: Path) -> Result:
    """The result.json of an --out folder.

    Raises:
        RecipeError: where there is none.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise RecipeError(
            f"{folder}: no result.json; give the --out folder of a python -m {module('glue')} that has ended"
        )
    result = read_json(path)
    if not isinstance(result, dict):
        raise RecipeError(f"{path}: holds no table of results; give the --out folder of python -m {module('glue')}")
    return result
