"""What the command line makes of a corpus of one's own: what was said, and what is chosen by its size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.common.workspace import write_json
from recipes.translation import choose, cli, train
from recipes.translation.languages import moses, sacrebleu_tokenizer
from recipes.translation.recipe import ARCHITECTURES, RECIPES, UNITS, Recipe, by_size

PAIR = ["--source-lang=sw", "--target-lang=ka"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for language in ("sw", "ka", "de", "en", "zh"):
        (tmp_path / f"t.{language}").write_text(f"{language}\n" * 30)
    return tmp_path


def recipe(*options: object) -> Recipe:
    return cli.recipe_from("translation", list(map(str, options)))


def test_sizes_go_with_the_corpus() -> None:
    assert [by_size(ARCHITECTURES, n) for n in (1, 49_999, 50_000, 999_999, 10**6, 10**9)] == [
        *["macaron_multi30k_de_en"] * 2, *["macaron_iwslt_de_en"] * 2, *["macaron_base"] * 2,
    ]  # fmt: skip
    assert [by_size(UNITS, n) for n in (9_999, 10_000, 10**7)] == [2_000, 4_000, 32_000]


def test_defaults(corpus: Path) -> None:
    """Cased raw text in joined pieces, scored without papers, by the settings that the architecture was tuned in."""
    made = recipe(*PAIR, "--data-dir", corpus)
    settings = made.settings()
    expected = {
        "name": "translation", "config": "multi30k_de_en/tiny", "metrics": "any", "corpus.title": corpus.name,
        "text.source": "sw", "text.target": "ka", "text.tokenizer": "none", "text.subword": "sentencepiece",
        "text.lowercase": False, "text.units": 2_000, "text.joined_dictionary": True, "corpus.split_seed": 1,
        "task.source_lang": "sw", "task.target_lang": "ka", "model._name": "macaron_multi30k_de_en",
        "corpus.longest": 250, "corpus.ratio": 9.0, "corpus.copies": False, "common.seed": 1,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    train.check_names(made)


@pytest.mark.parametrize(
    ("arch", "config", "batch"),
    [
        ("macaron_tiny", "multi30k_de_en/tiny", 2_000), ("macaron_iwslt_de_en", "iwslt14_de_en/small", 4_096),
        ("macaron_base", "wmt14_en_de/base", 32_768), ("macaron_big", "wmt14_en_de/big", 262_144),
    ],
)  # fmt: skip
def test_an_architecture_brings_the_settings_that_it_was_tuned_in(
    corpus: Path, arch: str, config: str, batch: int
) -> None:
    made = recipe(*PAIR, "--data-dir", corpus, "--arch", arch)
    assert (made.arch, made.config, made.batch_tokens) == (arch, config, batch)
    assert made.yaml.is_file() and made.get("task.source_lang") == "sw"
    train.check_names(made)


def test_every_option_of_a_corpus_arrives(corpus: Path) -> None:
    made = recipe(
        "--source-lang=de", "--target-lang=en", "--pair", corpus / "t.de", corpus / "t.en", "--name=Mine",
        "--lowercase", "--subword=bpe", "--units=77", "--vocabulary=separate", "--valid-pairs=3", "--test-pairs=4",
        "--split-seed=5",
        "--max-length=60", "--max-ratio=3", "--keep-copies", "--text-form=raw", "--lr=0.5", "--max-tokens=500",
    )  # fmt: skip
    settings = made.settings()
    expected = {
        "corpus.title": "Mine", "text.lowercase": True, "text.tokenizer": "moses", "text.subword": "subword_nmt",
        "text.units": 77, "text.joined_dictionary": False, "corpus.valid_pairs": 3, "corpus.test_pairs": 4,
        "corpus.split_seed": 5, "corpus.longest": 60, "corpus.ratio": 3.0, "corpus.copies": True, "corpus.form": "raw",
        "optimization.lr": [0.5], "model.share_all_embeddings": False, "model.share_decoder_input_output_embed": True,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    short = recipe(*PAIR, "--data-dir", corpus, "--batch-tokens=200")
    assert short.own and short.own.longest == 199, "a pair that fits no batch would end the training"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-lang=ka"], r"--source-lang is missing; give the code"),
        (["--source-lang=sw", "--target-lang=sw"], r"source and target are both 'sw'"),
        (["--source-lang=../x", "--target-lang=ka"], r"source '\.\./x' is no language code"),
        (["--source-lang=a/b", "--target-lang=ka"], r"source 'a/b' is no language code"),
        (PAIR, r"no corpus: name its files by --data-dir DIR, --trainpref PREFIX or --pair FILE FILE"),
        ([*PAIR, "--data-dir=/nowhere/at/all"], r"--data-dir /nowhere/at/all: no corpus is there\. Looked for train"),
        ([*PAIR, "--data-dir=D", "--trainpref=D/t"], r"--data-dir and --trainpref: name the files in one way"),
        ([*PAIR, "--testpref=D/t", "--name=x"], r"--testpref: is without training pairs"),
        ([*PAIR, "--trainpref=D/nothing"], r"nothing\.sw and .*nothing\.ka: no such file"),
        ([*PAIR, "--data-dir=D", "--subword=bpe"], r"Moses has no rules for 'sw'\. It has them for as, .*any language"),
        (["--source-lang=de", "--target-lang=zh", "--data-dir=D", "--subword=bpe"], r"zh is written without them"),
        ([*PAIR, "--data-dir=D", "--patience=0"], r"--patience 0: must be at least 1"),
        ([*PAIR, "--data-dir=D", "--stop-by=loss"], r"--stop-by loss: says what --patience looks at; give --patience"),
        ([*PAIR, "--data-dir=D/t.sw"], r"--data-dir .*t\.sw: is a file; give its folder, or name both"),
        ([*PAIR, "--data-dir=D", "--valid-pairs=0"], r"--valid-pairs 0: must be at least 1"),
    ],
)
def test_what_cannot_be(corpus: Path, options: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(*(option.replace("=D", f"={corpus}") for option in options))


def test_a_region_is_not_known_to_moses_by_itself(corpus: Path) -> None:
    for side in ("pt_BR", "en"):
        (corpus / f"u.{side}").write_text("a\n")
    options = ["--source-lang=pt_BR", "--target-lang=en", "--trainpref", corpus / "u", "--subword=bpe"]
    with pytest.raises(RecipeError, match=r"Moses has no rules for 'pt_BR'; pt is known: name the files so"):
        recipe(*options)
    assert {"de", "en", "fr"} <= moses() and sacrebleu_tokenizer("zh_TW") == "zh"


def test_what_the_corpus_chose_is_chosen_once(corpus: Path, tmp_path: Path) -> None:
    """A run goes on with the sizes that it has, though the corpus grew, or is gone; with --restart it chooses anew."""
    out = tmp_path / "out"
    made = recipe(*PAIR, "--data-dir", corpus, "--arch=macaron_tiny", "--units=99")
    out.mkdir()
    write_json(out / "settings.json", made.settings())
    (corpus / "t.sw").unlink()
    again = recipe(*PAIR, "--data-dir", corpus, "--out", out)
    assert again.settings() == made.settings()
    assert recipe(*PAIR, "--prepared", out).settings() == made.settings()
    (corpus / "t.sw").write_text("x\n" * 30)
    anew = recipe(*PAIR, "--data-dir", corpus, "--out", out, "--restart")
    assert (anew.arch, anew.text.units) == ("macaron_multi30k_de_en", 2_000)


def test_where_it_goes_by_itself(corpus: Path) -> None:
    for options, name in (
        (["--data-dir", corpus, "--name=My ../tales: 1"], "My-..-tales-1-sw-ka"),
        (["--trainpref", corpus / "t"], "t-sw-ka"),
        (["--pair", corpus / "t.sw", corpus / "t.ka"], "t-sw-ka"),
        (["--trainpref", "tales/train"], "tales-sw-ka"),
    ):
        args = cli.parser("translation").parse_args(list(map(str, [*PAIR, *options])))
        assert choose.folder(args) == name and "/" not in name


def test_early_stopping_in_fairseqs_own_words(corpus: Path) -> None:
    asked = [*PAIR, "--data-dir", corpus, "--patience=4"]
    by_bleu, by_loss = recipe(*asked), recipe(*asked, "--stop-by=loss")
    assert (by_bleu.checkpoint_kind, by_loss.checkpoint_kind) == ("highest", "lowest")
    assert by_bleu.get("checkpoint.keep_best_checkpoints") == by_bleu.average == 3
    assert by_bleu.get("task.eval_bleu") and by_bleu.get("task.eval_bleu_remove_bpe") == "sentencepiece"
    assert '"beam": 5' in by_bleu.get("task.eval_bleu_args")
    assert by_loss.get("task.eval_bleu") is None and by_loss.get("checkpoint.best_checkpoint_metric") == "loss"
    moses_words = cli.recipe_from("iwslt14_de_en", ["--patience=4", "--average=1"])
    assert moses_words.get("task.eval_bleu_detok") == "moses" and moses_words.get("task.eval_bleu_remove_bpe") == "@@ "
    assert moses_words.get("checkpoint.keep_best_checkpoints") == -1
    unspaced = recipe("--source-lang=en", "--target-lang=zh", "--data-dir", corpus, "--patience=4")
    assert unspaced.get("task.eval_tokenized_bleu") and unspaced.get("task.eval_bleu_remove_bpe") is None
    for made in (by_bleu, by_loss, moses_words, unspaced):
        train.check_names(made)
    chosen = recipe(*asked, "--set=checkpoint.keep_best_checkpoints=9")
    assert chosen.get("checkpoint.keep_best_checkpoints") == 9, "what is said by its name goes first"


def test_help_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main("translation", ["--help"])
    told = capsys.readouterr().out
    for heading in (
        "corpus: its languages",
        "corpus: its pairs",
        "data",
        "course of the training",
        "settings",
        "machine",
    ):
        assert f"\n{heading}" in told
    assert "--sha256" not in told and "--trust-first-download" not in told, "nothing is downloaded"


def test_the_commands_of_the_documentation_parse(project_root: Path) -> None:
    text = (project_root / "recipes" / "translation" / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(r"^python -m recipes\.(\w+)(.*)$", text, re.MULTILINE)
    found = [(name, shlex.split(rest, comments=True)) for name, rest in lines]
    assert len(found) >= 8 and {name for name, _ in found} == set(RECIPES)
    for name, arguments in found:
        cli.parser(name).parse_args(arguments)
