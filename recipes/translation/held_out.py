"""Validation and test sentences that cannot be used, found before the training that they would end or falsify."""

from __future__ import annotations

from pathlib import Path

from macaron.text import is_blank

from ..common.errors import RecipeError
from ..common.workspace import read_lines
from .recipe import Recipe

POSITIONS = 1024  # fairseq's default, for the task and for the model


def check_held_out(recipe: Recipe, folder: Path) -> None:
    """fairseq drops training pairs that are too long, but stops at a validation or test pair: after the training.

    And of a sentence without words it makes some translation, which is then scored.

    Raises:
        RecipeError: names the file, the line and what is wrong with it.
    """
    for split in ("valid", "test"):
        for side, language in zip(("source", "target"), recipe.text.languages, strict=True):
            name = f"{split}.{language}"
            raw, pieces = (read_lines(folder / kind / name) for kind in ("raw", "bpe"))
            limit, why = _limit(recipe, split, side)
            empty = [n for n, (text, line) in enumerate(zip(raw, pieces, strict=True), 1) if is_blank(text) or not line]
            sizes = {n: line.count(" ") + 2 for n, line in enumerate(pieces, 1)}  # the end of the sentence is one
            long = [f"{n} ({size:,} tokens)" for n, size in sizes.items() if size > limit]
            _refuse(
                folder / "raw" / name, empty, "without any text, so there is nothing to translate or to compare with"
            )
            _refuse(folder / "raw" / name, long, f"longer than {why}", ", or raise the limit")


def _refuse(path: Path, lines: list[int] | list[str], why: str, otherwise: str = "") -> None:
    if lines:
        more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise RecipeError(
            f"{path}: line {', '.join(map(str, lines[:5]))}{more}: {why}, and held-out pairs are not dropped. Mend or "
            f"remove such pairs in both {path.stem} files of --data-dir and give another --out{otherwise}"
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
