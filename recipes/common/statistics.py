"""Is a difference between two systems more than chance? Spread over seeds, and over the examples of a test set.

Two different questions: a test over *seeds* (`summary`, `paired_t_test`) asks whether another training would show the
difference too; a bootstrap over *examples* (`paired_bootstrap`) whether other test sentences would, for the systems
that were trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import RecipeError

SEED = 12345  # of sacrebleu's resampling, so that both draw alike
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n − 1 in the denominator); of one value the latter is unknown: None."""

    mean: float
    sd: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.sd is None else f"{self.mean:.2f} ± {self.sd:.2f}"


@dataclass(frozen=True)
class Difference:
    """second − first: its value, a 95 % confidence interval, a two-sided p-value, and how often it was measured."""

    value: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p = {self.p:.3g}"


def summary(values: Sequence[float]) -> Summary:
    """Mean ± standard deviation over runs.

    Raises:
        RecipeError: for no value, or one that is not finite.
    """
    x = finite(values, "values")
    return Summary(float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else None, len(x))


def paired_t_test(
    first: Sequence[float], second: Sequence[float], limits: tuple[float, float] = (-math.inf, math.inf)
) -> Difference:
    """Student's t-test on the differences d_i = second_i − first_i of runs with equal seeds.

        t = mean(d) / (sd(d) / √n),  n − 1 degrees of freedom,  interval mean(d) ± t₀.₉₇₅ · sd(d) / √n

    Differences that are all equal leave no spread to judge by: p is 1 when they are 0, and 0 otherwise.

    Args:
        limits: of the metric, such as (0, 100) of BLEU; the interval is cut to the differences that there can be, which
            that of few runs, t₀.₉₇₅ = 12.7 for two, otherwise exceeds.

    Raises:
        RecipeError: for fewer than two pairs, or sequences of unequal length.
    """
    from scipy import stats

    a, b = finite(first, "first"), finite(second, "second")
    if len(a) != len(b) or len(a) < 2:
        raise RecipeError(
            f"paired t-test: {len(a)} and {len(b)} values, but it needs the same number, two or more, in the same "
            f"order of seeds; run both systems with the same seeds"
        )
    d = b - a
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    if sd <= 1e-12 * float(np.abs(np.concatenate([a, b])).max()):  # nothing but rounding
        return Difference(mean, mean, mean, float(mean == 0 or abs(mean) <= sd), len(d))
    test = stats.ttest_rel(b, a)
    most = limits[1] - limits[0]
    low, high = (min(max(float(end), -most), most) for end in test.confidence_interval(CONFIDENCE))
    return Difference(mean, low, high, float(test.pvalue), len(d))


def paired_bootstrap(
    score: Callable[[Any], float], first: Any, second: Any, *, samples: int = 1000, seed: int = SEED
) -> Difference:
    """Resample examples with replacement, the same ones for both systems (Koehn 2004, EMNLP, W04-3250).

    With d = score(second) − score(first) on the test set and d_b on resample b of B: the interval holds the middle
    95 % of the d_b, and p = (1 + #{b : |d_b − d| ≥ |d|}) / (B + 1).

    Args:
        score: maps an array (N, …) of rows to the figure of merit; it may be any function of the whole set, such as
            BLEU of summed counts, or Matthews' correlation of predictions and labels.
        first, second: (N, …) arrays, one row per example, in the same order of examples.
        samples: B.

    Raises:
        RecipeError: if the systems differ in the number of examples, or there are none.
    """
    a, b = np.asarray(first), np.asarray(second)
    if len(a) != len(b) or not len(a):
        raise RecipeError(
            f"paired bootstrap: {len(a)} and {len(b)} examples, but both systems must be scored on the same ones; "
            f"give two outputs for one test set"
        )
    generator = np.random.default_rng(seed)
    d = score(b) - score(a)
    resampled = np.empty(samples)
    for index in range(samples):
        rows = generator.integers(len(a), size=len(a))
        resampled[index] = score(b[rows]) - score(a[rows])
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    extreme = int(np.sum(np.abs(resampled - d) >= abs(d)))
    return Difference(float(d), float(low), float(high), (1 + extreme) / (samples + 1), len(a))


def finite(values: Sequence[float], what: str) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not all(map(math.isfinite, x)):
        raise RecipeError(f"statistics: {what} = {list(values)} must be one or more finite numbers; drop failed runs")
    return x
