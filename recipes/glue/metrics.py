"""The figures of GLUE, in per cent, by scikit-learn and SciPy; a constant prediction scores 0 rather than nan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .tasks import SCORE, Task

Metric = Callable[[np.ndarray, np.ndarray], float]


def mcc(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation; the formula is 0/0 for constant predictions, by convention 0."""
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if constant(predictions) or constant(labels) else float(matthews_corrcoef(labels, predictions))


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Of class 1; 0 where neither data nor predictions hold that class."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return 0.0 if constant(predictions) or constant(labels) else float(pearsonr(labels, predictions).statistic)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return 0.0 if constant(predictions) or constant(labels) else float(spearmanr(labels, predictions).statistic)


METRICS: dict[str, Metric] = {"mcc": mcc, "accuracy": accuracy, "f1": f1, "pearson": pearson, "spearman": spearman}


def constant(values: np.ndarray) -> bool:
    """Nothing but rounding tells the values apart: a correlation with them would be noise."""
    return not len(values) or float(np.ptp(values)) <= 1e-9 * max(1.0, float(np.abs(values).max()))


def score(task: Task, logits: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], list[str]]:
    """({metric: per cent}, remarks on predictions that make a figure meaningless)."""
    notes = []
    broken = int(np.sum(~np.isfinite(logits).all(axis=1)))
    if broken:
        notes.append(f"{task.title}: {broken} of {len(logits)} outputs are not finite (training diverged), taken as 0")
        logits = np.nan_to_num(logits, nan=0.0, posinf=0.0, neginf=0.0)
    predictions = task.decode(logits)
    if constant(predictions):
        zero = "; a correlation counts as 0" if {"mcc", "pearson"} & set(task.metrics) else ""
        notes.append(f"{task.title}: all predictions are {task.written(predictions[0])}{zero}")
    return {name: 100 * METRICS[name](labels, predictions) for name in task.metrics}, notes


def main_figure(scores: dict[str, float]) -> float:
    """What settings are chosen by, and what enters the GLUE average: the mean of a task's metrics."""
    return float(np.mean(list(scores.values())))


def of_rows(task: Task) -> Callable[[Any], float]:
    """The mean over seeds of `main_figure`, of an array (N, 1 + seeds): labels, then decoded predictions."""

    def figure(rows: np.ndarray) -> float:
        if task.head != SCORE:
            rows = rows.astype(np.int64)
        labels = rows[:, 0]
        return float(
            np.mean([100 * METRICS[name](labels, column) for name in task.metrics for column in rows[:, 1:].T])
        )

    return figure
