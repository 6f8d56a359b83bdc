"""What makes two runs unequal must be seen in fairseq's log: other batches, other learning rates, other lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.common.errors import RecipeError
from recipes.compare.matched import (
    STAND_IN,
    Size,
    check_all,
    check_sizes,
    due_windows,
    size_of,
    stand_in_sizes,
    violations,
    windows,
)
from recipes.translation.recipe import load

Batches = list[tuple[int, str, str]]
BATCHES: Batches = [(10, "812.5", "31.2"), (20, "799.1", "30.8"), (30, "805.0", "31.9")]


def line(update: int, words: str, sentences: str) -> str:
    stats = {"epoch": 1, "wpb": words, "bsz": sentences, "num_updates": str(update), "lr": f"{update * 1e-5:.3g}"}
    return f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(stats)}"


def write(path: Path, batches: Batches, resumed: dict[int, int] | None = None) -> Path:
    """`resumed`: {index in batches: the update that training went on from there}."""
    lines = []
    for index, batch in enumerate(batches):
        if resumed and index in resumed:
            lines.append(f"2026-01-01 | INFO | trainer | Loaded checkpoint x.pt (epoch 2 @ {resumed[index]} updates)")
        lines.append(line(*batch))
    path.write_text("\n".join([*lines, '2026 | INFO | train_inner | {"half a li']))
    return path


def run(updates: int = 30, data: str = "abc") -> dict[str, object]:
    return {"updates": updates, "data": {"train.bin": data}}


@pytest.fixture
def lie(tmp_path: Path) -> Path:
    return write(tmp_path / "lie.log", BATCHES)


def compare(lie: Path, other: Path, **changes: object) -> tuple[int, list[str]]:
    return violations({"lie": run(), "strang": run(**changes)}, {"lie": lie, "strang": other})  # type: ignore[arg-type]


def test_equal_runs(lie: Path) -> None:
    assert compare(lie, lie) == (3, [])


def test_another_order_of_data(lie: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.log", [BATCHES[0], (20, "805.0", "31.9"), (30, "799.1", "30.8")])
    compared, found = compare(lie, other)
    assert compared == 3 and len(found) == 1
    assert "saw other batches: up to update 20" in found[0] and "2 of 3 windows differ" in found[0]


def test_another_number_of_updates_and_other_data(lie: Path) -> None:
    assert compare(lie, lie, updates=20)[1] == ["strang and lie differ in updates: 20 and 30"]
    assert "differ in data" in compare(lie, lie, data="xyz")[1][0]


def test_a_resumed_run_is_as_good(lie: Path, tmp_path: Path) -> None:
    """Killed at 24, resumed from 15: the window up to 20 holds only what came after 15, and is not judged."""
    batches = [BATCHES[0], (20, "799.1", "30.8"), (20, "600.0", "20.0"), BATCHES[2]]
    other = write(tmp_path / "other.log", batches, resumed={2: 15})
    assert windows(other).keys() == {10, 30}
    assert compare(lie, other) == (2, [])


def test_a_resumed_run_that_went_astray(lie: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.log", [*BATCHES, BATCHES[1], (30, "700.0", "31.9")], resumed={3: 10})
    assert "up to update 30" in compare(lie, other)[1][0]


def test_nothing_in_common_proves_nothing(lie: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.log", [(5, "1", "1")])
    assert compare(lie, other) == (0, [])
    (unknown,) = check_all({3: {"lie": run(), "strang": run()}}, {3: {"lie": lie, "strang": other}}, 10)["unknown"]
    assert unknown.startswith("seed 3: too few lines in the logs of training")
    assert "the order of the data is unknown" in unknown and "common.log_interval = 10" in unknown


def test_logs_without_a_line_of_training(tmp_path: Path) -> None:
    """Not called another order of the data: nothing is known of it."""
    logs = {name: write(tmp_path / name, []) for name in ("lie", "strang")}
    result = check_all({1: {"lie": run(5), "strang": run(5)}}, {1: logs}, 10)
    assert result["violations"] == [] and "too few lines" in result["unknown"][0]
    assert result["windows"] == result["due"] == {1: 0}


@pytest.mark.parametrize(
    ("updates", "interval", "windows"), [(30, 10, 3), (39, 10, 3), (9, 10, 0), (9, 0, 0), (9, None, 0), (9, "x", 0)]
)
def test_windows_that_are_due(updates: int, interval: object, windows: int) -> None:
    assert due_windows(updates, interval) == windows


def test_all_seeds(lie: Path) -> None:
    runs = {seed: {"lie": run(), "strang": run(updates=30 + seed)} for seed in (0, 1)}
    result = check_all(runs, {seed: {"lie": lie, "strang": lie} for seed in runs})
    assert result["windows"] == {0: 3, 1: 3}
    assert result["violations"] == ["seed 1: strang and lie differ in updates: 31 and 30"]
    assert result["unknown"] == []


def test_under_equal_cost_the_common_part_is_compared(lie: Path, tmp_path: Path) -> None:
    """Fewer updates and other learning rates are as they should be; other batches, and another number, are not."""
    shorter = tmp_path / "shorter.log"
    shorter.write_text(write(shorter, BATCHES[:2]).read_text().replace('"lr": "0.0001"', '"lr": "0.0009"'))
    planned = {"lie": 30, "rk2": 20}
    runs, logs = {"lie": run(), "rk2": run(20)}, {"lie": lie, "rk2": shorter}
    assert violations(runs, logs, planned) == (2, [])  # type: ignore[arg-type]
    assert any("saw other batches" in text for text in violations(runs, logs)[1])  # type: ignore[arg-type]
    (found,) = violations(runs, logs, {**planned, "rk2": 21})[1]  # type: ignore[arg-type]
    assert found == "rk2 has made 20 updates, and was to make 21 by its cost"
    write(shorter, [BATCHES[0], (20, "1.0", "30.8")])
    assert "up to update 20 (words, sentences) are ('1.0', '30.8')" in violations(runs, logs, planned)[1][0]  # type: ignore[arg-type]
    assert check_all({1: runs}, {1: logs}, 10, planned)["due"] == {1: 2}  # type: ignore[dict-item]


def test_what_the_scheme_makes_differ_is_allowed() -> None:
    """However small the model, so however large the share of its norms."""
    said = check_sizes({"lie": Size(1000, 100), "strang": Size(1000, 600), "other": Size(1000, 40)}, {})
    assert "all weight matrices equal; strang has 500 more than lie, other has 60 fewer than lie in norms" in said


@pytest.mark.parametrize("difference", [1, -1, 50_000])
def test_anything_else_is_not(difference: int) -> None:
    sizes = {"lie": Size(100_000, 10), "strang": Size(100_000 + difference, 10)}
    with pytest.raises(RecipeError, match=r"strang has .* in its weight matrices and lie 100,000.*add up to the same"):
        check_sizes(sizes, {"encoder_ffn_embed_dim": None})
    with pytest.raises(RecipeError, match=r"model.encoder_ffn_embed_dim is the width of every FFN.*leave it out"):
        check_sizes(sizes, {"encoder_ffn_embed_dim": 64})


def trees(**changes: Any) -> dict[str, Any]:
    recipe = load("multi30k_de_en")
    more = [(f"model.{key}", value) for key, value in changes.items()]
    return {name: recipe.changed(splitting=name, changes=more).tree for name in ("lie", "strang")}


def test_models_that_fairseq_builds(tmp_path: Path) -> None:
    """Macaron has the norm and the output bias of one more sub-layer: 3 · 128 parameters in each of 2 + 2 layers."""
    folder = dictionaries(tmp_path, 8000)
    sizes = {name: size_of(tree, folder) for name, tree in trees().items()}
    assert sizes["strang"].total - sizes["lie"].total == 3 * 128 * (2 + 2)
    assert sizes["strang"].matrices == sizes["lie"].matrices
    before = stand_in_sizes(trees())
    assert before["lie"].total - sizes["lie"].total == 128 * (STAND_IN - 8000)
    assert f"strang has {3 * 128 * (2 + 2):,} more" in check_sizes(sizes, {}) == check_sizes(before, {})


@pytest.mark.parametrize("arch", ["macaron_tiny", "macaron_iwslt_de_en", "macaron_big"])
def test_every_architecture_can_be_compared(arch: str) -> None:
    """Of the smallest ones the norms are 0.4 %."""
    sizes = stand_in_sizes({name: {**t, "model": {**t["model"], "_name": arch}} for name, t in trees().items()})
    assert "all weight matrices equal" in check_sizes(sizes, {})


def test_models_that_cannot_be_built_say_so() -> None:
    with pytest.raises(RecipeError, match=r"--splittings lie: fairseq cannot build .*does not divide"):
        stand_in_sizes(trees(encoder_attention_heads=3))


def dictionaries(folder: Path, size: int) -> Path:
    """All that fairseq needs to build a model."""
    for language in ("de", "en"):
        (folder / f"dict.{language}.txt").write_text("".join(f"w{index} 1\n" for index in range(size)))
    return folder
