"""The command line end to end: every task, two processes, a kill, a second look, a comparison, the submission."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from recipes.glue.__main__ import main

SAME = {"rtol": 1e-5, "atol": 1e-6}  # the same sums in the same order; float32, whose ε a library's threads may move
# Float32 after two epochs of Adam, which carries on the rounding of sums in another order.
ANOTHER_ORDER = {"rtol": 1e-4, "atol": 2e-5}
FAST = ["--preset=simple", "--epochs=2", "--lr=1e-2", "--max-length=24", "--cpu"]


@pytest.fixture(autouse=True)
def restored_signals():  # type: ignore[no-untyped-def]
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def arguments(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [f"--model={model}", f"--data-dir={data}", f"--out={out}", *FAST, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


def predictions(out: Path) -> dict[str, dict[str, np.ndarray]]:
    return {path.parent.name: dict(np.load(path)) for path in sorted(out.glob("runs/*/predictions.npz"))}


@pytest.fixture(scope="module")
def plain(stock_bert: Path, tiny_glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CoLA, STS-B and MNLI with three seeds, in this process."""
    out = tmp_path_factory.mktemp("glue") / "plain"
    words = ["--task", "cola", "stsb", "mnli", "mnli-mm", "ax", "--seeds", "1", "2", "3"]
    assert main(arguments(stock_bert, tiny_glue, out, *words, "--save-model")) == 0
    return out


