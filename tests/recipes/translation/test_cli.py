"""The command line says what a recipe becomes, and refuses what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation import cli
from recipes.translation.recipe import RECIPES, load


@pytest.mark.parametrize("name", RECIPES)
def test_without_options_it_is_the_recipe(name: str) -> None:
    assert cli.recipe_from(name, []) == load(name)


@pytest.mark.parametrize("name", RECIPES)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(name, ["--help"])
    assert leaving.value.code == 0
    told = capsys.readouterr().out
    assert all(stage in told for stage in ("prepare", "train", "average", "translate", "score", "report", "release"))
    assert all(f"--{option}" in told for option in ("data-dir", "splitting", "precision", "gpus", "cpu", "restart"))
    assert ("--size" in told) == ("--valid" in told) == (name == "wmt14_en_de")


def test_every_option_arrives() -> None:
    options = {
        "--seed": "7", "--splitting": "lie", "--arch": "macaron_tiny", "--dropout": "0.2", "--lr": "0.002",
        "--label-smoothing": "0.05", "--warmup-updates": "9", "--weight-decay": "0.01", "--max-update": "99",
        "--batch-tokens": "8000", "--max-tokens": "2000", "--average": "4", "--beam": "3", "--lenpen": "0.8",
        "--precision": "bf16", "--subword": "sentencepiece", "--units": "500", "--set": "model.encoder_layers=3",
    }  # fmt: skip
    recipe = cli.recipe_from("wmt14_en_de", [*(f"{k}={v}" for k, v in options.items()), "--size", "big"])
    settings = recipe.settings()
    expected = {
        "config": "big", "common.seed": 7, "model.splitting": "lie", "model._name": "macaron_tiny",
        "model.dropout": 0.2, "optimization.lr": [0.002], "criterion.label_smoothing": 0.05,
        "lr_scheduler.warmup_updates": 9, "optimizer.weight_decay": 0.01, "optimization.max_update": 99,
        "batch_tokens": 8000, "dataset.max_tokens": 2000, "average": 4, "generation.beam": 3, "generation.lenpen": 0.8,
        "precision": "bf16", "text.subword": "sentencepiece", "text.tokenizer": "none", "text.units": 500,
        "model.encoder_layers": 3,
    }  # fmt: skip
    assert {key: settings[key] for key in expected} == expected


@pytest.mark.parametrize(("option", "message"), [("--set=model.x", "KEY=VALUE"), ("--set=x=1", "a group and a name")])
def test_settings_by_key(option: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        cli.recipe_from("iwslt14_de_en", [option])


def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for options, message in (
        (["--dropout=2"], "--dropout 2.0: must be at least 0"),
        (["--nodes=2"], "--nodes 2: needs --rendezvous"),
        (["--cpu", "--gpus=3"], "3 processes cannot share an update of 4096 tokens equally"),
        (["--set=model.no_such_thing=1"], "no_such_thing"),
        ([f"--prepared={tmp_path}"], "no run whose data is prepared"),
        ([f"--data-dir={tmp_path / 'nowhere'}"], "no such folder"),
    ):
        assert cli.main("iwslt14_de_en", [*options, f"--out={out}"]) == 1
        assert message in capsys.readouterr().err
    assert not (out / "data-bin").exists()
