"""recipes.compare on a corpus of one's own: what the recipe chose by the corpus, and what cannot be matched."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.common.workspace import write_json
from recipes.compare.__main__ import recipes_of
from recipes.compare.experiment import Experiment


def experiment(folder: Path, *options: str, recipe: str = "translation") -> Experiment:
    languages = ("--source-lang", "sw", "--target-lang", "ka") if recipe == "translation" else ()
    data = ("--data-dir", str(folder / "tales"))
    return Experiment(recipe, ("lie", "strang"), (1,), folder / "out", (*languages, *options), data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tales").mkdir()
    for language in ("sw", "ka"):
        (tmp_path / "tales" / f"t.{language}").write_text("a\n" * 9)
    return tmp_path


def test_what_the_corpus_chose_is_what_is_compared(folder: Path) -> None:
    """From the files before they are prepared, from the prepared data afterwards, though the files are gone."""
    before = recipes_of(experiment(folder))
    assert {name: recipe.arch for name, recipe in before.items()} == dict.fromkeys(
        ("lie", "strang"), "macaron_multi30k_de_en"
    )
    data = folder / "out" / "data"
    (data / "stamps").mkdir(parents=True)
    write_json(data / "settings.json", before["lie"].settings())
    write_json(data / "stamps" / "prepare.json", {"files": {}})
    (folder / "tales" / "t.sw").unlink()
    after = recipes_of(experiment(folder))
    assert {name: recipe.settings() for name, recipe in after.items()} == {
        name: recipe.settings() for name, recipe in before.items()
    }


@pytest.mark.parametrize("recipe", ["translation", "multi30k_de_en"])
@pytest.mark.parametrize("options", [("--patience", "3"), ("--set", "checkpoint.patience=3")])
def test_runs_that_stop_early_are_not_matched(folder: Path, recipe: str, options: tuple[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"stops early, each run after another number of updates.*--max-update N"):
        recipes_of(experiment(folder, *options, recipe=recipe))
