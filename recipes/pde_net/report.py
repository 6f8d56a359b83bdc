"""The report: a table against the truth, one HTML page that needs no network, figures, and result.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from macaron import checkpoint
from macaron.pde.symnet import factors_of, readable

from ..common.report import Figure, Report, Table, Text, write_all
from ..common.workspace import read_json, write_json
from .pipeline import PDEExperiment, collect, load_fields, shortened
from .settings import PDESettings
from .systems import system_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Found = dict[str, dict[int, dict[str, Any]]]  # variant ↦ seed ↦ what it gave
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
SHOWN = 6  # monomials of a component where the truth is not known

SLIP = "The slide prints v v_y in the equation of u, twice; it must read v u_y."

# Of the slides, in their order.
TALK = {
    "the talk, frozen": [[-0.906, -0.901, 0.033, 0.037], [-0.907, -0.902, 0.039, 0.032]],
    "the talk, PDE-Net 2.0": [[-0.986, -0.972, 0.054, 0.052], [-0.984, -0.982, 0.055, 0.050]],
}
TALK_MONOMIALS = [["u00*u01", "u10*v00", "u02", "u20"], ["v00*v10", "u00*v01", "v02", "v20"]]
GOAL = {2: 0.05, 1: 0.005}  # of a convection coefficient (degree 2) from −1, of a diffusion coefficient from ν


def write(experiment: PDEExperiment, failed: Mapping[str, str], provenance: Mapping[str, Any]) -> list[Path]:
    """result.json, table.md, report.html and its figures, of what is finished; returns their paths."""
    found = collect(experiment, failed)
    folder = experiment.folder
    target = folder / "result.json"
    content = {
        "settings": read_json(folder / "settings.json"),
        "truth": truth(experiment.settings),
        "runs": {name: {str(seed): run for seed, run in runs.items()} for name, runs in found.items()},
        "failed": dict(failed),
        "environment": dict(provenance),
    }
    write_json(target, content)
    brief = brief_report(experiment, found, failed, 300)
    whole = brief_report(experiment, found, failed)
    if any(found.values()):
        for name, title, draw in (
            ("coefficients", "Coefficients after each block", coefficients_figure),
            ("rollouts", "Roll-outs", rollouts_figure),
            ("fields", "A roll-out in the middle of its time", fields_figure),
        ):
            whole.section(title, Figure(name, draw(experiment, found), title))
    rows, head = training_rows(experiment, found)
    whole.section("Training", Table(rows, head))
    whole.section("How it was made", Table.of(provenance))
    whole.add(Text("settings", "subheading"), Table.of(vars(experiment.settings)))
    return [target, *write_all(folder, {"table.md": brief.markdown()}), *whole.write(folder)]


# --- figures of merit -----------------------------------------------------------------------------------------


def truth(settings: PDESettings) -> list[dict[str, float]] | None:
    """The equations that made the data, None for those of a user."""
    return None if settings.data else system_of(settings).equations


def coefficient(run: Mapping[str, Any], component: int, monomial: str, block: int = -1) -> float:
    return float(run["blocks"][block]["equations"][component]["coefficients"].get(monomial, 0.0))


def largest_spurious(run: Mapping[str, Any], component: int, true: Mapping[str, float]) -> tuple[str, float]:
    others = {
        name: c
        for name, c in run["blocks"][-1]["equations"][component]["coefficients"].items()
        if name not in true
    }  # fmt: skip
    name = max(others, key=lambda key: abs(others[key]), default="1")
    return name, float(others.get(name, 0.0))


def monomials(experiment: PDEExperiment, found: Found, component: int) -> list[str]:
    """Those of the table: the true ones, or the largest in the median over the seeds of the last block's shares."""
    known = truth(experiment.settings)
    if known is not None:
        if experiment.settings.system == "burgers":
            return TALK_MONOMIALS[component]
        return list(known[component])
    runs = [run for runs in found.values() for run in runs.values()]
    last = [run["blocks"][-1]["equations"][component]["shares"] for run in runs]
    names = {name for shares in last for name in shares}
    size = {name: statistics.median(shares.get(name, 0.0) for shares in last) for name in names}
    return sorted(names, key=lambda name: (-size[name], name))[:SHOWN]


