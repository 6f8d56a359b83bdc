"""Are the runs matched? Parameters before training; data, its order and the updates from what fairseq logged."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import RecipeError
from ..translation import commands

STAND_IN = 2**16  # words of a dictionary before there is one; more than a cutoff of adaptive softmax

# Of a window of updates: mean words and sentences per batch, and the learning rate at its end. Another order of the
# data, or another batch, shows in the first two.
Windows = dict[int, tuple[str, str, str]]
_LEARNED = re.compile(r"\.layers\.(?:rule|\d+\.gates)\.")
_RESUMED = re.compile(r"Loaded checkpoint .* @ (\d+) updates\)")


class Size(NamedTuple):
    """Parameters of a model, shared ones counted once."""

    matrices: int  # attention, FFNs, embeddings
    vectors: int  # norms and biases
    learned: int = 0  # weights of rules and solvers: k of multistep, gates

    @property
    def total(self) -> int:
        return self.matrices + self.vectors + self.learned


def check_sizes(sizes: Mapping[str, Size], model: Mapping[str, Any]) -> str:
    """What the sizes have in common and what not, in words.

    A scheme with one sub-layer more has its norm and its output bias more, a rule or a solver that learns its weights;
    nothing else may differ.

    Args:
        sizes: {variant: its size}; the first is what the others are compared with.
        model: the `model` of the configuration, to name what makes them differ.

    Raises:
        RecipeError: if the weight matrices are not equal in number of parameters.
    """
    (first, baseline), *others = sizes.items()
    more = []
    for name, size in others:
        if size.matrices != baseline.matrices:
            widths = [f"model.{key}" for key, value in model.items() if key.endswith("ffn_embed_dim") and value]
            remedy = (
                f"{' and '.join(widths)} is the width of every FFN, and the variants have different numbers of them: "
                f"leave it out, and the widths follow from --arch"
                if widths
                else "compare variants whose attention and FFNs add up to the same"
            )
            raise RecipeError(
                f"{name} has {size.matrices:,} parameters in its weight matrices and {first} {baseline.matrices:,} "
                f"(with a vocabulary of {STAND_IN:,}), but a matched experiment allows no other difference than the "
                f"norms and biases that the scheme itself makes; {remedy}"
            )
        difference = size.vectors - baseline.vectors
        more.append(f"{name} has {abs(difference):,} {'more' if difference >= 0 else 'fewer'} than {first}")
    learned = [f"{name} {size.learned:,}" for name, size in sizes.items() if size.learned]
    beside = f"; so are weights that rules and solvers learn (k, gates): {', '.join(learned)}" if learned else ""
    return f"all weight matrices equal; {', '.join(more)} in norms and biases, which is the scheme's own{beside}"


def stand_in_sizes(trees: Mapping[str, Mapping[str, Any]], option: str = "--splittings") -> dict[str, Size]:
    """{variant: size} before there is data: with a vocabulary that only has to be the same for all.

    Raises:
        RecipeError: for a model that cannot be built.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = "".join(f"w{number} 1\n" for number in range(STAND_IN))
        for language in {tree["task"][f"{side}_lang"] for tree in trees.values() for side in ("source", "target")}:
            Path(folder, f"dict.{language}.txt").write_text(words, encoding="utf-8")
        sizes = {}
        for variant, tree in trees.items():
            try:
                sizes[variant] = size_of(tree, Path(folder))
            except Exception as error:  # each model has its own way to refuse its options
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                raise RecipeError(
                    f"{option} {variant}: fairseq cannot build {tree['model'].get('_name')} ({reason}); correct "
                    f"{option}, or --arch and --set after --"
                ) from error
    return sizes


def size_of(tree: Mapping[str, Any], data_bin: Path) -> Size:
    """Of the model that fairseq builds from a configuration; it takes no memory."""
    import torch
    from fairseq import tasks
    from omegaconf import OmegaConf

    import macaron

    macaron.register_fairseq()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # hydra lets everything through to the terminal
    task = tasks.setup_task(OmegaConf.create({**tree["task"], "data": str(data_bin)}))
    with torch.device("meta"):
        model = task.build_model(OmegaConf.create(dict(tree["model"])))
    counts = {"matrices": 0, "vectors": 0, "learned": 0}
    for name, parameter in model.named_parameters():
        kind = "learned" if _LEARNED.search(name) else "matrices" if parameter.dim() > 1 else "vectors"
        counts[kind] += parameter.numel()
    return Size(**counts)


