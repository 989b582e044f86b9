"""Closeness of values against scipy and scikit-learn, and intervals under all that can be thrown at them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from fewtune.errors import DataError
from fewtune.tasks.metrics import Interval
from fewtune.tasks.regression import Regression
from fewtune.tasks.regression_metrics import METRICS, measure

LABELS = ("low", "high")


def drawn(rows, *, seed, noise=0.5):
    rng = np.random.default_rng(seed)
    values = rng.random(rows).round(1)
    return values, values + noise * rng.normal(size=rows)


def test_metrics_are_those_that_regression_names():
    assert list(METRICS) == list(Regression().metrics) == ["pearson", "spearman", "mae", "rmse"]


@pytest.mark.parametrize(("rows", "seed"), [(2, 0), (10, 1), (300, 2)])
def test_values_equal_scipy_and_scikit_learn(rows, seed):
    values, predicted = drawn(rows, seed=seed)
    found = measure(values, predicted, labels=LABELS, span=1.0)
    assert (found.rows, found.labels, found.confusion, found.classes) == (rows, LABELS, (), ())
    assert {name: metric.value for name, metric in found.metrics.items()} == pytest.approx(
        {
            "pearson": stats.pearsonr(values, predicted).statistic,
            "spearman": stats.spearmanr(values, predicted).statistic,
            "mae": sk.mean_absolute_error(values, predicted),
            "rmse": sk.root_mean_squared_error(values, predicted),
        }
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 5))
@pytest.mark.slow
def test_resamples_at_once_are_resamples_one_by_one(pairs, seed):
    values, predicted = np.array(pairs, dtype=float).T
    chosen = np.random.default_rng(seed).integers(0, len(values), (5, len(values)))
    for metric in METRICS.values():
        together = metric(values[chosen], predicted[chosen])
        assert together == pytest.approx([float(metric(values[one], predicted[one])) for one in chosen], abs=1e-12)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=12))
def test_values_lie_within_their_intervals_and_these_within_bounds(pairs):
    values, predicted = np.array(pairs).T
    found = measure(values, predicted, labels=LABELS, span=5.0).metrics
    for name, (least, most) in {"pearson": (-1, 1), "spearman": (-1, 1), "mae": (0, 5), "rmse": (0, 5)}.items():
        assert least <= found[name].low <= found[name].value <= found[name].high <= most


@pytest.mark.parametrize(("values", "predicted"), [([1.0] * 4, [1.0, 2, 3, 4]), ([1.0, 2, 3, 4], [0.1] * 4), ([0.7] * 3, [0.7] * 3)])
def test_there_is_no_correlation_with_what_does_not_vary(values, predicted):
    found = measure(values, predicted, labels=LABELS, span=1.0).metrics
    assert found["pearson"] == found["spearman"] == Interval(0, 0, 0)


def test_of_one_row_the_interval_is_all_values_possible():
    found = measure([2.0], [3.0], labels=LABELS, span=5.0).metrics
    assert found == {"pearson": Interval(0, -1, 1), "spearman": Interval(0, -1, 1), "mae": Interval(1, 0, 5), "rmse": Interval(1, 0, 5)}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METRICS))
def test_intervals_hold_the_truth_about_as_often_as_they_say(name):
    values, predicted = drawn(20_000, seed=5)
    truth, held = float(METRICS[name](values, predicted)), 0
    for trial in range(100):
        rows = np.random.default_rng(trial).integers(0, len(values), 120)
        interval = measure(values[rows], predicted[rows], labels=LABELS, span=1.0).metrics[name]
        held += interval.low <= truth <= interval.high
    assert held >= 87


@pytest.mark.parametrize(("values", "predicted"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_rows_that_do_not_fit_together(values, predicted):
    with pytest.raises(DataError, match="a predicted value for each labelled row"):
        measure(values, predicted, labels=LABELS, span=1.0)
