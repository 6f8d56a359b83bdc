"""A preset, with what the user says in place of its own values."""

from __future__ import annotations

import pytest

from recipes.common.errors import RecipeError
from recipes.demo.settings import PRESETS, settings_for


def test_settings_take_the_preset_unless_told_otherwise() -> None:
    assert settings_for("grammar", beam=None) == PRESETS["grammar"]
    assert settings_for("multi30k", beam=4).beam == 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_update", 0, "max_update is 0 but must be at least 1"),
        ("train_size", -1, "train_size is -1 and seed is 1 but neither may be negative"),
        ("heads", 5, "dim is 128 but must be a multiple of heads = 5"),
    ],
)
def test_settings_are_checked(name: str, value: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        settings_for("grammar", **{name: value})
