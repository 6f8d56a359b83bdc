"""The report: the talk's table with ours beside it, one HTML page that needs no network, figures, CSV and JSON."""

from __future__ import annotations

import base64
import csv
import html
import io
import logging
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.common.page import STYLE, png, table
from recipes.common.workspace import read_json, write_json
from recipes.denoise.evaluation import mean, summary
from recipes.denoise.pipeline import Experiment
from recipes.denoise.settings import Settings, dncnn_cost, mean_cost, policy_cost, text, unit_cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Summaries = dict[float, list[dict[str, Any]]]  # level ↦ of each seed
WITHIN = 0.2  # dB, of the policy from the oracle
ROUNDING = 0.005  # dB: less is no difference

# Of the slides; * a level not trained on; what is wrong there is corrected or left out, see SLIPS.
TALK: dict[str, dict[str, dict[float, str]]] = {
    "gaussian": {
        "the talk: BM3D": {25: "28.55", 35: "27.07", 45: "25.99", 55: "25.26", 65: "24.69", 75: "22.63"},
        "the talk: WNNM": {25: "28.73", 35: "27.28", 45: "26.26", 55: "25.49", 65: "24.51", 75: "22.71"},
        "the talk: DnCNN-B": {25: "29.16", 35: "27.66", 45: "26.62", 55: "25.80", 65: "23.40*", 75: "18.73*"},
        "the talk: UNLNet5": {25: "28.96", 35: "27.50", 45: "26.48", 55: "25.64"},
        "the talk: DURR": {25: "29.16", 35: "27.72", 45: "26.71", 55: "25.91", 65: "25.26*", 75: "24.71*"},
    },
    "jpeg": {
        "the talk: JPEG": {10: "27.77", 20: "30.07", 30: "31.41", 40: "32.35 (1)"},
        "the talk: SA-DCT": {10: "28.65", 20: "30.81", 30: "32.08", 40: "32.99"},
        "the talk: AR-CNN": {10: "28.98", 20: "31.29", 30: "32.69", 40: "33.63"},
        "the talk: AR-CNN-B": {10: "28.53", 20: "30.88", 30: "32.31", 40: "33.39"},
        "the talk: DnCNN-3": {10: "(2)", 20: "31.59", 30: "32.98", 40: "33.96"},
        "the talk: DURR": {10: "29.23*", 20: "31.68", 30: "33.05", 40: "34.01*"},
    },
}
SLIPS = {
    "gaussian": [
        "DnCNN-B was trained on all σ up to 55, DURR on four values: not the same training. BM3D and WNNM are told σ.",
        "The talk's figure for σ = 95 quotes the PSNR of clipped noisy images (10.72 and 10.48 dB); that of the input "
        "as it is evaluated, unclipped, is 8.58 dB.",
    ],
    "jpeg": [
        "(1) The slide prints 32.45, a misprint: these files and this codec give 32.35.",
        "(2) The slide prints 29.40, which is DnCNN-3's value on Classic5, not on LIVE1.",
    ],
}
ROWS = {  # of a summary ↦ its title
    "noisy": "input",
    "dncnn": "DnCNN with biases",
    "dncnn_free": "DnCNN without biases",
    "fixed": "DURR, {fixed} steps for all",
    "table": "DURR, steps by table (told the level)",
    "policy": "DURR, policy",
    "oracle": "DURR, oracle (best step by true PSNR)",
}
STEP_ROWS = {"policy_steps": "steps: policy, mean", "oracle_steps": "steps: oracle, mean"}
COLOURS = {"noisy": "0.6", "dncnn": "tab:red", "dncnn_free": "tab:orange", "policy": "tab:blue", "fixed": "tab:cyan",
           "oracle": "tab:green", "bm3d": "tab:purple"}  # fmt: skip


def collect(experiment: Experiment) -> Summaries:
    return {
        level: [
            summary(read_json(experiment.seed_folder(seed) / "test" / f"{level:g}.json"), experiment.settings)
            for seed in experiment.seeds
        ]
        for level in experiment.settings.test_levels
    }


