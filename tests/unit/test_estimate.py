"""Estimates by hand, against scipy, and in simulations with known truth."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t

from fewtune import estimate
from fewtune.data.example import Example
from fewtune.data.sampling import folds
from fewtune.errors import DataError
from fewtune.readout.similarity import logistic
from fewtune.tasks.metrics import Ratio, wald_paired


def shares(right_NM):
    """The accuracies of methods, by which of their answers are right."""
    return [Ratio("accuracy", right_N, np.ones(len(right_N))) for right_N in right_NM.T]


def errors(*each, most=5.0):
    """Mean absolute errors."""
    return Ratio("mae", np.array(each, dtype=float), np.ones(len(each)), most=most)


@pytest.mark.slow
@given(rows=st.integers(1, 200), share=st.floats(0, 1), level=st.sampled_from([0.8, 0.9, 0.95]))
def test_the_interval_is_wilsons(rows, share, level):
    right = round(share * rows)
    found = estimate.accuracy(right / rows, rows, level=level)
    expected = binomtest(right, rows).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.low <= found.value <= found.high and found.high > found.low


def test_no_row_is_refused():
    with pytest.raises(DataError, match="labelled rows"):
        estimate.accuracy(0.5, 0)


def test_the_simplest_within_one_standard_error_by_hand():
    # Differences to the best 0.5, 0.5, 0.5, 0.9: mean 0.6, error 0.2 / 2 = 0.1: worse. 0.3, -0.2, 0.4, -0.3: mean 0.05, error 0.175: not.
    best = np.array([1.0, 0.5, 0.2, 0.8])
    worse, level = best + [0.5, 0.5, 0.5, 0.9], best + [0.3, -0.2, 0.4, -0.3]
    assert estimate.simplest(np.stack([worse, level, best], 1)) == 1
    assert estimate.simplest(np.stack([worse, best], 1)) == 1
    assert estimate.simplest(np.stack([best, worse], 1)) == 0
    assert estimate.simplest(np.stack([best, best], 1)) == 0


def test_a_single_method_is_its_own_estimate():
    right_NM = np.array([[1.0], [1.0], [0.0], [1.0]])
    assert estimate.chosen(1 - right_NM, shares(right_NM), seed=1) == estimate.accuracy(0.75, 4)


def simulated(seed, *, methods=10, rows=32, truth=0.7):
    """Methods of equal worth, whose losses follow whether they are right."""
    random = np.random.default_rng(seed)
    right_NM = (random.random((rows, methods)) < truth).astype(float)
    return np.where(right_NM > 0, 0.3, 1.5) + 0.1 * random.random((rows, methods)), right_NM


@pytest.mark.slow
def test_choosing_is_corrected_for(monkeypatch):
    monkeypatch.setattr(estimate, "RESAMPLES", 200)
    naive, corrected, covered = [], [], 0
    for seed in range(200):
        losses_NM, right_NM = simulated(seed)
        naive.append(right_NM[:, losses_NM.mean(0).argmin()].mean())
        found = estimate.chosen(losses_NM, shares(right_NM), seed=seed)
        corrected.append(found.value)
        covered += found.low <= 0.7 <= found.high
    assert np.mean(naive) - 0.7 > 0.08, "the winner's own score is too good"
    assert abs(np.mean(corrected) - 0.7) < 0.02
    assert covered / 200 >= 0.85


def test_the_same_seed_gives_the_same_estimate():
    losses_NM, right_NM = simulated(3)
    assert estimate.chosen(losses_NM, shares(right_NM), seed=5) == estimate.chosen(losses_NM, shares(right_NM), seed=5)


def test_what_differs_by_rounding_alone_is_alike():
    losses_NM = np.stack([np.full(8, 0.5426), np.full(8, 0.5425)], 1)
    assert estimate.alike(losses_NM).tolist() == [True, True] and estimate.simplest(losses_NM) == 0
    assert estimate.alike(losses_NM * [1.0, 0.9]).tolist() == [False, True]


def test_how_many_rows_errors_are_worth_by_hand():
    # Mean 1 of at most 4: a share of 1/4 with p (1 - p) = 3/16. Residuals over 4: -1/4, 0, 0, 1/4; their variance 1/24, of the mean 1/96.
    found = estimate.effective_rows(errors(0, 1, 1, 2, most=4), level=0.9)
    assert found == pytest.approx(3 / 16 * 96 * (norm.ppf(0.95) / t.ppf(0.95, 3)) ** 2)


def test_how_many_rows_f1_is_worth_by_hand():
    # F1 = (2 + 2 + 0) / (2 + 3 + 1) = 2/3; residuals 2 - 4/3, 2 - 2, 0 - 2/3 over the mean 2: 1/3, 0, -1/3; variance 1/9, of F1 1/27.
    ratio = Ratio("micro_f1", np.array([2.0, 2.0, 0.0]), np.array([2.0, 3.0, 1.0]))
    assert ratio.value == pytest.approx(2 / 3)
    assert estimate.effective_rows(ratio, level=0.9) == pytest.approx(2 / 9 * 27 * (norm.ppf(0.95) / t.ppf(0.95, 2)) ** 2)


@pytest.mark.slow
@given(st.lists(st.booleans(), min_size=3, max_size=40).filter(lambda rights: 0 < sum(rights) < len(rights)))
def test_rows_that_are_right_or_wrong_are_worth_themselves_but_for_what_is_estimated(rights):
    ratio = Ratio("accuracy", np.array(rights, dtype=float), np.ones(len(rights)))
    known = (norm.ppf(0.95) / t.ppf(0.95, len(rights) - 1)) ** 2
    assert estimate.effective_rows(ratio, level=0.9) == pytest.approx((len(rights) - 1) * known)


@pytest.mark.slow
@given(st.lists(st.floats(0, 1), min_size=4, max_size=20), st.floats(0.01, 100))
def test_an_interval_of_errors_holds_them_and_scales_with_them(given_errors, scale):
    ratio = errors(*given_errors, most=1)
    found = estimate.around(ratio.value, ratio)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.high > found.low
    assert (found.metric, found.rows) == ("mae", len(given_errors))
    scaled = errors(*(scale * error for error in given_errors), most=scale)
    again = estimate.around(scaled.value, scaled)
    assert (again.low, again.high) == pytest.approx((scale * found.low, scale * found.high), rel=1e-6, abs=1e-9)


def test_rows_that_do_not_differ_count_once_each():
    for ratio in (errors(0, 0, 0, 0), errors(2, 2, 2, 2), errors(1)):
        share, rows = ratio.value / 5, len(ratio.over_N)
        expected = binomtest(0, rows).proportion_ci(0.9, method="wilson").high if share == 0 else None
        found = estimate.around(ratio.value, ratio)
        assert found.low <= ratio.value < found.high and estimate.effective_rows(ratio) == rows
        assert expected is None or found.high == pytest.approx(5 * expected)


def test_rows_without_a_label_and_without_an_answer_say_nothing_of_f1():
    nothing = Ratio("micro_f1", np.zeros(4), np.zeros(4))
    found = estimate.around(nothing.value, nothing)
    assert found.value == 0 and found.high > 0
    losses_NM = np.array([[0.1, 0.1], [0.1, 0.2], [0.2, 0.1], [0.1, 0.1]])
    assert estimate.chosen(losses_NM, [nothing, nothing], seed=1).value == 0


def test_f1_of_rows_with_one_label_and_no_answer_is_no_accuracy():
    found = estimate.around(0.0, Ratio("micro_f1", np.zeros(6), np.ones(6)))
    assert (found.metric, found.low) == ("micro_f1", 0.0) and found.high > 0


def near(seed, *, methods=10, rows=32):
    """Methods whose errors are as large as each other's, an exponential's, and losses that follow them."""
    errors_NM = np.minimum(np.random.default_rng(seed).exponential(0.5, (rows, methods)), 5)
    return errors_NM, [errors(*column) for column in errors_NM.T]


@pytest.mark.slow
def test_choosing_by_errors_is_corrected_for(monkeypatch):
    monkeypatch.setattr(estimate, "RESAMPLES", 200)
    naive, corrected, covered = [], [], 0
    for seed in range(200):
        errors_NM, ratios_M = near(seed)
        naive.append(errors_NM.mean(0).min())
        found = estimate.chosen(errors_NM, ratios_M, seed=seed)
        corrected.append(found.value)
        covered += found.low <= 0.5 <= found.high
    assert np.mean(naive) < 0.38, "the winner's own error is too small"
    assert abs(np.mean(corrected) - 0.5) < 0.02
    assert covered / 200 >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16, 32, 64])
def test_an_interval_of_f1_holds_the_truth_about_as_often_as_it_says(rows):
    def drawn(count, random):
        """Twice the rights, and the trues and answers, of rows with one to three of five labels, nine tenths of which are told."""
        true_NC = (random.random((count, 5)) < 0.3) | (np.arange(5) == random.integers(5, size=(count, 1)))
        answers_NC = true_NC ^ (random.random((count, 5)) < 0.1)
        return 2.0 * (true_NC & answers_NC).sum(1), (true_NC.sum(1) + answers_NC.sum(1)).astype(float)

    over, under = drawn(200_000, np.random.default_rng(0))
    truth, covered = over.sum() / under.sum(), 0
    for seed in range(400):
        ratio = Ratio("micro_f1", *drawn(rows, np.random.default_rng([1, seed])))
        found = estimate.around(ratio.value, ratio)
        covered += found.low <= truth <= found.high
    assert 0.85 <= covered / 400 <= 0.95


def test_the_last_methods_are_preferred_within_their_margins():
    # Differences of 0.1 and 0.3 from the first method: mean 0.2, standard error 0.1.
    first, last = np.array([0.1, 0.1]), np.array([0.2, 0.4])
    losses = np.stack([first, last], 1)
    assert estimate.preferring(losses, (1.0,)) == 0 and estimate.preferring(losses, (2.1,)) == 1
    assert estimate.preferring(losses, (0.0,)) == 0
    assert estimate.preferring(losses[:, ::-1], (0.0,)) == 1, "a better one always"
    assert estimate.preferring(np.stack([first, first], 1), (0.0,)) == 1, "and one that is as good"
    assert estimate.preferring(losses, ()) == estimate.simplest(losses) == 0, "nothing is wanted"
    three = np.stack([first, last, last], 1)
    assert [estimate.preferring(three, margins) for margins in ((2.1, 0.0), (1.0, 2.1), (1.0, 1.0))] == [2, 2, 0]


def test_rows_that_share_models_say_less():
    alone, shared = (estimate.accuracy(0.75, 32, widened=estimate.widened(partings)) for partings in (0, 1))
    assert shared.rows == alone.rows and shared.low < alone.low < alone.high < shared.high
    assert estimate.widened(1) > estimate.widened(5) > estimate.widened(10) > estimate.widened(0) == 1
    errors_N = errors(0.1, 0.5, 1.2, 2.0, 0.3)
    plain, wide = (estimate.around(errors_N.value, errors_N, widened=by) for by in (1.0, 1.75))
    assert wide.low < plain.low and wide.high > plain.high


@pytest.mark.slow
@pytest.mark.parametrize("partings", [1, 5])
def test_the_interval_of_a_regression_in_folds_holds_its_accuracy_about_as_often_as_it_says(partings):
    """Two clouds in 100 dimensions, 16 rows each, against 2,000 others: about 70 % are right."""
    random, covered, plain = np.random.default_rng(7), 0, 0
    examples = [Example({"text": str(row)}, "ab"[row % 2]) for row in range(32)]

    def drawn(rows):
        targets_N = torch.arange(rows) % 2
        return torch.from_numpy(random.normal(size=(rows, 100)) + (2 * targets_N[:, None].numpy() - 1) * 0.17).float(), targets_N

    def right(learned, states_ND, targets_N):
        weight_CD, bias_C = learned
        return ((states_ND.double() @ weight_CD.T + bias_C).argmax(1) == targets_N).double()

    for draw in range(150):
        (states_ND, targets_N), others = drawn(32), drawn(2000)
        truth = float(right(logistic(states_ND, targets_N, candidates=2, strength=1.0), *others).mean())
        right_N = torch.zeros(32, dtype=torch.float64)
        for parting in range(partings):
            for kept, held in folds(examples, 4, seed=1000 * draw + parting):
                learned = logistic(states_ND[list(kept)], targets_N[list(kept)], candidates=2, strength=1.0)
                right_N[list(held)] += right(learned, states_ND[list(held)], targets_N[list(held)]) / partings
        found, narrow = (estimate.accuracy(float(right_N.mean()), 32, widened=by) for by in (estimate.widened(partings), 1.0))
        covered, plain = covered + (found.low <= truth <= found.high), plain + (narrow.low <= truth <= narrow.high)
    assert 0.85 <= covered / 150 <= 0.98 and plain < covered


def right(*places):
    return Ratio("accuracy", np.isin(np.arange(16), places).astype(float), np.ones(16))


def test_one_method_is_worse_than_another_beyond_the_interval_of_the_paired_difference():
    every = range(16)
    for lost, gained in ((0, 0), (3, 0), (4, 0), (6, 2), (8, 2), (0, 5)):
        one, other = right(*every[: 16 - lost]), right(*every[gained:])
        more, fewer = int((one.over_N > other.over_N).sum()), int((one.over_N < other.over_N).sum())
        assert estimate.worse(one, other) == (wald_paired(more, fewer, 16, confidence=0.9)[1] < 0)
    assert not estimate.worse(right(*every[:13]), right(*every)) and estimate.worse(right(*every[:12]), right(*every))
