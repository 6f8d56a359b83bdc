"""Splittings as recipes take and name them."""

from __future__ import annotations

import re

from recipes.common.errors import RecipeError

_TITLES = {"strang": "Macaron (Strang–Marchuk splitting)", "lie": "Transformer (Lie–Trotter splitting)"}


def portable(splitting: object, option: str = "--splitting") -> str:
    """What the commands that a recipe starts understand too: the notation in place of a name registered here.

    Raises:
        RecipeError: an unknown name, a notation that does not hold together, or a layer without attention or FFN.
    """
    if splitting in _TITLES:
        return str(splitting)
    from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, SELF_ATTENTION, get_splitting

    try:
        found = get_splitting(splitting)  # type: ignore[arg-type]
        found.check_flows((FFN, SELF_ATTENTION, CROSS_ATTENTION), needed=(FFN, SELF_ATTENTION))
    except ValueError as error:
        raise RecipeError(f"{option} {splitting}: {error}") from error
    return found.portable


def described(splitting: str) -> str:
    """For reports."""
    return _TITLES.get(splitting, f"splitting {splitting}")


def folder_name(splitting: str) -> str:
    """A notation as a part of a folder's name: ffn-2-attention-ffn-2."""
    return re.sub(r"[ /]+", "-", splitting)
