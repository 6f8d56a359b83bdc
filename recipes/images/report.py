"""The report: tables beside the talk's, curves, learned k, one HTML page that needs no network, JSON and CSV."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..common.report import Figure, Part, Report, Table, Text, write_all
from ..common.statistics import paired_t_test, summary
from ..common.workspace import read_json, write_json
from .experiment import Experiment, Found, Run
from .settings import PUBLISHED_IMAGES, SIDE, ImageSettings, flag, schedule, settings_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")
TEST_IMAGES = 10_000  # of each of the data sets
LEVELS = (25, 50, 75, 90)  # per cent of accuracy under attack, for the time to reach them

# Accuracies of the slides, per cent.
TALK_DEPTH: dict[tuple[str, int], dict[str, float]] = {
    ("cifar10", 20): {"resnet": 91.25, "lm_resnet": 91.67},
    ("cifar10", 32): {"resnet": 92.49, "lm_resnet": 92.82},
    ("cifar10", 44): {"resnet": 92.83, "lm_resnet": 92.98},
    ("cifar10", 56): {"resnet": 93.03, "lm_resnet": 93.69},
    ("cifar10", 110): {"resnet": 93.63},
    ("cifar100", 110): {"resnet": 72.24, "lm_resnet": 73.16},
    ("cifar100", 164): {"resnet": 75.67, "lm_resnet": 76.74},
}
TALK_SIZE = {20: "0.27M", 32: "0.46M", 44: "0.66M", 56: "0.85M", 110: "1.7M", 164: "2.55M"}
# WRN-34-10, CIFAR-10: clean, PGD-20, minutes.
TALK_ROBUST = (
    ("natural", 95.03, 0.00, 233),
    ("pgd-3", 90.07, 39.18, 1134),
    ("pgd-5", 89.65, 43.85, 1574),
    ("pgd-10", 87.30, 47.04, 2713),
    ("freeat-8", 86.29, 47.00, 667),
    ("yopo-3-5", 87.27, 43.04, 299),
    ("yopo-5-3", 86.70, 47.98, 476),
)
MIXED = (
    "The talk's minutes mix two things: an update of YOPO-5-3 has 5 full passes where PGD-10 has 12 (10 for the "
    "attack, one at x + δ, one at x), and its authors train it for 37 epochs, PGD for 105. Here both are in the table: "
    "time of a batch, and time to a given accuracy under attack."
)


def plan_of(settings: ImageSettings, run: Run) -> str:
    """A schedule in words."""
    plan = schedule(settings, run.adversary)

    def milestones(epochs: tuple[int, ...]) -> str:
        reached = [str(m) for m in epochs if m < plan.epochs]
        return f"a tenth from epoch {', '.join(reached)}" if reached else "constant"

    rate = milestones(plan.milestones)
    if plan.first_milestones != plan.milestones:
        rate += f" (of the first layer {milestones(plan.first_milestones)})"
    replays = f", {plan.replays} updates with each batch" if plan.replays > 1 else ""
    return (
        f"{plan.epochs} epochs, {plan.updates(settings.train_images):,} batches of {plan.batch}{replays}, SGD lr "
        f"{plan.lr:g}, {rate}, momentum {plan.momentum:g}, weight decay "
        f"{plan.weight_decay:g} ({plan.source})"
    )


def write(
    experiment: Experiment, sentence: str, failed: Mapping[str, str], provenance: Mapping[str, Any]
) -> list[Path]:
    """report.html, report.md, curves.csv, figures and result.json, of what is finished."""
    found, folder = experiment.collect(failed), experiment.folder
    write_json(
        folder / "result.json",
        {
            "images": sentence,
            "settings": read_json(folder / "settings.json"),
            "runs": {name: {str(seed): run for seed, run in runs.items()} for name, runs in found.items()},
            "failed": dict(failed),
            "environment": dict(provenance),
        },
    )
    pages = report(experiment, sentence, found, failed, provenance).write(folder, "report.html", "report.md")
    return [folder / "result.json", *pages, *write_all(folder, {"curves.csv": curves(experiment, found)})]


# --- figures of merit -----------------------------------------------------------------------------------------


def last(run: Mapping[str, Any], what: str) -> float:
    """Of the last epoch; the best one on the test set would be chosen by it."""
    return float(run["history"][-1][what])


def over_seeds(runs: Mapping[int, Mapping[str, Any]], what: str) -> str:
    return str(summary([last(run, what) for run in runs.values()]))


def paired(first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]], what: str) -> str:
    """second − first over their common seeds, with a test where there are two or more."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return ""
    a, b = ([last(runs[seed], what) for seed in seeds] for runs in (first, second))
    if len(seeds) == 1:
        return f"{b[0] - a[0]:+.2f} (one seed)"
    return f"{paired_t_test(a, b, (0, 100))} ({len(seeds)} seeds)"


