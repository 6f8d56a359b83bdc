"""Tables and sentences, from results written by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from recipes.common.statistics import paired_t_test
from recipes.images import report
from recipes.images.experiment import Experiment, Run
from recipes.images.settings import Adversary, Variant, settings_for

NATURAL = Adversary("natural")
PLAIN, LM = (Run(Variant.parse(head), NATURAL) for head in ("resnet", "lm_resnet"))


def entry(minutes: float, accuracy: float, robust: float | None = None, k: list[list[float]] | None = None, **more):
    found = {"batches": 10, "epoch": 1.0, "seconds": 60 * minutes, "cpu_seconds": 30 * minutes, "loss": 0.5}
    found |= {"accuracy": accuracy, "k": k or [], **more}
    return found if robust is None else found | {"robust": robust}


def run(*history: dict[str, Any], parameters: int = 272_384) -> dict[str, Any]:
    return {"parameters": parameters, "stored_by_the_original": 273_475, "batch_passes": 5, "history": list(history)}


def depth(size: int = 32, images: int = 50_000) -> Experiment:
    settings = settings_for({"dataset": "cifar10", "depth": 20, "size": size}, images, 10_000)
    return Experiment(settings, (PLAIN, LM), (1, 2, 3), Path("/nowhere"), Path("/nowhere"))


def test_the_paired_test_is_over_common_seeds_and_the_last_epoch() -> None:
    first, second = (90.0, 91.0, 91.5), (91.0, 91.5, 92.5)
    found = {
        "resnet": {s: run(entry(1, 99.0), entry(2, a)) for s, a in zip((1, 2, 3), first, strict=True)},
        "lm_resnet": {s: run(entry(1, 0.0), entry(2, a)) for s, a in zip((1, 2, 3, 4), (*second, 5.0), strict=True)},
    }
    head, rows = report.rows_of(depth(), found)
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert table["lm_resnet"]["against the first, paired"] == f"{paired_t_test(first, second, (0, 100))} (3 seeds)"
    assert table["resnet"]["accuracy %"] == "90.83 ± 0.76" and table["resnet"]["against the first, paired"] == ""
    assert [table[name]["the talk"] for name in ("resnet", "lm_resnet")] == ["91.25", "91.67"]
    one = {"resnet": {1: run(entry(2, 90.0))}, "lm_resnet": {1: run(entry(2, 89.0))}}
    assert report.rows_of(depth(), one)[1][1][-2] == "-1.00 (one seed)"


@pytest.mark.parametrize("ks, said", [([[-0.2, 1.0]], "all 2 learned k are zero-stable, -0.200 to +1.000"),
                                      ([[0.5, -1.0]], "1 of 2 learned k are NOT zero-stable (-1.000 to -1.000)"),
                                      ([[0.5], [1.01]], "1 of 2 learned k are NOT zero-stable")])  # fmt: skip
def test_zero_stability(ks, said: str) -> None:
    found = {"resnet": {}, "lm_resnet": {1: run(entry(1, 90.0, k=[[9.0]]), entry(2, 90.0, k=ks))}}
    text = "\n".join(report.sentences(depth(), "images", found))
    assert said in text and "resnet: no seed is finished." in text
    assert len(report.k_rows(depth(), found)) == 2


def test_what_is_not_the_published_setting_is_said() -> None:
    found = {"resnet": {1: run(entry(1, 90.0))}, "lm_resnet": {}}
    assert not any(text.startswith("Not the published") for text in report.sentences(depth(), "images", found))
    text = "\n".join(report.sentences(depth(16, 20_000), "images", found))
    assert "20,000 of 50,000 training images" in text and "16 x 16 pixels in the place of 32" in text
    assert "test images" not in text and "--augment" not in text
    changed = dataclasses.replace(
        depth(), settings=dataclasses.replace(depth().settings, test_images=5000, augment="none")
    )
    text = "\n".join(report.sentences(changed, "images", found))
    assert "Not the published setting: 5,000 of 10,000 test images; --augment none in the place of crop" in text
    experiment, found = robust({"natural": {1: run(entry(1, 99.0, 0.0))}}, epsilon=0.2, attack_steps=20)
    text = "\n".join(report.sentences(experiment, "images", found))
    assert "--epsilon 0.2 in the place of 0.3" in text and "--attack-steps 20 in the place of 40" in text


def robust(found: dict[str, Any], **given: Any) -> tuple[Experiment, dict[str, Any]]:
    settings = settings_for({"dataset": "mnist"} | given, 60_000, 10_000)
    runs = tuple(Run(None, Adversary.parse(name)) for name in found)
    return Experiment(settings, runs, (1, 2), Path("/nowhere"), Path("/nowhere")), found


def test_minutes_to_an_accuracy_under_attack() -> None:
    experiment, found = robust(
        {
            "natural": {1: run(entry(1, 99.0, 0.0))},
            "yopo-5-10": {
                1: run(entry(1, 80.0, 30.0), entry(2, 90.0, 55.0)),
                2: run(entry(1, 80.0, 20.0), entry(3, 90.0, 26.0)),
            },
        }
    )
    head, rows = report.rows_of(experiment, found)
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert [name for name in head if "minutes to" in name] == ["minutes to 25 %", "minutes to 50 %"]
    assert table["yopo-5-10"]["minutes to 25 %"] == "2.0"  # the mean of 1 and 3
    assert table["yopo-5-10"]["minutes to 50 %"] == table["natural"]["minutes to 25 %"] == ""  # not by all seeds
    assert table["yopo-5-10"]["minutes"] == "2.5" and table["yopo-5-10"]["processor minutes"] == "1.2"
    assert table["yopo-5-10"]["ms a batch"] == "15000" and table["yopo-5-10"]["PGD-40 %"] == "40.50 ± 20.51"


def test_what_the_talk_s_rows_can_be_compared_with() -> None:
    experiment, found = robust({"natural": {1: run(entry(1, 99.0, 0.0))}})
    text = "\n".join(report.sentences(experiment, "images", found))
    assert "WRN-34-10 on CIFAR-10" in text and "cannot be compared" in text and "mix two things" in text
    experiment, found = robust({"natural": {1: run(entry(1, 99.0, 0.0))}}, dataset="cifar10", model="wrn34",
                               train_images=50_000)  # fmt: skip
    assert "cannot be compared" not in "\n".join(report.sentences(experiment, "images", found))


def test_a_page_of_everything() -> None:
    ks = [[0.1, 0.2], [0.0, -0.1], [0.3, 0.2]]
    found = {
        "resnet": {1: run(entry(2, 90.0))},
        "lm_resnet": {1: run(entry(2, 91.0, k=ks)), 2: run(entry(2, 91.0, k=ks))},
    }
    page = report.report(depth(), "images <b>", found, {"resnet, seed 2": "why"}, {"commit": "abc"})
    html, markdown = page.html(), page.markdown()
    assert "resnet, seed 2 failed: why" in markdown and "<b>" not in html and html.count("data:image/png") == 2
    assert "stage 3, block 3" in markdown and "| lm_resnet | 272,384 | 273,475 | 0.27M |" in markdown


def test_a_plan_in_words() -> None:
    settings = settings_for({"dataset": "mnist"}, 60_000, 10_000)
    said = report.plan_of(settings, Run(None, Adversary.parse("yopo-5-10")))
    assert said.startswith(
        "41 epochs, 9,635 batches of 256, SGD lr 0.002, a tenth from epoch 30, 35, 39 (of the first layer a tenth from "
        "epoch 15, 19), momentum 0.9, weight decay 0.0005 (a1600012888/"
    )
    settings = settings_for({"dataset": "mnist", "milestones": [99]}, 60_000, 10_000)
    assert "SGD lr 0.1, constant, momentum" in report.plan_of(settings, Run(None, Adversary.parse("pgd-40")))
