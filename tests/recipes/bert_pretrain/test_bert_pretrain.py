"""The whole recipe through its command line: killed, resumed, spread over processes, left alone when finished."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from macaron.dynamics import splitting as registry
from macaron.dynamics.splitting import Splitting, register_splitting
from recipes.bert_pretrain.__main__ import main
from recipes.bert_pretrain.settings import SCHEME, recorded, settings_for
from recipes.common.workspace import digest

SIZES = [
    "--vocab-size=150", "--max-length=24", "--valid-fraction=0.2", "--hidden-size=16", "--num-hidden-layers=2",
    "--num-attention-heads=2", "--batch-size=8", "--warmup-updates=3",
]  # fmt: skip
LONG = [
    *SIZES,
    "--updates=30",
    "--eval-every=15",
    "--save-every=6",
]  # where the log has a line, or its next loss would be of fewer updates
SHORT = [*SIZES, "--updates=6", "--eval-every=6"]
NO_DROPOUT = ["--hidden-dropout-prob=0", "--attention-probs-dropout-prob=0"]
DROPOUT = ["--hidden-dropout-prob=0.1", "--attention-probs-dropout-prob=0.1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of random sentences."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abdeiklmnorstu", k=rng.randint(2, 5))) for _ in range(60)]
    documents = [
        "\n".join(" ".join(rng.choices(words, k=rng.randint(3, 9))) + "." for _ in range(rng.randint(3, 9)))
        for _ in range(60)
    ]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prepared(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    assert main(["--stage=prepare", "--data", str(folder), "--text", str(text), *SIZES]) == 0
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def largest_difference(a: Path, b: Path) -> float:
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    return max((x[name] - y[name]).abs().max().item() for name in x)


def test_killed_and_resumed_gives_the_same_bits(
    prepared: Path, text: Path, tmp_path: Path, project_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(prepared), *LONG, *DROPOUT]
    assert main(["--out", str(tmp_path / "whole"), *arguments]) == 0

    out = tmp_path / "killed"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "recipes.bert_pretrain", "--out", str(out), *arguments],
            cwd=project_root, env=environment(), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        deadline = time.time() + 600
        try:
            while not list(out.glob("checkpoints/checkpoint-*/complete")):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.time() < deadline, "no checkpoint after ten minutes"
                time.sleep(0.005)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert not (out / "stamps" / "train.json").exists()
    half = out / "checkpoints" / "checkpoint-29"  # as if the kill had come while it was written
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")

    capsys.readouterr()
    assert main(["--out", str(out), *arguments]) == 0
    said = capsys.readouterr()
    assert re.search(r"going on from checkpoint-(6|12|18|24)\n", said.out)
    assert "checkpoint-29 was cut short" in said.err
    assert largest_difference(tmp_path / "whole", out) == 0.0
    metrics = [(folder / "metrics.csv").read_text().splitlines() for folder in (tmp_path / "whole", out)]
    throughput = metrics[0][0].split(",").index("tokens_per_second")
    for a, b in zip(*(csv.reader(lines) for lines in metrics), strict=True):
        assert a[:throughput] + a[throughput + 1 :] == b[:throughput] + b[throughput + 1 :]
    check_results(out)

    model = (out / "model" / "model.safetensors").stat()
    assert main(["--out", str(out), *arguments]) == 0
    assert capsys.readouterr().out.count("done before") == 5
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == model.st_mtime_ns

    assert main(["--out", str(out), *arguments, "--seed=9"]) == 1
    assert "made with other settings" in (error := capsys.readouterr().err) and "--restart" in error
    assert main(["--out", str(tmp_path / "b"), *arguments, "--text", str(text), "--vocab-size=90"]) == 1
    assert "vocab_size = 150 there, 90 now" in capsys.readouterr().err


def check_results(out: Path) -> None:
    """The files that a run leaves."""
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer, BertTokenizer

    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["update"]) for row in rows] == list(range(3, 31, 3))
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)
    assert [row["update"] for row in rows if row["valid_mlm_accuracy"]] == ["15", "30"]
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["updates"] == 30 and result["data"]["sources"][0]["documents"] == 60
    assert {"mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"} <= result["results"].keys()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 2 and not re.search(r'(src|href)="http', page)
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("loss", "throughput"))
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers") and "text.txt" in card and "mlm_accuracy" in card
    assert f"{result['results']['mlm_accuracy']:.4f}" in card and result["environment"]["commit"] in card
    assert isinstance(AutoTokenizer.from_pretrained(out / "model"), BertTokenizer)
    assert AutoModelForPreTraining.from_pretrained(out / "model").nsp_head.weight.shape == (1, 16)
    assert not AutoModelForMaskedLM.from_pretrained(out / "model").config.sparse_prediction


def same_update_in(launcher: list[str], prepared: Path, tmp_path: Path, project_root: Path) -> None:
    arguments = ["--data", str(prepared), *SHORT, *NO_DROPOUT]
    assert main(["--out", str(tmp_path / "one"), *arguments]) == 0
    done = subprocess.run(
        [*launcher, "-m", "recipes.bert_pretrain", "--out", str(tmp_path / "two"), *arguments],
        cwd=project_root, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert (result["processes"], result["device_batch"], result["accumulation"]) == (2, 4, 1)
    # float32 sums in another order; Adam divides by the root of small second moments, which enlarges that
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 2e-5
    single = json.loads((tmp_path / "one" / "result.json").read_text())["results"]
    assert result["results"] == pytest.approx(single, rel=1e-5)  # float32, as above: measured to 1e-8


def test_two_processes_give_the_same_model(prepared: Path, tmp_path: Path, project_root: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    same_update_in(launcher, prepared, tmp_path, project_root)


@pytest.mark.slow
def test_accelerate_launch_gives_the_same_model(prepared: Path, tmp_path: Path, project_root: Path) -> None:
    # On a CPU too: with --cpu it would start one process, whatever number is asked for, unless there is MPI.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    same_update_in(launcher, prepared, tmp_path, project_root)


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
@pytest.mark.parametrize("splitting", ["strang", "lie"])
def test_accumulation_gives_the_same_model(
    text: Path, prepared: Path, tmp_path: Path, objective: str, splitting: str
) -> None:
    data = prepared if objective == "mlm+nsp" else tmp_path / "data"
    arguments = ["--data", str(data), "--text", str(text), *SHORT, *NO_DROPOUT,
                 f"--objective={objective}", f"--splitting={splitting}", "--masking=static"]  # fmt: skip
    assert main(["--out", str(tmp_path / "one"), *arguments]) == 0
    assert main(["--out", str(tmp_path / "four"), *arguments, "--device-batch=2"]) == 0
    moved = largest_difference(tmp_path / "one", tmp_path / "four")
    assert moved < 2e-5
    assert ("nsp_head.weight" in weights(tmp_path / "one")) is (objective == "mlm+nsp")


def test_a_splitting_of_ones_own(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name where it is registered; what is written holds the notation, which is read everywhere."""
    from transformers import AutoModelForPreTraining

    monkeypatch.setattr(registry, "SPLITTINGS", dict(registry.SPLITTINGS))
    register_splitting(Splitting.parse("attention/2 ffn attention/2", name="turned"))
    arguments = ["--out", str(tmp_path / "out"), "--data", str(prepared), *SHORT]
    assert main([*arguments, "--splitting=turned"]) == 0
    del registry.SPLITTINGS["turned"]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["model"]["splitting"] == "attention/2 ffn attention/2"
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out" / "model")
    assert [flow.kind for flow in model.macaron_bert.layers[0].flows] == ["self_attention", "ffn", "self_attention"]
    assert "attention/2 ffn attention/2" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "attention/2 ffn attention/2" in (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*arguments, "--splitting= attention/2  ffn self_attention/2"]) == 0  # another word for the same
    assert capsys.readouterr().out.count("done before") == 5
    assert main([*arguments, "--splitting=turned"]) == 1
    assert "splitting='turned' is unknown; choose one of strang, lie, or write its flows" in capsys.readouterr().err


