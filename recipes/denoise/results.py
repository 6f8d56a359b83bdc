"""What a run has found, as plain numbers, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .settings import RestorationSettings

METHODS = {"clean": "clean", "noisy": "input", "dncnn": "DnCNN with biases", "dncnn_free": "without biases",
           "durr": "DURR"}  # fmt: skip


def mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)


def summary(record: Mapping[str, Any], settings: RestorationSettings) -> dict[str, Any]:
    """Means over the images of a level.

    Returns:
        noisy, dncnn, dncnn_free, fixed, table: PSNR; policy: PSNR, with policy_steps; oracle, oracle_steps: the best
        step of each image by its true PSNR, the first of equal ones; best_steps: the best one for all images; by_steps:
        PSNR of each number of steps.
    """
    images = list(record["images"].values())
    level = float(record["level"])
    by_steps = [mean(column) for column in zip(*(image["durr"] for image in images), strict=True)]
    oracle = [max(range(len(image["durr"])), key=image["durr"].__getitem__) for image in images]
    said: dict[str, Any] = {name: mean(image[name] for image in images) for name in ("noisy", "dncnn", "dncnn_free")}
    said |= {
        "fixed": by_steps[settings.fixed],
        "table": by_steps[settings.steps_at(level)],
        "oracle": mean(image["durr"][n] for image, n in zip(images, oracle, strict=True)),
        "oracle_steps": mean(oracle),
        "best_steps": max(range(len(by_steps)), key=by_steps.__getitem__),
        "by_steps": by_steps,
    }
    if "policy" in images[0]:
        said["policy"] = mean(image["durr"][image["policy"]] for image in images)
        said["policy_steps"] = mean(image["policy"] for image in images)
    return said


@dataclass(frozen=True)
class Results:
    """
    Args:
        records: level ↦ seed ↦ what `evaluation.evaluate` gave.
        bm3d: level ↦ image ↦ PSNR; empty where it was not asked for.
        training: seed ↦ network ↦ what `training.optimise` gave.
        pictures: (level, image) ↦ method ↦ file, of the first seed.
    """

    settings: RestorationSettings
    train_images: int
    test_images: int
    records: Mapping[float, Mapping[int, Mapping[str, Any]]]
    bm3d: Mapping[float, Mapping[str, float]]
    training: Mapping[int, Mapping[str, Mapping[str, Any]]]
    pictures: Mapping[tuple[float, str], Mapping[str, Path]]

    @property
    def seeds(self) -> list[int]:
        return list(self.training)

    @cached_property
    def summaries(self) -> dict[float, list[dict[str, Any]]]:
        """Level ↦ `summary` of each seed."""
        return {
            level: [summary(record, self.settings) for record in seeds.values()]
            for level, seeds in self.records.items()
        }

    def of(self, level: float, key: str) -> list[float]:
        """An entry of the summaries, of each seed."""
        return [float(one[key]) for one in self.summaries[level]]

    def has(self, key: str) -> bool:
        return key in self.summaries[self.settings.test_levels[0]][0]

    def of_images(self, level: float, names: Sequence[str]) -> list[float]:
        """PSNR of DURR on some of the images, of each seed."""
        parts = [
            summary({**record, "images": {name: record["images"][name] for name in names}}, self.settings)
            for record in self.records[level].values()
        ]
        return [float(part[self.settings.horizon]) for part in parts]

    def steps_of(self, level: float, image: Mapping[str, Any]) -> int:
        """That DURR took for an image, by the horizon of the settings."""
        if self.settings.horizon == "policy":
            return int(image["policy"])
        return self.settings.fixed if self.settings.horizon == "fixed" else self.settings.steps_at(level)
