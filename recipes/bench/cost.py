"""What a training step costs as sentences get longer, or the vocabulary larger."""

from __future__ import annotations

import dataclasses

from ..common.errors import RecipeError
from . import train
from .measure import Plan
from .record import Record

VALUES = {
    "length": (128, 256, 512, 1024, 2048, 4096),
    "vocabulary": (8192, 16384, 32768, 65536, 131072, 262144),
}


def run(
    record: Record,
    plan: Plan,
    settings: train.StepSettings,
    over: str,
    values: list[int],
    names: list[str],
    precision: str,
    seed: int,
) -> None:
    """One case for each value; batches keep their number of tokens.

    Raises:
        RecipeError: a sentence longer than a batch.
    """
    if over == "length" and max(values) > settings.max_tokens:
        raise RecipeError(
            f"a sentence of {max(values)} tokens does not fit into --max-tokens {settings.max_tokens}; raise that, or "
            f"leave out such --values"
        )
    for value in values:
        chosen = dataclasses.replace(settings, **{over: value})
        record.describe(dataclasses.asdict(chosen))
        train.run(record, plan, chosen, names, precision, seed, case=f"{over} {value}")
