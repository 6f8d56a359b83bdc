"""The report: the talk's table with ours beside it, figures, pictures side by side, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.report import Figure, Report, Table, Text, write_all
from ..common.workspace import write_json
from .results import METHODS, Results, mean
from .settings import RestorationSettings, dncnn_cost, mean_cost, policy_cost, text, unit_cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

WITHIN = 0.2  # dB, of the policy from the oracle

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
           "oracle": "tab:green"}  # fmt: skip


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and, of several seeds, the range."""
    middle = f"{mean(values):{form}}"
    return middle if len(values) == 1 else f"{middle} [{min(values):{form}}, {max(values):{form}}]"


def symbol(settings: RestorationSettings) -> str:
    return "σ" if settings.task == "gaussian" else "quality"


def named(settings: RestorationSettings, level: float) -> str:
    """With a star where it was not trained on."""
    return f"{symbol(settings)} {level:g}{'' if level in settings.levels else '*'}"


def results_table(found: Results) -> Table:
    """The talk's rows, then ours."""
    settings, levels = found.settings, found.settings.test_levels
    talk = [[name, *(values.get(level, "") for level in levels)] for name, values in TALK[settings.task].items()]
    rows = []
    if found.bm3d:
        names = list(found.bm3d[levels[0]])
        count = f"{len(names)} of {found.test_images} images"
        rows.append([f"BM3D (told σ), {count}", *(f"{mean(found.bm3d[level].values()):.2f}" for level in levels)])
        if len(names) < found.test_images:
            same = [spread(found.of_images(level, names)) for level in levels]
            rows.append([f"DURR, {settings.horizon}, the same {len(names)} images", *same])
    for key, title in ROWS.items():
        if found.has(key) and not (key == "table" and settings.horizon == "fixed"):
            rows.append([title.format(fixed=settings.fixed), *(spread(found.of(level, key)) for level in levels)])
    for key, title in STEP_ROWS.items():
        if found.has(key):
            rows.append([title, *(spread(found.of(level, key), ".1f") for level in levels)])
    rows.append(["steps: best for all images", *(spread(found.of(level, "best_steps"), "g") for level in levels)])
    head = ["PSNR (dB)", *(named(settings, level) for level in levels)]
    return Table(talk + rows, head, [True] * len(talk) + [False] * len(rows))


# --- what the figures say --------------------------------------------------------------------------------------


def sentences(found: Results) -> list[str]:
    """Whether the talk's claims show in these figures, means over the seeds."""
    settings = found.settings
    levels = sorted(settings.test_levels, reverse=settings.task == "jpeg")  # from easy to hard
    sign = symbol(settings)

    def means(key: str) -> list[float]:
        return [mean(found.of(level, key)) for level in levels]

    best = means("best_steps")
    at = ", ".join(f"{sign} {level:g}: {steps:g}" for level, steps in zip(levels, best, strict=True))
    said = [f"The best number of steps {'grows' if grows(best) else 'does NOT grow steadily'} with the difficulty "
            f"({at})."]  # fmt: skip
    if found.has("policy"):
        gaps = [oracle - policy for oracle, policy in zip(means("oracle"), means("policy"), strict=True)]
        worst = max(range(len(gaps)), key=gaps.__getitem__)
        said.append(
            f"The policy {'stays' if gaps[worst] <= WITHIN else 'does NOT stay'} within {WITHIN} dB of the oracle: "
            f"{gaps[worst]:.2f} dB below it at most, at {sign} {levels[worst]:g}."
        )
        steps = means("policy_steps")
        said.append(f"The policy takes {'more' if grows(steps) else 'NOT steadily more'} steps at harder levels.")
    for level in levels:
        if level not in settings.levels:
            noisy, biased, free, ours = (
                mean(found.of(level, key)) for key in ("noisy", "dncnn", "dncnn_free", settings.horizon)
            )
            fixed = ""
            if settings.horizon != "fixed":
                fixed = f", {ours - mean(found.of(level, 'fixed')):+.2f} dB from DURR of {settings.fixed} steps for all"
            said.append(
                f"Unseen {sign} {level:g}: DURR ({settings.horizon}) is {ours - noisy:+.2f} dB from the input, "
                f"{ours - biased:+.2f} dB from the DnCNN with biases, {ours - free:+.2f} dB from that without{fixed}."
            )
    return said


