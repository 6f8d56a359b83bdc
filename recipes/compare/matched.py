"""Are the runs matched? Parameters before training; data, its order and the updates from what fairseq logged."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.common import commands
from recipes.common.errors import RecipeError

PARAMETER_TOLERANCE = 1e-3  # norms of the second FFN: Macaron has 0.03–0.05 % more than the Transformer

# Of a window of updates: mean words and sentences per batch, and the learning rate at its end. Another order of the
# data, or another batch, shows in the first two.
Windows = dict[int, tuple[str, str, str]]
_RESUMED = re.compile(r"Loaded checkpoint .* @ (\d+) updates\)")


def check_parameters(counts: Mapping[str, int]) -> float:
    """The largest difference from the first, relative to it.

    Raises:
        RecipeError: if it is above 0.1 %.
    """
    (first, baseline), *others = counts.items()
    worst = 0.0
    for name, count in others:
        difference = abs(count - baseline) / baseline
        worst = max(worst, difference)
        if difference > PARAMETER_TOLERANCE:
            raise RecipeError(
                f"{name} has {count:,} parameters and {first} {baseline:,}, {100 * difference:.2f} % apart, but a "
                f"matched experiment allows {100 * PARAMETER_TOLERANCE} %; choose an --arch whose sizes do not "
                f"depend on the splitting"
            )
    return worst


def count_parameters(tree: Mapping[str, Any], data_bin: Path) -> int:
    """Of the model that fairseq builds from a configuration, shared ones counted once."""
    from fairseq import tasks
    from omegaconf import OmegaConf

    import macaron

    macaron.register_fairseq()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # hydra lets everything through to the terminal
    task = tasks.setup_task(OmegaConf.create({**tree["task"], "data": str(data_bin)}))
    model = task.build_model(OmegaConf.create(dict(tree["model"])))
    return sum(parameter.numel() for parameter in model.parameters())


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


def violations(runs: Mapping[str, Mapping[str, Any]], logs: Mapping[str, Path]) -> tuple[int, list[str]]:
    """Compare the runs of one seed with the first of them.

    Args:
        runs: {splitting: {"updates": …, "data": sha256 of the binarised data by file}}.
        logs: {splitting: its train.log}.

    Returns:
        the number of windows of updates that could be compared, and what differed.
    """
    found = []
    (first, expected), *others = runs.items()
    order = windows(logs[first])
    compared = len(order)
    for name, run in others:
        for what in ("updates", "data"):
            if run[what] != expected[what]:
                found.append(f"{name} and {first} differ in {what}: {run[what]} and {expected[what]}")
        other = windows(logs[name])
        common = sorted(order.keys() & other.keys())
        compared = min(compared, len(common))
        if not common:
            found.append(f"{name} and {first}: no common update in their logs, so the order of the data is unknown")
        differing = [update for update in common if order[update] != other[update]]
        if differing:
            update = differing[0]
            found.append(
                f"{name} and {first} saw other batches: up to update {update} (words, sentences, learning rate) are "
                f"{other[update]} and {order[update]}; {len(differing)} of {len(common)} windows differ"
            )
    return compared, found


def check_all(
    runs: Mapping[int, Mapping[str, Mapping[str, Any]]], logs: Mapping[int, Mapping[str, Path]]
) -> dict[str, Any]:
    """`violations` over seeds: {"windows": per seed, "violations": all}."""
    result = {seed: violations(of_seed, logs[seed]) for seed, of_seed in runs.items()}
    return {
        "windows": {seed: compared for seed, (compared, _) in result.items()},
        "violations": [f"seed {seed}: {text}" for seed, (_, found) in result.items() for text in found],
    }
