"""Validation and test sentences that the model cannot take, found before the training that they would end."""

from __future__ import annotations

from pathlib import Path

from recipes.common.errors import RecipeError
from recipes.common.workspace import read_lines
from recipes.translation.recipe import Recipe

POSITIONS = 1024  # fairseq's default, for the task and for the model


def check_held_out(recipe: Recipe, folder: Path) -> None:
    """fairseq drops training pairs that are too long, but stops at a validation or test pair: after the training.

    Raises:
        RecipeError: names the file, the line and its length in tokens.
    """
    for split in ("valid", "test"):
        for side, language in zip(("source", "target"), recipe.text.languages, strict=True):
            limit, why = _limit(recipe, split, side)
            lines = read_lines(folder / "bpe" / f"{split}.{language}")
            sizes = {number: line.count(" ") + 2 for number, line in enumerate(lines, 1)}  # the end of the sentence too
            long = [(number, size) for number, size in sizes.items() if size > limit]
            if long:
                shown = ", ".join(f"line {number} ({size:,} tokens)" for number, size in long[:5])
                more = f" and {len(long) - 5} more" if len(long) > 5 else ""
                raise RecipeError(
                    f"{folder / 'raw' / f'{split}.{language}'}: {shown}{more}: longer than {why}, and held-out "
                    f"sentences are not dropped. Shorten or remove such pairs in the {split} files of --data-dir and "
                    f"give another --out, or raise the limit"
                )


def _limit(recipe: Recipe, split: str, side: str) -> tuple[int, str]:
    """The most tokens of a sentence, and what says so."""
    names = [f"{group}.max_{side}_positions" for group in ("task", "model")]
    limits = {name: value for name in names if isinstance(value := recipe.get(name, POSITIONS), int)}
    if split == "valid":
        if recipe.get("dataset.skip_invalid_size_inputs_valid_test", False):
            limits = {}
        name = "dataset.max_tokens_valid" if recipe.get("dataset.max_tokens_valid") else "dataset.max_tokens"
        limits[name] = int(recipe.get(name))
    name = min(limits, key=lambda key: limits[key])
    return limits[name], f"{name} = {limits[name]:,}"