def test_another_scheme(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is chosen is recorded in one spelling; report and card show the k of the two-step rule, and judge them."""
    arguments = ["--out", str(tmp_path / "out"), "--data", str(prepared), *SHORT, "--splitting=lie"]
    assert main([*arguments, "--depth-rule=multistep", "--multistep-init=0.50", "--solver=euler"]) == 0
    model = json.loads((tmp_path / "out" / "settings.json").read_text())["model"]
    assert {name: model[name] for name in model if name in SCHEME} == {
        "depth_rule": "multistep",
        "multistep_init": "0.5",
    }
    (k,) = weights(tmp_path / "out")["macaron_bert.layers.rule.bias"].tolist()
    assert k != 0.5 and abs(k - 0.5) < 0.1  # learned, in six updates
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"| encoder | 1 | {k:+.4f} | yes |" in card and f"<td>{k:+.4f}</td>" in page
    for text in (card, page):
        assert "Zero-stable in every layer" in text and "lie,multistep,multistep_init=0.5, seed" in text
    assert 'alt="multistep"' in page and (tmp_path / "out" / "multistep.png").is_file()
    capsys.readouterr()
    assert main([*arguments, "--depth-rule=multistep"]) == 1
    assert "model.multistep_init = '0.5' there, None now" in capsys.readouterr().err


def test_one_layer_for_all_steps(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `recipes.glue` fine-tunes with a policy; its folder is not gone on with as another model's."""
    from macaron.bert import MacaronBertForSequenceClassification

    arguments = ["--out", str(tmp_path / "out"), "--data", str(prepared), *SHORT, "--num-hidden-layers=3"]
    assert main([*arguments, "--horizon=fixed"]) == 0
    layers = {name.split(".")[2] for name in weights(tmp_path / "out") if name.startswith("macaron_bert.layers.")}
    assert layers == {"0"}
    for name in ("report.html", "model/README.md"):
        assert "strang, one layer for 3 steps, seed 1" in (tmp_path / "out" / name).read_text(encoding="utf-8")
    model = MacaronBertForSequenceClassification.from_pretrained(tmp_path / "out" / "model", horizon="learned")
    assert model.config.num_hidden_layers == 3 and model.macaron_bert.policy is not None
    capsys.readouterr()
    assert main(arguments) == 1
    assert "model.horizon = 'fixed' there, None now" in capsys.readouterr().err


def test_what_is_not_chosen_is_recorded_as_before_there_was_a_choice() -> None:
    record = recorded(settings_for("tiny", splitting="lie", solver="euler", dt=1.0, horizon="none"))
    assert record["model"]["splitting"] == "lie" and not {*SCHEME, "horizon"} & record["model"].keys()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--solver=magic", "solver='magic' is unknown; choose one of euler"),
        ("--stochastic-depth=1", r"no drop rate in \[0, 1\)"),
        ("--multistep-init=0.5", "has none; leave it out, or choose that rule"),
        ("--splitting=runge", "splitting='runge' is unknown; choose one of strang, lie, or write its flows in order"),
        ("--splitting=", "has no substeps"),
        ("--splitting=ffn/2 attention", "the shares of 'ffn' add up to 0.5"),
        ("--splitting=ffn/2 attention ffn/0", "'ffn/0' is no substep"),
        ("--splitting=ffn conv attention", "flow 'conv' is unknown here; choose from ffn, attention"),
        ("--splitting=ffn attention cross_attention", "flow 'cross_attention' is unknown here"),
        ("--splitting=attention/2 attention/2", "no substep follows 'ffn', which every layer needs"),
        ("--hidden-size=15", "hidden_size=15 does not divide into num_attention_heads=2"),
        ("--hidden-act=softplus", "activation='softplus' is unknown"),
        ("--position-embedding-type=rotary", "position_embedding_type"),
        ("--hidden-dropout-prob=1", "hidden_dropout_prob=1.0 is not a probability"),
        ("--horizon=fixed --depth-rule=rk4", "depth_rule='rk4' tells layers of one stack apart"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_before_anything_is_prepared(
    argument: str, message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = re.split(" (?=--)", argument)
    assert main(["--out", str(tmp_path / "out"), "--text", str(text), *SIZES, *words]) == 1
    assert re.search(f"the model cannot be built: .*{message}", capsys.readouterr().err, re.DOTALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "{folder}/none.txt"], "--text .*none.txt: cannot be read"),
        ([], "nothing is prepared there; give the text files with --text"),
        (["--text", "{text}", "--blank-lines=3"], "1 documents in 1 files leave .* change --blank-lines"),
        (["--text", "{text}", "--vocab-size=9000"], "vocab_size is 9000 but the text gives"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(folder=tmp_path, text=text) for argument in arguments]
    assert main(["--out", str(tmp_path / "out"), *filled]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out" / "data" / "stamps" / "examples.json").exists()


def test_preparation_goes_on_after_an_interruption(prepared: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    for name in ("train.arrow", "valid.arrow", "stamps/examples.json"):
        (folder / name).unlink()
    (folder / "train.arrow.part").write_bytes(b"half")
    stamp = (folder / "stamps" / "tokenizer.json").stat().st_mtime_ns
    assert main(["--stage=prepare", "--data", str(folder), *SIZES]) == 0  # the cleaned text is there: no --text
    assert (folder / "train.arrow").read_bytes() == (prepared / "train.arrow").read_bytes()
    assert (folder / "stamps" / "tokenizer.json").stat().st_mtime_ns == stamp


def test_divergence_is_no_success(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # the second time, nothing that diverged is gone on with
        arguments = ["--data", str(prepared), *LONG, "--lr=1e30", "--clip-norm=0"]
        assert main(["--out", str(out), *arguments]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("recipes.bert_pretrain: ") and "the training diverged" in said and "smaller --lr" in said
    assert not (out / "stamps" / "train.json").exists() and not (out / "model").exists()
    assert not (out / "result.json").exists() and not list(out.glob("checkpoints/*/complete"))


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    assert main(["--out", str(out), "--data", str(prepared), *SHORT]) == 0
    return out


def copied(folder: Path, target: Path, *without: str) -> Path:
    shutil.copytree(folder, target)
    for name in without:
        (target / name).unlink()
    return target


def test_missing_tensors_do_not_become_random(
    trained: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(trained, tmp_path / "out", "stamps/train.json")
    (path,) = out.glob("checkpoints/checkpoint-6/model.safetensors")
    tensors = load_file(path)
    name = next(name for name in tensors if ".1." in name)
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
    assert main(["--out", str(out), "--data", str(prepared), *SHORT]) == 1
    assert f"model.safetensors lacks {name}. Put it back" in capsys.readouterr().err.splitlines()[-1]
    assert not (out / "stamps" / "train.json").exists()


@pytest.mark.parametrize("stamped", [True, False])
def test_other_data_is_not_gone_on_with(
    stamped: bool, trained: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same pieces in another order, in a folder that is made with equal settings."""
    data = copied(prepared, tmp_path / "data")
    path = data / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    pieces = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    numbers = [*range(5), *reversed(range(5, len(pieces)))]
    tokenizer["model"]["vocab"] = {piece: number for (piece, _), number in zip(pieces, numbers, strict=True)}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    stamp = json.loads((data / "stamps" / "tokenizer.json").read_text())
    stamp["files"]["tokenizer/tokenizer.json"] = digest(path)
    (data / "stamps" / "tokenizer.json").write_text(json.dumps(stamp))
    out = copied(trained, tmp_path / "out", *([] if stamped else ["stamps/train.json"]))
    before = (out / "model" / "model.safetensors").stat()
    assert main(["--out", str(out), "--data", str(data), *SHORT]) == 1
    assert "(tokenizer/tokenizer.json differ); results are not mixed" in capsys.readouterr().err
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    if not stamped:  # a folder of an earlier version, without the record: the checkpoint's own tokenizer tells
        (out / "data.json").unlink()
        assert main(["--out", str(out), "--data", str(data), *SHORT]) == 1
        assert "checkpoint-6: it is of another vocabulary" in capsys.readouterr().err


def test_a_tokenizer_made_anew_is_used(prepared: Path, tmp_path: Path) -> None:
    folder = copied(prepared, tmp_path / "data", "stamps/tokenizer.json")
    before = (folder / "train.arrow").stat().st_ino
    assert main(["--stage=prepare", "--data", str(folder), *SIZES]) == 0
    assert (folder / "train.arrow").stat().st_ino != before
    assert (folder / "train.arrow").read_bytes() == (prepared / "train.arrow").read_bytes()


def test_text_prepared_into_the_folder_of_a_run_is_used(text: Path, tmp_path: Path) -> None:
    assert main(["--stage=prepare", "--out", str(tmp_path), "--text", str(text), *SIZES]) == 0
    assert main(["--out", str(tmp_path), *SHORT]) == 0


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(option in said for option in ("--preset", "--text", "--no-norm-affine", "--objective", "--save-every"))
