"""What is compared: one recipe, its runs, the data that all of them share, and the commands that do the work."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from ..common.main import module
from ..common.schemes import OPTIONS, Variant, folder_name
from .cost import Budget

EQUAL = ("updates", "cost")


@dataclass(frozen=True)
class MatchedRun:
    """One training: everything but the variant of the scheme and the seed is the same in all runs of an experiment."""

    variant: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{folder_name(self.variant)}-seed{self.seed}"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder.parent / f"{self.name}.log"

    @property
    def finished(self) -> bool:
        return (self.folder / "stamps" / "score.json").exists()


@dataclass(frozen=True)
class MatchedExperiment:
    """Every variant with every seed, and all else the same.

    Args:
        recipe: a folder under recipes/ with the command line of `recipes.translation.cli`.
        variants: see `recipes.common.schemes`; the first is the one that the others are compared with.
        options: passed on to the recipe in every run, such as --max-update 2000.
        data_options: passed on to its preparation alone, such as --data-dir DIR.
        folder: data/ is prepared once; runs/<variant>-seed<seed>/ and the results lie beside it.
        equal: what all variants spend, "updates" or "cost".
        budgets: {variant: its updates}, once they follow from measured costs.
        option: what messages call the variants by.
    """

    recipe: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    folder: Path
    options: tuple[str, ...] = ()
    data_options: tuple[str, ...] = ()
    equal: str = "updates"
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    option: str = "--splittings"

    def __post_init__(self) -> None:
        object.__setattr__(self, "variants", tuple(Variant.parse(v, self.option).name for v in self.variants))
        for name, values in ((self.option, self.variants), ("--seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise RecipeError(f"{name} {' '.join(map(str, values))}: one is there twice; name each once")
        if len(self.variants) < 2:
            raise RecipeError(
                f"{self.option} {' '.join(self.variants)}: a comparison needs two or more, such as lie strang"
            )
        if self.equal not in EQUAL:
            raise RecipeError(f"--equal {self.equal}: choose one of {', '.join(EQUAL)}")
        if below := [seed for seed in self.seeds if seed < 0]:
            raise RecipeError(f"--seeds {below[0]}: must be whole numbers of at least 0")
        own = {"--out", "--prepared", "--splitting", "--scheme", "--seed", "--data-dir", "--restart"}
        own |= {f"--{name.replace('_', '-')}" for name, *_ in OPTIONS}
        if taken := own.intersection(option.split("=")[0] for option in self.options):
            raise RecipeError(f"{', '.join(sorted(taken))} after --: set for each run here; leave it out")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def runs(self) -> list[MatchedRun]:
        """Seed by seed, so that whole pairs are done first."""
        return [
            MatchedRun(variant, seed, self.folder / "runs" / f"{folder_name(variant)}-seed{seed}")
            for seed in self.seeds
            for variant in self.variants
        ]

    def settings(self) -> dict[str, Any]:
        """What all runs share, and so must a later call: variants and seeds may be added."""
        shared = {"recipe": self.recipe, "options": list(self.options), "data_options": list(self.data_options)}
        return shared if self.equal == "updates" else {**shared, "equal": self.equal}

    def prepare_command(self) -> list[str]:
        return self._command("prepare", "--out", self.data, *self.data_options, *self.options)

    @property
    def corpus_options(self) -> tuple[str, ...]:
        """Where the recipe finds what it chooses by the corpus: in the prepared data, once there are any."""
        made = (self.data / "stamps" / "prepare.json").exists()
        return ("--prepared", str(self.data)) if made else self.data_options

    @property
    def cost(self) -> Path:
        """What an update of each variant costs."""
        return self.folder / "cost.json"

    def cost_command(self, updates: int) -> list[str]:
        command = [sys.executable, "-m", module("compare.cost"), "--recipe", self.recipe, "--variants", *self.variants]
        command += ["--data", str(self.data), "--out", str(self.cost), "--updates", str(updates)]
        return [*command, "--", *self.options] if self.options else command

    def run_options(self, run: MatchedRun) -> list[str]:
        """For the recipe; what comes later goes first."""
        scheme = "--splitting" if Variant.parse(run.variant).is_splitting else "--scheme"
        budget = self.budgets[run.variant].options if run.variant in self.budgets else ()
        return [scheme, run.variant, "--seed", str(run.seed), *self.options, *budget]

    def run_command(self, run: MatchedRun) -> list[str]:
        return self._command("score", "--out", run.folder, "--prepared", self.data, *self.run_options(run))

    def _command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", module(self.recipe), *map(str, arguments)]
