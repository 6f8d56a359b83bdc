"""Both experiments through the command line, on a few images."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from macaron import checkpoint
from recipes.images import training
from recipes.images.__main__ import main

ROBUST = ["--dataset=mnist", "--channels-scale=1/16", "--batch=20", "--epochs", "2", "--attack-steps=2", "--lr=0.1",
          "--attacked-images=20", "--device=cpu", "--jobs=1",
          "--adversaries", "natural", "pgd-2", "yopo-2-2"]  # fmt: skip
DEPTH = ["--dataset=cifar10", "--size=16", "--batch=20", "--epochs", "1", "--device=cpu", "--jobs=1",
         "--seeds", "1", "2"]  # fmt: skip


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


def timeless(content: dict[str, Any]) -> dict[str, Any]:
    """Of a result, what does not depend on the machine."""
    found = {}
    for name, seeds in content["runs"].items():
        for seed, run in seeds.items():
            found[name, seed] = [{k: v for k, v in e.items() if "seconds" not in k} for e in run["history"]]
    return found


def test_robust_training(mnist, tmp_path, capsys) -> None:
    out, folder = tmp_path / "out", mnist()
    command = [*ROBUST, f"--data-dir={folder}", f"--out={out}"]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "80 of the 60,000 training images" in said and not out.exists()
    assert "yopo-2-2: " in said and "8 batches of 20, SGD lr 0.05" in said

    assert main(command) == 0
    said = capsys.readouterr().out
    found = result(out)
    for name, passes in (("natural", 1), ("pgd-2", 4), ("yopo-2-2", 2)):
        run = found["runs"][name]["1"]
        assert run["batch_passes"] == passes and [e["epoch"] for e in run["history"]] == [1.0, 2.0]
        last = run["history"][-1]
        assert last["robust"] >= 0 and 0 <= last["accuracy"] <= 100 and last["seconds"] > 0
        saved = checkpoint.load(out / name / "seed-1" / "model.pt")["model"]
        assert all(torch.isfinite(value).all() for value in saved.values())
        assert not (out / name / "seed-1" / "last.pt").exists()
    with (out / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["run"] for row in rows} == {"natural", "pgd-2", "yopo-2-2"}
    markdown = (out / "report.md").read_text(encoding="utf-8")
    for text in ("80 of 60,000 training images", "| yopo-5-3 |", "47.98", "cannot be compared", "PGD-2: ε = 0.3",
                 "0.0625 times the channels", "minutes mix two things"):  # fmt: skip
        assert text in markdown
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64") == 2 and "http://" not in page.replace("http://www.w3.org", "")
    assert (out / "minutes.png").stat().st_size > 1000

    # Nothing is trained again; an adversary can be added; other settings are refused.
    assert main([*command, "--adversaries", "natural", "pgd-2", "yopo-2-2", "freeat-2"]) == 0
    again = result(out)
    assert {k: v for k, v in timeless(again).items() if k[0] != "freeat-2"} == timeless(found)
    assert again["runs"]["yopo-2-2"] == found["runs"]["yopo-2-2"]
    assert again["runs"]["freeat-2"]["1"]["updates"] == 8
    assert main([*command, "--epsilon=0.2", "--train-images=40"]) == 1
    err = capsys.readouterr().err
    assert "made with other settings (epsilon = 0.3 there, 0.2 now; images = " in err
    assert "train_images = 80 there, 40 now" in err


def test_lm_resnet(cifar, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    variants = ["resnet", "lm_resnet", "resnet,stochastic_depth=0.5"]
    command = [*DEPTH, f"--data-dir={cifar()}", f"--out={out}", "--variants", *variants]
    assert main(command) == 0
    found = result(out)
    assert list(found["runs"]) == variants
    for name, run in found["runs"].items():
        assert set(run) == {"1", "2"} and "robust" not in run["1"]["history"][-1]
        assert run["1"]["parameters"] == (272_384 if name == "lm_resnet" else 272_378)
        assert run["1"]["stored_by_the_original"] == 273_475
    assert [len(k) for k in found["runs"]["lm_resnet"]["1"]["history"][-1]["k"]] == [2, 2, 2]
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\| lm_resnet \| 2 \| 272,384 \| [\d.]+ ± [\d.]+ \|.*p = .*\(2 seeds\) \| 91.67 \|", markdown)
    assert "| resnet,stochastic_depth=0.5 | 2 |" in markdown and "91.25" in markdown
    assert "60 of 50,000 training images; 40 of 10,000 test images; images of 16 x 16 pixels" in markdown
    assert "lm_resnet: all 12 learned k are zero-stable" in markdown and "stage 3, block 3" in markdown
    assert "273,475" in markdown and (out / "k.png").exists() and not (out / "minutes.png").exists()

    assert main([*command[:-3], "resnet", "--seeds", "1", "3"]) == 0  # seeds can be added, and left out
    assert set(result(out)["runs"]["resnet"]) == {"1", "3"}


@pytest.mark.slow
def test_an_adversary_of_a_resnet(cifar, tmp_path) -> None:
    out = tmp_path / "out"
    command = [*DEPTH, f"--data-dir={cifar()}", f"--out={out}", "--adversary", "yopo-1-1", "--attack-steps=1"]
    assert main([*command, "--variants", "lm_resnet", "--seeds", "1", "--attacked-images=10"]) == 0
    assert list(result(out)["runs"]) == ["lm_resnet yopo-1-1"]


def test_an_interrupted_command_goes_on(mnist, tmp_path, capsys, monkeypatch) -> None:
    folder, whole, cut = mnist(), tmp_path / "whole", tmp_path / "cut"
    command = [*ROBUST[:-3], "yopo-2-2", f"--data-dir={folder}", "--save-every=0"]
    assert main([*command, f"--out={whole}"]) == 0
    real, count = training.Training.update, 0

    def update(self) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "update", update)
        assert main([*command, f"--out={cut}"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert (cut / "yopo-2-2" / "seed-1" / "last.pt").exists()
    assert main([*command, f"--out={cut}"]) == 0
    assert "goes on in epoch 0.75" in capsys.readouterr().out
    assert timeless(result(whole)) == timeless(result(cut))
    weights = [checkpoint.load(out / "yopo-2-2" / "seed-1" / "model.pt")["model"] for out in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_damaged_files_are_told_and_left_out(mnist, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command = [*ROBUST[:-3], "natural", "yopo-1-1", f"--data-dir={mnist()}", f"--out={out}"]
    place = out / "natural" / "seed-1"
    assert main(command) == 0
    (place / "stamps" / "train.json").unlink()
    (place / "last.pt").write_bytes(b"PK\3\4 damaged")
    (out / "yopo-1-1" / "seed-1" / "model.pt").write_bytes(b"x")
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "natural, seed 1 failed" in err and "last.pt: cannot be gone on from" in err and "delete it" in err
    assert "yopo-1-1, seed 1 failed" in err and "model.pt: has changed since" in err
    assert result(out)["runs"] == {"natural": {}, "yopo-1-1": {}}
    assert "natural: no seed is finished" in (out / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_killed_with_workers_and_gone_on_with(shared, tmp_path, project_root) -> None:
    """kill -9 of the command, with two runs at a time on the real images: both go on with the same bits."""
    images = shared / "data" / "images" / "mnist"
    command = [sys.executable, "-m", "recipes.images", "--dataset=mnist", f"--data-dir={images}", "--train-images=1000",
               "--test-images=200", "--attacked-images=50", "--attack-steps=3", "--channels-scale=1/8", "--epochs", "6",
               "--device=cpu", "--jobs=2", "--save-every=0", "--adversaries", "natural", "yopo-2-2"]  # fmt: skip
    run = {"cwd": project_root, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    subprocess.run([*command, f"--out={tmp_path / 'whole'}"], check=True, **run)
    cut = [*command, f"--out={tmp_path / 'cut'}"]
    process = subprocess.Popen(cut, **run)
    last = tmp_path / "cut" / "yopo-2-2" / "seed-1" / "last.pt"
    deadline = time.time() + 300
    while not last.exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.exists()
    time.sleep(5)  # for the workers to see it
    subprocess.run(cut, check=True, **run)
    assert timeless(result(tmp_path / "whole")) == timeless(result(tmp_path / "cut"))
