"""Figures against their formulas; predictions that make them 0/0."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recipes.glue import metrics
from recipes.glue.tasks import TASKS

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 1])
PREDICTED = np.array([1, 0, 1, 0, 1, 1, 0, 1])  # tp 4, fp 1, fn 1, tn 2


def logits_of(predictions: np.ndarray) -> np.ndarray:
    return np.where(predictions == 1, 0.3, -0.7)[:, None]


def test_figures_of_classes_by_hand() -> None:
    scores, notes = metrics.score(TASKS["mrpc"], logits_of(PREDICTED), LABELS)
    assert scores == pytest.approx({"f1": 80.0, "accuracy": 75.0}) and not notes
    scores, _ = metrics.score(TASKS["cola"], logits_of(PREDICTED), LABELS)
    assert scores["mcc"] == pytest.approx(100 * (4 * 2 - 1 * 1) / math.sqrt(5 * 5 * 3 * 3))
    two = np.stack([-logits_of(PREDICTED)[:, 0], logits_of(PREDICTED)[:, 0]], axis=1)
    assert metrics.score(TASKS["sst2"], two, LABELS)[0] == pytest.approx({"accuracy": 75.0})


def test_figures_of_scores_by_hand() -> None:
    gold = np.array([0.0, 1.0, 2.5, 5.0, 4.0])
    logits = (np.array([0.5, 1.0, 2.0, 9.0, 4.5]) - 3)[:, None] / 2  # the 9 becomes 5
    seen = TASKS["stsb"].decode(logits)
    assert seen.tolist() == [0.5, 1.0, 2.0, 5.0, 4.5]
    scores, _ = metrics.score(TASKS["stsb"], logits, gold)
    covariance = np.mean((gold - gold.mean()) * (seen - seen.mean()))
    assert scores["pearson"] == pytest.approx(100 * covariance / gold.std() / seen.std())
    assert scores["spearman"] == pytest.approx(100.0)


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb"])
def test_constant_and_broken_outputs_score_and_are_told(name: str) -> None:
    labels = LABELS.astype(float) if name == "stsb" else LABELS
    scores, notes = metrics.score(TASKS[name], np.full((8, 1), -3.0), labels)
    assert all(math.isfinite(value) for value in scores.values()) and "all predictions are" in notes[0]
    assert scores.get("mcc", 0) == scores.get("pearson", 0) == scores.get("spearman", 0) == scores.get("f1", 0) == 0
    scores, notes = metrics.score(TASKS[name], np.array([[math.nan]] + [[math.inf]] * 7), labels)
    assert all(math.isfinite(value) for value in scores.values()) and "8 of 8 outputs are not finite" in notes[0]


def test_rounding_is_no_correlation() -> None:
    """Outputs that differ in the last bit alone must not correlate with anything."""
    nearly = np.nextafter(np.full(8, 2.0), np.arange(8.0))
    assert metrics.pearson(np.arange(8.0), nearly) == metrics.spearman(np.arange(8.0), nearly) == 0


def test_figure_of_rows_is_the_mean_over_seeds() -> None:
    rows = np.stack([LABELS, PREDICTED, LABELS], axis=1)
    assert metrics.of_rows(TASKS["mrpc"])(rows) == pytest.approx((80 + 75 + 100 + 100) / 4)
    scores = np.array([[0, 0, 1.0], [1, 2, 2], [3, 3, 3]])
    assert metrics.of_rows(TASKS["stsb"])(scores) == pytest.approx(
        50 * sum((metrics.pearson(scores[:, 0], c) + metrics.spearman(scores[:, 0], c)) / 2 for c in scores[:, 1:].T)
    )
