"""The command: a run of seconds, the same again after an interruption, its report, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.common.errors import RecipeError
from recipes.denoise import evaluation, models, pipeline, results, training
from recipes.denoise.__main__ import main
from recipes.denoise.images import degraded, psnr
from recipes.denoise.settings import settings_for


class Killed(BaseException):
    pass


def contents(folder: Path) -> dict[str, bytes]:
    """Of the files that a stage made; those of one run name its times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".pt", ".png", ".csv") and path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_a_run_and_the_same_after_interruptions(data_dir, tiny, tmp_path, capsys, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ["--data-dir", str(data_dir), *tiny]
    assert main([*options, "--out", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert "| the talk: DURR | 29.16 | 24.71* |" in shown and "| σ 75* |" in shown
    assert "| DURR, policy |" in shown and "| DnCNN without biases |" in shown and "The best number of steps" in shown

    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    keep, calls = training.keep, 0

    def killed_at_times(*arguments):
        nonlocal calls
        keep(*arguments)
        calls += 1
        if calls % 9 == 5:
            raise Killed

    monkeypatch.setattr(training, "keep", killed_at_times)
    kills = 0
    while True:
        try:
            assert main([*options, "--out", str(broken)]) == 0
            break
        except Killed:
            kills += 1
    assert kills >= 3
    monkeypatch.setattr(training, "keep", keep)
    first, second = contents(whole), contents(broken)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and "state" not in name] == []

    report = (whole / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", report) and report.count("<img") == 3 + 2
    rows = list(csv.DictReader((whole / "results.csv").open()))
    assert len(rows) == 2 * 2 * (3 + 5 + 1)
    result = json.loads((whole / "result.json").read_text())
    record = json.loads((whole / "seed-1" / "test" / "75.json").read_text())
    policy = np.mean([image["durr"][image["policy"]] for image in record["images"].values()])
    assert result["levels"]["75"]["1"]["policy"] == pytest.approx(policy)

    # another seed can be added, other settings cannot; the model restores a picture
    monkeypatch.undo()
    capsys.readouterr()
    assert main([*options, "--out", str(whole), "--rate", "0.01"]) == 1
    assert "rate = 0.002 there, 0.01 now" in capsys.readouterr().err
    picture = data_dir / "bsd68" / "image1.png"
    assert main(["restore", str(whole), str(picture), "--out", str(tmp_path / "out")]) == 0
    assert "image1.png: 31 × 25" in capsys.readouterr().out
    assert main(["restore", str(whole / "seed-1" / "dncnn.pt"), str(picture), "--out", str(tmp_path / "out2")]) == 0
    with (whole / "seed-1" / "dncnn.pt").open("ab") as file:
        file.write(b" ")
    assert main([*options, "--out", str(whole)]) == 1
    assert "dncnn.pt: has changed since" in capsys.readouterr().err


def test_jpeg_with_fixed_steps_and_two_seeds(data_dir, tiny, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--task", "jpeg", "--horizon", "fixed", "--seeds", "1", "2", "--test-levels", "10", "20"]
    options += ["--steps", "2", "--updates", "4"]
    given = ["--data-dir", str(data_dir), *tiny, "--out", str(out), *options]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "quality 10*" in shown and "32.45, a misprint" in shown and "DURR, 2 steps for all" in shown
    assert "DURR, policy" not in shown and re.search(r"DnCNN with biases \| \d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]", shown)
    model, kind = models.load(out)
    assert isinstance(model, models.Durr) and model.policy is None and model.steps == 2 and kind["task"] == "jpeg"


@pytest.mark.slow  # BM3D takes seconds for the smallest image
def test_bm3d_is_told_sigma(data_dir):
    pytest.importorskip("bm3d")
    clean = np.asarray(Image.open(data_dir / "bsd68" / "image0.png"), dtype=np.float32)
    record = evaluation.bm3d({"image0.png": clean}, 25.0)
    noisy = psnr(degraded("gaussian", "image0.png", clean, 25.0), clean)
    assert record["images"]["image0.png"] > noisy + 5


def test_evaluation_counts_steps_from_the_input():
    """A unit that goes half of the way to 0.5 at each step, on an image that is 0.5: the last step is best."""

    class Half(torch.nn.Module):
        def forward(self, x, y):
            return (0.5 - x) / 2

    class Stops(evaluation.PolicyUnit):
        def decide(self, seen, memory=None):
            n = 0 if memory is None else memory
            return torch.tensor([[float(n == 2), 0.5]]), n + 1

    settings = settings_for("gaussian", "small", most=4, steps=(1, 2, 2, 3), test_levels=(25.0,))
    clean = {name: np.full((10, 11), 127.5, np.float32) for name in "ab"}
    nets = {"unit": Half(), "policy": Stops(1, 2), "dncnn": torch.nn.Identity(), "dncnn_free": torch.nn.Identity()}
    record = evaluation.evaluate(nets, clean, 25.0, settings, torch.device("cpu"))
    for image in record["images"].values():
        np.testing.assert_allclose(np.diff(image["durr"]), 20 * np.log10(2), atol=1e-3)  # error halved; float32
        assert image["policy"] == 2 and image["dncnn"] == image["durr"][0]
    said = results.summary(record, settings)
    assert said["best_steps"] == said["oracle_steps"] == 4 and said["policy_steps"] == 2
    assert said["oracle"] - said["policy"] == pytest.approx(40 * np.log10(2), abs=1e-3)
    assert said["fixed"] == said["by_steps"][3] and said["table"] == said["by_steps"][1]


def test_pictures_of_the_report():
    for task, levels, expected in (
        ("gaussian", (75.0, 25.0, 55.0, 95.0, 35.0), [25, 55, 95]),
        ("jpeg", (10.0, 20.0, 30.0, 40.0), [30, 20, 10]),
        ("gaussian", (95.0,), [95]),
    ):
        settings = settings_for(task, "small", test_levels=levels)
        experiment = pipeline.Experiment(settings, (1,), Path(), {}, {"a": np.zeros(1)}, torch.device("cpu"))
        assert experiment.shown() == (["a"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data-dir", "nowhere"],
            r"nowhere/train400: no such folder; give the folder that holds train400 by --data-dir",
        ),
        (["--patch", "21"], r"image0\.png: has 22 × 20 pixels, but 21 both ways are needed"),
        (["--policy-patch", "21"], "but 21 both ways are needed"),
        (["--test-levels", "0"], "0 is no σ"),
        (["--seeds", "0"], "--seeds 0"),
        (["--threads", "0"], "--threads 0"),
        (["--device", "cuda:7"], "finds no such GPU|--device"),
        (["--device", "nonsense"], "--device nonsense"),
    ],
)
def test_what_is_refused(data_dir, tiny, tmp_path, capsys, options, message):
    assert main(["--data-dir", str(data_dir), "--out", str(tmp_path / "o"), *tiny, *options]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "o").exists()


def test_no_images_are_named(tiny, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "o"), *tiny]) == 1
    assert "--data-dir: give the folder that holds train400" in capsys.readouterr().err


def test_a_damaged_training_image_is_named(data_dir, tiny, tmp_path, capsys):
    path = data_dir / "train400" / "image1.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["--data-dir", str(data_dir), "--out", str(tmp_path / "o"), *tiny]) == 1
    assert "image1.png: is damaged" in capsys.readouterr().err


def test_images_are_part_of_the_settings(data_dir, tiny, tmp_path):
    settings = settings_for("gaussian", "small", patch=16, policy_patch=16)
    first, second = (
        pipeline.gather(settings, (1,), tmp_path, data_dir / name, data_dir / "bsd68", torch.device("cpu")).settings
        for name in ("train400", "live1")
    )
    assert first.train != second.train and first.test == second.test
    assert dataclasses.replace(first, train="", test="") == settings


def test_two_published_images(real, tmp_path):
    """A unit of the published size that has learned nothing is no worse than its input at step 0."""
    names = ("test001.png", "test002.png")
    clean = {name: np.asarray(Image.open(real / "bsd68" / name), dtype=np.float32) for name in names}
    assert all(side % 2 for image in clean.values() for side in image.shape)
    settings = settings_for("gaussian", "small", most=1, steps=(1,), horizon="table", crop=0)
    nets = {name: models.new(name, settings, 1) for name in models.NAMES}
    record = evaluation.evaluate(nets | {"unit": nets["durr"]}, clean, 25.0, settings, torch.device("cpu"))
    for image in record["images"].values():
        assert image["durr"][0] == image["dncnn"] > image["noisy"]  # which is not clipped
        assert image["noisy"] == pytest.approx(20.17, abs=0.05)
    with pytest.raises(RecipeError, match="no such folder"):
        pipeline.gather(settings, (1,), tmp_path, real / "bsd", real / "bsd68", torch.device("cpu"))
