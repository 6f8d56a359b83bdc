"""Options, before anything heavy is imported; schedules of the papers and of the authors' code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.images.__main__ import main
from recipes.images.settings import Adversary, Variant, epochs_of, number, schedule, settings_for


def of(dataset: str, model: str, **more):
    return settings_for({"dataset": dataset, "model": model} | more, 50_000, 10_000)


def test_adversaries_and_their_passes() -> None:
    passes = {"natural": 1, "pgd-40": 42, "madry-7": 8, "freeat-8": 8, "yopo-5-10": 5, "yopo-full-5-3": 5}
    for name, count in passes.items():
        adversary = Adversary.parse(name)
        assert adversary.name == name and adversary.passes == count
    for wrong in ("", "pgd", "pgd-0", "yopo-5", "yopo-0-3", "yopo-5-3-1", "natural-1", "fgsm", "pgd-5000", "PGD-4"):
        with pytest.raises(RecipeError, match="--adversaries"):
            Adversary.parse(wrong)


def test_variants() -> None:
    assert Variant.parse("lm_resnet").values == {"depth_rule": "multistep", "multistep_init": "lm_resnet"}
    variant = Variant.parse("lm_resnet, stochastic-depth=0.50 ,multistep_init=0")
    assert variant.name == "lm_resnet,multistep_init=0,stochastic_depth=0.5"
    assert variant.values["multistep_init"] == "0"
    for wrong in ("strang", "resnet,multistep", "resnet,dt=a", "resnet,dt=1,dt=2", "resnet,splitting=lie", ""):
        with pytest.raises(RecipeError, match="--variants"):
            Variant.parse(wrong)


def test_schedules_of_the_authors() -> None:
    yopo, pgd = Adversary.parse("yopo-5-3"), Adversary.parse("pgd-10")
    plan = schedule(of("mnist", "small_cnn"), Adversary.parse("yopo-5-10"))
    assert (plan.epochs, plan.lr, plan.batch, plan.weight_decay) == (41, 0.01 / 5, 256, 5e-4)
    assert plan.milestones == (30, 35, 39) and plan.first_milestones == (15, 19)
    assert plan.rates(14) == plan.rates(0) == (0.002, 0.002)
    assert plan.rates(19) == pytest.approx((0.002, 0.00002)) and plan.rates(35)[0] == pytest.approx(0.00002)
    for model, lr, decay in (("preact18", 0.05, 5e-4), ("wrn34", 0.1, 2e-4)):
        plan = schedule(of("cifar10", model), pgd)
        assert (plan.epochs, plan.milestones, plan.lr, plan.weight_decay) == (105, (75, 90, 100), lr, decay)
    for model, lr in (("preact18", 0.2), ("wrn34", 0.4)):
        plan = schedule(of("cifar10", model), yopo)
        assert (plan.epochs, plan.milestones, plan.lr, plan.weight_decay) == (37, (30, 34, 36), lr / 5, 5e-4)
        assert plan.first_milestones == plan.milestones and "changed" not in plan.source
    assert "ours" in schedule(of("cifar10", "preact18"), Adversary("natural")).source


def test_schedules_of_the_papers() -> None:
    plan = schedule(of("cifar10", "resnet"), Adversary("natural"))
    assert (plan.epochs, plan.lr, plan.milestones, plan.weight_decay, plan.batch) == (160, 0.1, (80, 120), 1e-4, 128)
    assert plan.updates(50_000) == 160 * 391
    assert schedule(of("cifar100", "resnet"), Adversary("natural")).milestones == (150, 225)


def test_other_epochs_move_the_milestones() -> None:
    settings = of("cifar10", "resnet", epochs=epochs_of(["12"]))
    plan = schedule(settings, Adversary("natural"))
    assert (plan.epochs, plan.milestones) == (12, (6, 9)) and plan.source.endswith("changed: epochs")
    both = of("mnist", "small_cnn", epochs=epochs_of(["6", "pgd-40=3"]), milestones=[2, 5], lr=0.1)
    assert schedule(both, Adversary.parse("pgd-40")).epochs == 3
    plan = schedule(both, Adversary.parse("yopo-5-10"))
    assert (plan.epochs, plan.milestones, plan.first_milestones, plan.lr) == (6, (2, 5), (2, 5), 0.02)
    plan = schedule(of("mnist", "small_cnn", epochs=epochs_of(["20"])), Adversary.parse("freeat-8"))
    assert (plan.epochs, plan.replays) == (3, 8)


def test_numbers() -> None:
    assert [number(text) for text in ("8/255", "½", "0.3", "1e-2")] == [8 / 255, 0.5, 0.3, 0.01]
    for wrong in ("", "a", "1/0", "1/2/3", "nan", "__import__"):
        with pytest.raises(ValueError):
            number(wrong)
    for words in (["a"], ["pgd-4=x"], ["1", "2"], ["pgd=3"], ["-1"]):
        with pytest.raises(RecipeError):
            epochs_of(words)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model=small_cnn", "--depth=20"], "--depth 20: goes with --model resnet"),
        (["--channels-scale=1/2"], "--channels-scale 0.5: is for"),
        (["--model=preact18", "--variants", "resnet"], "--variants: are of --model resnet"),
        (["--size=20"], "--size 20: cifar10 has 32 x 32 pixels"),
        (["--epsilon=8"], "--epsilon 8: is in units of pixels between 0 and 1"),
        (["--step-size=0"], "--step-size 0.0: must be a positive"),
        (["--train-images=0"], "--train-images 0"),
        (["--train-images=61"], "--train-images 61: --data-dir has 60"),
        (["--test-images=50"], "--test-images 50: --data-dir has 40"),
        (["--attacked-images=41"], "--attacked-images 41: more than the 40"),
        (["--seeds", "0"], "--seeds 0"),
        (["--jobs=0"], "--jobs 0"),
        (["--threads=0"], "--threads 0: must be at least 1"),
        (["--threads=100000"], "--threads 100000: must be at most 1024"),
        (["--save-every=nan"], "--save-every nan"),
        (["--epochs", "0"], "--epochs 0"),
        (["--epochs", "pgd-3=4"], "pgd-3 is not among --adversaries"),
        (["--milestones", "3", "2"], "--milestones 3 2: must be positive and rise"),
        (["--milestones", "2", "2"], "--milestones 2 2: must be positive and rise"),
        (["--lr=-1"], "--lr -1.0"),
        (["--weight-decay=nan"], "--weight-decay nan"),
        (["--evaluate-every=0"], "--evaluate-every 0"),
        (["--precision=bf16"], "--precision bf16: is for --device cuda"),
        (["--variants", "resnet,stochastic_depth=1"], "stochastic_depth=1"),
        (["--variants", "resnet,depth_rule=rk2_learned"], "--model resnet"),
        (["--variants", "resnet,stochastic_depth_form=sde"], "means nothing without stochastic depth"),
        (["--variants", "resnet,multistep_init=0", "resnet,multistep_init=0.5"], "multistep_init"),
        (["--model=small_cnn", "--channels-scale=0.3"], "scale=0.3 makes 9.6 channels"),
        (["--model=small_cnn", "--size=16", "--adversary", "yopo-5"], "--adversaries yopo-5"),
    ],
)
def test_options_that_no_run_can_have_leave_no_folder(words, message, cifar, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command = ["--dataset=cifar10", f"--data-dir={cifar('sheets')}", f"--out={out}", "--device=cpu", *words]
    assert main(command) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_help_does_not_wait_for_torch(project_root: Path) -> None:
    code = "import sys; from recipes.images.__main__ import parser; parser().format_help()"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=project_root, check=True)
