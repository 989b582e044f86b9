"""Promises: the tail by hand, the order of tests, and how often they are broken over draws of rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from fewtune.errors import SpecError
from fewtune.exits.promise import Promise, betting, exit_numbers, kept_until, p_value, thresholds


def test_the_exact_tail_equals_scipys_test():
    losses_N = np.array([1.0] * 3 + [0.0] * 197)
    assert p_value(losses_N, 0.05) == pytest.approx(binomtest(3, 200, 0.05, alternative="less").pvalue)
    assert p_value(np.zeros(200), 0.02) == pytest.approx(0.98**200)


def test_the_fewest_rows_are_enough_and_one_less_is_not():
    promise = Promise("agree", 0.97, confidence=0.95)
    assert kept_until([np.zeros(promise.fewest)], promise) == 0
    assert kept_until([np.zeros(promise.fewest - 1)], promise) is None


def test_the_first_that_fails_ends_the_sequence():
    good, bad = np.zeros(300), np.array([1.0] * 30 + [0.0] * 270)
    promise = Promise("agree", 0.98)
    assert kept_until([good, good, bad, good], promise) == 1
    assert kept_until([bad, good], promise) is None
    assert kept_until([], promise) is None


def test_where_each_row_leaves():
    sure_NL = torch.tensor([[0.2, 0.9], [0.8, 0.1], [0.1, 0.2]])
    assert exit_numbers(sure_NL, 0.8).tolist() == [1, 0, 2]
    assert exit_numbers(sure_NL, 0.15).tolist() == [0, 0, 1]
    assert exit_numbers(sure_NL, float("inf")).tolist() == [2, 2, 2]


def test_thresholds_go_from_the_greatest_to_the_least_and_a_value_is_reached_by_its_row():
    sure_NL = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    tried = thresholds(sure_NL)
    assert tried == sorted(tried, reverse=True) and len(tried) == 200
    assert (tried[0], tried[-1]) == (sure_NL.max().item(), sure_NL.min().item())
    numbers = [int((exit_numbers(sure_NL, threshold) == 3).sum()) for threshold in tried]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] == 499 and numbers[-1] == 0


@settings(max_examples=40)
@given(rows=st.integers(1, 400), most=st.floats(0.001, 0.5), mean=st.floats(0, 1), seed=st.integers(0, 999))
def test_a_bet_is_never_surer_than_chance_allows(rows, most, mean, seed):
    """The game's p-value of 0/1 losses is at least the exact one, which is the smallest that is valid."""
    losses_N = (np.random.default_rng(seed).random(rows) < mean).astype(float)
    assert betting(losses_N, most) >= binom.cdf(losses_N.sum(), rows, most) - 1e-9


def test_a_bet_sees_gains_that_make_up_for_losses():
    losses_N = np.array([1.0] * 4 + [-1.0] * 12 + [0.0] * 984)
    assert betting(losses_N, 0.01) < 0.1 < betting(-losses_N, 0.01)


@pytest.mark.parametrize("wrong", [("agree", 1.0), ("agree", 0.0), ("drop", 0.0), ("budget", 0.0), ("budget", 1.5)])
def test_what_cannot_be_promised_is_refused(wrong):
    with pytest.raises(SpecError, match=f"--{wrong[0]}: expected .*, got {wrong[1]}"):
        Promise(*wrong)
    with pytest.raises(SpecError, match="--confidence: expected between 0 and 1, got 1"):
        Promise("agree", 0.9, confidence=1)


def world(seed, rows=6000, exits=4):
    """How sure rows are at each exit, and whether the exit's answer is the last one: surer ones more often."""
    random = np.random.default_rng(seed)
    hard_N1 = random.random((rows, 1))
    reached_L = np.linspace(0.3, 0.9, exits)
    chance_NL = 1 / (1 + np.exp(-20 * (reached_L - hard_N1)))
    return torch.tensor(reached_L - hard_N1 + random.normal(0, 0.1, (rows, exits))), random.random((rows, exits)) < chance_NL


def losses(sure_NL, agrees_NL, threshold):
    """1 for each row that leaves with another answer than the last."""
    numbers_N = exit_numbers(sure_NL, threshold).numpy()
    agrees_N = np.c_[agrees_NL, np.ones(len(agrees_NL), dtype=bool)][np.arange(len(numbers_N)), numbers_N]
    return 1.0 - agrees_N


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.8, 0.9])
@pytest.mark.parametrize("rows", [150, 400])
def test_over_300_splits_a_promise_is_broken_no_more_often_than_its_confidence_allows(confidence, rows):
    sure_NL, agrees_NL = world(1)
    promise, tried, random = Promise("agree", 0.97, confidence), thresholds(sure_NL[:500]), np.random.default_rng(7)
    losses_TN = np.stack([losses(sure_NL, agrees_NL, threshold) for threshold in tried])[:, 500:]
    broken = used = 0
    for _ in range(300):
        chosen = random.permutation(losses_TN.shape[1])
        test, rest = chosen[:rows], chosen[rows:]
        last = kept_until(iter(losses_TN[:, test]), promise)
        if last is not None:
            used += 1
            broken += losses_TN[last, rest].mean() > promise.most
    assert used > 200, "next to nothing is promised, so nothing can be broken"
    assert broken <= binom.ppf(0.999, 300, 1 - confidence)
    assert broken > 0, "no promise is ever broken: they are far too cautious"


@pytest.mark.slow
def test_over_300_splits_the_points_lost_stay_below_what_is_promised():
    random, means_T = np.random.default_rng(3), np.linspace(-0.01, 0.04, 26)
    promise, broken, used = Promise("drop", 1.0, 0.9), 0, 0
    for _ in range(300):
        # At each threshold 2 % of the rows gain; more lose the looser it is.
        order_N = random.random(1500)
        losses_TN = [np.where(order_N < 0.02, -1.0, np.where(order_N > 0.98 - mean, 1.0, 0.0)) for mean in means_T]
        last = kept_until(losses_TN, promise)
        used += last is not None
        broken += last is not None and means_T[last] > promise.most + 1e-12
    assert used > 200 and broken <= binom.ppf(0.999, 300, 0.1)
