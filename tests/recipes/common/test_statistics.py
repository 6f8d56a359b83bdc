"""Means, paired t-tests and paired bootstraps against textbook values and known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recipes.common.errors import RecipeError
from recipes.common.statistics import paired_bootstrap, paired_t_test, summary


def test_mean_and_sample_standard_deviation() -> None:
    s = summary([35.0, 35.2, 35.7])
    assert s.mean == pytest.approx(35.3)
    assert s.sd == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert str(s) == "35.30 ± 0.36" and s.n == 3


def test_one_value_has_no_spread() -> None:
    assert summary([1.5]).sd is None and str(summary([1.5])) == "1.50"


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_nothing_to_average(values: list[float]) -> None:
    with pytest.raises(RecipeError, match="must be one or more finite numbers; drop failed runs"):
        summary(values)


def test_students_sleep_data() -> None:
    """The example of Student (1908): additional sleep under two drugs, t = 4.0621 with 9 degrees of freedom."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    test = paired_t_test(first, second)
    assert test.value == pytest.approx(1.58)
    # half of the last digit that R's t.test prints
    assert test.p == pytest.approx(0.002833, abs=5e-7)
    assert (test.low, test.high) == (pytest.approx(0.7001142, abs=5e-8), pytest.approx(2.4598858, abs=5e-8))
    assert paired_t_test(second, first).value == pytest.approx(-1.58)


def test_equal_differences_leave_no_spread() -> None:
    assert paired_t_test([1.0, 2.0], [1.0, 2.0]).p == 1
    assert paired_t_test([1.1, 2.3], [1.4, 2.6]).p == 0


def test_an_interval_stays_within_what_a_metric_can_differ_by() -> None:
    """Of two pairs t₀.₉₇₅ is 12.7: the interval of accuracies would reach to 6 times what there is."""
    first, second = [40.0, 60.0], [45.0, 95.0]
    free, cut = paired_t_test(first, second), paired_t_test(first, second, (0, 100))
    assert free.low < -100 and free.high > 100 and (cut.low, cut.high) == (-100, 100)
    assert (cut.value, cut.p) == (free.value, free.p)
    assert paired_t_test(first, second, (0, 1000)) == free


def test_unpaired_runs_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"3 and 2 values.*same seeds"):
        paired_t_test([1, 2, 3], [1, 2])
    with pytest.raises(RecipeError, match=r"1 and 1 values"):
        paired_t_test([1], [1])


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    """Of a mean the answer is known: d ± 1.96 sd/√N, here with the per-example noise shared by both systems."""
    noise, own = np.random.default_rng(1).normal(size=(2, 2000))
    first, second = 5 * noise, 5 * noise + 0.1 * own + 0.006
    d = second - first
    result = paired_bootstrap(np.mean, first, second, samples=2000)
    error = 1.96 * d.std() / math.sqrt(len(d))
    assert result.value == pytest.approx(d.mean())
    # a 2.5 % quantile of 2000 samples has a standard deviation of √(q(1 − q)/2000)/φ = 0.06 sd/√N: five of them
    assert result.low == pytest.approx(d.mean() - error, abs=0.15 * error)
    assert result.high == pytest.approx(d.mean() + error, abs=0.15 * error)
    z = d.mean() / (d.std() / math.sqrt(len(d)))
    p = math.erfc(abs(z) / math.sqrt(2))
    assert result.p == pytest.approx(p, abs=4 * math.sqrt(2 * p / 2000))  # twice a share of p/2 of 2000 samples


def test_bootstrap_under_the_null_is_uniform() -> None:
    """Systems that do not differ are called different at 5 % in about 5 of 100 cases."""
    p = []
    for seed in range(200):
        first, second = np.random.default_rng(seed).normal(size=(2, 60))
        p.append(paired_bootstrap(np.mean, first, second, samples=200, seed=seed).p)
    assert 3 <= sum(value <= 0.05 for value in p) <= 22  # mean 10, sd 3.1, and 60 examples are few
    assert 0.4 < float(np.mean(p)) < 0.6  # five standard deviations of the mean of 200 uniform numbers


def test_equal_systems() -> None:
    rows = np.arange(10.0)
    result = paired_bootstrap(np.mean, rows, rows)
    assert (result.value, result.low, result.high, result.p) == (0, 0, 0, 1)


def test_any_statistic_of_the_whole_set() -> None:
    """Rows of predictions and labels: here the correlation, which is no mean over examples."""
    generator = np.random.default_rng(3)
    labels = generator.normal(size=300)
    good, bad = (np.stack([labels + s * generator.normal(size=300), labels], axis=1) for s in (0.2, 2.0))
    result = paired_bootstrap(lambda rows: float(np.corrcoef(rows.T)[0, 1]), bad, good, samples=300)
    assert result.low > 0.3 and result.p == pytest.approx(1 / 301)


def test_seeded() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 50))
    assert paired_bootstrap(np.mean, first, second) == paired_bootstrap(np.mean, first, second)
    assert paired_bootstrap(np.mean, first, second) != paired_bootstrap(np.mean, first, second, seed=1)


def test_different_test_sets_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"3 and 4 examples"):
        paired_bootstrap(np.mean, np.zeros(3), np.zeros(4))