def grows(values: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(values)) and values[0] < values[-1]


def thousands(number: float) -> str:
    return f"{number / 1000:.3g}k"


def notes(found: Results) -> list[str]:
    """What the table's rows are."""
    settings = found.settings
    crop = f", centres of {settings.crop} × {settings.crop} pixels" if settings.crop else ", whole"
    width, size = settings.baseline_width, f"{settings.patch} × {settings.patch}"
    decision = f"; a decision of the policy {thousands(policy_cost(settings.policy_width))}"
    said = [
        f"Ours: {found.test_images} images{crop}; input in floating point, neither rounded nor clipped; output "
        f"clipped, not rounded; PSNR of each image, mean. * level not trained on. Seeds {text(found.seeds)}"
        + ("; mean [range] over them." if len(found.seeds) > 1 else "."),
        f"Trained on {found.train_images} images, {settings.updates:,} updates of {settings.batch} patches of {size}, "
        f"the same for unit and baselines; {symbol(settings)} {text(settings.levels)}, steps {text(settings.steps)}.",
        f"Multiply-adds a pixel: unit {thousands(unit_cost(settings.width))} a step, {thousands(mean_cost(settings))} "
        f"in the mean of the training; DnCNN of {settings.dncnn_depth} layers and {width} channels "
        f"{thousands(dncnn_cost(settings.dncnn_depth, width))}{decision if settings.horizon == 'policy' else ''}.",
    ]
    if settings.horizon != "fixed":
        said.append("Steps by table: at a level that the table has not, those of the nearest.")
    return said + SLIPS[settings.task]


# --- files -----------------------------------------------------------------------------------------------------


def write(found: Results, folder: Path, provenance: Mapping[str, Any]) -> list[Path]:
    """report.html, table.md, figures, results.csv and result.json."""
    said = [Text(sentence, "item") for sentence in sentences(found)]
    shown = [results_table(found), *said, *(Text(note) for note in notes(found))]
    report = Report(f"DURR, {found.settings.task}").add(*shown)
    report.section("PSNR by number of steps", Figure("steps", steps_figure(found), "PSNR by number of steps"))
    report.section("By level", Figure("levels", levels_figure(found), "PSNR and number of steps by level"))
    report.section("Pictures", *pictures(found))
    report.section("Training", Figure("training", training_figure(found), "Losses"))
    report.section("Settings", Table.of(vars(found.settings)))
    report.section("Versions", Table.of(provenance))
    table = "\n\n".join(part.markdown() for part in shown).replace("\n\n* ", "\n* ").replace("|\n*", "|\n\n*")
    write_json(
        folder / "result.json",
        {
            "settings": vars(found.settings),
            "levels": {
                f"{level:g}": dict(zip(map(str, found.seeds), one, strict=True))
                for level, one in found.summaries.items()
            },
            "bm3d": {f"{level:g}": dict(images) for level, images in found.bm3d.items()},
            "training": {str(seed): dict(one) for seed, one in found.training.items()},
            "findings": sentences(found),
            "environment": dict(provenance),
        },
    )
    texts = write_all(folder, {"table.md": table + "\n", "results.csv": table_csv(found)})
    return [folder / "result.json", *texts, *report.write(folder)]