def spread(values: Sequence[float], form: str = "+.3f") -> str:
    """Median and, of several, the range."""
    middle = f"{statistics.median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} [{min(values):{form}}, {max(values):{form}}]"


def title_of(monomial: str) -> str:
    return " ".join(map(readable, factors_of(monomial))) or "1"


def rows_of(experiment: PDEExperiment, found: Found, component: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a component's table."""
    settings, known = experiment.settings, truth(experiment.settings)
    form = "+.3f" if known else "+.3g"
    names = monomials(experiment, found, component)
    head = ["", *map(title_of, names), "largest other" if known else "", "beyond the degree"]
    rows = []
    if known:
        rows.append(["true", *(f"{known[component].get(name, 0.0):+.3f}" for name in names), "", ""])
    if settings.system == "burgers" and settings.viscosity == 0.05:
        rows += [[name, *(f"{c:+.3f}" for c in values[component]), "", ""] for name, values in TALK.items()]
    for variant in experiment.variants:
        runs = list(found[variant.name].values())
        if not runs:
            continue
        row = [variant.title, *(spread([coefficient(run, component, name) for run in runs], form) for name in names)]
        if known:
            others = [largest_spurious(run, component, known[component]) for run in runs]
            name, _ = max(others, key=lambda other: abs(other[1]))
            row.append(f"{statistics.median(abs(c) for _, c in others):.3f} (up to {max(abs(c) for _, c in others):.3f}"
                       f", {title_of(name)})")  # fmt: skip
        else:
            row.append("")
        beyond = statistics.median(run["blocks"][-1]["equations"][component]["beyond"] for run in runs)
        rows.append([*row, f"{100 * beyond:.1f} %"])
    kept = [i for i, cell in enumerate(head) if cell or i == 0]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def errors_at(
    experiment: PDEExperiment, runs: Iterable[Mapping[str, Any]], fraction: float
) -> tuple[float, list[float]]:
    """(time, error of each trajectory that is still there) at a share of the roll-outs' time, over all seeds."""
    time, values = 0.0, []
    for run in runs:
        times = run["rollout"]["times"]
        frame = max(0, math.ceil(len(times) * fraction) - 1)
        time = times[frame]
        values += [value for value in run["rollout"]["error"][frame] if value is not None]
    return time, values


def blow_ups(runs: Iterable[Mapping[str, Any]]) -> tuple[list[float], int]:
    """(times of the blow-ups, roll-outs), over all seeds."""
    all_of = [time for run in runs for time in run["rollout"]["blown_up"]]
    return sorted(time for time in all_of if time is not None), len(all_of)


def rollout_rows(experiment: PDEExperiment, found: Found) -> tuple[list[str], list[list[str]]]:
    head, rows = ["", "blown up"], []
    for variant in experiment.variants:
        runs = list(found[variant.name].values())
        if not runs:
            continue
        gone, count = blow_ups(runs)
        row = [variant.title, f"{len(gone)} of {count}" + (f", first at t = {gone[0]:g}" if gone else "")]
        for fraction in (0.25, 0.5, 1.0):
            time, values = errors_at(experiment, runs, fraction)
            if len(head) < 5:
                head.append(f"error at t = {time:g}")
            low, high = (np.quantile(values, [0.25, 0.75])) if values else (math.nan, math.nan)
            row.append(f"{statistics.median(values):.2g} [{low:.2g}, {high:.2g}]" if values else "none left")
        rows.append(row)
    return head, rows


def sentences(experiment: PDEExperiment, found: Found) -> list[str]:
    """What follows from the figures: the goal of the talk's table, and blow-ups."""
    said = []
    known = truth(experiment.settings)
    for variant in experiment.variants:
        runs = list(found[variant.name].values())
        if not runs:
            said.append(f"{variant.title}: no seed is finished.")
            continue
        if known and experiment.settings.system == "burgers":
            off = {1: 0.0, 2: 0.0}
            for component, equation in enumerate(known):
                for name, c in equation.items():
                    middle = statistics.median(coefficient(run, component, name) for run in runs)
                    degree = sum(int(factor.partition("**")[2] or 1) for factor in factors_of(name))
                    off[degree] = max(off[degree], abs(middle - c))
            said.append(
                f"{variant.title}: the medians of the convection coefficients are within {off[2]:.3f} of −1 (goal: "
                f"{GOAL[2]}, {'met' if off[2] <= GOAL[2] else 'missed'}), those of diffusion within {off[1]:.4f} of "
                f"{experiment.settings.viscosity:g} (goal: {GOAL[1]}, {'met' if off[1] <= GOAL[1] else 'missed'})."
            )
        gone, count = blow_ups(runs)
        if gone:
            said.append(
                f"{variant.title}: THE LEARNED EQUATION BLOWS UP in {len(gone)} of {count} roll-outs, at t = "
                f"{gone[0]:g} to {gone[-1]:g}. Good coefficients do not make it a usable predictor."
            )
        else:
            said.append(f"{variant.title}: none of {count} roll-outs blows up.")
        time, last = errors_at(experiment, runs, 1.0)
        if lost := sum(error > 1 for error in last):
            said.append(
                f"{variant.title}: {lost} of {count} roll-outs are at t = {time:g} further from the truth than a field "
                f"of zeros (error above 1)."
            )
        short = [
            (seed, block["block"], block["stopped"])
            for seed, run in found[variant.name].items()
            for block in run["blocks"]
            if "Maximum" in block["stopped"]
        ]
        if short:
            said.append(
                f"{variant.title}: BFGS used all its iterations in {len(short)} blocks (seed/block: "
                f"{', '.join(f'{seed}/{block}' for seed, block, _ in short)})."
            )
    return said


# --- figures --------------------------------------------------------------------------------------------------


def coefficients_figure(experiment: PDEExperiment, found: Found) -> Drawing:
    """Rows: components; columns: monomials, and the largest other; lines: median over seeds; bands: range."""
    from matplotlib.figure import Figure as Drawing

    settings, known = experiment.settings, truth(experiment.settings)
    names = [monomials(experiment, found, component) for component in range(len(settings.components))]
    columns = max(map(len, names)) + 1
    fig = Drawing(figsize=(2.6 * columns, 2.4 * len(names)), layout="constrained")
    axes = fig.subplots(len(names), columns, squeeze=False)
    places = range(len(settings.blocks))
    for component, row in enumerate(axes):
        for column, axis in enumerate(row):
            if column >= len(names[component]) and column < columns - 1:
                axis.set_axis_off()
                continue
            name = names[component][column] if column < columns - 1 else None
            for colour, variant in zip(COLOURS * len(experiment.variants), experiment.variants, strict=False):
                runs = list(found[variant.name].values())
                if not runs:
                    continue
                values = np.array(
                    [
                        [
                            coefficient(run, component, name, block)
                            if name
                            else largest_other(run, component, names[component], block)
                            for block in places
                        ]
                        for run in runs
                    ]
                )
                axis.plot(places, np.median(values, 0), ".-", color=colour, label=variant.title)
                axis.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.25, linewidth=0)
            if known and name:
                axis.axhline(known[component].get(name, 0.0), color="black", linestyle="--", linewidth=1)
            head = title_of(name) if name else "largest other, |c|"
            axis.set_title(f"{settings.components[component]}_t: {head}", fontsize=9)
            axis.set_xticks(places, list(map(str, settings.blocks)))
            axis.set_xlabel("block")
            axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2)
    return fig