def bm3d_of(experiment: Experiment) -> dict[float, dict[str, float]]:
    """Level ↦ {image: PSNR}, empty where it was not asked for."""
    if not experiment.settings.bm3d_images:
        return {}
    folder = experiment.folder / "bm3d"
    return {level: read_json(folder / f"{level:g}.json")["images"] for level in experiment.settings.test_levels}


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and, of several seeds, the range."""
    middle = f"{mean(values):{form}}"
    return middle if len(values) == 1 else f"{middle} [{min(values):{form}}, {max(values):{form}}]"


def symbol(settings: Settings) -> str:
    return "σ" if settings.task == "gaussian" else "quality"


def starred(settings: Settings, level: float) -> str:
    return "" if level in settings.levels else "*"


def rows_of(experiment: Experiment, found: Summaries) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the talk's, then ours."""
    settings = experiment.settings
    levels = list(settings.test_levels)
    head = ["PSNR (dB)", *(f"{symbol(settings)} {level:g}{starred(settings, level)}" for level in levels)]
    rows = [[name, *(values.get(level, "") for level in levels)] for name, values in TALK[settings.task].items()]
    classic = bm3d_of(experiment)
    if classic:
        names = list(next(iter(classic.values())))
        count = f"{len(names)} of {len(experiment.test)} images"
        rows.append([f"BM3D (told σ), {count}", *(f"{mean(classic[level].values()):.2f}" for level in levels)])
        if len(names) < len(experiment.test):
            best = "policy" if settings.horizon == "policy" else settings.horizon
            same = [[on_images(experiment, seed, level, names) for seed in experiment.seeds] for level in levels]
            rows.append([f"DURR, {best}, the same {len(names)} images", *map(spread, same)])
    for key, title in ROWS.items():
        if key not in found[levels[0]][0] or (key == "table" and settings.horizon == "fixed"):
            continue
        cells = [spread([one[key] for one in found[level]]) for level in levels]
        rows.append([title.format(fixed=settings.fixed), *cells])
    for key, title in STEP_ROWS.items():
        if key in found[levels[0]][0]:
            rows.append([title, *(spread([one[key] for one in found[level]], ".1f") for level in levels)])
    rows.append(["steps: best for all images", *(spread([one["best_steps"] for one in found[level]], ".0f")
                                                 for level in levels)])  # fmt: skip
    return head, rows


def on_images(experiment: Experiment, seed: int, level: float, names: Sequence[str]) -> float:
    """PSNR of DURR on some of the images."""
    record = read_json(experiment.seed_folder(seed) / "test" / f"{level:g}.json")
    part = summary({**record, "images": {name: record["images"][name] for name in names}}, experiment.settings)
    return float(part[experiment.settings.horizon])


# --- what the figures say --------------------------------------------------------------------------------------


def by_difficulty(settings: Settings) -> list[float]:
    return sorted(settings.test_levels, reverse=settings.task == "jpeg")


def sentences(experiment: Experiment, found: Summaries) -> list[str]:
    """Whether the talk's claims show in these figures, means over the seeds."""
    settings = experiment.settings
    sign, levels = symbol(settings), by_difficulty(settings)
    means = {
        level: {key: mean(one[key] for one in found[level]) for key in found[level][0] if key != "by_steps"}
        for level in levels
    }
    best = [means[level]["best_steps"] for level in levels]
    grows = all(a <= b for a, b in pairwise(best)) and best[0] < best[-1]
    at = ", ".join(f"{sign} {level:g}: {steps:g}" for level, steps in zip(levels, best, strict=True))
    said = [f"The best number of steps {'grows' if grows else 'does NOT grow steadily'} with the difficulty ({at})."]
    if settings.horizon == "policy":
        gaps = {level: means[level]["oracle"] - means[level]["policy"] for level in levels}
        worst = max(gaps, key=lambda level: gaps[level])
        verdict = "stays" if gaps[worst] <= WITHIN else "does NOT stay"
        said.append(
            f"The policy {verdict} within {WITHIN} dB of the oracle: {gaps[worst]:.2f} dB below it at most, at "
            f"{sign} {worst:g}."
        )
        steps = [means[level]["policy_steps"] for level in levels]
        more = all(a <= b for a, b in pairwise(steps)) and steps[0] < steps[-1]
        said.append(f"The policy takes {'more' if more else 'NOT steadily more'} steps at harder levels.")
    unseen = [level for level in levels if level not in settings.levels]
    ours = settings.horizon
    for level in unseen:
        numbers = means[level]
        gap = numbers[ours] - numbers["dncnn"]
        twin = numbers["dncnn_free"] - numbers["dncnn"]
        said.append(
            f"Unseen {sign} {level:g}: the DnCNN with biases is {numbers['dncnn'] - numbers['noisy']:+.2f} dB from the "
            f"input, DURR ({ours}) {gap:+.2f} dB and the DnCNN without biases {twin:+.2f} dB from the one with."
        )
    return said


def thousands(number: float) -> str:
    return f"{number / 1000:.3g}k"


