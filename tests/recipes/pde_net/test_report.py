"""The table and its sentences, from numbers that are written down here."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.pde_net import report
from recipes.pde_net.pipeline import PDEExperiment
from recipes.pde_net.settings import PDEVariant, settings_for

FROZEN, TRAINED = PDEVariant("frozen", "euler"), PDEVariant(2, "euler")


def run(convection: float, diffusion: float, other: float, blown_up: list[float | None]) -> dict:
    def equation(names: list[str]) -> dict:
        values = [convection, convection, diffusion, diffusion]
        return {
            "coefficients": dict(zip(names, values, strict=True)) | {"u01*v00": other},
            "formula": "u_t = …",
            "shares": {},
            "beyond": 0.02,
        }

    equations = [equation(names) for names in report.TALK_MONOMIALS]
    block = {
        "block": 4, "iterations": 10, "loss": 0.1, "data_loss": 0.05, "seconds": 3.0, "equations": equations,
        "stopped": "Optimization terminated successfully", "overflows": 0,
    }  # fmt: skip
    error = [[0.1 if t is None or t > i + 1 else None for t in blown_up] for i in range(4)]
    return {"blocks": [block], "rollout": {"times": [1, 2, 3, 4], "error": error, "blown_up": blown_up}, "seconds": 3.0}


@pytest.fixture
def experiment() -> PDEExperiment:
    return PDEExperiment(settings_for("burgers", blocks=(4,)), (FROZEN, TRAINED), (1, 2, 3), Path("/nowhere"), None)


@pytest.fixture
def found() -> report.Found:
    return {
        "frozen-euler": {seed: run(c, 0.03, 0.1, [None, None]) for seed, c in ((1, -0.8), (2, -0.9), (3, -0.85))},
        "2-euler": {seed: run(c, 0.052, -0.02, [None, 2.5]) for seed, c in ((1, -0.97), (2, -0.99), (3, -0.96))},
    }


def test_table(experiment, found):
    head, rows = report.rows_of(experiment, found, 0)
    assert head[1:5] == ["u u_x", "u_y v", "u_xx", "u_yy"]
    table = {row[0]: row[1:] for row in rows}
    assert table["true"][:4] == ["-1.000", "-1.000", "+0.050", "+0.050"]
    assert table["the talk, frozen"][:4] == ["-0.906", "-0.901", "+0.033", "+0.037"]
    assert table["frozen filters, euler"][0] == "-0.850 [-0.900, -0.800]"
    trained = table["trained filters, constraint 2, euler"]
    assert trained[:1] + trained[2:3] == ["-0.970 [-0.990, -0.960]", "+0.052 [+0.052, +0.052]"]
    assert trained[4] == "0.020 (up to 0.020, u_x v)" and trained[5] == "2.0 %"


def test_the_talk_s_monomials_are_the_equation_s(experiment):
    known = report.truth(experiment.settings)
    assert [set(names) for names in report.TALK_MONOMIALS] == [set(equation) for equation in known]


def test_sentences_say_the_goal_and_the_blow_up(experiment, found):
    said = "\n".join(report.sentences(experiment, found))
    assert (
        "frozen filters, euler: the medians of the convection coefficients are within 0.150 of −1 (goal: 0.05, missed)"
        in said
    )
    assert "within 0.0200 of 0.05 (goal: 0.005, missed)" in said
    assert (
        "constraint 2, euler: the medians of the convection coefficients are within 0.030 of −1 (goal: 0.05, met)"
        in said
    )
    assert "within 0.0020 of 0.05 (goal: 0.005, met)" in said
    assert "frozen filters, euler: none of 6 roll-outs blows up" in said
    assert "THE LEARNED EQUATION BLOWS UP in 3 of 6 roll-outs, at t = 2.5 to 2.5" in said


def test_roll_outs(experiment, found):
    head, rows = report.rollout_rows(experiment, found)
    assert head == ["", "blown up", "error at t = 1", "error at t = 2", "error at t = 4"]
    assert rows[0][1] == "0 of 6" and rows[1][1] == "3 of 6, first at t = 2.5"
    assert rows[0][4] == "0.1 [0.1, 0.1]"


def test_the_other_systems_have_no_talk(found):
    experiment = PDEExperiment(
        settings_for("reaction_diffusion", blocks=(4,)), (FROZEN, TRAINED), (1,), Path("/nowhere"), None
    )
    names = [row[0] for row in report.rows_of(experiment, found, 0)[1]]
    assert names == ["true", "frozen filters, euler", "trained filters, constraint 2, euler"]
    assert not any("goal" in text for text in report.sentences(experiment, found))


def test_a_roll_out_that_is_lost_without_blowing_up_is_said(experiment, found):
    for seed in (1, 2):
        found["2-euler"][seed]["rollout"]["error"][-1] = [1.5, None]
    said = "\n".join(report.sentences(experiment, found))
    assert "constraint 2, euler: 2 of 6 roll-outs are at t = 4 further from the truth than a field of zeros" in said
    assert "frozen filters, euler: none of 6 roll-outs blows up." in said
    assert said.count("field of zeros") == 1