def minutes_to(run: Mapping[str, Any], level: float) -> float | None:
    """Of training, until an evaluation found so much accuracy under attack."""
    return next((entry["seconds"] / 60 for entry in run["history"] if entry["robust"] >= level), None)


def attacked(found: Found) -> bool:
    return any("robust" in run["history"][-1] for runs in found.values() for run in runs.values())


def talk_of(settings: ImageSettings, run: Run) -> str:
    """The talk's accuracy for this depth and this network, if it is one of the talk's."""
    if run.variant is None or run.variant.options or run.adversary.kind != "natural" or settings.depth is None:
        return ""
    value = TALK_DEPTH.get((settings.dataset, settings.depth), {}).get(run.variant.head)
    return "" if value is None else f"{value:.2f}"


def rows_of(experiment: Experiment, found: Found) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the main table."""
    settings, robust = experiment.settings, attacked(found)
    head = ["", "seeds", "parameters", "accuracy %"]
    if robust:
        head += [f"PGD-{settings.attack_steps} %", "passes a batch", "ms a batch", "minutes", "processor minutes"]
        levels = [
            level for level in LEVELS
            if any(minutes_to(run, level) is not None for runs in found.values() for run in runs.values())
        ]  # fmt: skip
        head += [f"minutes to {level} %" for level in levels]
    else:
        head += ["training loss", "minutes"]
    compare = settings.model == "resnet" and len(experiment.runs) > 1
    if compare:
        head += ["against the first, paired", "the talk"]
    rows = []
    reference = found[experiment.runs[0].name]
    for run in experiment.runs:
        runs = found[run.name]
        if not runs:
            continue
        one = next(iter(runs.values()))
        row = [run.name, str(len(runs)), f"{one['parameters']:,}", over_seeds(runs, "accuracy")]
        time = f"{fmean(last(r, 'seconds') for r in runs.values()) / 60:.1f}"
        if robust:
            batch = fmean(1000 * last(r, "seconds") / last(r, "batches") for r in runs.values())
            row += [over_seeds(runs, "robust"), str(one["batch_passes"]), f"{batch:.0f}", time]
            row += [f"{fmean(last(r, 'cpu_seconds') for r in runs.values()) / 60:.1f}"]
            for level in levels:
                reached = [m for r in runs.values() if (m := minutes_to(r, level)) is not None]
                row.append(f"{fmean(reached):.1f}" if len(reached) == len(runs) else "")
        else:
            losses = summary([last(r, "loss") for r in runs.values()])
            row += [f"{losses.mean:.4f}" + ("" if losses.sd is None else f" ± {losses.sd:.4f}"), time]
        if compare:
            row += ["" if run is experiment.runs[0] else paired(reference, runs, "accuracy"), talk_of(settings, run)]
        rows.append(row)
    return head, rows


def size_rows(experiment: Experiment, found: Found) -> list[list[str]]:
    """Parameters: here, in the published code, in the talk."""
    depth = experiment.settings.depth
    assert depth is not None
    one = {run.name: next(iter(found[run.name].values())) for run in experiment.runs if found[run.name]}
    return [[name, f"{run['parameters']:,}", f"{run['stored_by_the_original']:,}", TALK_SIZE[depth]]
            for name, run in one.items()]  # fmt: skip


SIZE_HEAD = ["", "here, all trained", "stored by the published code", "the talk"]


def k_rows(experiment: Experiment, found: Found) -> list[list[str]]:
    """A row per block that has a k: its mean and range over the seeds."""
    from macaron.dynamics.multistep import is_zero_stable

    rows = []
    for run in experiment.runs:
        for (stage, block), values in k_of(found[run.name]).items():
            stable = sum(map(is_zero_stable, values))
            rows.append([run.name, f"stage {stage + 1}, block {block + 1}", f"{fmean(values):+.3f}",
                         f"{min(values):+.3f} … {max(values):+.3f}", f"{stable} of {len(values)} seeds"])  # fmt: skip
    return rows


K_HEAD = ["", "", "k, mean over seeds", "range", "zero-stable"]


def k_of(runs: Mapping[int, Mapping[str, Any]]) -> dict[tuple[int, int], list[float]]:
    """{(stage, block): k of each seed} at the end of training."""
    found: dict[tuple[int, int], list[float]] = {}
    for run in runs.values():
        for stage, values in enumerate(run["history"][-1]["k"]):
            for n, k in enumerate(values, 1):
                found.setdefault((stage, n), []).append(float(k))
    return found


def sentences(experiment: Experiment, sentence: str, found: Found) -> list[str]:
    """What the tables show, and what of them cannot be compared with the talk's."""
    settings, said = experiment.settings, [f"Images: {sentence}."]
    said += [f"{run.name}: no seed is finished." for run in experiment.runs if not found[run.name]]
    from macaron.dynamics.multistep import is_zero_stable

    for run in experiment.runs:
        ks = [k for values in k_of(found[run.name]).values() for k in values]
        if not ks:
            continue
        if unstable := [k for k in ks if not is_zero_stable(k)]:
            said.append(
                f"{run.name}: {len(unstable)} of {len(ks)} learned k are NOT zero-stable ({min(unstable):+.3f} to "
                f"{max(unstable):+.3f}): there a perturbation grows with the depth."
            )
        else:
            said.append(
                f"{run.name}: all {len(ks)} learned k are zero-stable, {min(ks):+.3f} to {max(ks):+.3f}, in (−1, 1]."
            )
    different = []
    if settings.train_images < PUBLISHED_IMAGES[settings.dataset]:
        different.append(f"{settings.train_images:,} of {PUBLISHED_IMAGES[settings.dataset]:,} training images")
    if settings.test_images < TEST_IMAGES:
        different.append(f"{settings.test_images:,} of {TEST_IMAGES:,} test images")
    if settings.size < SIDE[settings.dataset]:
        different.append(f"images of {settings.size} x {settings.size} pixels in the place of {SIDE[settings.dataset]}")
    if settings.channels_scale != 1:
        different.append(f"{settings.channels_scale:g} times the channels")
    for text, runs in itertools.groupby(experiment.runs, lambda run: schedule(settings, run.adversary).source):
        if "changed" in text or text.startswith("ours"):
            different.append(f"{', '.join(run.name for run in runs)}: {text}")
    robust = attacked(found)
    usual = settings_for({"dataset": settings.dataset, "model": settings.model, "attacked": robust}, 1, 1)
    for name in ("augment", *(("epsilon", "step_size", "attack_steps") if robust else ())):
        value, default = getattr(settings, name), getattr(usual, name)
        if value != default:
            different.append(f"--{flag(name)} {value} in the place of {default}")
    if settings.ramp:
        different.append(f"a radius that grows over {settings.ramp} batches")
    if settings.attacked_images < TEST_IMAGES and robust:
        different.append(f"{settings.attacked_images:,} test images under attack")
    if different:
        said.append(f"Not the published setting: {'; '.join(different)}.")
    if settings.model == "resnet":
        if settings.depth == 164:
            said.append("The talk's 2.55M for depth 164 fits neither the published code nor ours: about 1.70M.")
        said.append(
            "Accuracies are those of the last epoch; the published notebook picks the best epoch on the test set. "
            "k is stored as such and free of weight decay; the published code stores 1 − k, which decay pulls towards "
            "k = 1. Seeds are paired: equal initial weights, batches, crops and mirrors."
        )
    if attacked(found):
        said.append(
            f"PGD-{settings.attack_steps}: ε = {settings.epsilon:.4g}, step {settings.step_size:.4g}, L∞, one random "
            f"start, evaluation mode, no restarts: an upper bound of the robust accuracy. Minutes are of training "
            f"alone, without evaluations, on the machine named below, and depend on what else runs there; processor "
            f"minutes do less. YOPO without the authors' extra forward pass of each batch, which they make for the "
            f"progress bar and which moves the running statistics of BN."
        )
        same = settings.dataset == "cifar10" and settings.model == "wrn34"
        said.append(MIXED)
        if not same:
            said.append(
                f"The talk's rows are of WRN-34-10 on CIFAR-10 with PGD-20, trained on one GPU; ours of "
                f"{settings.model} on {settings.dataset}. Accuracies and minutes cannot be compared across the two "
                f"tables; the order of the methods, and the ratio of their times, can be looked at."
            )
    return said


