"""Every calibration of the table: shapes, rows for themselves, candidates in order, finite at extremes, the same after saving."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.errors import SpecError
from fewtune.readout import CALIBRATIONS
from fewtune.readout.calibration import Calibrator

SEEN = list(CALIBRATIONS)
NEEDS = {"nothing", "content_free", "premise", "targets", "unlabeled"}


def test_every_calibration_is_seen():
    assert len(SEEN) == 5


def fitted(name, *, candidates=4, seed=0, spread=2.0):
    """A calibrator learned from drawn rows, whatever kind of rows it asks for."""
    generator = torch.Generator().manual_seed(seed)
    scores_NC = torch.randn(12, candidates, generator=generator) * spread
    targets_N = torch.randint(candidates, (12,), generator=generator)
    return CALIBRATIONS.from_dict({"name": name}).fit(scores_NC, targets_N)


def drawn(rows, candidates=4, *, seed=1):
    return torch.randn(rows, candidates, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SEEN)
def test_says_what_it_needs_and_goes_through_plain_data(name):
    calibration = CALIBRATIONS.from_dict({"name": name})
    assert type(calibration).needs in NEEDS
    assert CALIBRATIONS.from_dict(json.loads(json.dumps(CALIBRATIONS.to_dict(calibration)))) == calibration


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("candidates", [1, 2, 20])
def test_gives_a_finite_row_for_each_row(name, candidates):
    calibrated = fitted(name, candidates=candidates)(drawn(7, candidates))
    assert calibrated.shape == (7, candidates) and calibrated.dtype == torch.float64
    torch.testing.assert_close(calibrated.softmax(-1).sum(-1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("name", SEEN)
def test_each_row_is_calibrated_for_itself(name):
    calibrator, scores_NC = fitted(name), drawn(6)
    together_NC = calibrator(scores_NC)
    torch.testing.assert_close(together_NC, torch.cat([calibrator(row[None]) for row in scores_NC]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together_NC, calibrator(scores_NC.flip(0)).flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SEEN)
def test_the_order_of_the_candidates_is_carried(name):
    order = torch.tensor([2, 0, 3, 1])
    scores_NC, targets_N, fresh_NC = drawn(12), torch.arange(12) % 4, drawn(5, seed=2)
    calibration = CALIBRATIONS.from_dict({"name": name})
    straight = calibration.fit(scores_NC, targets_N)(fresh_NC)
    turned = calibration.fit(scores_NC[:, order], order.argsort()[targets_N])(fresh_NC[:, order])
    torch.testing.assert_close(turned, straight[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SEEN)
def test_a_constant_added_to_a_row_says_nothing(name):
    calibrator, scores_NC = fitted(name), drawn(6)
    torch.testing.assert_close(calibrator(scores_NC + 7), calibrator(scores_NC), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SEEN)
@settings(max_examples=25)
@given(spread=st.sampled_from([0.0, 1e-30, 1.0, 1e4, 1e30]), size=st.sampled_from([0.0, 1e-30, 1e4, 1e30]), seed=st.integers(0, 99))
def test_finite_at_extremes_and_the_same_after_saving(name, spread, size, seed):
    calibrator, scores_NC = fitted(name, spread=spread, seed=seed), drawn(5) * size
    calibrated = calibrator(scores_NC)
    assert bool(calibrated.isfinite().all())
    assert torch.equal(Calibrator.from_dict(json.loads(json.dumps(calibrator.to_dict())))(scores_NC), calibrated)


@pytest.mark.parametrize("name", SEEN)
def test_fitted_twice_is_the_same_and_other_labels_are_refused(name):
    assert fitted(name) == fitted(name)
    with pytest.raises(SpecError, match="expected scores of 4 candidates, got 3"):
        fitted(name)(drawn(2, 3))
