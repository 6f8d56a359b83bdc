"""The report of an experiment: one HTML file that needs no network, the same as Markdown, and its figure as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.report import Figure, Report, Table, Text, write_all
from ..common.workspace import write_json
from . import results as tables
from .results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLOURS = tuple(f"C{number}" for number in range(10))
SCHEMES = {"strang": "strang (Macaron)", "lie": "lie (Transformer)"}


def write(results: Results, folder: Path) -> list[Path]:
    """results.json, runs.csv, index.html, results.md and curves.png; returns their paths."""
    target = folder / "results.json"
    write_json(target, results)
    csv = write_all(folder, {"runs.csv": tables.csv_text(results)})
    return [target, *csv, *report_of(results).write(folder, "index.html", "results.md")]


def brief_report(results: Results) -> Report:
    """What was found, in words and tables."""
    names = " against ".join([*results["differences"], results["baseline"]])
    report = Report(f"{results['recipe']}: {names}")
    for text in tables.statements(results):
        report.add(Text(text, "warning" if "NOT" in text or "not comparable" in text else "plain"))
    if results["systems"]:
        for make in (tables.systems_table, tables.differences_table, tables.runs_table):
            head, rows = make(results)
            report.add(Table(rows, head))
        first = next(iter(results["systems"].values()))
        signatures = (f"{first[name]['title']}: {first[name]['signature']}" for name in tables.metrics_of(results))
        report.add(*(Text(text, "item") for text in signatures))
    return report


def report_of(results: Results) -> Report:
    report = brief_report(results)
    if results["runs"]:
        report.section("Learning curves and scores", Figure("curves", figure(results), "learning curves and scores"))
    report.section("How it was made", Table.of(results["environment"]))
    for name, command in results["commands"].items():
        report.add(Text(name, "subheading"), Text(command, "code"))
    return report


def figure(results: Results) -> Drawing:
    """Validation loss with its spread over seeds, and the scores of every run; lines join equal seeds."""
    from matplotlib.figure import Figure as Drawing

    fig = Drawing(figsize=(11, 4.2), layout="constrained")
    metrics = tables.metrics_of(results)
    left, *rights = fig.subplots(1, 1 + len(metrics), width_ratios=[2.2, *[1] * len(metrics)])
    for colour, variant in zip(COLOURS * len(results["systems"]), results["systems"], strict=False):
        ratio = results["costs"][variant]["ratio"] if results["costs"] else 1.0
        draw_curves(left, [r["curve"]["valid"] for r in rows_of(results, variant)], colour, variant, ratio)
    xlabel = f"cost, in updates of {results['baseline']}" if results["costs"] else "updates"
    left.set(xlabel=xlabel, ylabel="validation loss (bits per token)", yscale="log", title="mean and sd over seeds")
    left.grid(alpha=0.3)
    if left.lines:  # some variant was validated
        left.legend()
    for axes, name in zip(rights, metrics, strict=True):
        draw_scores(axes, results["systems"], name)
    return fig


def rows_of(results: Results, variant: str) -> list[dict[str, Any]]:
    return [r for r in results["runs"] if r["variant"] == variant]


def draw_curves(
    axes: Axes, curves: Sequence[Sequence[tuple[int, float]]], colour: str, variant: str, ratio: float = 1.0
) -> None:
    """The updates that all seeds were validated at, each of the cost `ratio`."""
    by_update = [dict(curve) for curve in curves]
    updates = sorted(set.intersection(*map(set, by_update))) if by_update else []
    values = np.array([[curve[update] for update in updates] for curve in by_update])
    if not updates:
        return
    mean, costs = values.mean(0), [update * ratio for update in updates]
    axes.plot(costs, mean, color=colour, marker=".", label=SCHEMES.get(variant, variant))
    if len(values) > 1:
        sd = values.std(0, ddof=1)
        axes.fill_between(costs, mean - sd, mean + sd, color=colour, alpha=0.25, linewidth=0)


def draw_scores(axes: Axes, systems: Mapping[str, Mapping[str, Any]], name: str) -> None:
    columns = range(len(systems))
    values = np.array([s[name]["values"] for s in systems.values()])  # (variants, seeds)
    axes.plot(columns, values, color="lightgrey", zorder=0)
    for column, colour, s in zip(columns, COLOURS * len(systems), systems.values(), strict=False):
        axes.scatter([column] * len(s[name]["values"]), s[name]["values"], color=colour, alpha=0.6, s=18)
        axes.errorbar(column + 0.12, s[name]["mean"], yerr=s[name]["sd"], color=colour, marker="_", capsize=4)
    many = {"rotation": 60, "ha": "right", "fontsize": 8} if len(systems) > 3 or max(map(len, systems)) > 8 else {}
    axes.set_xticks(columns, list(systems), **many)
    axes.set_xlim(-0.5, len(systems) - 0.5)
    axes.set_title(next(iter(systems.values()))[name]["title"].replace(" tokenized", "\ntokenized"), fontsize=9)
    axes.grid(alpha=0.3, axis="y")
