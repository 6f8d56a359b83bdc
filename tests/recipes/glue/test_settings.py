"""The presets are the paper's."""

from __future__ import annotations

import pytest

from recipes.common.errors import RecipeError
from recipes.glue.settings import PRESETS, Setting, plan
from recipes.glue.tasks import TASKS


def test_paper_settings() -> None:
    chosen = {name: plan("paper", TASKS[name])[0] for name in TASKS}
    assert chosen["cola"] == (Setting(5, 32, 3e-5), 400)
    assert chosen["qnli"] == (Setting(4, 16, 3e-5, weight_decay=0.01), 400)
    assert chosen["mnli"] == chosen["ax"] == (Setting(3, 24, 5e-5), 300)
    assert chosen["mnli-mm"] == (Setting(3, 16, 5e-5), 300)
    assert {name: seed for name, (_, seed) in chosen.items() if name in ("sst2", "mrpc", "rte", "stsb", "qqp")} == {
        "sst2": 200, "mrpc": 500, "rte": 200, "stsb": 500, "qqp": 200,
    }  # fmt: skip


def test_search_is_the_whole_grid() -> None:
    runs = plan("search", TASKS["rte"])
    assert len(runs) == len(set(runs)) == 3 * 2 * 2 * 2 * 6
    assert {setting.batch_size for setting, _ in runs} == {16, 32}
    runs = plan("search", TASKS["mnli-mm"])
    assert len(runs) == 24 * 3 and {setting.batch_size for setting, _ in runs} == {16, 24}
    assert len(plan("search", TASKS["sst2"])) == 24 * 6
    assert len(plan("search", TASKS["rte"], [1], lr=1e-4, batch_size=8)) == 6  # equal settings once


def test_on_a_cpu_the_papers_settings_are_shorter() -> None:
    runs = plan("paper-cpu", TASKS["sst2"])
    assert [seed for _, seed in runs] == [1, 2, 3]
    assert {setting for setting, _ in runs} == {Setting(3, 24, 5e-5, max_length=128, max_train_examples=8000)}
    assert plan("paper-cpu", TASKS["cola"], [7]) == [(Setting(5, 32, 3e-5, max_length=128), 7)]  # all 8,551


def test_without_dropout_is_another_setting() -> None:
    ((plain, _),) = plan("simple", TASKS["rte"])
    ((setting, _),) = plan("simple", TASKS["rte"], dropout=False)
    assert "dropout" not in plain.record() and setting.record() == {**plain.record(), "dropout": False}
    assert setting.name == f"{plain.name}-nodropout"


def test_simple_and_overrides() -> None:
    ((setting, seed),) = plan("simple", TASKS["qqp"], lr=1e-3, epochs=None)
    assert setting == Setting(5, 16, 1e-3, schedule="cosine", max_length=128) and seed == 1
    assert [seed for _, seed in plan("tiny-cpu", TASKS["rte"], [3, 1, 3])] == [3, 1]
    assert all(plan(name, TASKS["wnli"]) for name in PRESETS)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": 0.0}, {"warmup": 1.0}, {"schedule": "step"}, {"max_train_examples": -1}]
)
def test_impossible_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        plan("simple", TASKS["rte"], **wrong)


def test_an_adversary_is_a_part_of_the_setting() -> None:
    ((plain, _),) = plan("simple", TASKS["rte"])
    assert plain.trained_under() is None and not [name for name in plain.record() if name.startswith("adversary")]
    ((setting, _),) = plan("simple", TASKS["rte"], adversary="yopo-3-2", adversary_radius=0.3, adversary_start=10)
    attack = setting.trained_under()
    assert (attack.method, attack.steps, attack.inner_steps, attack.radius, attack.norm) == ("yopo", 3, 2, 0.3, "l2")
    assert setting.record()["adversary"] == "yopo-3-2" and setting.record()["adversary_start"] == 10
    assert setting.name == f"{plain.name}-yopo-3-2-l2-a0.1-r0.3-i0-from10"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"adversary": "freelb-3"}, "freelb-fairseq, freelb-hf"),
        ({"adversary": "freeat-3"}, "several updates"),
        ({"adversary": "natural"}, "is none; leave it out"),
        ({"adversary": "yopo-3-3", "adversary_step_size": 0.0}, "give a step_size above 0"),
        ({"adversary": "yopo-3-3", "adversary_start": -1}, "counts updates: 0 or more"),
        ({"adversary_radius": 0.1}, "adversary_radius without an adversary"),
        ({"attack": "yopo-3-3"}, "is a way to train; scores are taken under pgd-K"),
        ({"attack": "pgd-3", "attack_radius": 0.0}, "radius=0 leaves no room"),
        ({"attack_init": 0.1}, "attack_init without an attack"),
    ],
    ids=str,
)
def test_impossible_adversaries(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        plan("simple", TASKS["rte"], **wrong)