def notes(experiment: Experiment) -> list[str]:
    """What the table's rows are."""
    settings = experiment.settings
    count, unit = len(experiment.test), unit_cost(settings.width)
    crop = f", centres of {settings.crop} × {settings.crop} pixels" if settings.crop else ", whole"
    width, size = settings.baseline_width, f"{settings.patch} × {settings.patch}"
    decision = f"; a decision of the policy {thousands(policy_cost(settings.policy_width))}"
    said = [
        f"Ours: {count} images{crop}; input in floating point, neither rounded nor clipped; output clipped, not "
        f"rounded; PSNR of each image, mean. * level not trained on. Seeds {text(experiment.seeds)}"
        + ("; mean [range] over them." if len(experiment.seeds) > 1 else "."),
        f"Trained on {len(experiment.train)} images, {settings.updates:,} updates of {settings.batch} patches of {size}"
        f", the same for unit and baselines; {symbol(settings)} {text(settings.levels)}, steps {text(settings.steps)}.",
        f"Multiply-adds a pixel: unit {thousands(unit)} a step, {thousands(mean_cost(settings))} in the mean of the "
        f"training; DnCNN of {settings.dncnn_depth} layers and {width} channels "
        f"{thousands(dncnn_cost(settings.dncnn_depth, width))}{decision if settings.horizon == 'policy' else ''}.",
    ]
    if settings.horizon != "fixed":
        said.append("Steps by table: at a level that the table has not, those of the nearest.")
    return said + SLIPS[settings.task]


# --- files -----------------------------------------------------------------------------------------------------


def write(experiment: Experiment, provenance: Mapping[str, Any]) -> list[Path]:
    """table.md, report.html, figures, results.csv and result.json."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    found = collect(experiment)
    folder = experiment.folder
    files: dict[str, bytes] = {"table.md": markdown(experiment, found).encode(), "results.csv": table_csv(experiment)}
    images = []
    for name, title, draw in (
        ("steps", "PSNR by number of steps", steps_figure),
        ("levels", "PSNR and number of steps by level", levels_figure),
        ("training", "Training", training_figure),
    ):
        image = png(draw(experiment, found))
        files[f"{name}.png"] = base64.b64decode(image)
        images.append((title, image))
    files["report.html"] = page(experiment, found, provenance, images).encode()
    for name, content in files.items():
        partial = folder / f"{name}.part"
        partial.write_bytes(content)
        os.replace(partial, folder / name)
    write_json(
        folder / "result.json",
        {
            "settings": read_json(folder / "settings.json"),
            "levels": {f"{level:g}": dict(zip(map(str, experiment.seeds), one, strict=True))
                       for level, one in found.items()},
            "bm3d": {f"{level:g}": images for level, images in bm3d_of(experiment).items()},
            "training": {str(seed): trainings(experiment, seed) for seed in experiment.seeds},
            "findings": sentences(experiment, found),
            "environment": dict(provenance),
        },
    )  # fmt: skip
    return [folder / name for name in ("result.json", *files)]


def trainings(experiment: Experiment, seed: int) -> dict[str, Any]:
    names = ["durr", "dncnn", "dncnn_free", *(["policy"] if experiment.settings.horizon == "policy" else [])]
    return {name: read_json(experiment.seed_folder(seed) / f"{name}.json") for name in names}


def markdown(experiment: Experiment, found: Summaries) -> str:
    head, rows = rows_of(experiment, found)
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"* {sentence}" for sentence in sentences(experiment, found))]
    lines += ["", *notes(experiment)]
    return "\n".join(lines) + "\n"


def table_csv(experiment: Experiment) -> bytes:
    """A row for each seed, level, image and method; `steps` is empty for methods that have none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["seed", "level", "seen", "image", "method", "steps", "psnr"])
    settings = experiment.settings
    for level, images in bm3d_of(experiment).items():
        for name, value in images.items():
            writer.writerow(["", f"{level:g}", level in settings.levels, name, "bm3d", "", f"{value:.4f}"])
    for seed in experiment.seeds:
        for level in settings.test_levels:
            record = read_json(experiment.seed_folder(seed) / "test" / f"{level:g}.json")
            for name, image in record["images"].items():
                rows: list[tuple[str, Any, float]] = [(key, "", image[key]) for key in ("noisy", "dncnn", "dncnn_free")]
                rows += [("durr", n, value) for n, value in enumerate(image["durr"])]
                if "policy" in image:
                    rows.append(("durr_policy", image["policy"], image["durr"][image["policy"]]))
                for method, steps, value in rows:
                    writer.writerow([seed, f"{level:g}", level in settings.levels, name, method, steps, f"{value:.4f}"])
    return buffer.getvalue().encode("utf-8", "backslashreplace")


def steps_figure(experiment: Experiment, found: Summaries) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (level, seeds) in enumerate(found.items()):
        curve = [mean(column) for column in zip(*(one["by_steps"] for one in seeds), strict=True)]
        best = max(range(len(curve)), key=curve.__getitem__)
        settings = experiment.settings
        style = "-" if level in settings.levels else "--"
        colour = f"C{i}"
        axes.plot(curve, style, color=colour, label=f"{symbol(settings)} {level:g}{starred(settings, level)}")
        axes.plot(best, curve[best], "o", color=colour)
    axes.set_xlabel("number of steps (dot: best for all images)")
    axes.set_ylabel("PSNR (dB)")
    axes.legend(fontsize="small", ncols=2)
    axes.grid(alpha=0.3)
    return figure


