"""What a folder holds: networks and adversaries with every seed, and their curves when they are finished.

settings.json
yopo-5-10/seed-1/last.pt        where an unfinished run goes on
yopo-5-10/seed-1/run.json       its curves, when it is finished, and the schedule it had; model.pt: its weights
lm_resnet/seed-1/…
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.workspace import read_json
from .settings import Adversary, ImageSettings, Variant

STAGE = "train"
Found = dict[str, dict[int, dict[str, Any]]]  # run ↦ seed ↦ its run.json


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

    settings: ImageSettings
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    folder: Path
    data: Path
    save_every: float = 60.0

    def place(self, run: Run, seed: int) -> Path:
        return self.folder / run.folder / f"seed-{seed}"

    def stamped(self, run: Run, seed: int) -> bool:
        return (self.place(run, seed) / "stamps" / f"{STAGE}.json").exists()

    def collect(self, failed: Mapping[str, str]) -> Found:
        """Of what is finished; what failed is left out."""
        return {
            run.name: {
                seed: read_json(self.place(run, seed) / "run.json")
                for seed in self.seeds
                if title(run, seed) not in failed and self.stamped(run, seed)
            }
            for run in self.runs
        }


def title(run: Run, seed: int) -> str:
    return f"{run.name}, seed {seed}"
