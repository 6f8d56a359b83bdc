"""The k of the two-step rule as reports show it: of the right layer, and judged by the condition of the rule itself."""

from __future__ import annotations

import pytest
import torch

from recipes.common.errors import RecipeError
from recipes.common.multistep import extremes, figure, is_k, rows, verdict, weights

FOUND = {"encoder": [0.25, -0.5], "decoder": [1.0, 0.0]}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_read_off_the_parameters_of_either_host(prefix: str) -> None:
    state = {f"{prefix}{side}.layers.rule.bias": torch.tensor(ks) for side, ks in FOUND.items()}
    state |= {
        f"{prefix}encoder.layers.0.flows.0.bias": torch.ones(3),
        "encoder.layers.rule.gates.0.bias": torch.ones(1),
    }
    assert weights(state, "model.pt") == FOUND
    assert weights({"macaron_bert.layers.rule.bias": torch.tensor([0.25])}, "model") == {"encoder": [0.25]}


def test_for_a_training_log_and_weight_decay() -> None:
    found = {"encoder.layers.rule.bias": torch.tensor([0.25]), "decoder.layers.rule.bias": torch.tensor([-0.5, 0.1])}
    assert extremes(found) == {"k_min": -0.5, "k_max": 0.25}
    assert extremes({"encoder.layers.0.norms.0.bias": torch.ones(3)}) == {}
    assert is_k("macaron_bert.layers.rule.bias") and is_k("module.macaron_bert.layers.rule.bias")
    assert not is_k("layers.rule.gates.0.bias") and not is_k("layers.0.flows.0.fc1.bias")


def test_rows_and_verdict() -> None:
    assert rows(FOUND)[1] == ["encoder", "2", "-0.5000", "yes"] and len(rows(FOUND)) == 4
    assert verdict(FOUND) == "Zero-stable in every layer: k from -0.500 to +1.000, all in (−1, 1]."
    wrong = {"encoder": [0.0, -1.0], "decoder": [1.001, 0.0]}
    assert [row[-1] for row in rows(wrong)] == ["yes", "NO", "NO", "yes"]
    assert "NOT zero-stable in encoder layer 2 (k = -1.000), decoder layer 1 (k = +1.001)" in verdict(wrong)
    assert weights({}, "x") == {} and "no k" in verdict({}) and rows({}) == []


def test_the_plot_shows_every_k() -> None:
    (axes,) = figure(FOUND).axes
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert lines["encoder"] == [(1, 0.25), (2, -0.5)] and lines["decoder"] == [(1, 1.0), (2, 0.0)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_shown(value: float) -> None:
    state = {"decoder.layers.rule.bias": torch.tensor([0.1, value])}
    with pytest.raises(RecipeError, match=r"x.pt: the k of the two-step rule are not finite .decoder layer 2"):
        weights(state, "x.pt")
