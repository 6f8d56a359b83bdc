"""What a run is: one frozen record, every number of it in the report. This file does not import torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..common.errors import RecipeError

HORIZONS = ("fixed", "table", "policy")
LEAST_IMAGE = 8  # pixels a side, of a test image
MOST_LEVEL = 255.0


@dataclass(frozen=True)
class RestorationSettings:
    """The settings that a result depends on, but for the seed, which makes the runs of a folder."""

    task: str  # gaussian or jpeg
    horizon: str  # what the unit is trained with, and what stops it
    levels: tuple[float, ...]  # trained on: σ of 255, or quality
    steps: tuple[int, ...]  # of the unit, in training, a number a level; one for all with the fixed horizon
    most: int  # steps there may be
    width: int  # of the unit
    policy_width: int
    dncnn_depth: int  # of both baselines
    dncnn_width: int  # 0: that of equal cost, see `equal_width`
    patch: int  # pixels a side
    batch: int
    updates: int  # of each restorer
    rate: float  # of Adam, at its highest
    policy_patch: int
    policy_batch: int
    policy_updates: int
    policy_rate: float
    epsilon: float  # of the exploration
    lag: int  # updates after which the copy that makes the targets is renewed
    test_levels: tuple[float, ...]
    test_count: int  # 0: all
    crop: int  # pixels a side, from the centre; 0: whole images
    bm3d_images: int  # 0: none
    train: str = ""  # sha256 over the images
    test: str = ""

    @property
    def table(self) -> dict[float, int]:
        """Level ↦ number of steps."""
        return dict(zip(self.levels, self.steps, strict=True))

    @property
    def fixed(self) -> int:
        """The number of steps for all levels: the greatest of training."""
        return max(self.steps)

    @property
    def baseline_width(self) -> int:
        return self.dncnn_width or equal_width(self)

    def steps_at(self, level: float) -> int:
        """By the table; at a level it has not, by that of the nearest."""
        return self.table[min(self.levels, key=lambda known: (abs(known - level), known))]

    def check(self) -> None:
        """
        Raises:
            RecipeError: a number that no run can have, or some that do not go together.
        """
        least = {"most": 1, "width": 1, "policy_width": 1, "dncnn_depth": 2, "dncnn_width": 0, "patch": LEAST_IMAGE}
        least |= {"batch": 1, "updates": 1, "policy_patch": LEAST_IMAGE, "policy_batch": 1, "policy_updates": 1}
        least |= {"lag": 1, "test_count": 0, "crop": 0, "bm3d_images": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise RecipeError(f"--{flag(name)} {getattr(self, name)}: must be at least {low}")
        if 0 < self.crop < LEAST_IMAGE:
            raise RecipeError(f"--crop {self.crop}: must be 0, for whole images, or at least {LEAST_IMAGE}")
        for name in ("rate", "policy_rate"):
            if not (math.isfinite(getattr(self, name)) and 0 < getattr(self, name) <= 1):
                raise RecipeError(f"--{flag(name)} {getattr(self, name)}: must lie above 0, and at 1 or below")
        if not 0 <= self.epsilon <= 1:
            raise RecipeError(f"--epsilon {self.epsilon}: is a probability and must lie between 0 and 1")
        for name in ("levels", "test_levels"):
            self._check_levels(name, getattr(self, name))
        if len(self.steps) != len(self.levels):
            raise RecipeError(
                f"--steps {text(self.steps)}: {len(self.steps)} numbers for the {len(self.levels)} levels "
                f"{text(self.levels)}; give one a level, or one for all"
            )
        if wrong := [steps for steps in self.steps if not 1 <= steps <= self.most]:
            raise RecipeError(f"--steps {wrong[0]}: must lie between 1 and --most {self.most}")
        if self.horizon == "fixed" and len(set(self.steps)) > 1:
            raise RecipeError(f"--steps {text(self.steps)}: --horizon fixed has one for all; or take --horizon table")
        if self.task == "jpeg" and self.bm3d_images:
            raise RecipeError(f"--bm3d-images {self.bm3d_images}: BM3D is for noise; leave it out with --task jpeg")

    def _check_levels(self, name: str, levels: Sequence[float]) -> None:
        option = f"--{flag(name)} {text(levels)}"
        if not levels or len({f"{level:g}" for level in levels}) < len(levels):  # files are named so
            raise RecipeError(f"{option}: give at least one level, and each once")
        for level in levels:
            if self.task == "jpeg" and not (1 <= level <= 95 and level == int(level)):
                raise RecipeError(f"{option}: {level:g} is no quality; Pillow's are whole numbers from 1 to 95")
            if self.task == "gaussian" and not (math.isfinite(level) and 0 < level <= MOST_LEVEL):
                raise RecipeError(f"{option}: {level:g} is no σ; it must lie above 0 and at most at {MOST_LEVEL:g}, as "
                                  f"pixels go from 0 to 255")  # fmt: skip


def flag(name: str) -> str:
    return name.replace("_", "-")


def text(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


# --- cost: multiply-adds a pixel of the image ------------------------------------------------------------------


def unit_cost(width: int) -> float:
    """Of a step of `RestorationUnit` with one channel."""
    w = width
    full = 2 * 25 * w + 9 * w * w + 9 * 2 * w * w + 25 * w  # conv0, conv1, conv7, conv8
    halved = 9 * w * 2 * w + 3 * 9 * (2 * w) ** 2 + 16 * 2 * w * w  # conv2; conv3 to 5; transposed, of 4 × 4
    return full + halved / 4


def policy_cost(width: int) -> float:
    """Of a decision of `PolicyUnit` with one channel."""
    w = width
    return (25 * w + 18 * w * w) / 4 + (9 * w * w + 18 * w * w) / 16 + 18 * w * w / 64


def dncnn_cost(depth: int, width: int) -> float:
    return 2 * 9 * width + (depth - 2) * 9 * width * width


def mean_cost(settings: RestorationSettings) -> float:
    """Of DURR in training: the unit, times the mean of its steps over the levels."""
    return unit_cost(settings.width) * sum(settings.steps) / len(settings.steps)


def equal_width(settings: RestorationSettings) -> int:
    """The width at which a DnCNN of the given depth costs as much as DURR in training, as nearly as can be."""
    cost = mean_cost(settings)
    most = int(math.sqrt(cost)) + 2  # (depth − 2) 9 w² ≥ w² only from depth 3 on; 18 w alone at depth 2
    widths = range(1, max(most, int(cost / 18)) + 2) if settings.dncnn_depth == 2 else range(1, most)
    return min(widths, key=lambda w: abs(dncnn_cost(settings.dncnn_depth, w) - cost))


# --- presets ---------------------------------------------------------------------------------------------------

_SMALL = RestorationSettings(
    task="gaussian",
    horizon="policy",
    levels=(25.0, 35.0, 45.0, 55.0),
    steps=(2, 3, 4, 5),
    most=10,
    width=16,
    policy_width=16,
    dncnn_depth=8,
    dncnn_width=0,
    patch=40,
    batch=8,
    updates=3000,
    rate=2e-3,
    policy_patch=64,
    policy_batch=8,
    policy_updates=2500,
    policy_rate=3e-3,
    epsilon=0.2,
    lag=25,
    test_levels=(25.0, 35.0, 45.0, 55.0, 65.0, 75.0, 95.0),
    test_count=12,
    crop=256,
    bm3d_images=3,
)
_FULL = dataclasses.replace(
    _SMALL,
    steps=(4, 6, 8, 10),
    most=16,
    width=32,
    policy_width=32,
    dncnn_depth=20,
    patch=50,
    batch=64,
    updates=150_000,
    rate=1e-3,
    policy_patch=96,
    policy_batch=32,
    policy_updates=20_000,
    policy_rate=5e-4,
    lag=200,
    test_count=0,
    crop=0,
    bm3d_images=68,
)
_JPEG: dict[str, Any] = {
    "task": "jpeg",
    "levels": (20.0, 30.0),
    "test_levels": (10.0, 20.0, 30.0, 40.0),
    "bm3d_images": 0,
}
PRESETS = {
    ("gaussian", "small"): _SMALL,
    ("gaussian", "full"): _FULL,
    ("jpeg", "small"): dataclasses.replace(_SMALL, **_JPEG, steps=(4, 3)),
    ("jpeg", "full"): dataclasses.replace(_FULL, **_JPEG, steps=(8, 6)),
}


def settings_for(task: str, size: str, **overrides: Any) -> RestorationSettings:
    """The preset with the given values (None: keep) in place of its own; one number of steps is for all levels.

    Raises:
        RecipeError: values that no run can have.
    """
    preset = PRESETS[task, size]
    given = {name: value for name, value in overrides.items() if value is not None}
    levels = given.get("levels", preset.levels)
    steps = given.get("steps", preset.steps)
    if "steps" not in given:
        if given.get("horizon", preset.horizon) == "fixed":
            steps = (max(preset.steps),)
        elif tuple(levels) != preset.levels:
            raise RecipeError(f"--levels {text(levels)}: the number of steps at each is not known; give it by --steps")
    if len(steps) == 1:
        steps = steps * len(levels)
    settings = dataclasses.replace(preset, **{**given, "levels": tuple(levels), "steps": tuple(steps)})
    settings.check()
    return settings
