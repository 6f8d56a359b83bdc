"""A corpus of one's own, from its files to a report, through the command line: early stopping, resuming, fine-tuning.

fairseq's commands are forks of one process that has imported it; the rest runs here.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from recipes.common.workspace import read_json, read_lines
from recipes.translation import cli, commands, release
from recipes.translation.pipeline import STAGES

TRAINING = [
    *("--cpu", "--workers=1", "--arch=macaron_tiny", "--average=2", "--beam=2", "--max-tokens=400", "--dropout=0"),
    *("--batch-tokens=400", "--warmup-updates=2", "--set=checkpoint.save_interval_updates=3"),
    *("--set=generation.max_len_a=0", "--set=generation.max_len_b=6", "--set=common.log_interval=1"),
]
STANDS_STILL = ["--lr=1e-9", "--max-update=40", "--patience=2"]  # so no validation is better than the first


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fables.eo and fables.sr-Latn: 300 pairs, whose translation spells every word backwards, and six that are none."""
    generator = random.Random(7)
    words = ["".join(generator.choices("aeiklmnorstuĉŝ", k=generator.randint(2, 6))) for _ in range(40)]
    rows = [generator.choices(words, k=generator.randint(3, 7)) for _ in range(300)]
    pairs = [
        (" ".join(row).capitalize() + ".", " ".join(word[::-1] for word in reversed(row)).capitalize() + "!")
        for row in rows
    ]
    pairs += [("", "a"), ("b", " "), ("same", "Same"), ("same", "same"), ("a " * 300, "b " * 300), ("c", "d " * 99)]
    folder = tmp_path_factory.mktemp("corpus")
    for side, language in enumerate(("eo", "sr-Latn")):
        text = "".join(pair[side] + "\r\n" for pair in pairs)
        (folder / f"fables.{language}").write_bytes(text.encode("utf-8-sig"))
    return folder


