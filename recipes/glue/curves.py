"""The losses of two models under equal settings, seeds and data, update by update."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import RecipeError
from ..common.main import module
from ..common.workspace import read_json

EQUAL = ("task", "seed", "setting", "data", "max_length", "precision", "processes", "accumulate")


class Curves(NamedTuple):
    """Two runs: updates, and both losses and gradient norms after them."""

    run: str
    updates: list[int]
    losses: list[tuple[float, float]]
    norms: list[tuple[float, float]]

    def apart(self) -> tuple[float, int]:
        """The largest difference of the losses, and the update where it is."""
        return max((abs(a - b), update) for (a, b), update in zip(self.losses, self.updates, strict=True))

    def norms_apart(self) -> float:
        """The largest difference of the gradients' norms, relative."""
        return max((abs(a - b) / max(a, b) for a, b in self.norms if a != b), default=0.0)


def compare(first: Path, second: Path, most: int) -> list[Curves]:
    """The runs that both folders have, as far as `most` updates.

    Raises:
        RecipeError: none in common, or runs that were not made alike, or not noted at the same updates.
    """
    sides = [{path.parent.name: path for path in folder.glob("runs/*/result.json")} for folder in (first, second)]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        raise RecipeError(
            f"curves: {first} and {second} have no finished run in common; give the --out folders of two python -m "
            f"{module('glue')} with the same tasks, seeds and settings"
        )
    return [curves(name, sides[0][name], sides[1][name], most) for name in common]


def curves(name: str, first: Path, second: Path, most: int) -> Curves:
    a, b = read_json(first), read_json(second)
    differing = [key for key in EQUAL if a.get(key) != b.get(key)]
    if differing:
        raise RecipeError(
            f"{name}: the two differ in {', '.join(differing)}, so their losses need not be equal; have one done again"
        )
    (updates, losses), (of_norms, norms) = (together(name, first, second, a, b, key, most) for key in NOTED)
    if updates != of_norms:
        raise RecipeError(f"{first}: losses and gradient norms are of different updates; have the run done again")
    return Curves(name, updates, losses, norms)


NOTED = ("loss", "gradient_norm")


def together(
    name: str, first: Path, second: Path, a: Any, b: Any, key: str, most: int
) -> tuple[list[int], list[tuple[float, float]]]:
    """(updates, pairs of values) of one curve."""
    found = []
    for path, result in ((first, a), (second, b)):
        try:
            values = {int(update): float(value) for update, value in result[key] if int(update) <= most}
        except (LookupError, TypeError, ValueError) as error:
            raise RecipeError(f"{path}: no curve of {key} there ({error!r}); have the run done again") from error
        if not all(map(math.isfinite, values.values())):
            raise RecipeError(f"{path}: {key} is not finite; the run diverged")
        found.append(values)
    updates = sorted(found[0])
    if updates != sorted(found[1]) or not updates:
        raise RecipeError(
            f"{name}: the first {most} updates are noted at {len(found[0])} and {len(found[1])} places that are not "
            f"the same, or none; give both the same --logging-steps, 1 for every update"
        )
    return updates, [(found[0][update], found[1][update]) for update in updates]


def show(first: Path, second: Path, most: int, within: float | None) -> int:
    """Print one line for each run; 1 where losses are further apart than `within`, else 0."""
    if most < 1 or (within is not None and not within >= 0):
        raise RecipeError(f"--updates is {most}, --within {within}; the first is at least 1, the other 0 or more")
    worst = 0.0
    for found in compare(first, second, most):
        apart, update = found.apart()
        worst = max(worst, apart)
        (start, _), (end, _) = found.losses[0], found.losses[-1]
        print(
            f"{found.run}: loss {start:.4f} at update {found.updates[0]}, {end:.4f} at {found.updates[-1]}; of "
            f"{len(found.updates)} noted the largest difference is {apart:.1e}, at update {update}; of gradient norms "
            f"{found.norms_apart():.1e}, relative"
        )
    if within is not None:
        print(f"losses are {'within' if worst <= within else 'NOT within'} {within:g}")
    return int(within is not None and worst > within)