def due_windows(updates: int, interval: Any) -> int:
    """Windows that fairseq logs of a training that is not interrupted."""
    return updates // interval if isinstance(interval, int) and interval > 0 else 0


def windows(log: Path) -> Windows:
    """{update at the end of a window: what was trained on in it}, from the `train_inner` lines.

    Of updates done twice the later count. A window in which a resumed training began is left out: its means are of a
    part only.
    """
    result: Windows = {}
    partial: set[int] = set()
    resumed: int | None = None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := _RESUMED.search(line):
            resumed = int(match[1])
            result = {update: value for update, value in result.items() if update <= resumed}
        event = commands.parse(line)
        if event and event[0] == "train_inner":
            stats = event[1]
            update = int(stats["num_updates"])
            if resumed is not None:
                partial.add(update)
                resumed = None
            result[update] = (stats["wpb"], stats["bsz"], stats["lr"])
    return {update: value for update, value in result.items() if update not in partial}


def violations(
    runs: Mapping[str, Mapping[str, Any]], logs: Mapping[str, Path], planned: Mapping[str, int] | None = None
) -> tuple[int, list[str]]:
    """Compare the runs of one seed with the first of them.

    Args:
        runs: {variant: {"updates": …, "data": sha256 of the binarised data by file}}.
        logs: {variant: its train.log}.
        planned: {variant: updates that it was to have}, where each has a number, and so learning rates, of its own:
            batches are compared as far as both went. None: all have the same.

    Returns:
        the number of windows of updates that could be compared, and what differed.
    """
    found = []
    (first, expected), *others = runs.items()
    order = windows(logs[first])
    compared = len(order)
    for name, run in runs.items() if planned is not None else ():
        if run["updates"] != planned[name]:
            found.append(f"{name} has made {run['updates']} updates, and was to make {planned[name]} by its cost")
    whats, parts, shown = ("updates", "data"), 3, "words, sentences, learning rate"
    if planned is not None:
        whats, parts, shown = ("data",), 2, "words, sentences"
    for name, run in others:
        for what in whats:
            if run[what] != expected[what]:
                found.append(f"{name} and {first} differ in {what}: {run[what]} and {expected[what]}")
        other = windows(logs[name])
        common = sorted(order.keys() & other.keys())
        compared = min(compared, len(common))
        differing = [update for update in common if order[update][:parts] != other[update][:parts]]
        if differing:
            update = differing[0]
            found.append(
                f"{name} and {first} saw other batches: up to update {update} ({shown}) are "
                f"{other[update][:parts]} and {order[update][:parts]}; {len(differing)} of {len(common)} windows differ"
            )
    return compared, found


def check_all(
    runs: Mapping[int, Mapping[str, Mapping[str, Any]]],
    logs: Mapping[int, Mapping[str, Path]],
    interval: Any = None,
    planned: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """`violations` over seeds, all of them, and what could not be found out.

    Args:
        interval: fairseq's common.log_interval.
        planned: see `violations`.

    Returns:
        {"windows": compared ones per seed, "due": those of uninterrupted trainings, "violations", "unknown"}.
    """
    result = {seed: violations(of_seed, logs[seed], planned) for seed, of_seed in runs.items()}
    return {
        "windows": {seed: compared for seed, (compared, _) in result.items()},
        "due": {seed: due_windows(shortest(of_seed), interval) for seed, of_seed in runs.items()},
        "violations": [f"seed {seed}: {text}" for seed, (_, found) in result.items() for text in found],
        "unknown": [
            f"seed {seed}: {too_few_lines(interval)}" for seed, (compared, _) in result.items() if not compared
        ],
    }


def shortest(of_seed: Mapping[str, Mapping[str, Any]]) -> int:
    return min(int(run["updates"]) for run in of_seed.values())


def too_few_lines(interval: Any) -> str:
    return (
        f"too few lines in the logs of training: no window of updates is in all of them, so the order of the data is "
        f"unknown; fairseq writes a line every common.log_interval = {interval} updates: train for longer, or give "
        f"-- --set common.log_interval=N"
    )
