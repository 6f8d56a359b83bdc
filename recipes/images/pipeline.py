"""All runs of a folder: every network and adversary with every seed.

    settings.json
    yopo-5-10/seed-1/last.pt        where an unfinished run goes on
    yopo-5-10/seed-1/run.json       its curves, when it is finished, and the schedule it had; model.pt: its weights
    lm_resnet/seed-1/…

Runs of a seed begin with the same weights and see the same batches, crops and mirrors in the same order.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import queue
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from macaron import checkpoint
from recipes.common.errors import RecipeError
from recipes.common.leash import end_with_parent
from recipes.common.workspace import Workspace, read_json, write_json
from recipes.images import data, models
from recipes.images.settings import Adversary, Settings, Variant, as_record, schedule
from recipes.images.training import Tell, Training

STAGE = "train"


@dataclass(frozen=True)
class Run:
    """A network and an adversary; with a seed a training.

    Args:
        variant: None where the model has none.
    """

    variant: Variant | None
    adversary: Adversary

    @property
    def name(self) -> str:
        if self.variant is None:
            return self.adversary.name
        return self.variant.name if self.adversary.kind == "natural" else f"{self.variant.name} {self.adversary.name}"

    @property
    def folder(self) -> str:
        return re.sub(r"[ ,=]+", "-", self.name)


@dataclass(frozen=True)
class Experiment:
    """
    Args:
        data: the folder of the images.
        save_every: seconds between two checkpoints.
    """

    settings: Settings
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    folder: Path
    data: Path
    save_every: float = 60.0

    def place(self, run: Run, seed: int) -> Path:
        return self.folder / run.folder / f"seed-{seed}"


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


# --- one run --------------------------------------------------------------------------------------------------


def train(experiment: Experiment, run: Run, seed: int, tell: Tell) -> None:
    """What is not done yet of a run."""
    place = experiment.place(run, seed)
    plan = dataclasses.asdict(schedule(experiment.settings, run.adversary))
    space = Workspace(place, as_record(experiment.settings) | {"run": run.name, "seed": seed, "schedule": plan})
    with space.lock:
        if space.stamp(STAGE) is not None:
            return
        started = time.time()
        images = images_of(experiment)
        torch.set_num_threads(experiment.settings.threads)
        training = Training(experiment.settings, run.variant, run.adversary, seed, images)
        last, title = place / "last.pt", f"{run.name}, seed {seed}"
        if last.exists():
            training.load(last)
            tell(f"{title}: goes on in epoch {training.batches / training.per_epoch:.4g}",
                 float(training.batches * run.adversary.passes))  # fmt: skip
        try:
            training.run(last, experiment.save_every, lambda line, units: tell(line and f"{title}, {line}", units))
        except RecipeError as error:
            raise RecipeError(f"{title}: {error}") from error
        record, weights = place / "run.json", place / "model.pt"
        write_json(record, training.result())
        checkpoint.save({"model": training.net.state_dict()}, weights)
        space.finish(STAGE, [record, weights], started)
        last.unlink(missing_ok=True)


def work(experiment: Experiment, run: Run) -> float:
    """Units of a training, for the progress bar."""
    plan = schedule(experiment.settings, run.adversary)
    return float(plan.updates(experiment.settings.train_images) * run.adversary.passes)


# --- all runs -------------------------------------------------------------------------------------------------


def patience() -> float:
    """Seconds between two states of a progress bar: often on a terminal, seldom in a log."""
    return 0.5 if os.isatty(2) else 60.0


def run_all(experiment: Experiment, jobs: int) -> dict[str, str]:
    """Every run, seed by seed; {run: message} of those that failed."""
    todo = [
        (run, seed)
        for seed in experiment.seeds
        for run in experiment.runs
        if not (experiment.place(run, seed) / "stamps" / f"{STAGE}.json").exists()
    ]
    total = sum(work(experiment, run) for run, _ in todo)
    form = "{l_bar}{bar}| {elapsed}, {remaining} left"
    with tqdm(total=total, desc="train", bar_format=form, mininterval=patience()) as bar:

        def tell(line: str, units: float) -> None:
            if line:
                bar.write(line)
            bar.update(min(units, max(0.0, bar.total - bar.n)))

        if jobs == 1 or len(todo) < 2:
            failed: dict[str, str] = {}
            for seed in experiment.seeds:
                for run in experiment.runs:
                    failed |= attempt(experiment, run, seed, tell)
            return failed
        return in_processes(experiment, min(jobs, len(todo)), tell)


def attempt(experiment: Experiment, run: Run, seed: int, tell: Tell) -> dict[str, str]:
    """`train`; a run that fails leaves the others alone."""
    try:
        train(experiment, run, seed, tell)
    except RecipeError as error:
        return {f"{run.name}, seed {seed}": str(error)}
    return {}


_news: Any = None


def begin(news: Any) -> None:
    """A worker ends with the process that started it."""
    global _news
    _news = news
    end_with_parent()


def in_worker(experiment: Experiment, run: Run, seed: int) -> dict[str, str]:
    return attempt(experiment, run, seed, lambda line, units: _news.put((line, units)))


@contextmanager
def workers(jobs: int, news: Any, context: Any) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=begin, initargs=(news,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def in_processes(experiment: Experiment, jobs: int, tell: Tell) -> dict[str, str]:
    context = multiprocessing.get_context("spawn")
    news = context.Queue()
    failed: dict[str, str] = {}
    with workers(jobs, news, context) as pool:
        runs = {
            (run, seed): pool.submit(in_worker, experiment, run, seed)
            for seed in experiment.seeds
            for run in sorted(experiment.runs, key=lambda run: -work(experiment, run))  # the longest first
        }
        while True:
            over = all(future.done() for future in runs.values())
            try:
                tell(*news.get(timeout=0.1 if over else 0.5))
            except queue.Empty:
                if over:
                    break
        for (run, seed), future in runs.items():
            failed |= outcome(f"{run.name}, seed {seed}", future)
    return failed


def outcome(name: str, future: Future[dict[str, str]]) -> dict[str, str]:
    try:
        return future.result()
    except BrokenProcessPool:
        return {name: "its process was killed; was there memory enough? The same command goes on with it"}


def collect(experiment: Experiment, failed: Mapping[str, str]) -> dict[str, dict[int, dict[str, Any]]]:
    """{run: {seed: run.json}} of what is finished; what failed is left out."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in experiment.runs:
        found[run.name] = {}
        for seed in experiment.seeds:
            place = experiment.place(run, seed)
            if f"{run.name}, seed {seed}" in failed or not (place / "stamps" / f"{STAGE}.json").exists():
                continue
            found[run.name][seed] = read_json(place / "run.json")
    return found
