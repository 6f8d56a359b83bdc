"""Equal cost: what is measured, what follows for the updates, and a file that is not what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.common.errors import RecipeError
from recipes.compare import cost
from recipes.translation.recipe import load


def test_the_ratio_is_that_of_the_means() -> None:
    """Not of the medians: a layer that is dropped half of the time makes half of the updates short."""
    found = cost.costs({"lie": [1.0] * 40, "dropped": [0.5, 1.5] * 20, "double": [2.0] * 40})
    assert found["lie"].ratio == found["lie"].low == found["lie"].high == 1.0
    assert found["dropped"].ratio == 1.0 and 0.8 < found["dropped"].low < 1.0 < found["dropped"].high < 1.2
    assert found["double"] == cost.Cost(2.0, 2.0, 2.0, 2.0, 40)


@pytest.mark.parametrize(
    ("ratio", "updates", "interval"),
    [
        (1.5, 938, 67),  # 1400 / 1.5 = 933.3 updates; 14 checkpoints at intervals of 100 / 1.5 = 66.7
        (2.0, 700, 50),
        (0.8, 1750, 125),
        (3.7, 378, 27),
    ],
)
def test_updates_are_divided_and_the_last_checkpoint_is_the_end(ratio: float, updates: int, interval: int) -> None:
    recipe = load("multi30k_de_en")
    found = cost.budget("strang,rk2", recipe, ratio)
    assert found.updates == updates and updates % interval == 0
    assert abs(updates * ratio / recipe.max_update - 1) <= cost.ROUNDING
    expected = ("--max-update", str(updates), "--set", f"checkpoint.save_interval_updates={interval}")
    assert found.options == expected


def test_where_checkpoints_are_not_counted_in_updates_nothing_is_rounded() -> None:
    assert cost.budget("lie,rk2", load("iwslt14_de_en"), 1.7) == cost.Budget(29412, ("--max-update", "29412"))
    assert cost.budget("lie", load("iwslt14_de_en"), 1.0) == cost.Budget(50000)
    few = load("multi30k_de_en").changed(max_update=6, warmup_updates=1)
    assert cost.budget("x", few, 1.4).updates == 4  # rounding to checkpoints would be far off


def test_a_warm_up_that_would_not_end() -> None:
    with pytest.raises(RecipeError, match=r"strang,rk4 costs 5 times the baseline's, which leaves 280 of 1400 updates"):
        cost.budget("strang,rk4", load("multi30k_de_en"), 5.0)


ENTRY = {"ratio": 1.5, "low": 1.4, "high": 1.6, "seconds": 0.2, "updates": 40}
BASE = {**ENTRY, "ratio": 1.0}


def test_a_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    assert cost.read(path, "lie") == {}
    path.write_text(json.dumps({"baseline": "lie", "variants": {"lie": BASE, "lie,rk2": ENTRY}}))
    assert cost.read(path, "lie")["lie,rk2"] == cost.Cost(**ENTRY)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="costs are measured against lie, and the first variant now is strang"):
        cost.read(path, "strang")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ({"variants": {}}, "has no entry 'baseline'"),
        ({"baseline": "lie"}, "has no entry 'variants'"),
        ({"baseline": "lie", "variants": []}, "must name variants with their costs"),
        ({"baseline": "lie", "variants": {"lie,rk2": ENTRY}}, "must name variants with their costs"),
        ({"baseline": "lie", "variants": {"lie": ENTRY}}, "lie costs 1.5 of itself"),
        ({"baseline": "lie", "variants": {"lie": BASE, "x": {**ENTRY, "ratio": 0}}}, "x: ratio is 0, no positive"),
        ({"baseline": "lie", "variants": {"lie": BASE, "x": {**ENTRY, "low": "1"}}}, "x: low is '1', no positive"),
        ({"baseline": "lie", "variants": {"lie": BASE, "x": 3}}, "x: ratio is None, no positive"),
    ],
)
def test_a_damaged_file(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RecipeError, match=message):
        cost.read(path, "lie")


def test_real_updates_in_turn(tiny_data_bin: Path) -> None:
    """rk4 evaluates every layer four times; however busy the machine, that is no faster than once."""
    changes = [("model.encoder_layers", 2), ("model.decoder_layers", 2)]
    tiny = load("iwslt14_de_en").changed(arch="macaron_tiny", max_tokens=200, batch_tokens=400, changes=changes)
    recipes = {"strang": tiny, "strang,rk4": tiny.changed(depth_rule="rk4")}
    found = cost.measure(recipes, tiny_data_bin, updates=5, cpu=True)
    assert found["strang"].ratio == 1.0 and found["strang"].updates == 5
    assert found["strang,rk4"].ratio > 1.2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--updates", "2"], "--updates 2: a measurement needs 3 or more"),
        ([], "no data-bin there; prepare it"),
        (["--variants", "lie", "lie,magic"], "--variants lie,magic: "),
    ],
)
def test_commands_that_cannot_be(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--variants" in more:
        (tmp_path / "data-bin").mkdir()
    given = ["--recipe=multi30k_de_en", "--variants", "lie", f"--data={tmp_path}", f"--out={tmp_path / 'c'}"]
    assert cost.main([*given, *more]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "c").exists()