def largest_other(run: Mapping[str, Any], component: int, names: Sequence[str], block: int) -> float:
    found = run["blocks"][block]["equations"][component]["coefficients"]
    return max((abs(c) for name, c in found.items() if name not in names), default=0.0)


def rollouts_figure(experiment: PDEExperiment, found: Found) -> Drawing:
    """Error over time, and how many roll-outs are still there."""
    from matplotlib.figure import Figure as Drawing

    fig = Drawing(figsize=(11, 4.2), layout="constrained")
    left, right = fig.subplots(1, 2)
    for colour, variant in zip(COLOURS * len(experiment.variants), experiment.variants, strict=False):
        runs = list(found[variant.name].values())
        if not runs:
            continue
        times = runs[0]["rollout"]["times"]
        error = np.array([run["rollout"]["error"] for run in runs], dtype=float)  # (seeds, frames, trajectories)
        error = error.transpose(1, 0, 2).reshape(len(times), -1)
        there = np.isfinite(error).any(1)
        low, middle, high = np.nanquantile(error[there], [0.25, 0.5, 0.75], axis=1)
        at = np.array(times)[there]
        left.plot(at, middle, color=colour, label=variant.title)
        left.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
        right.step(times, np.isfinite(error).mean(1), where="post", color=colour, label=variant.title)
    left.set(xlabel="t", ylabel="relative squared error", yscale="log", title="median and quartiles of what is left")
    right.set(xlabel="t", ylabel="share not blown up", ylim=(-0.05, 1.05), title="seeds and trajectories together")
    left.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return fig