def talk_table() -> Table:
    rows = [[name, f"{clean:.2f}", f"{pgd:.2f}", str(minutes)] for name, clean, pgd, minutes in TALK_ROBUST]
    return Table(rows, ["the talk: WRN-34-10, CIFAR-10", "accuracy %", "PGD-20 %", "minutes"])


def curves(experiment: Experiment, found: Found) -> str:
    """A line per evaluation."""
    columns = ["epoch", "batches", "seconds", "cpu_seconds", "loss", "accuracy", "robust"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "seed", *columns])
    for run in experiment.runs:
        for seed, result in found[run.name].items():
            for entry in result["history"]:
                writer.writerow([run.name, seed, *(entry.get(column, "") for column in columns)])
    return text.getvalue()


# --- figures --------------------------------------------------------------------------------------------------


def figures(experiment: Experiment, found: Found) -> list[Part]:
    """Those that there is something for."""
    if not any(found.values()):
        return []
    drawn: list[Part] = [Figure("training", training_figure(experiment, found), "Loss and test accuracy over epochs")]
    if attacked(found):
        title = "Accuracy under attack and clean over minutes of training"
        drawn.insert(0, Figure("minutes", minutes_figure(experiment, found), title))
    return drawn


def lines(axis: Any, experiment: Experiment, found: Found, x: str, y: str, scale: float = 1.0) -> None:
    """A thin line for each seed, of one colour and one label for each run."""
    for colour, run in zip(itertools.cycle(COLOURS), experiment.runs, strict=False):
        for number, result in enumerate(found[run.name].values()):
            entries = [entry for entry in result["history"] if y in entry]
            axis.plot(
                [entry[x] * scale for entry in entries], [entry[y] for entry in entries], ".-", color=colour,
                linewidth=1, markersize=4, label=run.name if number == 0 else None,
            )  # fmt: skip
    axis.grid(alpha=0.3)


