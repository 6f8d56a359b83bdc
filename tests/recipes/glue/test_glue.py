"""The command line end to end: every task, two processes, a kill, a second look, a comparison, the submission."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recipes.glue.__main__ import main

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
                np.testing.assert_allclose(other[run][name], expected, rtol=1e-4, atol=2e-5, err_msg=f"{run} {name}")
            before, after = (load_file(f / "runs" / run / "model" / "model.safetensors") for f in (plain, out))
            for name, expected in before.items():
                np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=2e-5, err_msg=f"{run} {name}")
            one, many = (json.loads((f / "runs" / run / "result.json").read_text()) for f in (plain, out))
            for figure in ("loss", "gradient_norm"):  # Adam forgives a wrong scale, these do not
                np.testing.assert_allclose(many[figure], one[figure], rtol=1e-3, err_msg=f"{run} {figure}")
            for task, metrics in one["scores"].items():
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
        np.testing.assert_allclose(killed[name], expected, rtol=1e-5, atol=1e-6)


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
        np.testing.assert_allclose(arrays["cola.dev.logits"], reference[run]["cola.dev.logits"], rtol=1e-5, atol=1e-6)


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
    from transformers import AutoTokenizer

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
    np.testing.assert_allclose(micro["mrpc.dev.logits"], one["mrpc.dev.logits"], rtol=1e-4, atol=2e-5)


def test_models_that_do_not_load(tiny_glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, tiny_glue, tmp_path / "out", "--task", "cola")) == 1
    assert "no config.json there" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}', encoding="utf-8")
    assert main(arguments(tmp_path, tiny_glue, tmp_path / "out", "--task", "cola")) == 1
    assert "cannot load it" in capsys.readouterr().err
