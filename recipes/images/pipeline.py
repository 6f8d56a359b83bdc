"""All runs of a folder, each done once, several at a time.

Runs of a seed begin with the same weights and see the same batches, crops and mirrors in the same order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch

from macaron import checkpoint

from ..common.errors import RecipeError
from ..common.jobs import Call, Slot, run_all, tell
from ..common.workspace import Made, Stage, Workspace, write_json
from . import data, models
from .experiment import STAGE, Experiment, Run, title
from .settings import as_record, schedule
from .training import Training


@functools.lru_cache(maxsize=1)
def images_of(experiment: Experiment) -> data.ImageSet:
    """
    Raises:
        RecipeError: as `data.load`, or the images are others than when the run began.
    """
    settings = experiment.settings
    found = data.load(
        settings.dataset, experiment.data, size=settings.size, train_images=settings.train_images,
        test_images=settings.test_images,
    )  # fmt: skip
    if found.fingerprint != settings.images:
        raise RecipeError(f"--data-dir {experiment.data}: has changed since the run began; put it back, or --restart")
    return found


def check(experiment: Experiment) -> dict[str, models.Pixels]:
    """{run: its network}, built before anything is made, so that what cannot be is said at once."""
    names = [run.folder for run in experiment.runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"--variants, --adversaries: {twice} is there twice; give each once")
    return {run.name: models.build(experiment.settings, run.variant, experiment.seeds[0]) for run in experiment.runs}


def train(experiment: Experiment, run: Run, seed: int) -> None:
    """What is not done yet of a run.

    Raises:
        RecipeError: the folder is of other settings or at work, a file is damaged, or the training diverged.
    """
    record = as_record(experiment.settings) | {"run": run.name, "seed": seed}
    record["schedule"] = dataclasses.asdict(schedule(experiment.settings, run.adversary))
    with Workspace(experiment.place(run, seed), record) as space:
        space.run([Stage(STAGE, lambda: trained(experiment, run, seed))], say=lambda line: None)
        (space.folder / "last.pt").unlink(missing_ok=True)


def trained(experiment: Experiment, run: Run, seed: int) -> Made:
    place, name = experiment.place(run, seed), title(run, seed)
    torch.set_num_threads(experiment.settings.threads)
    training = Training(experiment.settings, run.variant, run.adversary, seed, images_of(experiment))
    last = place / "last.pt"
    if last.exists():
        training.load(last)
        done = float(training.batches * run.adversary.passes)
        tell(f"{name}: goes on in epoch {training.batches / training.per_epoch:.4g}", done)
    training.run(last, experiment.save_every, lambda line, units: tell(line and f"{name}, {line}", units))
    curves, weights = place / "run.json", place / "model.pt"
    write_json(curves, training.result())
    checkpoint.save({"model": training.net.state_dict()}, weights)
    return Made([curves, weights])


def work(experiment: Experiment, run: Run) -> float:
    """Units of a training, for the progress bar: passes of a batch."""
    plan = schedule(experiment.settings, run.adversary)
    return float(plan.updates(experiment.settings.train_images) * run.adversary.passes)


def train_all(experiment: Experiment, slots: Sequence[Slot]) -> dict[str, str]:
    """Every run, seed by seed, the longest first; {run: message} of those that failed."""
    order = sorted(experiment.runs, key=lambda run: -work(experiment, run))
    calls = {(run, seed): Call(title(run, seed), train, (experiment, run, seed))
             for seed in experiment.seeds for run in order}  # fmt: skip
    total = sum(work(experiment, run) for run, seed in calls if not experiment.stamped(run, seed))
    outcomes = run_all(list(calls.values()), slots, desc="train", total=total)
    return {name: outcome.error for name, outcome in outcomes.items() if outcome.error}
