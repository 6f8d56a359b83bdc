"""The whole pipeline through its command line: killed, resumed, left alone when finished, shared, on two processes."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.common.errors import RecipeError
from recipes.common.workspace import Made, Workspace, read_json, read_lines
from recipes.translation.cli import recipe_from
from recipes.translation.pipeline import STAGES, Pipeline
from recipes.translation.recipe import load


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "checkpoint_last.pt", weights_only=True)["model"]


def test_killed_and_resumed(finished) -> None:
    assert "prepare   done before" in finished.output
    assert "truncated or corrupt" in finished.output and "going on from" in finished.output
    log = (finished.folder / "train.log").read_text(encoding="utf-8")
    resumed = re.findall(r"Loaded checkpoint .*checkpoint_last\.pt \(epoch \d+ @ (\d+) updates\)", log)
    assert resumed and int(resumed[-1]) >= 4, log[-2000:]
    stamp = read_json(finished.folder / "stamps" / "train.json")
    assert stamp["updates"] == 24 and stamp["processes"] == 1 and stamp["batch_tokens"] == 240
    assert "fairseq-hydra-train --config-dir" in stamp["command"]
    averaged = read_json(finished.folder / "stamps" / "average.json")["averaged"]
    assert len(averaged) == 2 and all(re.fullmatch(r"checkpoint_\d+_\d+\.pt", name) for name in averaged)


def test_what_it_leaves_behind(finished) -> None:
    folder = finished.folder
    scores = read_json(folder / "scores.json")
    assert set(scores) == {"paper", "sacreBLEU", "chrF2"}
    assert all(entry["title"] in finished.output and entry["signature"] in finished.output for entry in scores.values())
    for kind, name in (("hyp", "test"), ("hyp", "test.tok"), ("raw", "test"), ("text", "test")):
        assert len(read_lines(folder / kind / f"{name}.en")) == 12
    assert "@@" not in (folder / "hyp" / "test.tok.en").read_text(encoding="utf-8")
    assert {path.stem for path in (folder / "stamps").glob("*.json")} >= set(STAGES)


def test_what_it_shows_at_its_end(finished) -> None:
    texts = (read_lines(finished.folder / name) for name in ("raw/test.de", "raw/test.en", "hyp/test.en"))
    shown = "".join(
        f"\n  de          {source}\n  reference   {reference}\n  translation {translation}\n"
        for source, reference, translation in list(zip(*texts, strict=True))[:10]
    )
    assert shown in finished.output
    assert f"  report:   {finished.folder / 'report/index.html'}\n" in finished.output
    assert f"  use it:   macaron translate {finished.folder / 'release'} text.de > text.en\n" in finished.output


def test_finished_work_is_left_alone(finished, recipe_command) -> None:
    def state() -> dict[str, int]:
        names = ("train.log", "average.pt", "hyp/test.en", "report/index.html", "release/model.pt", "data-bin/codes")
        return {name: (finished.folder / name).stat().st_mtime_ns for name in names}

    before = state()
    done = recipe_command("--out", finished.folder, "--data-dir", finished.data_dir)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("done before") == len(STAGES) and "sacreBLEU" in done.stdout
    assert state() == before


def test_other_settings_are_refused(finished, recipe_here) -> None:
    done = recipe_here("--out", finished.folder, "--seed=2")
    assert done.returncode == 1
    assert "common.seed = 1 there, 2 now" in done.stdout and "--restart" in done.stdout


def test_a_result_that_changed_is_not_passed_on(finished, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(finished.folder, copy)
    recipe = recipe_from("iwslt14_de_en", [])
    space = Workspace.__new__(Workspace)
    space.folder = copy
    (copy / "hyp" / "test.en").write_text("other\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"hyp/test\.en: has changed since stage 'translate' made it"):
        Pipeline(recipe, space).run("score")


def test_what_follows_a_repeated_stage_is_repeated(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "out"
    shutil.copytree(finished.folder, copy)
    space = Workspace.__new__(Workspace)
    space.folder = copy
    (copy / "stamps" / "average.json").unlink()
    pipeline = Pipeline(recipe_from("iwslt14_de_en", []), space)
    done: list[str] = []
    for stage in STAGES:
        monkeypatch.setattr(pipeline, stage, lambda stage=stage: done.append(stage) or Made())
    pipeline.run("score")
    assert done == ["average", "translate", "score"]
    assert {path.stem for path in (copy / "stamps").glob("*.json")} & set(STAGES) == set(STAGES[:5])


@pytest.fixture(scope="module")
def fake_slurm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`srun` that runs two "nodes" on this machine, and `scontrol` that names the first."""
    folder = tmp_path_factory.mktemp("slurm")
    scripts = {
        "scontrol": "#!/bin/bash\necho localhost\n",
        "srun": "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"
        'SLURM_NODEID=1 "$@" & other=$!\nSLURM_NODEID=0 "$@"; status=$?\nwait $other && exit $status\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def test_two_nodes_under_slurm_make_the_same_model(
    finished, recipe_here, recipe_settings, recipe_environment, project_root, fake_slurm, tmp_path: Path
) -> None:
    """The ready script on two nodes of one process each, against one process: the effective batch is the same."""
    options = ["--prepared", str(finished.folder), "--max-update=6", "--splitting=lie"]
    alone = recipe_here("train", "--out", tmp_path / "one", *options)
    assert alone.returncode == 0 and "prepare   shared with" in alone.stdout, alone.stdout
    environment = {
        **recipe_environment,
        "PATH": f"{fake_slurm}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    script = project_root / "recipes" / "translation" / "slurm" / "train.sbatch"
    arguments = ["iwslt14_de_en", "train", "--out", str(tmp_path / "two"), *recipe_settings, *options]
    together = subprocess.run(
        ["bash", str(script), *arguments], cwd=project_root, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert together.returncode == 0, together.stdout + (tmp_path / "two" / "train.log").read_text()

    stamps = {name: read_json(tmp_path / name / "stamps" / "train.json") for name in ("one", "two")}
    assert [stamps[name]["processes"] for name in ("one", "two")] == [1, 2]
    assert [stamps[name]["updates"] for name in ("one", "two")] == [6, 6]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, rtol=0, atol=1e-5
        )  # the mean of two gradients is taken in another order
    assert (finished.folder / "data-bin" / "codes").stat().st_nlink == 3, "shared, not copied"


def test_data_prepared_otherwise_is_not_shared(finished, recipe_here, tmp_path: Path) -> None:
    done = recipe_here("prepare", "--out", tmp_path / "out", "--prepared", finished.folder, "--units=70")
    assert done.returncode == 1
    assert "prepared otherwise (text.units = 60 there, 70 here)" in done.stdout


def test_recipes_on_raw_text_are_scored_in_words(tmp_path: Path) -> None:
    recipe = load("multi30k_de_en")
    text = dataclasses.replace(recipe.text, tokenizer="none", subword="sentencepiece")
    recipe = recipe.changed(text=text)
    pipeline = Pipeline(recipe, Workspace(tmp_path / "run", recipe.settings()))
    for name, line in (("hyp/test.en", "Yes, it's."), ("raw/test.en", "No!"), ("raw/test.de", "Nein, z.B. so.")):
        (pipeline.folder / name).parent.mkdir(exist_ok=True)
        (pipeline.folder / name).write_text(line + "\n", encoding="utf-8")
    assert pipeline.words() == (["Yes , it &apos;s ."], ["No !"], ["Nein , z.B. so ."])
    pipeline.space.lock.close()
