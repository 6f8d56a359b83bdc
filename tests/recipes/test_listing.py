"""`python -m recipes`: what there is, without the seconds that the recipes themselves take to load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.__main__ import main, recipes
from recipes.common.errors import RecipeError

ROOT = Path(__file__).resolve().parents[2]


def test_every_recipe_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    folders = {path.parent.name for path in (ROOT / "recipes").glob("*/__main__.py")}
    assert {"bench", "bert_pretrain", "compare", "glue", "pde_net", "trajectories"} <= folders == set(recipes())
    assert all(len(about) > 20 for about in recipes().values()), recipes()
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in folders) and "python -m recipes.NAME --help" in said


def test_an_unknown_recipe_is_named_with_those_that_there_are() -> None:
    with pytest.raises(RecipeError, match=r"'soup' is no recipe; choose one of(?s:.)*bert_pretrain"):
        main(["soup"])


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True)


def test_the_list_waits_for_nothing() -> None:
    code = "import sys; from recipes.__main__ import main; main([]); print({'torch', 'fairseq'} & set(sys.modules))"
    assert python("-c", code).stdout.endswith("set()\n")
    done = python("-m", "recipes", "soup")
    assert done.returncode == 1 and done.stderr.startswith("recipes: 'soup' is no recipe")


@pytest.mark.parametrize("name", ["glue", "bert_pretrain", "pde_net", "bench", "trajectories", "translation"])
def test_help_is_alike_and_waits_for_nothing(name: str) -> None:
    place, made = ("cli", "parser('translation')") if name == "translation" else ("__main__", "parser()")
    code = (
        f"import sys; from recipes.{name}.{place} import parser; print({made}.format_help()); "
        "print({'torch', 'fairseq'} & set(sys.modules))"
    )
    said = python("-c", code).stdout
    assert said.startswith(f"usage: python -m recipes.{name} ") and said.endswith("set()\n"), said
    if name not in ("bench", "trajectories"):
        assert "options that recipes share" in said and "set an existing --out aside and begin anew" in said


def test_a_recipe_runs_by_its_name() -> None:
    done = python("-m", "recipes", "pde_net", "--jobs", "0")
    assert done.returncode == 1 and done.stderr == "recipes.pde_net: --jobs 0: must be at least 1\n"
