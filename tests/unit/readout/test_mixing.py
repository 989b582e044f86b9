"""Merging what several members find probable: known answers, and what holds for all inputs."""

import math

import numpy as np
import pytest
import torch

from fewtune.readout.calibration import expected_temperature
from fewtune.readout.mixing import Mix, stacked

ONE = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.6, 0.4]]]).log()


def test_probabilities_are_added_and_divided():
    torch.testing.assert_close(Mix.equal(2)(ONE), torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=torch.float64))


def test_mean_logits_are_the_geometric_mean():
    first = (0.9 * 0.5) ** 0.5, (0.1 * 0.5) ** 0.5
    assert Mix.equal(2, logits=True)(ONE)[0].tolist() == pytest.approx([one / sum(first) for one in first], abs=1e-6)


def test_weighted_logits_are_those_of_the_official_code():
    # s(l | x) = sum of w_p s_p(l | x) over the sum of w_p, on logits: 0.75 * log-odds of 9 to 1, and 0.25 of none.
    odds = 9**0.75
    assert Mix((3.0, 1.0), (1.0, 1.0), logits=True)(ONE)[0].tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)], abs=1e-6)


def test_a_temperature_softens_its_own_member_only():
    found = Mix((1.0, 1.0), (2.0, 1.0))(ONE)[0, 0]
    assert found.item() == pytest.approx((3 / 4 + 0.5) / 2, abs=1e-6)  # 9 to 1 becomes 3 to 1


def test_some_members_keep_their_weights_and_temperatures():
    assert Mix((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)).only([0, 2]) == Mix((1.0, 3.0), (4.0, 6.0))


def test_stacking_listens_to_the_member_that_is_right():
    targets = torch.tensor([0, 1] * 8)
    right = torch.nn.functional.one_hot(targets, 2) * 2.0
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(1)) * 3
    mix = stacked(torch.stack([right, noise]), targets)
    assert mix.weights_M[0] > 0.8 and sum(mix.weights_M) == pytest.approx(1)
    assert mix.temperatures_M == (expected_temperature(right, targets), expected_temperature(noise, targets))
    assert mix(torch.stack([right, noise])).argmax(1).tolist() == targets.tolist()


def test_stacked_weights_are_where_the_likelihood_with_its_prior_is_greatest():
    random = torch.Generator().manual_seed(5)
    log_MNC, targets = torch.randn(3, 12, 2, generator=random).log_softmax(-1), torch.tensor([0, 1, 1, 0] * 3)
    mix = stacked(log_MNC, targets)
    tempered = torch.stack([(one.double() / warm).softmax(-1) for one, warm in zip(log_MNC, mix.temperatures_M, strict=True)])
    likely = tempered.gather(2, targets[None, :, None].expand(3, -1, 1))[..., 0]

    def belief(weights):
        return float((torch.tensor(weights)[:, None] * likely).sum(0).log().sum() + 2 / 3 * torch.tensor(weights).log().sum())

    best = max(belief((a, b, 1 - a - b)) for a in np.linspace(0.01, 0.98, 60) for b in np.linspace(0.01, 0.99 - a, 60) if a + b < 1)
    assert belief(mix.weights_M) >= best - 1e-6


def test_alike_members_are_alike():
    one = ONE[0]
    assert stacked(torch.stack([one, one]), torch.tensor([0, 1])).weights_M == pytest.approx((0.5, 0.5))


def test_logarithms_do_not_vanish():
    certain = torch.tensor([[[0.0, -2000.0]], [[0.0, -1000.0]]], dtype=torch.float64)
    assert Mix.equal(2)(certain)[0, 1] == 0.0
    assert Mix.equal(2).log(certain)[0, 1].item() == pytest.approx(-1000.0 - math.log(2))
    assert Mix.equal(2, logits=True).log(certain)[0, 1].item() == pytest.approx(-1500.0)


def test_candidates_that_a_row_has_not_stay_impossible():
    padded = torch.tensor([[[0.5, 0.5, 0.0]], [[0.9, 0.1, 0.0]]], dtype=torch.float64).log()
    for logits in (False, True):
        assert Mix.equal(2, logits=logits).log(padded)[0, 2] == -math.inf
    assert Mix((1.0, 0.0), (1.0, 1.0), logits=True)(padded)[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_several_mixes_are_pooled():
    pooled = Mix.pooled([Mix((0.2, 0.8), (1.0, 0.5), logits=True), Mix((0.4, 0.6), (4.0, 0.5), logits=True)])
    assert pooled.logits and pooled.weights_M == pytest.approx((0.3, 0.7)) and pooled.temperatures_M == pytest.approx((2.0, 0.5))
