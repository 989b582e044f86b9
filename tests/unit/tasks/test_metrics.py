"""Metrics against scikit-learn, closed forms and simulation, and intervals under all that can be thrown at them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial, norm
from sklearn import metrics as sk

from fewtune import registry
from fewtune.errors import DataError, SpecError
from fewtune.tasks import metrics
from fewtune.tasks.classification import Classification
from fewtune.tasks.metrics import METRICS, Interval, measure

BOUNDS = {"accuracy": (0, 1), "macro_f1": (0, 1), "mcc": (-1, 1), "ece": (0, 1)}


def drawn(rows: int, candidates: int, *, seed: int, right: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and probabilities whose greatest is the target's in about a share `right` of the rows."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, candidates, rows)
    marks = np.where(rng.random(rows) < right, targets, rng.integers(0, candidates, rows))
    scores = rng.normal(size=(rows, candidates)) + 4 * np.eye(candidates)[marks]
    probabilities = np.exp(scores)
    return targets, probabilities / probabilities.sum(1, keepdims=True)


def names(count: int) -> list[str]:
    return [f"label {index}" for index in range(count)]


@st.composite
def measured(draw):
    rows, candidates = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    targets = draw(st.lists(st.integers(0, candidates - 1), min_size=rows, max_size=rows))
    weights = draw(st.lists(st.lists(st.integers(0, 3), min_size=candidates, max_size=candidates), min_size=rows, max_size=rows))
    probabilities = np.array(weights) + 1e-9
    return targets, probabilities / probabilities.sum(1, keepdims=True)


def test_metrics_are_those_that_classification_names_and_each_has_an_interval():
    assert tuple(METRICS) == Classification().metrics
    assert {"accuracy", *metrics._RESAMPLED} == set(METRICS) == {"accuracy", *metrics._RANGES}


@pytest.mark.parametrize(("rows", "candidates", "seed"), [(40, 2, 0), (200, 5, 1), (9, 7, 2), (30, 25, 3)])
def test_values_confusion_and_classes_equal_scikit_learn(rows, candidates, seed):
    targets, probabilities = drawn(rows, candidates, seed=seed)
    answers = probabilities.argmax(1)
    found = measure(targets.tolist(), probabilities, labels=names(candidates))
    with metrics._many_labels_or_one():
        assert found.metrics["accuracy"].value == pytest.approx(sk.accuracy_score(targets, answers))
        assert found.metrics["macro_f1"].value == pytest.approx(sk.f1_score(targets, answers, average="macro", zero_division=0))
        assert found.metrics["mcc"].value == pytest.approx(sk.matthews_corrcoef(targets, answers))
        assert np.array_equal(found.confusion, sk.confusion_matrix(targets, answers, labels=range(candidates)))
        report = sk.classification_report(
            targets, answers, labels=range(candidates), target_names=names(candidates), output_dict=True, zero_division=0
        )
    for row in found.classes:
        want = report[row.label]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(
            (want["precision"], want["recall"], want["f1-score"], want["support"])
        )
    assert (found.rows, found.labels) == (rows, tuple(names(candidates)))


def test_confusion_has_targets_as_rows():
    found = measure([0, 0, 1], np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]), labels=["no", "yes"])
    assert found.confusion == ((1, 1), (0, 1))
    assert [(row.precision, row.recall, row.support) for row in found.classes] == [(1.0, 0.5, 2), (0.5, 1.0, 1)]


def test_macro_f1_leaves_out_labels_that_do_not_occur():
    probabilities = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    assert METRICS["macro_f1"](np.array([0, 1]), probabilities) == 1.0


def test_ece_by_hand():
    probabilities = np.array([[0.7, 0.3], [0.72, 0.28], [0.1, 0.9], [0.0, 1.0]])
    # Bins of 1/15: 0.7 and 0.72 share the eleventh, one of two right; 0.9 is alone and wrong; 1.0 is alone and right.
    by_hand = (abs(1 - 0.7 - 0.72) + 0.9 + 0.0) / 4
    assert METRICS["ece"](np.array([0, 1, 0, 1]), probabilities) == pytest.approx(by_hand)


def test_ece_counts_a_confidence_that_rounding_put_above_one():
    assert METRICS["ece"](np.array([1, 1]), np.array([[1 + 5e-7, 0.0]] * 2)) == pytest.approx(1.0)


def test_ece_nears_zero_for_answers_that_are_as_sure_as_they_are_right():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 20_000)
    targets = (rng.random(20_000) >= sure).astype(int)
    assert METRICS["ece"](targets, np.stack([sure, 1 - sure], 1)) < 0.015


def test_accuracy_has_wilsons_interval():
    targets, probabilities = drawn(50, 3, seed=4)
    found = measure(targets, probabilities, labels=names(3), names=["accuracy"], confidence=0.9).metrics["accuracy"]
    z, share = norm.ppf(0.95), found.value
    middle, half = share + z * z / 100, z * math.sqrt(share * (1 - share) / 50 + z * z / 10_000)
    assert (found.low, found.high) == pytest.approx(((middle - half) / (1 + z * z / 50), (middle + half) / (1 + z * z / 50)))


@pytest.mark.parametrize("shares", [(0.02, 0.02), (0.1, 0.02), (0.25, 0.15)])
def test_a_difference_of_shares_of_the_same_rows_lies_in_its_interval_as_often_as_said(shares):
    rows, held = 40, 0.0
    for more in range(rows + 1):
        for fewer in range(rows + 1 - more):
            low, high = metrics.wald_paired(more, fewer, rows, confidence=0.9)
            if low <= shares[0] - shares[1] <= high:
                held += float(multinomial.pmf((more, fewer, rows - more - fewer), rows, (*shares, 1 - sum(shares))))
    assert 0.88 < held <= 1


@pytest.mark.slow
@settings(max_examples=30)
@given(measured(), st.integers(0, 5))
def test_resampled_statistics_equal_the_metric_on_each_resample(rows, seed):
    targets, probabilities = np.array(rows[0]), rows[1]
    resamples = np.random.default_rng(seed).integers(0, len(targets), (5, len(targets)))
    for name, resampled in metrics._RESAMPLED.items():
        statistic = resampled(targets, probabilities)
        want = [METRICS[name](targets[chosen], probabilities[chosen]) for chosen in resamples]
        assert statistic(resamples) == pytest.approx(want, abs=1e-12)
        assert statistic(resamples[0]) == pytest.approx(want[0], abs=1e-12)


@pytest.mark.slow
@settings(max_examples=25)
@given(measured())
def test_values_lie_within_their_intervals_and_these_within_bounds(rows):
    targets, probabilities = rows
    found = measure(targets, probabilities, labels=names(probabilities.shape[1])).metrics
    for name, (least, most) in BOUNDS.items():
        interval = found[name]
        assert least - 1e-9 <= interval.low <= interval.value <= interval.high <= most + 1e-9


def test_interval_is_widened_to_hold_a_calibration_error_below_its_resamples():
    sure = np.linspace(0.5, 1, 200)
    targets = (np.random.default_rng(9).random(200) >= sure).astype(int)
    probabilities = np.stack([sure, 1 - sure], 1)
    found = measure(targets, probabilities, labels=names(2), confidence=0.05).metrics["ece"]
    assert found.low == found.value < found.high  # the middle of the resampled values lies above


def test_degenerate_rows():
    right = measure([0] * 5, np.array([[1.0, 0.0]] * 5), labels=names(2)).metrics
    assert right["accuracy"].low < right["accuracy"].value == right["macro_f1"].value == 1.0
    assert right["mcc"] == Interval(0, 0, 0)
    assert right["ece"] == Interval(0, 0, 0)
    alone = measure([1], np.array([[0.4, 0.6]]), labels=names(2)).metrics
    assert alone["macro_f1"] == Interval(1.0, 0.0, 1.0)
    assert alone["mcc"] == Interval(0.0, -1.0, 1.0)
    assert (alone["ece"].low, alone["ece"].value, alone["ece"].high) == pytest.approx((0, 0.4, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "mcc"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(name):
    targets, probabilities = drawn(20_000, 3, seed=5, right=0.6)
    truth = METRICS[name](targets, probabilities)
    rng, held = np.random.default_rng(6), 0
    for _ in range(60):
        rows = rng.integers(0, len(targets), 120)
        interval = measure(targets[rows], probabilities[rows], labels=names(3), names=[name]).metrics[name]
        held += interval.low <= truth <= interval.high
    assert 51 <= held <= 60  # 57 expected; below 51 has a chance under 1 % at 95 %
    wide = measure(targets[:120], probabilities[:120], labels=names(3), names=[name]).metrics[name]
    narrow = measure(targets[:2000], probabilities[:2000], labels=names(3), names=[name]).metrics[name]
    assert narrow.high - narrow.low < 0.4 * (wide.high - wide.low)


def test_same_seed_same_numbers_whatever_else_is_asked_for():
    targets, probabilities = drawn(60, 4, seed=7)
    both = measure(targets, probabilities, labels=names(4), seed=3)
    alone = measure(targets, probabilities, labels=names(4), names=["mcc"], seed=3)
    other = measure(targets, probabilities, labels=names(4), names=["mcc"], seed=4)
    assert both.metrics["mcc"] == alone.metrics["mcc"] != other.metrics["mcc"]
    assert list(alone.metrics) == ["mcc"]


def test_batches_of_resamples_do_not_change_the_interval(monkeypatch):
    targets, probabilities = drawn(60, 4, seed=8)
    at_once = measure(targets, probabilities, labels=names(4))
    monkeypatch.setattr(metrics, "_CELLS_AT_ONCE", 1000)
    assert measure(targets, probabilities, labels=names(4)) == at_once


def test_plain_data():
    plain = registry.to_dict(measure([0, 1], np.eye(2), labels=["no", "yes"]))
    assert plain["metrics"]["macro_f1"].keys() == {"value", "low", "high"}
    assert plain["classes"][1] == {"label": "yes", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    assert (plain["confusion"], plain["labels"], plain["rows"]) == ([[1, 0], [0, 1]], ["no", "yes"], 2)
    assert all(type(end) is float for interval in plain["metrics"].values() for end in interval.values())


@pytest.mark.parametrize(
    ("targets", "probabilities", "said"),
    [
        ([], np.zeros((0, 2)), "at least one labelled row"),
        ([0], np.eye(2), r"shape \(1, 2\)"),
        ([0, 1], np.eye(3)[:2], r"shape \(2, 2\)"),
        ([0, 2], np.eye(2), "from 0 to 1"),
        ([0, -1], np.eye(2), "from 0 to 1"),
        ([0.0, 1.0], np.eye(2), "whole numbers"),
        ([0, 1], np.eye(2) * 3 - 1, "probabilities from 0 to 1"),
        ([0, 1], np.full((2, 2), np.nan), "probabilities from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(targets, probabilities, said):
    with pytest.raises(DataError, match=said):
        measure(targets, probabilities, labels=["no", "yes"])


def test_unknown_metrics_and_confidences_are_refused():
    with pytest.raises(SpecError, match='Did you mean "macro_f1"'):
        measure([0, 1], np.eye(2), labels=["no", "yes"], names=["macro-f1"])
    for confidence in (0, 1, 95):
        with pytest.raises(SpecError, match="between 0 and 1"):
            measure([0, 1], np.eye(2), labels=["no", "yes"], confidence=confidence)
