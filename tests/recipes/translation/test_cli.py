"""The command line says what a recipe becomes, and refuses what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.translation import cli, train
from recipes.translation.recipe import INSTANCES, RECIPES, load


@pytest.mark.parametrize("name", INSTANCES)
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
    assert ("--size" in told) == ("--valid SET" in told) == (name == "wmt14_en_de")


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


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--set=model.x", "KEY=VALUE"),
        ("--set=x=1", "a group and a name"),
        ("--set=model.x=[", r"'\[' is no value of yaml"),
        ("--set=model.x=${y", r"'\$\{y' is no value of yaml"),
    ],
)
def test_settings_by_key(option: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        cli.recipe_from("iwslt14_de_en", [option])


@pytest.mark.parametrize("option", ["--workers", "--units"])
@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_numbers_that_would_be_taken_for_the_default(
    option: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.recipe_from("translation", [f"{option}={number}"])
    assert end.value.code == 2 and f"argument {option}" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for options, message in (
        (["--lr=nan"], "--lr nan: must be a positive, finite number"),
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


def test_a_scheme_as_one_word_or_as_options() -> None:
    whole = cli.recipe_from("iwslt14_de_en", ["--scheme", "lie,multistep,multistep_init=0.5,solver=heun"])
    options = ["--splitting=lie", "--depth-rule=multistep", "--multistep-init=0.50", "--solver=heun", "--dt=1"]
    assert cli.recipe_from("iwslt14_de_en", options) == whole
    by_key = ["--splitting=lie", "--set=model.depth_rule=multistep", "--set=model.multistep_init=0.5"]
    assert cli.recipe_from("iwslt14_de_en", [*by_key, "--set=model.solver=heun"]).settings() == whole.settings()
    assert whole.scheme.name == "lie,solver=heun,multistep,multistep_init=0.5"
    assert whole.get("model.multistep_init") == "0.5" and whole.get("model.dt") is None
    train.check_names(whole)


@pytest.mark.parametrize("options", [["--scheme", "lie"], ["--splitting", "lie", "--solver", "euler", "--dt", "1"]])
def test_a_splitting_alone_has_the_settings_that_it_always_had(options: list[str]) -> None:
    settings = cli.recipe_from("iwslt14_de_en", options).settings()
    assert settings == load("iwslt14_de_en").changed(splitting="lie").settings()
    assert [key for key in settings if key.startswith("model.") and "splitting" not in key] == [
        *("model._name", "model.share_all_embeddings"),
        *("model.dropout", "model.attention_dropout", "model.activation_dropout"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheme", "lie", "--solver", "heun"], "--solver is beside it; give either"),
        (["--scheme", "lie", "--splitting", "lie"], "--splitting is beside it; give either"),
        (["--scheme", "lie,solver=magic"], "--scheme lie,solver=magic: solver='magic' is unknown"),
        (["--solver", "magic"], "--solver magic: solver='magic' is unknown; choose one of euler"),
        (["--stochastic-depth", "1.5"], r"--stochastic-depth 1.5: .*no drop rate in \[0, 1\)"),
        (["--set=model.multistep_init=0.5"], "--multistep-init 0.5: .*has none; leave it out"),
    ],
)
def test_schemes_that_cannot_be(options: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        cli.recipe_from("iwslt14_de_en", options)


def test_a_scheme_that_the_layers_cannot_follow() -> None:
    """Said before the data is prepared, and nothing is said of another's architecture."""
    post_norm = ["--arch=transformer_iwslt_de_en_macaron"]
    train.check_model(cli.recipe_from("iwslt14_de_en", post_norm))
    with pytest.raises(RecipeError, match=r"--scheme strang,multistep: .*a post-norm layer.* has none"):
        train.check_model(cli.recipe_from("iwslt14_de_en", [*post_norm, "--depth-rule=multistep"]))
    train.check_model(load("iwslt14_de_en").changed(arch="transformer_iwslt_de_en"))
