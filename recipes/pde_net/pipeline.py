"""All runs of a folder: test trajectories once, then seed by seed the data of each block and every variant on them.

    test.npz                        true trajectories for the roll-outs
    seed-1/data-2.npz               what block 2 is trained on, the same for all variants
    seed-1/2-euler/block-2.pt       the network of constraint 2 and Euler's steps after block 2; .json: its equations
    seed-1/2-euler/rollout.json     error and blow-ups of its last network

The npz files have the format that `--data` reads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from macaron import checkpoint
from macaron.dynamics import get_solver
from macaron.files import digest
from macaron.pde import PDENet
from macaron.pde.symnet import MOST_TERMS

from ..common.divergence import check_finite
from ..common.errors import RecipeError
from ..common.jobs import Call, patience, run_all, tell
from ..common.workspace import Made, Stage, Workspace, read_json, write_json
from . import evaluation, fields, systems, training
from .settings import PDESettings, PDEVariant

FRAMES = 40  # of a roll-out, for systems whose data are made here
TEST = 2**32  # the key of the test trajectories; no seed from 1 to 2³² − 1 has it
LONG_BLOCK = 400  # iterations; only the progress bar asks


@dataclass(frozen=True)
class PDEExperiment:
    """
    Args:
        data: the user's own fields, None where the recipe makes them.
    """

    settings: PDESettings
    variants: tuple[PDEVariant, ...]
    seeds: tuple[int, ...]
    folder: Path
    data: Path | None

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def grid(self) -> tuple[float, float]:
        """(dx, dt) of the coarse data."""
        if self.data is not None:
            found = self.own()
            return found.dx, found.dt
        assert self.settings.grid is not None and self.settings.dt is not None
        return systems.LENGTH / self.settings.grid, self.settings.dt

    def own(self) -> fields.Fields:
        assert self.data is not None and self.settings.data is not None
        return own_fields(self.data, self.settings.components, self.settings.data)

    def every(self) -> int:
        """Steps between the frames of a roll-out."""
        if self.settings.horizon is None or self.settings.dt is None:
            return 1
        return max(1, round(self.settings.horizon / self.settings.dt / FRAMES))


@functools.lru_cache(maxsize=1)
def own_fields(path: Path, components: tuple[str, ...], expected: str) -> fields.Fields:
    if digest(path) != expected:
        raise RecipeError(f"--data {path}: has changed since the run began; put it back, or begin anew with --restart")
    return fields.read(path, components)


def check(experiment: PDEExperiment) -> None:
    """What cannot be built or learned from is said before anything is made."""
    dx, _ = experiment.grid()
    settings = experiment.settings
    shape = experiment.own().values.shape[-2:] if experiment.data else [settings.grid] * 2
    if min(shape) < settings.size:  # type: ignore[type-var]
        raise RecipeError(
            f"the grid has {shape[0]} x {shape[1]} points, fewer than the filters, which have --size {settings.size}"
        )
    channels = len(settings.components) * math.comb(settings.max_order + 2, 2)
    if (count := math.comb(channels + settings.degree, settings.degree)) > MOST_TERMS:
        raise RecipeError(
            f"--degree {settings.degree}: makes {count:,} monomials of {channels} derivatives, more than "
            f"{MOST_TERMS:,}; take a lower degree, or a lower --max-order"
        )
    for variant in experiment.variants:
        try:
            get_solver(variant.solver)
        except ValueError as error:
            raise RecipeError(f"--solver {variant.solver}: {error}") from error
        training.network(experiment.settings, variant, dx, experiment.seeds[0])
    if experiment.data:
        fields.split(experiment.own(), experiment.settings)


def make_test(experiment: PDEExperiment) -> Made:
    """The true trajectories, without noise, from random initial fields or what was held out."""
    settings = experiment.settings
    dx, dt = experiment.grid()
    if experiment.data:
        truth = fields.split(experiment.own(), settings).test.movedim(0, 1)
    else:
        assert settings.horizon is not None and settings.test is not None
        every = experiment.every()
        frames = max(1, round(settings.horizon / dt / every))
        dt *= every
        rows = [
            torch.stack(list(systems.trajectory(settings, systems.generator(TEST, i), False, frames, dt)))
            for i in tqdm(range(settings.test), desc="test trajectories", unit="run", mininterval=patience())
        ]
        truth = torch.stack(rows, 1)
    return Made([save_fields(experiment.folder / "test.npz", truth, settings.components, dx, dt)])


def save_fields(path: Path, u: Tensor, components: Sequence[str], dx: float, dt: float) -> Path:
    """(T, samples, C, H, W) in the format that `fields.read` takes."""
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez(
            file, fields=u.movedim(1, 0).numpy(), time=np.arange(len(u)) * dt, components=np.array(list(components)),
            x=np.arange(u.shape[-1]) * dx, y=np.arange(u.shape[-2]) * dx,
        )  # fmt: skip
    os.replace(partial, path)
    return path


def load_fields(path: Path) -> Tensor:
    return fields.stored(path).movedim(1, 0)


# --- one seed -------------------------------------------------------------------------------------------------


def run_seed(experiment: PDEExperiment, seed: int) -> dict[str, str]:
    """Everything of a seed that is not done yet; {variant: message} of those that failed.

    Raises:
        RecipeError: the seed's data cannot be made, or are not what they were.
    """
    record = dataclasses.asdict(experiment.settings) | {"seed": seed}
    with Workspace(experiment.seed_folder(seed), record) as space:
        one = Seed(experiment, seed, space)
        of_variants = {variant.name: one.stages(variant) for variant in experiment.variants}
        stages = [*one.data_stages(), *(stage for of_one in of_variants.values() for stage in of_one)]
        wrong = space.run(stages, keep_going=True, say=lambda line: None)
        if data := [message for stage, message in wrong.items() if stage.startswith("data-")]:
            raise RecipeError(data[0])
        failed = {}
        for variant, of_one in of_variants.items():
            if message := next((wrong[stage.name] for stage in of_one if stage.name in wrong), ""):
                failed[f"seed {seed}, {variant}"] = message
                tell(f"seed {seed}  {variant}: {message}")
        return failed


class Seed:
    """The stages of one seed, each done once."""

    def __init__(self, experiment: PDEExperiment, seed: int, space: Workspace) -> None:
        self.experiment, self.settings, self.seed, self.space = experiment, experiment.settings, seed, space
        self.dx, self.dt = experiment.grid()
        self.units: evaluation.Units | None = None
        self.length = 1.0
        self.scale = torch.ones(len(self.settings.components), 1, 1, dtype=torch.float64)
        if experiment.data is not None:
            self.units = evaluation.units_of(fields.split(experiment.own(), self.settings).training, self.dt, self.dx)
            self.length = self.units.length
            self.scale = torch.tensor(self.units.fields, dtype=torch.float64)[:, None, None]

    @property
    def step(self) -> float:
        """Δt in the network's time."""
        return self.dt / (self.units.time if self.units else 1.0)

    def data_stages(self) -> list[Stage]:
        return [Stage(f"data-{block}", partial(self.make_data, block), needs=()) for block in self.settings.blocks]

    def stages(self, variant: PDEVariant) -> list[Stage]:
        """Block after block, each on its own data; the first data are what a network is normalised by."""
        blocks = self.settings.blocks
        made = []
        for before, block in zip((None, *blocks), blocks, strict=False):
            needs = {f"data-{blocks[0]}", f"data-{block}", *(() if before is None else (stage_of(variant, before),))}
            work = partial(self.train, variant, block, before)
            made.append(Stage(stage_of(variant, block), work, needs=tuple(sorted(needs))))
        last = stage_of(variant, blocks[-1])
        return [*made, Stage(f"{variant.name}-rollout", partial(self.roll_out, variant), needs=(last,))]

    def data(self, block: int) -> Tensor:
        """In the network's units."""
        return load_fields(self.space.folder / f"data-{block}.npz") / self.scale

    def make_data(self, block: int) -> Made:
        own = self.experiment.data is not None
        if own:
            training_part = fields.split(self.experiment.own(), self.settings).training
            u = fields.windows(training_part, self.settings, self.seed, block)
        else:
            u = systems.observed(self.settings, self.seed, block)
        path = save_fields(self.space.folder / f"data-{block}.npz", u, self.settings.components, self.dx, self.dt)
        tell(units=1.0)
        return Made([path])

    def network(self, variant: PDEVariant, block: int | None) -> PDENet:
        """As a block left it, or as it starts."""
        net = training.network(self.settings, variant, self.dx / self.length, self.seed)
        if block is not None:
            path = self.space.folder / variant.name / f"block-{block}.pt"
            state = checkpoint.load(path)["model"]
            check_finite(state, path)
            net.load_state_dict(state)
        elif self.experiment.data is not None:
            training.normalize(net, self.data(self.settings.blocks[0])[0])
        return net

    def train(self, variant: PDEVariant, block: int, before: int | None) -> Made:
        started, net, u = time.time(), self.network(variant, before), self.data(block)
        units, told = cost(variant, block), 0.0

        def progress(iterations: int) -> None:
            nonlocal told
            now = units * min(0.95, iterations / LONG_BLOCK)
            if now - told > units / 50:
                tell(units=now - told)
                told = now

        result = training.train_block(net, u, block, self.step, variant.solver, self.settings, progress)
        result |= {"block": block, "seconds": round(time.time() - started, 1)}
        result["equations"] = evaluation.equations(net, u[0], self.settings.degree, self.units)
        folder = self.space.folder / variant.name
        folder.mkdir(exist_ok=True)
        weights, record = folder / f"block-{block}.pt", folder / f"block-{block}.json"
        checkpoint.save({"model": net.state_dict()}, weights)
        write_json(record, result)
        line = (
            f"seed {self.seed}  {variant.name}  block {block}: {result['iterations']} iterations, loss "
            f"{result['loss']:.3g}, {result['seconds']:.0f} s"
        )
        shown = [equation["formula"] for equation in result["equations"]] if block else []
        tell("\n".join([line, *(f"    {shortened(formula)}" for formula in shown)]), units - told)
        return Made([weights, record])

    def roll_out(self, variant: PDEVariant) -> Made:
        net = self.network(variant, self.settings.blocks[-1])
        truth = load_fields(self.experiment.folder / "test.npz") / self.scale
        found = evaluation.roll_out(net, truth, self.step, self.experiment.every(), variant.solver, self.dt)
        folder = self.space.folder / variant.name
        record, middle = folder / "rollout.json", folder / "middle.pt"
        write_json(record, found.record())
        checkpoint.save({"model": {"middle": found.last * self.scale}}, middle)
        gone = [t for t in found.blown_up if t is not None]
        text = f"BLOWS UP in {len(gone)} of {len(found.blown_up)} roll-outs, first at t = {min(gone):g}" if gone else (
            f"none of {len(found.blown_up)} roll-outs to t = {found.times[-1]:g} blows up"
        )  # fmt: skip
        tell(f"seed {self.seed}  {variant.name}  {text}", 1.0)
        return Made([record, middle])


