"""What a finished command leaves: result.json, table.csv, report.md, and report.html, which needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.report import Figure, Report, Table, Text, write_all
from ..common.workspace import Workspace, write_json
from . import results
from .metrics import main_figure
from .tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PACKAGES = ("macaron-net", "torch", "transformers", "datasets", "tokenizers", "scikit-learn", "scipy", "numpy")

HORIZON = ["task", "price of a step", "mean steps", "score"]
DEPTH = (
    "A policy stops each sentence where going on promises less than the price of a step, in units of the training "
    "loss. The same fine-tuned model at several prices, and (price: none) where every sentence takes as many steps, "
    "whatever the policy says; score: the mean of the task's figures on its dev set."
)
ALIKE = "none"  # the price, where every sentence takes as many steps
FIGURES = (
    "Per cent. MRPC and QQP: F1/accuracy; STS-B: Pearson/Spearman; CoLA: Matthews correlation; else accuracy. The "
    "average leaves WNLI out and takes two figures of a task as their mean."
)


def write_report(
    space: Workspace, facts: dict[str, Any], tasks: dict[str, results.Result], runs: list[results.Result]
) -> list[Path]:
    """Write all of them; returns their paths. `facts`: name, parameters, notes, failed, environment, settings."""
    target = space.folder / "result.json"
    write_json(target, {**facts, "tasks": tasks})
    csv = write_all(space.folder, {"table.csv": results.as_csv(*results.details(tasks))})
    return [target, *csv, *report_of(facts, tasks, runs).write(space.folder, markdown="report.md")]


def report_of(facts: dict[str, Any], tasks: dict[str, results.Result], runs: list[results.Result]) -> Report:
    head, rows = results.dev_table({facts["name"]: tasks})
    report = Report(f"GLUE: {facts['name']}", [Table(rows, head)])
    report.add(Text(FIGURES))
    report.add(*(Text(note, "item") for note in facts["notes"]))
    report.add(*(Text(f"failed: {stage}: {message}", "item") for stage, message in facts["failed"].items()))
    head, rows = results.details(tasks)
    report.section("Per task", Table(rows, head))
    if tasks:
        report.section("Training loss", Figure("loss", loss_figure(tasks, runs), "training loss"))
    if any("horizon" in run for run in runs):
        rows = horizon_rows(tasks, runs)
        report.section("Depth", Text(DEPTH), Figure("depth", depth_figure(rows), "score against mean depth"))
        report.add(Table(rows, HORIZON))
    searched = [
        [TASKS[name].title, *map(str, line["setting"].values()), str(line["seeds"]), f"{line['mean']:.2f}"]
        for name, entry in tasks.items()
        if len(entry["searched"]) > 1
        for line in entry["searched"]
    ]
    if searched:
        fields = list(next(iter(tasks.values()))["setting"])
        report.section("Search", Table(searched, ["task", *fields, "seeds", "mean"]))
    return report.section("How it was made", Table.of(facts["environment"]), Table.of(facts["settings"]))


def horizon_rows(tasks: dict[str, results.Result], runs: list[results.Result]) -> list[list[str]]:
    """Of each task's chosen runs: mean steps and score at each price of a step, and where all sentences take as many;
    means over the seeds."""
    by_name = {run["run"]: run for run in runs}
    rows = []
    for name, entry in tasks.items():
        for part in ("tasks", "alike"):
            chosen = [by_name[run].get("horizon", {}).get(part, {}).get(name, []) for run in entry["runs"]]
            for lines in zip(*chosen, strict=True):
                price = f"{lines[0]['cost']:g}" if part == "tasks" else ALIKE
                steps = sum(line["steps"] for line in lines) / len(lines)
                figure = sum(main_figure(line["scores"]) for line in lines) / len(lines)
                rows.append([TASKS[name].title, price, f"{steps:.2f}", f"{figure:.2f}"])
    return rows


def depth_figure(rows: list[list[str]]) -> Drawing:
    """Score against mean depth, two lines a task: by the policy, and all sentences alike."""
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for number, title in enumerate(dict.fromkeys(row[0] for row in rows)):
        for alike in (False, True):
            of = [row for row in rows if row[0] == title and (row[1] == ALIKE) == alike]
            points = sorted((float(steps), float(score)) for _, _, steps, score in of)
            style = {"marker": "x", "linestyle": ":"} if alike else {"marker": "o"}
            label = f"{title}, {'all sentences alike' if alike else 'by the policy'}"
            axes.plot(*zip(*points, strict=True), color=f"C{number}", label=label, **style) if points else None
    axes.set(xlabel="mean steps of a sentence", ylabel="per cent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small") if rows else None
    return figure


def loss_figure(tasks: dict[str, results.Result], runs: list[results.Result]) -> Drawing:
    """Loss per update of the chosen setting's runs, one panel per task."""
    from matplotlib.figure import Figure as Drawing

    by_name = {run["run"]: run for run in runs}
    shown = {name: entry for name, entry in tasks.items() if not TASKS[name].trains_on}
    shown = shown or tasks
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Drawing(figsize=(4 * columns, 3 * lines), layout="constrained")
    for axes, (name, entry) in zip(figure.subplots(lines, columns, squeeze=False).flat, shown.items(), strict=False):
        for run in entry["runs"]:
            points = by_name[run]["loss"]
            axes.plot(*zip(*points, strict=True), label=f"seed {by_name[run]['seed']}") if points else None
        axes.set(title=TASKS[name].title, xlabel="updates", ylabel="loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small") if entry["runs"] else None
    return figure
