"""What makes two runs unequal must be seen in fairseq's log: other batches, other learning rates, other lengths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.compare.matched import check_all, check_parameters, count_parameters, violations, windows
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
    compared, found = compare(lie, other)
    assert compared == 0 and "the order of the data is unknown" in found[0]


def test_all_seeds(lie: Path) -> None:
    runs = {seed: {"lie": run(), "strang": run(updates=30 + seed)} for seed in (0, 1)}
    result = check_all(runs, {seed: {"lie": lie, "strang": lie} for seed in runs})
    assert result["windows"] == {0: 3, 1: 3}
    assert result["violations"] == ["seed 1: strang and lie differ in updates: 31 and 30"]


def test_parameters() -> None:
    assert check_parameters({"lie": 100_000, "strang": 100_050}) == pytest.approx(5e-4)
    with pytest.raises(RecipeError, match=r"strang has 100,200 parameters and lie 100,000, 0\.20 % apart.*--arch"):
        check_parameters({"lie": 100_000, "strang": 100_200})


def test_models_that_fairseq_builds(tmp_path: Path) -> None:
    """Macaron has the norm and the output bias of one more sub-layer: 3 · 128 parameters in each of 2 + 2 layers."""
    folder = dictionaries(tmp_path, 8000)
    trees = {name: load("multi30k_de_en").changed(splitting=name).tree for name in ("lie", "strang")}
    counts = {name: count_parameters(tree, folder) for name, tree in trees.items()}
    assert counts["strang"] - counts["lie"] == 3 * 128 * (2 + 2)
    assert check_parameters(counts) == pytest.approx(3 * 128 * 4 / counts["lie"])


def dictionaries(folder: Path, size: int) -> Path:
    """All that fairseq needs to build a model."""
    for language in ("de", "en"):
        (folder / f"dict.{language}.txt").write_text("".join(f"w{index} 1\n" for index in range(size)))
    return folder
