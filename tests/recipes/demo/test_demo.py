"""The whole demo through its command line: killed while it trains, resumed, finished, and left alone after that."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU, CHRF

SETTINGS = ["--train-size=300", "--vocab-size=400", "--max-tokens=600", "--max-update=20", "--average=2", "--beam=1"]


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "recipes.demo", "--out", str(out), *SETTINGS, *more]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


def run(out: Path, root: Path, environment: dict[str, str], *more: str) -> tuple[int, str]:
    """(status, output)"""
    done = subprocess.run(
        command(out, *more), cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout


def kill_while_training(out: Path, root: Path, environment: dict[str, str]) -> None:
    """SIGKILL to the demo and its training, as soon as an epoch is saved."""
    with (out.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command(out), cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.time() + 600
        try:
            while not (out / "checkpoints" / "checkpoint_last.pt").exists():
                assert process.poll() is None, (out.parent / "killed.log").read_text()
                assert time.time() < deadline, "no checkpoint after ten minutes"
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_killed_resumed_finished(tmp_path: Path, project_root: Path, environment: dict[str, str]) -> None:
    out = tmp_path / "out"
    kill_while_training(out, project_root, environment)
    assert not (out / "stamps" / "train.json").exists()
    last = out / "checkpoints" / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[:5000])  # as if the kill had come in the middle of writing it

    status, output = run(out, project_root, environment)
    assert status == 0, output
    assert "prepare   done before" in output
    assert "truncated or corrupt" in output and "going on from" in output
    resumed = re.findall(
        r"Loaded checkpoint .*checkpoint_last\.pt \(epoch \d+ @ (\d+) updates\)",
        log := (out / "train.log").read_text(encoding="utf-8"),
    )
    assert resumed and int(resumed[-1]) > 0, log[-2000:]

    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["updates"] == 20
    assert result["sentences"] == {"train": 300, "valid": 500, "test": 500}
    hypotheses, references = (
        (out / name).read_text(encoding="utf-8").splitlines() for name in ("test.hyp.en", "text/test.en")
    )
    for name, metric in (("BLEU", BLEU()), ("chrF2", CHRF())):
        expected = metric.corpus_score(hypotheses, [references]).score
        assert result["scores"][name]["score"] == pytest.approx(expected, abs=0.005)  # two digits are written
    assert result["scores"]["chrF2"]["score"] > 0
    assert "tok:13a" in result["scores"]["BLEU"]["signature"] and result["scores"]["chrF2"]["signature"]
    assert len(hypotheses) == len(references) == 500
    assert str(out) in output

    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.count('src="data:image/png;base64,') == 2
    assert not re.search(r'(src|href)="http', report), "the report must open without a network"

    train_log = (out / "train.log").stat()
    status, output = run(out, project_root, {**environment, "PYTHONPROFILEIMPORTTIME": "1"})
    assert status == 0, output
    assert output.count("done before") == 5 and "BLEU" in output
    assert (out / "train.log").stat().st_mtime_ns == train_log.st_mtime_ns
    imported = set(re.findall(r"^import time:.*\|\s*(\w+)$", output, re.MULTILINE))
    assert "recipes" in imported and not imported & {"fairseq", "matplotlib"}  # so it takes a second

    status, output = run(out, project_root, environment, "--seed=2")
    assert status == 1
    assert "seed = 1 there, 2 now" in output and "--restart" in output


def test_missing_data_folder(tmp_path: Path, project_root: Path, environment: dict[str, str]) -> None:
    status, output = run(
        tmp_path / "out", project_root, environment, "--corpus=multi30k", f"--data-dir={tmp_path / 'nowhere'}"
    )
    assert status == 1
    assert "nowhere: no such folder; it must hold train.de" in output and "Traceback" not in output


def test_a_vocabulary_that_does_not_suit(tmp_path: Path, project_root: Path, environment: dict[str, str]) -> None:
    status, output = run(tmp_path / "out", project_root, environment, "--vocab-size=90000")
    assert status == 1
    assert "vocab_size 90000 does not suit the corpus" in output and "choose another --vocab-size" in output


def test_help(project_root: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "recipes.demo", "--help"],
        cwd=project_root, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(option in done.stdout for option in ("--corpus", "--out", "--data-dir", "--restart", "--max-update"))