@pytest.fixture(scope="module")
def made(corpus: Path, forks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped early and was scored; it has no release of its own."""
    out = tmp_path_factory.mktemp("own") / "out"
    options = ["--source-lang=eo", "--target-lang=sr-Latn", f"--data-dir={corpus}", "--units=90", "--name=Fables <1>"]
    assert cli.main("translation", ["report", *options, *TRAINING, *STANDS_STILL, "--tensorboard", f"--out={out}"]) == 0
    return out


def updates(log: Path) -> list[int]:
    """Of the validations."""
    return [int(stats["valid_num_updates"]) for kind, stats in commands.events(log) if kind == "valid"]


def test_from_one_pair_of_files_to_a_report(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_json(made / "stamps" / "prepare.json")
    assert data["kind"] == "Fables <1>, 306 pairs of raw text; valid and test split off by seed 1"
    dropped = dict(data["dropped"])
    assert dropped.pop("empty") == 2 and dropped.pop("both sides equal") == 1
    assert dropped.pop("over 250 pieces") == 1 and dropped.pop("one side over 9 times as long as the other") == 1
    assert set(dropped) <= {"also in validation or test"}
    assert sum(data["sizes"].values()) + sum(data["dropped"].values()) == 306
    assert data["sizes"]["valid"] == data["sizes"]["test"] == 15
    assert "Ĉ" in "".join(read_lines(made / "text" / "train.eo")).replace("ĉ", "Ĉ"), "cased, and not English alone"
    page = (made / "report" / "index.html").read_text(encoding="utf-8")
    assert "<title>Fables &lt;1&gt;: eo → sr-Latn</title>" in page and "IWSLT" not in page and "Multi30k" not in page
    assert "2 empty" in page and "after 2 validations without a better bleu" in page
    scores = read_json(made / "scores.json")
    assert list(scores) == ["sacreBLEU", "chrF2"] and "tok:13a" in scores["sacreBLEU"]["signature"]
    assert list((made / "tensorboard").rglob("events.out.tfevents.*"))


def test_the_best_are_averaged_of_those_that_exist(made: Path) -> None:
    """Equal validations are all best; the first and the last two were made at updates 3, 6 and 9."""
    stamp = read_json(made / "stamps" / "train.json")
    assert stamp["updates"] == 9 and updates(made / "train.log") == [3, 6, 9]
    assert isinstance(stamp["best"], float)
    averaged = read_json(made / "stamps" / "average.json")["averaged"]
    assert 1 <= len(averaged) <= 2 and all(name.startswith("checkpoint.best_bleu_") for name in averaged)


def test_an_interrupted_training_stops_where_it_would_have(
    made: Path, corpus: Path, forks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "out"
    shutil.copytree(made, copy)
    options = [
        "--source-lang=eo",
        "--target-lang=sr-Latn",
        f"--data-dir={corpus}",
        "--name=Fables <1>",
        f"--out={copy}",
    ]
    command = ["train", *options, *TRAINING, *STANDS_STILL]  # units are those of the folder

    (copy / "stamps" / "train.json").unlink()  # killed before the stamp: nothing is trained again
    before = len(forks)
    assert cli.main("translation", command) == 0 and forks[before:] == []
    assert "stopped early, after 9 of 40 updates" in capsys.readouterr().out
    assert not (copy / "stamps" / "average.json").exists(), "what follows is done again"

    (copy / "stamps" / "train.json").unlink()  # killed after the second validation
    shutil.copy(copy / "checkpoints" / "checkpoint_1_6.pt", copy / "checkpoints" / "checkpoint_last.pt")
    (copy / "train.log").unlink()
    assert cli.main("translation", command) == 0 and len(forks) == before + 1
    assert updates(copy / "train.log") == [9]
    assert read_json(copy / "stamps" / "train.json")["updates"] == 9

    assert cli.main("translation", [*command, "--patience=3"]) == 1
    assert "checkpoint.patience = 2 there, 3 now" in capsys.readouterr().err


def test_a_corpus_that_changed_is_not_taken_for_the_one_that_was_prepared(
    made: Path, corpus: Path, forks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, before = tmp_path / "elsewhere", len(forks)
    shutil.copytree(corpus, there)
    options = ["--source-lang=eo", "--target-lang=sr-Latn", f"--data-dir={there}", "--name=Fables <1>", f"--out={made}"]
    command = ["report", *options, *TRAINING, *STANDS_STILL]
    assert cli.main("translation", command) == 0, "the same text in another place"
    with (there / "fables.eo").open("a", encoding="utf-8") as file:
        file.write("novaĵo\r\n")
    capsys.readouterr()
    assert cli.main("translation", command) == 1
    said = capsys.readouterr().err
    assert f"{there / 'fables.eo'}: not what was prepared in {made}" in said and "sr-Latn:" not in said
    shutil.rmtree(there)
    assert cli.main("translation", command) == 0, "what is prepared does not need it any more"
    assert forks[before:] == []


@pytest.fixture(scope="module")
def released(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    release.write_parts(made, folder)(folder)
    return folder


def test_a_released_model_is_fine_tuned(
    made: Path, corpus: Path, released: Path, forks: list[str], tmp_path: Path
) -> None:
    """With its pieces, dictionaries and architecture, from its very parameters; on other pairs, of other files."""
    for language in ("eo", "sr-Latn"):
        lines = (corpus / f"fables.{language}").read_text(encoding="utf-8-sig").split("\n")[:80]
        (tmp_path / f"more.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out, training = tmp_path / "out", [option for option in TRAINING if not option.startswith("--arch")]
    options = [f"--init-from={released}", f"--trainpref={tmp_path / 'more'}", f"--out={out}", *training]
    assert cli.main("translation", ["train", *options, "--max-update=2", "--lr=1e-9"]) == 0
    assert "loading pretrained model from" in (out / "train.log").read_text(encoding="utf-8")
    for name in ("dict.eo.txt", "dict.sr-Latn.txt", "spm.model", "text.json"):
        assert (out / "data-bin" / name).read_bytes() == (made / "data-bin" / name).read_bytes()
    settings = read_json(out / "settings.json")
    assert settings["corpus.title"] == "more" and settings["model._name"] == "macaron_tiny"
    assert len(settings["init_from"]) == 64
    before = torch.load(released / "model.pt", weights_only=True)["model"]
    after = torch.load(out / "checkpoints" / "checkpoint_last.pt", weights_only=True)["model"]
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # two updates of Adam move a parameter by at most about twice the learning rate
        torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source-lang=sr-Latn", "--target-lang=eo"], "translates eo to sr-Latn, this run sr-Latn to eo"),
        (["--units=50"], r"--units beside --init-from .*has settled that; leave it out"),
        (["--arch=macaron_base"], r"--arch beside --init-from .*\(macaron_tiny\) has settled that"),
        (["--splitting=lie"], r"was trained with splitting = 'strang', and this run asks for 'lie'"),
        (["--set=model.encoder_layers=3"], r"was trained with encoder_layers = None, and this run asks for 3"),
    ],
)
def test_what_a_released_model_has_settled(
    released: Path, corpus: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    given = [f"--init-from={released}", f"--data-dir={corpus}", f"--out={tmp_path / 'out'}", *options]
    assert cli.main("translation", given) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_damaged_release_is_not_begun_with(
    released: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(released, copy)
    with (copy / "dict.eo.txt").open("a") as file:
        file.write("more 1\n")
    assert cli.main("translation", [f"--init-from={copy}", f"--data-dir={corpus}", f"--out={tmp_path / 'out'}"]) == 1
    assert "dict.eo.txt is not what was released" in capsys.readouterr().err
    assert cli.main("translation", [f"--init-from={tmp_path / 'none'}", f"--data-dir={corpus}"]) == 1
    assert "no such folder; give the release/ of a run" in capsys.readouterr().err


def test_prepared_data_is_shared(made: Path, forks: list[str], tmp_path: Path) -> None:
    """Whose title, pieces and architecture are those of the run that prepared them."""
    out, before = tmp_path / "out", len(forks)
    training = [option for option in TRAINING if not option.startswith("--arch")]
    options = ["--source-lang=eo", "--target-lang=sr-Latn", f"--prepared={made}", f"--out={out}", *training]
    assert cli.main("translation", ["prepare", *options]) == 0 and forks[before:] == []
    theirs, ours = read_json(made / "settings.json"), read_json(out / "settings.json")
    kept = [name for name in theirs if name.startswith(("text.", "corpus.", "model."))]
    assert kept and all(theirs[name] == ours[name] for name in kept)
    assert {path.stem for path in (out / "stamps").iterdir()} & set(STAGES) == {"prepare"}
