"""The stages of a run: BM3D at every level, then for each seed unit, baselines, policy and evaluation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from macaron import checkpoint
from macaron.vision import PolicyUnit, RestorationUnit

from ..common.workspace import Made, Stage, Workspace, read_json, write_json
from . import evaluation, models, training
from .images import Array, check_apart, chosen, fingerprint, read_folder
from .results import METHODS, Results
from .settings import LEAST_IMAGE, RestorationSettings

FORM = "{l_bar}{bar}| {n_fmt}/{total_fmt} {elapsed}, {remaining} left{postfix}"
SHOWN_IMAGES, SHOWN_PIXELS = 2, 128  # of the pictures in the report


@dataclass(frozen=True)
class Experiment:
    settings: RestorationSettings
    seeds: tuple[int, ...]
    folder: Path
    train: Mapping[str, Array]
    test: Mapping[str, Array]
    device: torch.device

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def bm3d_images(self) -> dict[str, Array]:
        return chosen(self.test, self.settings.bm3d_images, 0) if self.settings.bm3d_images else {}

    def shown(self) -> tuple[list[str], list[float]]:
        """Images and levels of the pictures: the easiest and the hardest seen, and the hardest unseen."""
        settings = self.settings
        hardness = (lambda level: level) if settings.task == "gaussian" else (lambda level: -level)
        seen = sorted((level for level in settings.test_levels if level in settings.levels), key=hardness)
        unseen = sorted((level for level in settings.test_levels if level not in settings.levels), key=hardness)
        levels = dict.fromkeys([*seen[:1], *seen[-1:], *unseen[-1:]])
        return list(self.test)[:SHOWN_IMAGES], list(levels)


def gather(
    settings: RestorationSettings, seeds: tuple[int, ...], out: Path, train: Path, test: Path, device: torch.device
) -> Experiment:
    """Read the images.

    Raises:
        RecipeError: a folder or an image of no use.
    """
    least = max(settings.patch, settings.policy_patch if settings.horizon == "policy" else 0)
    hint = "give the folder that holds {} by --data-dir, or the images themselves by --{}-images"
    learned = read_folder(train, least, hint.format(train.name, "train"), settings.task)
    tested = read_folder(test, LEAST_IMAGE, hint.format(test.name, "test"), settings.task)
    check_apart(learned, tested)
    tested = chosen(tested, settings.test_count, settings.crop)
    settings = dataclasses.replace(settings, train=fingerprint(learned), test=fingerprint(tested))
    return Experiment(settings, seeds, out, learned, tested, device)


def patience() -> float:
    """Seconds between two states of a progress bar: often on a terminal, seldom in a log."""
    return 0.5 if os.isatty(2) else 30.0


def bar_of(what: str, total: int) -> Any:
    return tqdm(total=total, desc=f"{what:<20}", bar_format=FORM, mininterval=patience())


def run(experiment: Experiment, space: Workspace) -> None:
    """
    Raises:
        RecipeError: a stage failed, or what it had made has changed since.
    """
    settings = experiment.settings
    stages = []
    if settings.bm3d_images:
        (experiment.folder / "bm3d").mkdir(exist_ok=True)
        stages += [Stage(f"bm3d-{x:g}", partial(run_bm3d, experiment, x), needs=()) for x in settings.test_levels]
    patches = training.Patches(experiment.train, settings)
    for seed in experiment.seeds:
        experiment.seed_folder(seed).mkdir(exist_ok=True)
        stages += Seed(experiment, seed, patches).stages()
    space.run(stages)
    for seed in experiment.seeds:
        for state in experiment.seed_folder(seed).glob("*.state.pt"):
            state.unlink()


def run_bm3d(experiment: Experiment, level: float) -> Made:
    images = experiment.bm3d_images()
    with bar_of(f"BM3D, σ {level:g}", len(images)) as bar:
        record = evaluation.bm3d(images, level, lambda: bar.update(1))
    path = experiment.folder / "bm3d" / f"{level:g}.json"
    write_json(path, record)
    return Made([path])


class Seed:
    """The stages of a seed."""

    def __init__(self, experiment: Experiment, seed: int, patches: training.Patches) -> None:
        self.experiment, self.seed, self.patches = experiment, seed, patches
        self.settings, self.device = experiment.settings, experiment.device
        self.folder = experiment.seed_folder(seed)

    def stages(self) -> list[Stage]:
        found = [Stage(self.stage(name), partial(self.train, name), needs=()) for name in models.NAMES]
        if self.settings.horizon == "policy":
            found.append(Stage(self.stage("policy"), self.learn_policy, needs=(self.stage("durr"),)))
        last = found[-1].name if self.settings.horizon == "policy" else self.stage("durr")
        found.append(Stage(self.stage("model"), self.write_model, needs=(last,)))
        networks = tuple(stage.name for stage in found)
        for level in self.settings.test_levels:
            found.append(Stage(self.stage(f"test-{level:g}"), partial(self.test, level), needs=networks))
        return found

    def stage(self, name: str) -> str:
        return f"seed-{self.seed}-{name}"

    def weights(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def kind_of(self, name: str) -> dict[str, Any]:
        settings = self.settings
        said: dict[str, Any] = {"task": settings.task, "levels": list(settings.levels), "seed": self.seed}
        if name == "durr":
            policy = settings.policy_width if settings.horizon == "policy" else 0
            size = {"width": settings.width, "policy_width": policy, "most": settings.most, "steps": settings.fixed}
            return {"kind": "durr"} | size | said
        size = {"depth": settings.dncnn_depth, "width": settings.baseline_width}
        return {"kind": "dncnn", "bias": name == "dncnn"} | size | said

    def read(self, name: str) -> nn.Module:
        """As trained: a unit, a policy, or a baseline."""
        net = models.new(name, self.settings, self.seed)
        state = checkpoint.load(self.weights(name))["model"]
        net.load_state_dict(state)
        return models.prepared(net, self.device)

    def progress_of(self, bar: Any) -> training.Progress:
        begun = False

        def progress(done: int, loss: float | None) -> None:
            nonlocal begun
            if loss is not None:
                bar.set_postfix_str(f"loss {loss:.3g}", refresh=False)
            if not begun:  # what an interrupted run has done says nothing of the time that is left
                bar.initial = bar.n = done
                begun = True
            bar.update(done - bar.n)

        return progress

    def train(self, name: str) -> Made:
        model = models.prepared(models.new(name, self.settings, self.seed), self.device)
        state = self.folder / f"{name}.state.pt"
        with bar_of(f"seed {self.seed}, {name}", self.settings.updates) as bar:
            said = training.train_restorer(model, self.patches, self.seed, state, self.device, self.progress_of(bar))
        return self.finish_training(name, model, state, said)

    def learn_policy(self) -> Made:
        unit = self.read("durr").requires_grad_(False)
        policy = models.prepared(models.new("policy", self.settings, self.seed), self.device)
        assert isinstance(unit, RestorationUnit) and isinstance(policy, PolicyUnit)
        state = self.folder / "policy.state.pt"
        with bar_of(f"seed {self.seed}, policy", self.settings.policy_updates) as bar:
            said = training.train_policy(
                policy, unit, self.patches, self.seed, state, self.device, self.progress_of(bar)
            )
        return self.finish_training("policy", policy, state, said)

    def finish_training(self, name: str, model: nn.Module, state: Path, said: dict[str, Any]) -> Made:
        path, record = self.weights(name), self.folder / f"{name}.json"
        # Baselines are models of their own, for `restore`; unit and policy are joined in `write_model`.
        models.save(path, {"kind": name} if name in ("durr", "policy") else self.kind_of(name), model)
        said["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        write_json(record, said)
        # The state stays until all is done: a run that is killed before the stamp is written goes on from it.
        return Made([path, record], seconds=said["seconds"])

    def write_model(self) -> Made:
        """`model.pt`: unit and policy, what `restore` takes."""
        kind = self.kind_of("durr")
        joined = models.Durr(kind["width"], kind["policy_width"], kind["most"], kind["steps"])
        joined.unit.load_state_dict(self.read("durr").state_dict())
        if joined.policy is not None:
            joined.policy.load_state_dict(self.read("policy").state_dict())
        path = self.folder / "model.pt"
        models.save(path, kind, joined)
        return Made([path])

    def test(self, level: float) -> Made:
        experiment = self.experiment
        nets = {"unit": self.read("durr")} | {name: self.read(name) for name in models.NAMES[1:]}
        if self.settings.horizon == "policy":
            nets["policy"] = self.read("policy")
        names, levels = experiment.shown()
        folder = self.folder / "test"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{level:g}.json"]

        def keep(name: str, restored: evaluation.Restored) -> None:
            if level not in levels or name not in names:
                return
            for method, image in restored.items():
                path = folder / f"{level:g}-{names.index(name)}-{method}.png"
                part = shown_part(image)
                Image.fromarray(np.rint(part).astype(np.uint8)).save(path)
                paths.append(path)

        with bar_of(f"seed {self.seed}, test {level:g}", len(experiment.test)) as bar:
            record = evaluation.evaluate(
                nets, experiment.test, level, self.settings, self.device, lambda: bar.update(1), keep
            )
        write_json(paths[0], record)
        return Made(paths)


def shown_part(image: Array) -> Array:
    """The centre of an image, SHOWN_PIXELS at most each way."""
    top, left = (max(0, (side - SHOWN_PIXELS) // 2) for side in image.shape)
    return image[top : top + SHOWN_PIXELS, left : left + SHOWN_PIXELS]


def results(experiment: Experiment) -> Results:
    """What the stages have left."""
    settings, seeds = experiment.settings, experiment.seeds
    names, levels = experiment.shown()
    trained = [*models.NAMES, *(["policy"] if settings.horizon == "policy" else [])]
    folder = experiment.seed_folder(seeds[0]) / "test"
    return Results(
        settings,
        train_images=len(experiment.train),
        test_images=len(experiment.test),
        records={
            level: {seed: read_json(experiment.seed_folder(seed) / "test" / f"{level:g}.json") for seed in seeds}
            for level in settings.test_levels
        },
        bm3d={
            level: read_json(experiment.folder / "bm3d" / f"{level:g}.json")["images"]
            for level in settings.test_levels
            if settings.bm3d_images
        },
        training={
            seed: {name: read_json(experiment.seed_folder(seed) / f"{name}.json") for name in trained} for seed in seeds
        },
        pictures={
            (level, name): {method: folder / f"{level:g}-{i}-{method}.png" for method in METHODS}
            for level in levels
            for i, name in enumerate(names)
        },
    )