def fields_figure(experiment: PDEExperiment, found: Found) -> Drawing:
    """The first test trajectory in the middle of its time: truth and, of the first seed, each variant."""
    from matplotlib.figure import Figure as Drawing

    true = load_fields(experiment.folder / "test.npz")
    frame = len(true) // 2
    pictures = [(f"true, t = {next(iter_times(found))[frame - 1]:g}", true[frame, 0])]
    for variant in experiment.variants:
        for seed in list(found[variant.name])[:1]:
            path = experiment.seed_folder(seed) / variant.name / "middle.pt"
            pictures.append((f"{variant.title}\nseed {seed}", checkpoint.load(path)["model"]["middle"]))
    rows = len(experiment.settings.components)
    fig = Drawing(figsize=(2.8 * len(pictures), 2.6 * rows), layout="constrained")
    axes = fig.subplots(rows, len(pictures), squeeze=False)
    for row, name in enumerate(experiment.settings.components):
        low, high = (float(value) for value in (true[frame, 0, row].min(), true[frame, 0, row].max()))
        for axis, (text, field) in zip(axes[row], pictures, strict=True):
            image = axis.imshow(field[row].numpy(), vmin=low, vmax=high, origin="lower")
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{name}, {text}" + ("" if field.isfinite().all() else "\nblown up"), fontsize=9)
        fig.colorbar(image, ax=list(axes[row]))
    return fig


def iter_times(found: Found) -> Iterable[list[float]]:
    return (run["rollout"]["times"] for runs in found.values() for run in runs.values())


# --- the page -------------------------------------------------------------------------------------------------


def brief_report(experiment: PDEExperiment, found: Found, failed: Mapping[str, str], most: int | None = None) -> Report:
    """What was learned, in words and tables.

    Args:
        most: characters of an equation.
    """
    settings = experiment.settings
    name = "fields of one's own" if settings.data else system_of(settings).title
    report = Report(f"PDE-Net 2.0: {name}", [Text(text) for text in sentences(experiment, found)])
    report.add(*(Text(f"{run} failed: {why}", "warning") for run, why in failed.items()))
    for component, symbol in enumerate(settings.components):
        head, rows = rows_of(experiment, found, component)
        report.section(f"{symbol}_t", Table(rows, head))
    report.add(Text("Median [range] over seeds. Largest other: of what the truth does not have, median over seeds. "
                    "Beyond the degree: share of du/dt that higher monomials make."))  # fmt: skip
    if settings.system == "burgers":
        report.add(Text(SLIP))
    head, rows = rollout_rows(experiment, found)
    report.section(
        "Long roll-outs",
        Table(rows, head),
        Text("Relative squared error Σ (û − u)² / Σ u² of a frame, median [quartiles] over seeds and the trajectories "
             "that are left. Blown up: NaN, or ten times the largest value of the true trajectory."),
    )  # fmt: skip
    report.add(Text("Equations", "heading"))
    for variant in experiment.variants:
        for seed, run in found[variant.name].items():
            formulas = [equation["formula"] for equation in run["blocks"][-1]["equations"]]
            lines = "\n".join(formula if most is None else shortened(formula, most) for formula in formulas)
            report.add(Text(f"{variant.title}, seed {seed}", "subheading"), Text(lines, "code"))
    return report


def training_rows(experiment: PDEExperiment, found: Found) -> tuple[list[list[str]], list[str]]:
    head = ["variant", "seed", "block", "iterations", "loss", "of the data", "seconds", "BFGS stopped"]
    rows = [
        [
            variant.name,
            str(seed),
            str(block["block"]),
            str(block["iterations"]),
            f"{block['loss']:.3g}",
            f"{block['data_loss']:.3g}",
            f"{block['seconds']:.0f}",
            block["stopped"] + (f"; {block['overflows']} overflows" if block["overflows"] else ""),
        ]
        for variant in experiment.variants
        for seed, run in found[variant.name].items()
        for block in run["blocks"]
    ]
    return rows, head