def levels_figure(experiment: Experiment, found: Summaries) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    settings = experiment.settings
    levels = sorted(found)
    for key, colour in COLOURS.items():
        if key in found[levels[0]][0]:
            values = [mean(one[key] for one in found[level]) for level in levels]
            title = ROWS[key].format(fixed=settings.fixed)
            left.plot(levels, values, "o-", color=colour, label=title, markersize=4)
    for key, title, colour in (("best_steps", "best for all images", "0.4"), ("oracle_steps", "oracle", "tab:green"),
                               ("policy_steps", "policy", "tab:blue")):  # fmt: skip
        if key in found[levels[0]][0]:
            right.plot(levels, [mean(one[key] for one in found[level]) for level in levels], "o-", color=colour,
                       label=title, markersize=4)  # fmt: skip
    for axes, title in ((left, "PSNR (dB)"), (right, "number of steps, mean")):
        for level in settings.levels:
            axes.axvline(level, color="0.9", zorder=0)
        axes.set_xlabel(f"{symbol(settings)} (grey lines: trained on)")
        axes.set_ylabel(title)
        axes.legend(fontsize="small")
    return figure


def training_figure(experiment: Experiment, found: Summaries) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for seed in experiment.seeds:
        for name, training in trainings(experiment, seed).items():
            axes = right if name == "policy" else left
            colour = {"durr": "tab:blue", "dncnn": "tab:red", "dncnn_free": "tab:orange", "policy": "tab:blue"}[name]
            label = name if seed == experiment.seeds[0] else None
            axes.semilogy(*zip(*training["curve"], strict=True), color=colour, label=label)
    left.set_ylabel("mean squared error (of 1)")
    right.set_ylabel("Q: mean squared error (dB²)")
    for axes in (left, right):
        axes.set_xlabel("updates")
        if axes.lines:
            axes.legend(fontsize="small")
    return figure


METHODS = {"clean": "clean", "noisy": "input", "dncnn": "DnCNN with biases", "dncnn_free": "without", "durr": "DURR"}


def pictures(experiment: Experiment) -> str:
    """The centres of some images side by side, of the first seed, with the PSNR of the whole image."""
    seed = experiment.seeds[0]
    names, levels = experiment.shown()
    rows = ["<table>", f"<tr><th></th>{''.join(f'<th>{title}</th>' for title in METHODS.values())}</tr>"]
    for level in levels:
        record = read_json(experiment.seed_folder(seed) / "test" / f"{level:g}.json")
        for index, name in enumerate(names):
            image = record["images"][name]
            settings = experiment.settings
            step = settings.fixed if settings.horizon == "fixed" else settings.steps_at(level)
            step = image.get("policy", step)
            values = {key: f"{image[key]:.2f} dB" for key in ("noisy", "dncnn", "dncnn_free")}
            values |= {"clean": "", "durr": f"{image['durr'][step]:.2f} dB, {step} steps"}
            what = f"{symbol(settings)} {level:g}{starred(settings, level)}<br>{html.escape(name)}"
            cells = []
            for method in METHODS:
                content = (experiment.seed_folder(seed) / "test" / f"{level:g}-{index}-{method}.png").read_bytes()
                code = base64.b64encode(content).decode("ascii")
                cells.append(f'<td><img src="data:image/png;base64,{code}" alt="{method}"><br>{values[method]}</td>')
            rows.append(f"<tr><td>{what}</td>{''.join(cells)}</tr>")
    return "\n".join([*rows, "</table>"])


def page(
    experiment: Experiment, found: Summaries, provenance: Mapping[str, Any], images: Sequence[tuple[str, str]]
) -> str:
    head, rows = rows_of(experiment, found)
    settings = read_json(experiment.folder / "settings.json")
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>DURR</title>",
        f"<style>{STYLE} body {{ max-width: 75rem }}</style><h1>DURR: {experiment.settings.task}</h1>",
        "<ul>" + "".join(f"<li>{html.escape(said)}</li>" for said in sentences(experiment, found)) + "</ul>",
        table(rows, head, [row[0].startswith("the talk") for row in rows]),
        "".join(f"<p>{html.escape(note)}</p>" for note in notes(experiment)),
        *(f'<h2>{title}</h2><img src="data:image/png;base64,{image}" alt="{title}">' for title, image in images),
        f"<h2>Pictures</h2><p>Centres; PSNR of the whole test image.</p>{pictures(experiment)}",
        "<h2>Settings</h2>",
        table([[name, str(value)] for name, value in settings.items()]),
        "<h2>Versions</h2>",
        table([[name, str(value)] for name, value in provenance.items()]),
        "</html>",
    ]
    return "\n".join(parts)