def test_results_and_report(plain: Path) -> None:
    result = json.loads((plain / "result.json").read_text(encoding="utf-8"))
    assert set(result["tasks"]) == {"cola", "stsb", "mnli", "mnli-mm"}
    assert result["tasks"]["cola"]["seeds"] == [1, 2, 3] and result["failed"] == {}
    assert result["tasks"]["mnli"]["runs"] == result["tasks"]["mnli-mm"]["runs"]  # equal settings: one model
    run = json.loads((plain / "runs" / result["tasks"]["cola"]["runs"][0] / "result.json").read_text(encoding="utf-8"))
    assert run["updates"] == 2 * 4 and run["setting"]["schedule"] == "cosine" and run["examples"] == 50
    assert not list(plain.glob("runs/*/checkpoints"))
    text = (plain / "report.md").read_text(encoding="utf-8")
    assert "| dev set | CoLA | STS-B | MNLI-m/mm | average |" in text
    page = (plain / "report.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in page and 'src="http' not in page
    rows = (plain / "table.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("task,metric,mean,sd") and len(rows) == 1 + 1 + 2 + 2


def test_finished_runs_are_left_alone_and_others_are_added(
    plain: Path, stock_bert: Path, tiny_glue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {path: path.stat().st_mtime_ns for path in plain.glob("runs/*/result.json")}
    assert main(arguments(stock_bert, tiny_glue, plain, "--task", "cola", "--seeds", "1", "2", "3")) == 0
    assert "3 of 3 done before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in plain.glob("runs/*/result.json")} == times
    assert "mnli" in json.loads((plain / "result.json").read_text(encoding="utf-8"))["tasks"]
    assert main(arguments(stock_bert, tiny_glue, plain, "--task", "cola", "--weight-decay", "0.1")) == 1
    assert "made with other settings" in capsys.readouterr().err


def test_two_processes_and_micro_batches_give_the_same(
    plain: Path, stock_bert: Path, tiny_glue: Path, tmp_path: Path, project_root: Path
) -> None:
    """Of a stock BERT, whose own head breaks under both. 50 examples in batches of 16: the last one is short."""
    from safetensors.numpy import load_file

    def close(out: Path, runs: list[str]) -> None:
        reference, other = predictions(plain), predictions(out)
        assert sorted(other) == sorted(runs)
        for run in runs:
            for name, expected in reference[run].items():
                np.testing.assert_allclose(other[run][name], expected, **ANOTHER_ORDER, err_msg=f"{run} {name}")
            before, after = (load_file(f / "runs" / run / "model" / "model.safetensors") for f in (plain, out))
            for name, expected in before.items():
                np.testing.assert_allclose(after[name], expected, **ANOTHER_ORDER, err_msg=f"{run} {name}")
            one, many = (json.loads((f / "runs" / run / "result.json").read_text()) for f in (plain, out))
            for figure in ("loss", "gradient_norm"):  # Adam forgives a wrong scale, these do not
                np.testing.assert_allclose(many[figure], one[figure], rtol=1e-3, err_msg=f"{run} {figure}")
            for task, metrics in one["scores"].items():
                # of 50 examples, of which rounding may turn one over: 0.02 of an accuracy, some more of a correlation
                assert many["scores"][task] == pytest.approx(metrics, abs=0.05)

    runs = [f"{task}-e2-b16-lr0.01-wd0-s1" for task in ("cola", "mnli", "stsb")]
    words = ["--task", "cola", "stsb", "mnli", "--save-model"]
    assert main(arguments(stock_bert, tiny_glue, tmp_path / "micro", *words, "--accumulate=4")) == 0
    close(tmp_path / "micro", runs)

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "recipes.glue", *arguments(stock_bert, tiny_glue, tmp_path / "two", *words)]
    done = subprocess.run(
        [*command, "--accumulate=2"], cwd=project_root, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    close(tmp_path / "two", runs)
    assert json.loads((tmp_path / "two/runs" / runs[0] / "result.json").read_text())["processes"] == 2


def test_killed_and_resumed_is_as_if_never_killed(
    stock_bert_with_dropout: Path, tiny_glue: Path, tmp_path: Path, project_root: Path
) -> None:
    words = ["--task", "mrpc", "--epochs", "60", "--save-steps", "3"]
    command = [sys.executable, "-m", "recipes.glue"]
    out = tmp_path / "killed"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, *arguments(stock_bert_with_dropout, tiny_glue, out, *words)],
            cwd=project_root, env=environment(), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        deadline = time.time() + 300
        try:
            while len(list(out.glob("runs/*/checkpoints/checkpoint-*/trainer_state.json"))) == 0:
                assert process.poll() is None and time.time() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert not list(out.glob("stamps/*.json"))
    (half,) = out.glob("runs/*")
    (half / "checkpoints/checkpoint-999").mkdir()  # one that the kill cut short
    assert main(arguments(stock_bert_with_dropout, tiny_glue, out, *words)) == 0
    assert main(arguments(stock_bert_with_dropout, tiny_glue, tmp_path / "whole", *words)) == 0
    (killed,), (whole,) = predictions(out).values(), predictions(tmp_path / "whole").values()
    (record,) = (tmp_path / "whole").glob("runs/*/result.json")
    losses = [loss for _, loss in json.loads(record.read_text(encoding="utf-8"))["loss"]]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])  # the label shows in a word
    for name, expected in whole.items():
        np.testing.assert_allclose(killed[name], expected, **SAME)


def test_parallel_jobs_give_the_same(
    plain: Path, stock_bert: Path, tiny_glue: Path, tmp_path: Path, project_root: Path
) -> None:
    out = tmp_path / "jobs"
    words = arguments(stock_bert, tiny_glue, out, "--task", "cola", "--seeds", "1", "2", "3", "--name", "other")
    done = subprocess.run(
        [sys.executable, "-m", "recipes.glue", *words, "--jobs=2"],
        cwd=project_root, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    reference = predictions(plain)
    for run, arrays in predictions(out).items():
        np.testing.assert_allclose(arrays["cola.dev.logits"], reference[run]["cola.dev.logits"], **SAME)


def test_compare(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--runs", str(plain), str(plain), "--names", "strang", "lie", "--samples", "20"]
    assert main([*words, "--markdown", str(tmp_path / "t.md")]) == 0
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| task (dev) | strang | lie | difference |" in text and "STS-B, Pearson/Spearman" in text
    assert text.count("+0.00 … +0.00 | 1.000") == 2 * 4  # a model against itself: over examples, over seeds
    assert main([*words, "--markdown", str(tmp_path / "t.md")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["compare", "--runs", str(plain), str(tmp_path)]) == 1
    assert "no result.json" in capsys.readouterr().err


def test_partial_data_and_submission(
    stock_bert: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real files: what is absent is told, and --fill-missing completes the zip with constants, said to be so."""
    import zipfile

    data, out = shared / "data/glue", tmp_path / "out"
    words = ["--task", "wnli", "mnli", "qnli", "ax", "--epochs", "1", "--max-train-examples", "32"]
    assert main(arguments(stock_bert, data, out, *words)) == 0
    output = capsys.readouterr().out
    assert "QNLI: no train" in output and "MNLI-m: no train, no dev, no test" in output and "AX" in output
    assert "no submission.zip: CoLA, SST-2" in output and not (out / "submission.zip").exists()
    assert main(arguments(stock_bert, data, out, *words, "--fill-missing")) == 0
    output = capsys.readouterr().out
    assert (
        "CONSTANT predictions, not a model's, for CoLA, SST-2" in output and "WNLI" not in output.split("CONSTANT")[1]
    )
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert len(archive.namelist()) == 11
    assert main(arguments(stock_bert, data, tmp_path / "none", "--task", "qnli")) == 1
    assert "nothing to fine-tune: QNLI: no train" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_macaron_bert(stock_bert: Path, tiny_glue: Path, tmp_path: Path) -> None:
    from macaron.bert import MacaronBertConfig, MacaronBertForMaskedLM

    model = tmp_path / "macaron"
    tokenizer = AutoTokenizer.from_pretrained(stock_bert)
    config = MacaronBertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    MacaronBertForMaskedLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    for out, more in (("one", []), ("micro", ["--accumulate=2"])):
        assert main(arguments(model, tiny_glue, tmp_path / out, "--task", "mrpc", *more)) == 0
    (one,), (micro,) = predictions(tmp_path / "one").values(), predictions(tmp_path / "micro").values()
    np.testing.assert_allclose(micro["mrpc.dev.logits"], one["mrpc.dev.logits"], **ANOTHER_ORDER)


def test_macaron_bert_with_a_learned_horizon(stock_bert: Path, tiny_glue: Path, tmp_path: Path) -> None:
    """Layer and policy are trained, micro-batches change nothing, and dear steps are fewer."""
    from macaron.bert import MacaronBertConfig, MacaronBertForMaskedLM, MacaronBertForSequenceClassification

    model = tmp_path / "macaron"
    tokenizer = AutoTokenizer.from_pretrained(stock_bert)
    config = MacaronBertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, horizon="learned",
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    MacaronBertForMaskedLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    for out, more in (("one", []), ("micro", ["--accumulate=2"])):
        more += ["--task", "mrpc", "--save-model"]
        assert main(arguments(model, tiny_glue, tmp_path / out, *more)) == 0
    (one,), (micro,) = predictions(tmp_path / "one").values(), predictions(tmp_path / "micro").values()
    np.testing.assert_allclose(micro["mrpc.dev.logits"], one["mrpc.dev.logits"], **ANOTHER_ORDER)
    (folder,) = (tmp_path / "one" / "runs").iterdir()
    tuned = MacaronBertForSequenceClassification.from_pretrained(folder / "model")
    assert tuned.macaron_bert.policy.fc2.weight.abs().sum() > 0 and tuned.config.horizon_cost == 0
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = result["horizon"]["tasks"]["mrpc"]
    assert [line["cost"] for line in lines] == [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    steps = [line["steps"] for line in lines]
    assert steps == sorted(steps, reverse=True) and 1 <= steps[-1] <= steps[0] <= 3
    assert lines[0]["scores"] == result["scores"]["mrpc"]
    alike = result["horizon"]["alike"]["mrpc"]
    assert [line["steps"] for line in alike] == [1, 2, 3]
    whole = MacaronBertForSequenceClassification.from_pretrained(folder / "model")
    assert (whole.config.horizon, whole.config.num_hidden_layers, whole.config.horizon_cost) == ("learned", 3, 0.0)
    for line in lines:  # where all stop at one time, it is what as many steps for all give
        if line["steps"] in (1.0, 2.0, 3.0):
            assert line["scores"] == alike[int(line["steps"]) - 1]["scores"]
    report = (tmp_path / "one" / "report.md").read_text(encoding="utf-8")
    assert "price of a step" in report and f"| {steps[0]:.2f} |" in report
    assert all(f"| MRPC | none | {n}.00 |" in report for n in (1, 2, 3))
    assert (tmp_path / "one" / "depth.png").is_file()


def test_under_an_adversary(
    stock_bert: Path, tiny_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said in the setting, the folder's name and the card, and micro-batches change nothing about it; so are the
    attack and its scores, whatever stands together in a batch."""
    words = ["--task", "mrpc", "--adversary", "yopo-full-2-2", "--adversary-radius", "0.3", "--save-model"]
    words += ["--attack", "pgd-2", "--attack-step-size", "0.4", "--attack-radius", "0.6", "--attack-init", "0.2"]
    for out, more in (("one", []), ("micro", ["--accumulate=2", "--eval-batch-size=3"]), ("plain", [])):
        given = words[:2] + words[7:] if out == "plain" else [*words, *more]
        assert main(arguments(stock_bert, tiny_glue, tmp_path / out, *given)) == 0
    arrays = {out: next(iter(predictions(tmp_path / out).values())) for out in ("one", "micro", "plain")}
    found = {out: each["mrpc.dev.logits"] for out, each in arrays.items()}
    attacked = {out: each["mrpc.dev.attacked.logits"] for out, each in arrays.items()}
    np.testing.assert_allclose(found["micro"], found["one"], **ANOTHER_ORDER)
    np.testing.assert_allclose(attacked["micro"], attacked["one"], **ANOTHER_ORDER)
    towards = 1 - 2 * arrays["one"]["mrpc.dev.labels"][:, None]  # where the one logit loses
    assert ((attacked["one"] - found["one"]) * towards > 0).all() and ((attacked["one"] - found["one"]) < 10).all()
    assert np.abs(found["plain"] - found["one"]).max() > 1e-4
    (folder,) = (tmp_path / "one" / "runs").iterdir()
    assert "-yopo-full-2-2-l2-a0.1-r0.3-i0-s" in folder.name
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["setting"]["adversary"] == "yopo-full-2-2"
    assert "adversary yopo-full-2-2, adversary_step_size 0.1" in (folder / "model" / "README.md").read_text("utf-8")
    attack = "pgd-2, l2, step 0.4, radius 0.6, start 0.2"
    for file in ("table.csv", "report.md"):
        text = (tmp_path / "one" / file).read_text("utf-8")
        assert "yopo-full-2-2 l2 0.1" in text and attack in text
    assert f"dev under attack ({attack}), F1" in (folder / "model" / "README.md").read_text("utf-8")
    capsys.readouterr()
    assert main(["compare", "--runs", str(tmp_path / "plain"), str(tmp_path / "one"), "--samples", "20"]) == 0
    table = capsys.readouterr().out
    assert f"MRPC, F1/accuracy under {attack}" in table and "mean of 1 under attack" in table
    assert "attacks differ" not in table
    assert main(arguments(stock_bert, tiny_glue, tmp_path / "one", *words[:-1], "0.1")) == 1  # kept with the folder
    assert "attack_init" in capsys.readouterr().err


def test_models_that_do_not_load(tiny_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, tiny_glue, tmp_path / "out", "--task", "cola")) == 1
    assert "no config.json there" in capsys.readouterr().err
    assert main(arguments(tmp_path / "nowhere", tiny_glue, tmp_path / "out", "--task", "cola")) == 1
    assert "nowhere: no such folder" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}', encoding="utf-8")
    assert main(arguments(tmp_path, tiny_glue, tmp_path / "out", "--task", "cola")) == 1
    assert "cannot load it" in capsys.readouterr().err


# --- what goes wrong ------------------------------------------------------------------------------------------


def test_models_that_are_refused_leave_nothing(
    stock_bert: Path,
    tiny_glue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code of its own, no tokenizer, no layers: one line, before anything is made, and nobody is asked."""
    from safetensors.numpy import load_file, save_file

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    code, bare, hollow = (Path(shutil.copytree(stock_bert, tmp_path / name)) for name in ("code", "bare", "hollow"))
    auto_map = {"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.M"}
    (code / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": auto_map}), encoding="utf-8")
    (code / "code.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')\n", encoding="utf-8")
    for name in ("vocab.txt", "tokenizer.json"):
        (bare / name).unlink(missing_ok=True)
    tensors = load_file(hollow / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "encoder.layer" not in name}
    save_file(kept, hollow / "model.safetensors", {"format": "pt"})
    for model, message in [
        (code, "code from a model's folder is never run"),
        (bare, "has no tokenizer"),
        (hollow, "the weights lack 16 of 23 tensors of the encoder: encoder.layer.0."),
    ]:
        assert main(arguments(model, tiny_glue, tmp_path / "out", "--task", "cola")) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"recipes.glue: --model {model}: ") and message in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "witness").exists()


def test_a_classifier_is_fine_tuned_as_the_encoder_in_it(plain: Path, tiny_glue: Path, tmp_path: Path) -> None:
    """From the fine-tuned MNLI model, whose head has another size, and from CoLA's, whose head has the same."""
    for task in ("cola", "mnli"):
        model = plain / "runs" / f"{task}-e2-b16-lr0.01-wd0-s1" / "model"
        encoder = Path(shutil.copytree(model, tmp_path / task))
        BertModel.from_pretrained(model).save_pretrained(encoder)
        for name, folder in (("classifier", model), ("encoder", encoder)):
            assert main(arguments(folder, tiny_glue, tmp_path / f"{task}_{name}", "--task", "cola")) == 0
        (one,), (two,) = (predictions(tmp_path / f"{task}_{name}").values() for name in ("classifier", "encoder"))
        np.testing.assert_array_equal(one["cola.dev.logits"], two["cola.dev.logits"])


def test_saved_models_say_what_they_mean(plain: Path) -> None:
    from transformers import pipeline

    meant = {}
    for task in ("cola", "stsb", "mnli"):
        folder = plain / "runs" / f"{task}-e2-b16-lr0.01-wd0-s1" / "model"
        (outputs,) = pipeline("text-classification", model=str(folder), top_k=None)(["a good film"])
        meant[task] = outputs, folder
    (output,), folder = meant["cola"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logit = model(**tokenizer("a good film", return_tensors="pt")).logits
    # float32, which a batch rounds otherwise
    assert output["label"] == "acceptable" and output["score"] == pytest.approx(
        logit.sigmoid().item(), abs=1e-6
    )  # float32
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "its sigmoid is the probability of `acceptable`" in card and "CoLA, dev, Matthews correlation" in card
    assert "50 train lines instead of 8551" in card
    (output,), folder = meant["stsb"]
    assert output["label"] == "(similarity - 3) / 2"
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["glue"]["offset"] == 3
    assert "2 y + 3, clipped to 0 … 5" in (folder / "README.md").read_text(encoding="utf-8")
    assert {output["label"] for output in meant["mnli"][0]} == {"entailment", "neutral", "contradiction"}


def test_partial_sets_are_told_in_every_result(plain: Path) -> None:
    notes = json.loads((plain / "result.json").read_text(encoding="utf-8"))["notes"]
    for said in ("CoLA: 20 dev lines instead of 1043", "CoLA: 50 train lines instead of 8551", "MNLI-mm: 20 dev lines"):
        assert any(said in note for note in notes)
        assert said in (plain / "report.md").read_text(encoding="utf-8")
    assert len(notes) == len(set(notes))


@pytest.mark.parametrize("words", [["--lr=1e30"], ["--lr=1e30", "--epochs=1"], ["--lr=1e12"]])
def test_divergence_fails_the_run(
    words: list[str], stock_bert: Path, tiny_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(stock_bert, tiny_glue, out, "--task", "cola", "stsb", *words)) == 1
    error = capsys.readouterr().err
    assert error.count("the training diverged") >= 2 and "failed    cola-" in error and "failed    stsb-" in error
    assert not list(out.glob("runs/*/result.json")) and not list(out.glob("stamps/*.json"))
    text = (out / "result.json").read_text(encoding="utf-8")
    assert "NaN" not in text and len(json.loads(text)["failed"]) == 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_broken_run_leaves_the_others_alone(
    jobs: int, stock_bert: Path, tiny_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, broken = tmp_path / "out", "cola-e2-b16-lr0.01-wd0-s1"
    words = arguments(stock_bert, tiny_glue, out, "--task", "cola", "stsb", "--seeds", "2")
    assert main(words) == 0  # makes the folder
    words += ["1", "3"]
    (out / "runs" / broken).write_text("not a folder", encoding="utf-8")
    capsys.readouterr()
    assert main([*words, f"--jobs={jobs}"]) == 1
    error = capsys.readouterr().err
    assert f"failed    {broken}: FileExistsError" in error and error.count("failed    ") == 1
    assert len(predictions(out)) == 5
    assert list(json.loads((out / "result.json").read_text(encoding="utf-8"))["failed"]) == [broken]
    (out / "runs" / broken).unlink()
    assert main(words) == 0
    assert "5 of 6 done before" in capsys.readouterr().out and len(predictions(out)) == 6


def test_a_worker_that_is_killed_is_replaced(stock_bert: Path, tiny_glue: Path, tmp_path: Path) -> None:
    from recipes.common.jobs import KILLED, Call, run_all
    from recipes.glue.finetune import run_one
    from recipes.glue.settings import FineTuning, FineTuningOptions, Setting

    run = FineTuning(str(stock_bert), "cola", Setting(1, 16, 1e-3, max_length=24), 1, tmp_path / "run")
    options = FineTuningOptions(data_dir=tiny_glue, cpu=True, quiet=True)
    outcomes = run_all([Call("kill", os.abort), Call("run", run_one, (run, options))], [{"OMP_NUM_THREADS": "1"}])
    assert outcomes["kill"].error == KILLED and not outcomes["run"].error
    assert "cola" in outcomes["run"].value["scores"] and outcomes["run"].seconds > 0


def test_runs_of_other_data_or_tokenizers_are_not_mixed(
    stock_bert: Path, tiny_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = (Path(shutil.copytree(f, tmp_path / f.name)) for f in (tiny_glue, stock_bert))
    words = arguments(model, data, tmp_path / "out", "--task", "cola", "--seeds", "1")
    assert main(words) == 0
    for path, content, said in [
        (data / "CoLA/dev.tsv", (data / "CoLA/train.tsv").read_bytes()[:400], "another cola.dev than"),
        (data / "CoLA/train.tsv", (data / "CoLA/train.tsv").read_bytes().replace(b"dog", b"cat"), "training set"),
        (model / "vocab.txt", (model / "vocab.txt").read_bytes().lower().replace(b"red", b"red2"), "another tokenizer"),
    ]:
        before = path.read_bytes()
        path.write_bytes(content)
        for more in ([], ["2"]):  # the finished one, and one more
            assert main([*words, *more]) == 1
            assert said in capsys.readouterr().err
        path.write_bytes(before)
    assert main([*words, "2"]) == 0


def test_an_interrupted_run_goes_on_with_its_own_data_only(
    stock_bert: Path, tiny_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(stock_bert, tiny_glue, tmp_path / "out", "--task", "cola")
    assert main(words) == 0
    (folder,) = (tmp_path / "out").glob("runs/*")
    (stamp,) = (tmp_path / "out").glob("stamps/*.json")
    stamp.unlink()
    (folder / "result.json").unlink()
    begun = json.loads((folder / "begun.json").read_text(encoding="utf-8"))
    (folder / "begun.json").write_text(json.dumps({**begun, "data": "0" * 16}), encoding="utf-8")
    (folder / "checkpoints/checkpoint-4").mkdir(parents=True)
    (folder / "checkpoints/checkpoint-odd").mkdir()
    (folder / "checkpoints/checkpoint-4/trainer_state.json").write_text("[]", encoding="utf-8")  # not one of Trainer's
    assert main(words) == 1
    assert "was made with another training set" in capsys.readouterr().err
    (folder / "begun.json").write_text(json.dumps(begun), encoding="utf-8")
    assert main(words) == 0


def test_unknown_words_are_told(
    stock_bert: Path, tiny_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(tiny_glue, tmp_path / "data"))
    path = data / "CoLA/train.tsv"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join("\t".join([*row[:3], row[3].upper()[::-1]]) + "\n" for row in rows), encoding="utf-8")
    assert main(arguments(stock_bert, data, tmp_path / "out", "--task", "cola")) == 0
    assert "of the training text's pieces are [UNK]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda result: [],
        lambda result: {},
        lambda result: {**result, "tasks": 3},
        lambda result: {**result, "tasks": {"cola": []}},
        lambda result: {**result, "tasks": {"cola": {**result["tasks"]["cola"], "runs": ["../../elsewhere"] * 3}}},
        lambda result: {**result, "tasks": {"cola": {**result["tasks"]["cola"], "seeds": [1]}}},
        lambda result: {
            **result,
            "tasks": {"cola": {**result["tasks"]["cola"], "values": {"mcc": [float("nan")] * 3}}},
        },
        lambda result: {**result, "tasks": {"cola": {**result["tasks"]["cola"], "values": {"mcc": ["a"] * 3}}}},
        lambda result: {**result, "tasks": {"cola": {**result["tasks"]["cola"], "attacked": {"mcc": [1.0] * 3}}}},
        lambda result: {**result, "tasks": {"cola": {**result["tasks"]["cola"], "setting": {"attack": "pgd-1"}}}},
    ],
)
def test_results_of_another_shape(change: Any, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((plain / "result.json").read_text(encoding="utf-8"))
    (tmp_path / "result.json").write_text(json.dumps(change(result)), encoding="utf-8")
    assert main(["compare", "--runs", str(plain), str(tmp_path), "--samples", "5"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("recipes.glue: ") and "result.json" in line


def test_predictions_that_are_damaged_or_not_finite(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(plain, tmp_path / "out", ignore=shutil.ignore_patterns("model")))
    path = out / "runs/cola-e2-b16-lr0.01-wd0-s2/predictions.npz"
    whole, arrays = path.read_bytes(), dict(np.load(path))
    for content in (b"", whole[:100], whole[:-30], b"text", b"PK\x03\x04"):
        path.write_bytes(content)
        assert main(["compare", "--runs", str(plain), str(out), "--samples", "5"]) == 1
        assert f"{path}: cannot be read" in capsys.readouterr().err
    for logits, message in [
        (np.full((20, 1), np.nan, dtype=np.float32), "not finite"),
        (np.zeros((3, 1), dtype=np.float32), "another dev set"),
        (np.zeros((20, 2), dtype=np.float32), "another dev set"),
        (None, "holds no 'cola.dev.logits'"),
    ]:
        changed = {name: value for name, value in arrays.items() if name != "cola.dev.logits"}
        np.savez(path, **changed, **({} if logits is None else {"cola.dev.logits": logits}))
        assert main(["compare", "--runs", str(plain), str(out), "--samples", "5"]) == 1
        assert message in capsys.readouterr().err


def test_part_of_a_dev_set_is_told_in_a_comparison(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--runs", str(plain), str(plain), "--names", "a|b", "c", "--samples", "5"]) == 0
    output = capsys.readouterr().out
    assert "(20 of 1043 dev examples)" in output and "| a\\|b |" in output