def stage_of(variant: PDEVariant, block: int) -> str:
    return f"{variant.name}-{block}"


def shortened(text: str, most: int = 110) -> str:
    """The terms are of falling magnitude."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " …"


def cost(variant: PDEVariant, block: int) -> float:
    """Units of work, for the progress bar; data of a block and a roll-out are about one."""
    return float(max(block, 1) * get_solver(variant.solver).stages)


# --- all seeds ------------------------------------------------------------------------------------------------


def work_left(experiment: PDEExperiment) -> float:
    """Units of work that are not stamped; what a stamp says is looked at later."""
    total = 0.0
    for seed in experiment.seeds:
        stamps = experiment.seed_folder(seed) / "stamps"
        for block in experiment.settings.blocks:
            total += not (stamps / f"data-{block}.json").exists()
            for variant in experiment.variants:
                total += cost(variant, block) * (not (stamps / f"{stage_of(variant, block)}.json").exists())
        total += sum(not (stamps / f"{variant.name}-rollout.json").exists() for variant in experiment.variants)
    return total


def run_seeds(experiment: PDEExperiment, jobs: int) -> dict[str, str]:
    """Every seed; {run: message} of those that failed."""
    torch.set_num_threads(1)  # sums are then added in the same order wherever it runs
    calls = [Call(f"seed {seed}", run_seed, (experiment, seed)) for seed in experiment.seeds]
    beside = min(jobs, len(calls))
    slots = [{"OMP_NUM_THREADS": "1"}] * beside if beside > 1 else []
    failed: dict[str, str] = {}
    for name, outcome in run_all(calls, slots, desc="train", total=work_left(experiment)).items():
        failed |= {name: outcome.error} if outcome.error else outcome.value
    return failed


def collect(experiment: PDEExperiment, failed: Mapping[str, str]) -> dict[str, dict[int, dict[str, Any]]]:
    """{variant: {seed: {"blocks": […], "rollout": …, "seconds": …}}} of what is finished.

    What failed is left out: its files may have been changed since they were made.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for variant in experiment.variants:
        found[variant.name] = {}
        for seed in experiment.seeds:
            folder = experiment.seed_folder(seed)
            if f"seed {seed}" in failed or f"seed {seed}, {variant.name}" in failed:
                continue
            if not (folder / "stamps" / f"{variant.name}-rollout.json").exists():
                continue
            blocks = [read_json(folder / variant.name / f"block-{block}.json") for block in experiment.settings.blocks]
            found[variant.name][seed] = {
                "blocks": blocks,
                "rollout": read_json(folder / variant.name / "rollout.json"),
                "seconds": round(math.fsum(block["seconds"] for block in blocks), 1),
            }
    return found