def table_csv(found: Results) -> bytes:
    """A row for each seed, level, image and method; `steps` is empty for methods that have none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["seed", "level", "seen", "image", "method", "steps", "psnr"])

    def add(seed: Any, level: float, image: str, method: str, steps: Any, value: float) -> None:
        seen = level in found.settings.levels
        writer.writerow([seed, f"{level:g}", seen, image, method, steps, f"{value:.4f}"])

    for level, images in found.bm3d.items():
        for name, value in images.items():
            add("", level, name, "bm3d", "", value)
    for level, seeds in found.records.items():
        for seed, record in seeds.items():
            for name, image in record["images"].items():
                for key in ("noisy", "dncnn", "dncnn_free"):
                    add(seed, level, name, key, "", image[key])
                for n, value in enumerate(image["durr"]):
                    add(seed, level, name, "durr", n, value)
                if "policy" in image:
                    add(seed, level, name, "durr_policy", image["policy"], image["durr"][image["policy"]])
    return buffer.getvalue().encode("utf-8", "backslashreplace")


def new_figure(width: float, height: float) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(width, height), layout="constrained")


def steps_figure(found: Results) -> Drawing:
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for i, (level, seeds) in enumerate(found.summaries.items()):
        curve = [mean(column) for column in zip(*(one["by_steps"] for one in seeds), strict=True)]
        best = max(range(len(curve)), key=curve.__getitem__)
        style = "-" if level in found.settings.levels else "--"
        axes.plot(curve, style, color=f"C{i}", label=named(found.settings, level))
        axes.plot(best, curve[best], "o", color=f"C{i}")
    axes.set_xlabel("number of steps (dot: best for all images)")
    axes.set_ylabel("PSNR (dB)")
    axes.legend(fontsize="small", ncols=2)
    axes.grid(alpha=0.3)
    return figure


def levels_figure(found: Results) -> Drawing:
    figure = new_figure(10, 4.5)
    left, right = figure.subplots(1, 2)
    settings, levels = found.settings, sorted(found.settings.test_levels)
    lines = [(left, key, ROWS[key].format(fixed=settings.fixed), colour) for key, colour in COLOURS.items()]
    lines += [
        (right, "best_steps", "best for all images", "0.4"),
        (right, "oracle_steps", "oracle", "tab:green"),
        (right, "policy_steps", "policy", "tab:blue"),
    ]
    for axes, key, title, colour in lines:
        if found.has(key):
            values = [mean(found.of(level, key)) for level in levels]
            axes.plot(levels, values, "o-", color=colour, label=title, markersize=4)
    for axes, title in ((left, "PSNR (dB)"), (right, "number of steps, mean")):
        for level in settings.levels:
            axes.axvline(level, color="0.9", zorder=0)
        axes.set_xlabel(f"{symbol(settings)} (grey lines: trained on)")
        axes.set_ylabel(title)
        axes.legend(fontsize="small")
    return figure


def training_figure(found: Results) -> Drawing:
    figure = new_figure(10, 3.5)
    left, right = figure.subplots(1, 2)
    colours = {"durr": "tab:blue", "dncnn": "tab:red", "dncnn_free": "tab:orange", "policy": "tab:blue"}
    for seed, trained in found.training.items():
        for name, training in trained.items():
            label = name if seed == found.seeds[0] else None
            axes = right if name == "policy" else left
            axes.semilogy(*zip(*training["curve"], strict=True), color=colours[name], label=label)
    left.set_ylabel("mean squared error (of 1)")
    right.set_ylabel("Q: mean squared error (dB²)")
    for axes in (left, right):
        axes.set_xlabel("updates")
        if axes.lines:
            axes.legend(fontsize="small")
    return figure


def pictures(found: Results) -> list[Text | Figure]:
    """The centres of some images side by side, with the PSNR of the whole test image; a figure a level."""
    from PIL import Image

    parts: list[Text | Figure] = [Text("Centres of test images, of the first seed; PSNR of the whole test image.")]
    for level in dict.fromkeys(level for level, _ in found.pictures):
        of_level = {name: files for (other, name), files in found.pictures.items() if other == level}
        figure = new_figure(12.5, 2.75 * len(of_level))
        grid = figure.subplots(len(of_level), len(METHODS), squeeze=False)
        for line, (name, files) in zip(grid, of_level.items(), strict=True):
            image = found.records[level][found.seeds[0]]["images"][name]
            steps = found.steps_of(level, image)
            said = {key: f"{image[key]:.2f} dB" for key in ("noisy", "dncnn", "dncnn_free")}
            said |= {"clean": name, "durr": f"{image['durr'][steps]:.2f} dB, {steps} steps"}
            for axes, (method, title) in zip(line, METHODS.items(), strict=True):
                with Image.open(files[method]) as picture:
                    axes.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axes.set_title(f"{title}\n{said[method]}", fontsize="small", parse_math=False)
                axes.axis("off")
        parts.append(Figure(f"pictures-{level:g}", figure, f"Restored, {named(found.settings, level)}"))
    return parts
