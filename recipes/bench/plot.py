"""Figures of all results in the CSV file: of each case the latest row of every contender.

Bars, or for `cost` curves over what it varies.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.main import module
from .record import read

Row = dict[str, str]
UNITS = {
    "max_tokens": "tokens",
    "tokens": "tokens",
    "batch_size": "sentences",
    "sentences": "sentences",
}  # of a batch, by the setting's name


def draw_all(results: Path, folder: Path) -> None:
    rows = read(results)
    if not rows:
        raise RecipeError(
            f"{results}: no results there; measure something first, e.g. python -m {module('bench')} bert"
        )
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in latest(rows):
        device = "gpu" if row["GPU"] != "none" else "cpu"
        groups[row["benchmark"], device].append(row)
    for (benchmark, device), group in groups.items():
        path = folder / f"{benchmark}_{device}.png"
        DRAWN.get(benchmark, draw)(group, path)
        print(path)


def latest(rows: list[Row]) -> list[Row]:
    """The last row of each measurement; what is measured, how and where tells them apart."""
    keys = ("benchmark", "case", "contender", "precision", "settings", "processor", "threads", "GPU")
    return list({tuple(row[key] for key in keys): row for row in rows}.values())


def draw(rows: list[Row], path: Path) -> None:
    """Speed beside the baseline, with quartiles; and where it was measured, memory."""
    plt = pyplot()
    panels = [("speedup", "times as fast as {baseline}")]
    if any(row["peak_mib"] for row in rows):
        panels.append(("peak_mib", "peak memory of a step, MiB"))
    compared = [row for row in rows if row["contender"] != row["baseline"]]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.5 * len(panels), 1.2 + 0.35 * len(rows)), squeeze=False, layout="constrained"
    )
    for axis, (key, text) in zip(axes[0], panels, strict=True):
        shown = [row for row in (compared if key == "speedup" else rows) if row[key]]
        values = [float(row[key]) for row in shown]
        names = [label(row) for row in shown]
        spread = None
        if key == "speedup":
            axis.axvline(1.0, color="gray", linewidth=1)
            spread = [
                [max(0.0, v - float(row["speedup_q1"])) for v, row in zip(values, shown, strict=True)],
                [max(0.0, float(row["speedup_q3"]) - v) for v, row in zip(values, shown, strict=True)],
            ]
        places = range(len(shown))
        axis.barh(places, values, xerr=spread, capsize=3, color="tab:blue", ecolor="black")
        axis.set_yticks(places, names)
        axis.invert_yaxis()
        axis.set_xlabel(text.format(baseline=rows[0]["baseline"]))
    finish(figure, rows, path)


def label(row: Row) -> str:
    """What tells a bar from the others."""
    settings = json.loads(row["settings"])
    amount = [f"{settings[key]} {unit}" for key, unit in UNITS.items() if key in settings]
    name = row["contender"].partition(":")[0]
    return f"{', '.join([row['case'], *amount, row['precision'], row['threads'] + ' threads'])}: {name}"


def draw_curves(rows: list[Row], path: Path) -> None:
    """Time of a thousand tokens and memory of a step, against what was varied, a line for each contender."""
    plt = pyplot()
    varied = sorted({row["case"].split()[0] for row in rows})
    panels = [("ms for 1000 target tokens", lambda row: 1e6 / float(row["tokens_per_s"]))]
    panels += [("peak memory of a step, MiB", lambda row: float(row["peak_mib"] or "nan"))]
    shape = (len(panels), len(varied))
    figure, axes = plt.subplots(*shape, figsize=(5.5 * len(varied), 7), squeeze=False, layout="constrained")
    for column, over in enumerate(varied):
        points = [row for row in rows if row["case"].split()[0] == over]
        common = held(points, over)
        lines: dict[str, list[Row]] = defaultdict(list)
        for row in points:
            own = [one for one in held([row], over) if one not in common]
            lines[", ".join([row["contender"].partition(":")[0], row["precision"], *own])].append(row)
        ticks = sorted({value(row) for row in points})
        axes[0, column].set_title(", ".join(common), fontsize=9)
        for axis, (text, height) in zip(axes[:, column], panels, strict=True):
            for name, line in lines.items():
                line.sort(key=value)
                axis.plot([value(row) for row in line], list(map(height, line)), "o-", label=name)
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [str(tick) for tick in ticks], rotation=30 if max(ticks) > 9999 else 0)
            axis.minorticks_off()
            axis.set_ylim(bottom=0)
            axis.set_xlabel({"length": "tokens of a sentence"}.get(over, over))
            axis.set_ylabel(text)
            axis.legend()
    finish(figure, rows, path)


def draw_published(rows: list[Row], path: Path) -> None:
    """Each kind of work in a panel, each task in a group of bars: ours beside transformers' on the same batches."""
    plt = pyplot()
    ours = {tuple(row["case"].replace(",", "").split()): row for row in rows if row["contender"] == "macaron"}
    works, tasks = (list(dict.fromkeys(case[place] for case in ours)) for place in (0, 1))
    batches = {(): "random batches, both", ("grouped",): "grouped by length, both", ("unpadded",): "no padding"}
    figure, axes = plt.subplots(1, len(works), figsize=(4.5 * len(works), 4), squeeze=False, layout="constrained")
    width = 0.8 / len(batches)
    for axis, work in zip(axes[0], works, strict=True):
        for bar, (kind, text) in enumerate(batches.items()):
            cases = [(place, (work, task, *kind)) for place, task in enumerate(tasks)]
            found = [(place, ours[case]) for place, case in cases if case in ours]
            speed = [[float(row[key]) for _, row in found] for key in ("speedup_q1", "speedup", "speedup_q3")]
            spread = [[max(0.0, b - a) for a, b in zip(*pair, strict=True)] for pair in (speed[:2], speed[1:])]
            axis.bar([place + bar * width for place, _ in found], speed[1], width, yerr=spread, capsize=2, label=text)
        axis.axhline(1.0, color="gray", linewidth=1)
        axis.set_xticks([place + width for place in range(len(tasks))], tasks)
        axis.set_title(work)
    axes[0, 0].set_ylabel("times as fast as transformers")
    axes[0, 0].legend(fontsize=8)
    finish(figure, rows, path)


DRAWN = {"cost": draw_curves, "decode_curves": draw_curves, "published_bert": draw_published}  # others: bars


def value(row: Row) -> int:
    """Of what a curve goes over."""
    return int(row["case"].split()[1])


def held(rows: list[Row], over: str) -> list[str]:
    """What all these points of a curve have in common: settings, threads and clock."""
    found = [{**json.loads(row["settings"]), **{key: row[key] for key in ("threads", "clock")}} for row in rows]
    names = [name for name, setting in found[0].items() if name != over and setting is not None]
    return [f"{name} {found[0][name]}" for name in names if all(one.get(name) == found[0][name] for one in found)]


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def finish(figure: Any, rows: list[Row], path: Path) -> None:
    """Say where it was measured, and write."""
    where = rows[-1]["GPU"] if rows[-1]["GPU"] != "none" else rows[-1]["processor"]
    figure.suptitle(f"{rows[0]['benchmark']} on {where}, torch {rows[-1]['torch']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot().close(figure)
