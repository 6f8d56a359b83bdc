"""The report of an experiment: one HTML file that needs no network, and its figure as PNG."""

from __future__ import annotations

import base64
import html
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.common.page import STYLE, png, table
from recipes.common.workspace import write_json
from recipes.compare import results as tables
from recipes.compare.results import Results, metrics_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = tuple(f"C{number}" for number in range(10))
SCHEMES = {"strang": "strang (Macaron)", "lie": "lie (Transformer)"}


def write(results: Results, folder: Path) -> list[Path]:
    """results.json, .csv, .md, curves.png and index.html; returns their paths."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    files: dict[str, bytes] = {
        "results.md": tables.markdown(results).encode(),
        "runs.csv": tables.csv_text(results).encode(),
    }
    image = ""
    if results["runs"]:
        image = png(figure(results))
        files["curves.png"] = base64.b64decode(image)
    files["index.html"] = page(results, image).encode()
    write_json(folder / "results.json", results)
    for name, content in files.items():
        partial = folder / f"{name}.part"
        partial.write_bytes(content)
        os.replace(partial, folder / name)
    return [folder / name for name in ("results.json", *files)]


def figure(results: Results) -> Figure:
    """Validation loss with its spread over seeds, and the scores of every run; lines join equal seeds."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 4.2), layout="constrained")
    metrics = metrics_of(results)
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


def page(results: Results, image: str) -> str:
    names = " against ".join([*results["differences"], results["baseline"]])
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(results["recipe"])}: {names}</title>',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(results['recipe'])}: {html.escape(names)}</h1>",
        *(f"<p>{mark(text)}</p>" for text in tables.statements(results)),
    ]
    if results["systems"]:
        first = next(iter(results["systems"].values()))
        for make in (tables.systems_table, tables.differences_table):
            head, rows = make(results)
            parts.append(table(rows, head))
        parts.append(f'<img alt="learning curves and scores" src="data:image/png;base64,{image}">')
        head, rows = tables.runs_table(results)
        parts += ["<h2>Every run</h2>", table(rows, head)]
        parts += [
            "<h2>Signatures</h2>",
            table([[first[name]["title"], first[name]["signature"]] for name in metrics_of(results)]),
        ]
    parts += ["<h2>How it was made</h2>", table([[name, str(value)] for name, value in results["environment"].items()])]
    parts += [f"<h3>{html.escape(n)}</h3><pre>{html.escape(c)}</pre>" for n, c in results["commands"].items()]
    return "\n".join([*parts, "</body></html>\n"])


def mark(text: str) -> str:
    escaped = html.escape(text)
    return f'<strong class="wrong">{escaped}</strong>' if "NOT" in text or "not comparable" in text else escaped
