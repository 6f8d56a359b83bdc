"""What a finished command leaves: result.json, table.csv, report.md, report.html (which needs no network)."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.common.page import STYLE, png, table
from recipes.common.workspace import Workspace, write_json
from recipes.glue import results
from recipes.glue.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("macaron-net", "torch", "transformers", "datasets", "tokenizers", "scikit-learn", "scipy", "numpy")


def write_report(
    space: Workspace, facts: dict[str, Any], tasks: dict[str, results.Result], runs: list[results.Result]
) -> list[Path]:
    """Write all four; returns their paths. `facts`: name, parameters, notes, failed, environment, settings."""
    head, rows = results.dev_table({facts["name"]: tasks})
    details = results.details(tasks)
    write_json(space.folder / "result.json", {**facts, "tasks": tasks})
    notes = facts["notes"] + [f"failed: {stage}: {message}" for stage, message in facts["failed"].items()]
    files = {
        "table.csv": results.as_csv(*details),
        "report.md": markdown(facts, (head, rows), details, notes),
        "report.html": page(facts, (head, rows), details, notes, tasks, runs),
    }
    for name, content in files.items():
        partial = space.folder / f"{name}.part"
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, space.folder / name)
    return [space.folder / name for name in ("result.json", *files)]


Table = tuple[list[str], list[list[str]]]


def markdown(facts: dict[str, Any], dev: Table, details: Table, notes: list[str]) -> str:
    command = facts["environment"]["command"]
    parts = [f"# GLUE: {facts['name']}", results.as_markdown(*dev), f"`{command}`", results.as_markdown(*details)]
    return "\n\n".join([*parts, *(f"* {note}" for note in notes)]) + "\n"


def page(
    facts: dict[str, Any],
    dev: Table,
    details: Table,
    notes: list[str],
    tasks: dict[str, results.Result],
    runs: list[results.Result],
) -> str:
    searched = [
        [
            TASKS[name].title,
            *(str(value) for value in line["setting"].values()),
            str(line["seeds"]),
            f"{line['mean']:.2f}",
        ]
        for name, entry in tasks.items()
        if len(entry["searched"]) > 1
        for line in entry["searched"]
    ]
    fields = list(next(iter(tasks.values()))["setting"]) if tasks else []
    figure = png(loss_figure(tasks, runs)) if tasks else ""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>GLUE</title>',
            f"<style>{STYLE} body {{ max-width: 80rem }}</style></head><body>",
            f"<h1>GLUE: {html.escape(facts['name'])}</h1>",
            table(dev[1], dev[0]),
            "<p>Per cent. MRPC and QQP: F1/accuracy; STS-B: Pearson/Spearman; CoLA: Matthews correlation; else "
            "accuracy. The average leaves WNLI out and takes two figures of a task as their mean.</p>",
            *(["<ul>", *(f"<li>{html.escape(note)}</li>" for note in notes), "</ul>"] if notes else []),
            "<h2>Per task</h2>",
            table(details[1], details[0]),
            *(
                [f'<h2>Training loss</h2>\n<img alt="training loss" src="data:image/png;base64,{figure}">']
                if figure
                else []
            ),
            *(["<h2>Search</h2>", table(searched, ["task", *fields, "seeds", "mean"])] if searched else []),
            "<h2>How it was made</h2>",
            table([[key, str(value)] for key, value in facts["environment"].items()]),
            table([[key, str(value)] for key, value in facts["settings"].items()]),
            "</body></html>\n",
        ]
    )


def loss_figure(tasks: dict[str, results.Result], runs: list[results.Result]) -> Figure:
    """Loss per update of the chosen setting's runs, one panel per task."""
    from matplotlib.figure import Figure

    by_name = {run["run"]: run for run in runs}
    shown = {name: entry for name, entry in tasks.items() if not TASKS[name].trains_on}
    shown = shown or tasks
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    for axes, (name, entry) in zip(figure.subplots(lines, columns, squeeze=False).flat, shown.items(), strict=False):
        for run in entry["runs"]:
            points = by_name[run]["loss"]
            axes.plot(*zip(*points, strict=True), label=f"seed {by_name[run]['seed']}") if points else None
        axes.set(title=TASKS[name].title, xlabel="updates", ylabel="loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small") if entry["runs"] else None
    return figure
