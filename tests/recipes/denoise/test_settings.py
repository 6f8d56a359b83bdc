"""Costs, equal cost, and what no run can have."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from macaron.vision import DnCNN, PolicyUnit, RestorationUnit
from recipes.common.errors import RecipeError
from recipes.denoise.settings import (
    PRESETS,
    dncnn_cost,
    equal_width,
    mean_cost,
    policy_cost,
    settings_for,
    unit_cost,
)


def counted(call) -> float:
    """Multiply-adds of convolutions a pixel, of an image of 64²."""
    with FlopCounterMode(display=False) as counter:
        call(torch.zeros(1, 1, 64, 64))
    return counter.get_total_flops() / 2 / 64**2


@pytest.mark.parametrize("width", [3, 32])
def test_costs_are_those_of_the_networks(width):
    unit, policy = RestorationUnit(1, width), PolicyUnit(1, width)
    assert counted(lambda x: unit(x, x)) == pytest.approx(unit_cost(width))
    assert counted(policy.features) == pytest.approx(policy_cost(width))
    assert counted(DnCNN(6, width)) == pytest.approx(dncnn_cost(6, width))


def test_published_costs():
    """From the reference page of the project: 70.5 and 665 thousand."""
    assert unit_cost(32) == pytest.approx(70_500, abs=50)
    assert dncnn_cost(20, 64) == pytest.approx(665_000, abs=500)


@pytest.mark.parametrize("name", PRESETS)
def test_baselines_cost_what_durr_costs(name):
    settings = PRESETS[name]
    settings.check()
    width = equal_width(settings)
    cost = dncnn_cost(settings.dncnn_depth, width)
    assert abs(cost / mean_cost(settings) - 1) < 0.05
    assert min(abs(dncnn_cost(settings.dncnn_depth, w) - mean_cost(settings)) for w in range(1, 200)) == abs(
        cost - mean_cost(settings)
    )


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_equal_width_of_few_layers(depth):
    settings = dataclasses.replace(PRESETS["gaussian", "small"], dncnn_depth=depth)
    assert abs(dncnn_cost(depth, equal_width(settings)) / mean_cost(settings) - 1) < 0.05


def test_one_number_of_steps_is_for_all_levels():
    settings = settings_for("gaussian", "small", horizon="fixed", steps=(6,))
    assert settings.steps == (6, 6, 6, 6) and settings.fixed == 6
    assert settings_for("gaussian", "small", horizon="fixed").steps == (5, 5, 5, 5)


def test_steps_at_levels_that_the_table_has_not():
    settings = settings_for("gaussian", "small")
    assert [settings.steps_at(level) for level in (10, 25, 36, 55, 95)] == [2, 2, 3, 5, 5]


@pytest.mark.parametrize(
    ("task", "wrong", "message"),
    [
        ("gaussian", {"levels": (25.0, 300.0), "steps": (1, 2)}, r"--levels 25 300: 300 is no σ"),
        ("gaussian", {"test_levels": (float("nan"),)}, "is no σ"),
        ("gaussian", {"test_levels": (25.0, 25.0)}, "each once"),
        ("gaussian", {"test_levels": (25.0, 25.00000001)}, "each once"),  # of one name
        ("jpeg", {"test_levels": (10.5,)}, r"10.5 is no quality; Pillow's are whole numbers from 1 to 95"),
        ("jpeg", {"test_levels": (float("nan"),)}, "nan is no quality"),
        ("jpeg", {"test_levels": (float("inf"),)}, "inf is no quality"),
        ("jpeg", {"levels": (100.0, 20.0)}, "100 is no quality|number of steps"),
        ("jpeg", {"bm3d_images": 2}, "BM3D is for noise"),
        ("gaussian", {"levels": (15.0, 25.0)}, "the number of steps at each is not known"),
        ("gaussian", {"steps": (1, 2)}, "2 numbers for the 4 levels"),
        ("gaussian", {"steps": (1, 2, 3, 11)}, "--steps 11: must lie between 1 and --most 10"),
        ("gaussian", {"horizon": "fixed", "steps": (1, 2, 3, 4)}, "has one for all"),
        ("gaussian", {"patch": 4}, "--patch 4: must be at least 8"),
        ("gaussian", {"crop": 3}, "--crop 3"),
        ("gaussian", {"rate": float("inf")}, "--rate inf"),
        ("gaussian", {"epsilon": 1.5}, "--epsilon 1.5: is a probability"),
        ("gaussian", {"updates": 0}, "--updates 0: must be at least 1"),
    ],
)
def test_what_no_run_can_have(task, wrong, message):
    with pytest.raises(RecipeError, match=message):
        settings_for(task, "small", **wrong)
