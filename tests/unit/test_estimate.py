"""Estimates by hand, against scipy, and in simulations with known truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fewtune import estimate
from fewtune.errors import DataError


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
    assert estimate.chosen(1 - right_NM, right_NM, seed=1) == estimate.accuracy(0.75, 4)


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
        found = estimate.chosen(losses_NM, right_NM, seed=seed)
        corrected.append(found.value)
        covered += found.low <= 0.7 <= found.high
    assert np.mean(naive) - 0.7 > 0.08, "the winner's own score is too good"
    assert abs(np.mean(corrected) - 0.7) < 0.02
    assert covered / 200 >= 0.85


def test_the_same_seed_gives_the_same_estimate():
    losses_NM, right_NM = simulated(3)
    assert estimate.chosen(losses_NM, right_NM, seed=5) == estimate.chosen(losses_NM, right_NM, seed=5)


def test_what_differs_by_rounding_alone_is_alike():
    losses_NM = np.stack([np.full(8, 0.5426), np.full(8, 0.5425)], 1)
    assert estimate.alike(losses_NM).tolist() == [True, True] and estimate.simplest(losses_NM) == 0
    assert estimate.alike(losses_NM * [1.0, 0.9]).tolist() == [False, True]