def minutes_figure(experiment: Experiment, found: Found) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    settings = experiment.settings
    fig = Drawing(figsize=(11, 4.2), layout="constrained")
    left, right = fig.subplots(1, 2, sharex=True)
    for axis, what, title in (
        (left, "robust", f"under attack: PGD-{settings.attack_steps}, {settings.attacked_images:,} images"),
        (right, "accuracy", "clean"),
    ):
        lines(axis, experiment, found, "seconds", what, 1 / 60)
        axis.set(xlabel="minutes of training, evaluations not counted", ylabel="accuracy %", title=title, ylim=(0, 101))
    left.legend()
    return fig


def training_figure(experiment: Experiment, found: Found) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    fig = Drawing(figsize=(11, 4.2), layout="constrained")
    left, right = fig.subplots(1, 2, sharex=True)
    lines(left, experiment, found, "epoch", "loss")
    left.set(xlabel="epoch", ylabel="training loss, mean since the last evaluation", yscale="log")
    lines(right, experiment, found, "epoch", "accuracy")
    right.set(xlabel="epoch", ylabel="test accuracy %")
    left.legend()
    return fig


def k_figure(experiment: Experiment, found: Found) -> Drawing:
    """k over the blocks, in the order of depth, with the limits of zero-stability."""
    from matplotlib.figure import Figure as Drawing

    fig = Drawing(figsize=(9, 3.6), layout="constrained")
    axis = fig.subplots()
    places: list[tuple[int, int]] = []
    for colour, run in zip(itertools.cycle(COLOURS), experiment.runs, strict=False):
        ks = k_of(found[run.name])
        if not ks:
            continue
        places = sorted(ks)
        x = range(len(places))
        axis.plot(x, [fmean(ks[place]) for place in places], "o-", color=colour, label=run.name)
        low, high = ([pick(ks[place]) for place in places] for pick in (min, max))
        axis.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
    axis.axhspan(-1, 1, color="tab:green", alpha=0.08, label="zero-stable: −1 < k ≤ 1")
    axis.axhline(0, color="grey", linewidth=0.8)
    step = max(1, len(places) // 12)
    axis.set_xticks(list(range(0, len(places), step)),
                    [f"{stage + 1}.{block + 1}" for stage, block in places[::step]])  # fmt: skip
    axis.set(xlabel="stage.block (the first block of a stage has no k)", ylabel="k, mean and range over seeds")
    axis.grid(alpha=0.3)
    axis.legend()
    return fig


# --- the page -------------------------------------------------------------------------------------------------


def report(
    experiment: Experiment, sentence: str, found: Found, failed: Mapping[str, str], provenance: Mapping[str, Any]
) -> Report:
    settings = experiment.settings
    made = Report(f"{settings.dataset}, {settings.model}" + (f" of depth {settings.depth}" if settings.depth else ""))
    made.add(*(Text(f"{run} failed: {why}", "warning") for run, why in failed.items()))
    head, rows = rows_of(experiment, found)
    made.add(Table(rows, head))
    made.add(*(Text(text, "item") for text in sentences(experiment, sentence, found)))
    if attacked(found):
        made.section("The talk", talk_table())
    made.section("Curves", *figures(experiment, found))
    if settings.model == "resnet":
        if ks := k_rows(experiment, found):
            rule = Text("x_{n+1} = (1 − k_n) x_n + k_n x_{n−1} + f_n(x_n), zero-stable for −1 < k ≤ 1")
            drawing = Figure("k", k_figure(experiment, found), "Learned k of each block")
            made.section("Learned k", rule, drawing, Table(ks, K_HEAD))
        made.section("Parameters", Table(size_rows(experiment, found), SIZE_HEAD))
    made.section("Schedules", Table([[run.name, plan_of(settings, run)] for run in experiment.runs]))
    made.section("How it was made", Table.of(provenance), Text("settings", "subheading"), Table.of(vars(settings)))
    return made
