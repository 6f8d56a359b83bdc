"""What is compared: one recipe, its runs, the data that all of them share, and the commands that do the work."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.errors import RecipeError
from recipes.common.schemes import folder_name, portable


@dataclass(frozen=True)
class Run:
    """One training: everything but splitting and seed is the same in all runs of an experiment."""

    splitting: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{folder_name(self.splitting)}-seed{self.seed}"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder.parent / f"{self.name}.log"

    @property
    def finished(self) -> bool:
        return (self.folder / "stamps" / "score.json").exists()


@dataclass(frozen=True)
class Experiment:
    """Every splitting with every seed, and all else the same.

    Args:
        recipe: a folder under recipes/ with the command line of `recipes.translation.cli`.
        splittings: the first is the one that the others are compared with.
        options: passed on to the recipe in every run, such as --max-update 2000.
        data_options: passed on to its preparation alone, such as --data-dir DIR.
        folder: data/ is prepared once; runs/<splitting>-seed<seed>/ and the results lie beside it.
    """

    recipe: str
    splittings: tuple[str, ...]
    seeds: tuple[int, ...]
    folder: Path
    options: tuple[str, ...] = ()
    data_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "splittings", tuple(portable(s, "--splittings") for s in self.splittings))
        for name, values in (("--splittings", self.splittings), ("--seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise RecipeError(f"{name} {' '.join(map(str, values))}: one is there twice; name each once")
        if len(self.splittings) < 2:
            raise RecipeError(
                f"--splittings {' '.join(self.splittings)}: a comparison needs two or more, such as lie strang"
            )
        if below := [seed for seed in self.seeds if seed < 0]:
            raise RecipeError(f"--seeds {below[0]}: must be whole numbers of at least 0")
        own = {"--out", "--prepared", "--splitting", "--seed", "--data-dir", "--restart"}
        if taken := own.intersection(option.split("=")[0] for option in self.options):
            raise RecipeError(f"{', '.join(sorted(taken))} after --: set for each run here; leave it out")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def runs(self) -> list[Run]:
        """Seed by seed, so that whole pairs are done first."""
        return [
            Run(splitting, seed, self.folder / "runs" / f"{folder_name(splitting)}-seed{seed}")
            for seed in self.seeds
            for splitting in self.splittings
        ]

    def settings(self) -> dict[str, Any]:
        """What all runs share, and so must a later call: splittings and seeds may be added."""
        return {"recipe": self.recipe, "options": list(self.options), "data_options": list(self.data_options)}

    def prepare_command(self) -> list[str]:
        return self._command("prepare", "--out", self.data, *self.data_options, *self.options)

    def run_command(self, run: Run) -> list[str]:
        own = ("--splitting", run.splitting, "--seed", run.seed)
        return self._command("score", "--out", run.folder, "--prepared", self.data, *own, *self.options)

    def _command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", f"recipes.{self.recipe}", *map(str, arguments)]


def shown(command: Sequence[str]) -> str:
    """As one would type it."""
    return shlex.join(["python" if word == sys.executable else word for word in command])
