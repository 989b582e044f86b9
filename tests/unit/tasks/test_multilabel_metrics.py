"""Measures of several labels against scikit-learn's, and intervals under all that can be thrown at them."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

from fewtune.errors import DataError
from fewtune.tasks import multilabel_metrics
from fewtune.tasks.metrics import Interval
from fewtune.tasks.multilabel import Multilabel
from fewtune.tasks.multilabel_metrics import METRICS, measure


def drawn(rows, labels, *, seed, decimals=2):
    rng = np.random.default_rng(seed)
    targets = rng.random((rows, labels)) < np.linspace(0.2, 0.6, labels)
    return targets, (0.6 * rng.random((rows, labels)) + 0.4 * targets).round(decimals)


def names(count):
    return [f"label {number}" for number in range(count)]


def of_scikit_learn(targets, probabilities, threshold):
    answers = probabilities >= threshold
    occurs = targets.any(0)
    return {
        "micro_f1": sk.f1_score(targets, answers, average="micro", zero_division=0),
        "macro_f1": sk.f1_score(targets, answers, average="macro", zero_division=0),
        "subset_accuracy": sk.accuracy_score(targets, answers),
        "hamming_loss": sk.hamming_loss(targets, answers),
        "mean_average_precision": sk.average_precision_score(targets[:, occurs], probabilities[:, occurs]) if occurs.any() else 0.0,
    }


@st.composite
def measured(draw):
    rows, labels = draw(st.integers(1, 10)), draw(st.integers(2, 4))
    targets = draw(st.lists(st.lists(st.booleans(), min_size=labels, max_size=labels), min_size=rows, max_size=rows))
    tenths = draw(st.lists(st.lists(st.integers(0, 4), min_size=labels, max_size=labels), min_size=rows, max_size=rows))
    return np.array(targets), np.array(tenths) / 4


def test_metrics_are_those_that_the_kind_names():
    assert list(METRICS) == list(Multilabel().metrics)


@pytest.mark.parametrize(("rows", "labels", "seed", "decimals"), [(40, 2, 0, 2), (200, 7, 1, 3), (9, 5, 2, 1)])
def test_values_and_rows_equal_scikit_learn(rows, labels, seed, decimals):
    targets, probabilities = drawn(rows, labels, seed=seed, decimals=decimals)
    found = measure(targets, probabilities, labels=names(labels), threshold=0.5)
    assert {name: metric.value for name, metric in found.metrics.items()} == pytest.approx(of_scikit_learn(targets, probabilities, 0.5))
    table = sk.precision_recall_fscore_support(targets, probabilities >= 0.5, zero_division=0)
    assert [[row.precision, row.recall, row.f1, row.support] for row in found.classes] == pytest.approx(np.transpose(table))
    assert (found.rows, found.confusion, list(found.labels)) == (rows, (), names(labels))


@pytest.mark.slow
@settings(max_examples=40)
@given(measured())
def test_values_equal_scikit_learn_at_the_edges(rows):
    targets, probabilities = rows
    found = measure(targets, probabilities, labels=names(targets.shape[1]), threshold=0.5).metrics
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = of_scikit_learn(targets, probabilities, 0.5)
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(want)
    assert all(0 <= one.low <= one.value + 1e-12 and one.value <= one.high + 1e-12 and one.high <= 1 for one in found.values())


@settings(max_examples=30)
@given(measured(), st.integers(0, 5))
def test_resamples_at_once_are_resamples_one_by_one(rows, seed):
    targets, probabilities = rows
    chosen = np.random.default_rng(seed).integers(0, len(targets), (4, len(targets)))
    found = multilabel_metrics._Answers(targets, probabilities >= 0.5, probabilities)
    for name in METRICS:
        statistic, once = multilabel_metrics._resampled(name, found), np.ones((1, len(targets)))
        alone = [
            METRICS[name](multilabel_metrics._Answers(targets[one], probabilities[one] >= 0.5, probabilities[one]), once)[0]
            for one in chosen
        ]
        assert statistic(chosen) == pytest.approx(alone, abs=1e-12)
        assert statistic(chosen[0]) == pytest.approx(alone[0], abs=1e-12)


def test_subset_accuracy_has_wilsons_interval():
    targets, probabilities = drawn(50, 2, seed=3)
    found = measure(targets, probabilities, labels=names(2), threshold=0.5).metrics["subset_accuracy"]
    ends = binomtest(round(found.value * 50), 50).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


def test_of_one_row_the_interval_is_all_values_possible():
    found = measure([[True, False]], [[0.9, 0.8]], labels=names(2), threshold=0.5).metrics
    assert found["hamming_loss"] == Interval(0.5, 0, 1) and found["mean_average_precision"] == Interval(1, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METRICS))
def test_intervals_hold_the_truth_about_as_often_as_they_say(name):
    targets, probabilities = drawn(20_000, 4, seed=5)
    truth, held = of_scikit_learn(targets, probabilities, 0.5)[name], 0
    for trial in range(100):
        rows = np.random.default_rng(trial).integers(0, len(targets), 150)
        interval = measure(targets[rows], probabilities[rows], labels=names(4), threshold=0.5).metrics[name]
        held += interval.low <= truth <= interval.high
    assert held >= 87


@pytest.mark.parametrize(("targets", "probabilities"), [(np.zeros((0, 2)), np.zeros((0, 2))), ([[1, 0]], [[0.1]]), ([[1]], [[0.1]])])
def test_rows_that_do_not_fit_together(targets, probabilities):
    with pytest.raises(DataError, match="label by label"):
        measure(targets, probabilities, labels=names(2), threshold=0.5)
