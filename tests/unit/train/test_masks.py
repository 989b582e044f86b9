"""Rules of pruning by hand: which weights remain, when the others go, and what a gradient makes of a mask."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewtune.train import masks


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_largest_are_those_that_sorting_finds(share):
    scores = torch.randn(7, 11, generator=torch.Generator().manual_seed(3))
    keep = masks.largest(scores, share)
    out = round(77 * share)
    expected = torch.ones(77, dtype=torch.bool)
    expected[scores.flatten().argsort()[:out]] = False
    assert torch.equal(keep, expected.view(7, 11))


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=40), st.floats(0, 1))
def test_exactly_the_share_goes_whatever_is_equal(values, share):
    scores = torch.tensor(values, dtype=torch.float32)
    keep = masks.largest(scores, share)
    assert int(keep.sum()) == len(values) - round(len(values) * share)
    if bool(keep.any()) and not bool(keep.all()):
        assert scores[keep].min() >= scores[~keep].max()
        least = scores[keep].min()
        assert keep[scores == least].tolist() == sorted(keep[scores == least].tolist(), reverse=True), "the first of equals remain"


def test_among_all_matrices_a_small_one_may_lose_everything():
    scores = {"small": torch.tensor([[0.1, 0.2]]), "large": torch.tensor([1.0, 3.0, 0.15, 2.0])}
    found = masks.largest_of_all(scores, 0.5)
    assert found["small"].tolist() == [[False, False]] and found["large"].tolist() == [True, True, False, True]
    each = {name: masks.largest(tensor, 0.5) for name, tensor in scores.items()}
    assert each["small"].tolist() == [[False, True]] and each["large"].tolist() == [False, True, False, True]


def test_soft_movement_keeps_what_is_above_the_threshold():
    odds = math.log(0.1 / 0.9)
    assert masks.above(torch.tensor([odds - 1e-3, odds + 1e-3]), 0.1).tolist() == [False, True]


def test_what_pulls_scores_down_is_their_mean_sigmoid():
    scores = [torch.zeros(2, 2, requires_grad=True), torch.full((4,), 2.0, requires_grad=True)]
    found = masks.pull(scores)
    sigmoid = 1 / (1 + math.exp(-2.0))
    assert found.item() == pytest.approx((4 * 0.5 + 4 * sigmoid) / 8)
    found.backward()
    assert scores[0].grad.flatten().tolist() == pytest.approx([0.25 / 8] * 4)


def test_the_schedule_by_hand():
    at = [masks.gradual(step, steps=10, warmup=0.2, cooldown=0.3) for step in range(10)]
    assert at == pytest.approx([0, 0, 0, *(1 - (1 - done / 5) ** 3 for done in (1, 2, 3, 4)), 1, 1, 1])
    assert [masks.gradual(step, steps=3, warmup=0, cooldown=1) for step in range(3)] == [1, 1, 1]
    assert masks.gradual(0, steps=1, warmup=0.5, cooldown=0.5) in (0.0, 1.0)


@given(st.integers(1, 50), st.floats(0, 0.5), st.floats(0.02, 0.5))
def test_the_schedule_rises_from_nothing_to_all(steps, warmup, cooldown):
    found = [masks.gradual(step, steps=steps, warmup=warmup, cooldown=cooldown) for step in range(steps + 1)]
    assert found == sorted(found) and found[-1] == 1 and all(0 <= one <= 1 for one in found)


def test_the_gradient_through_a_mask():
    """dL/dW = dL/dW' where it remains; dL/dS = dL/dW' · W everywhere, also where the weight is out (Sanh et al. 2020, eq. 2 and 3)."""
    weight = torch.tensor([[2.0, -3.0], [0.5, 1.0]], requires_grad=True)
    score = torch.zeros(2, 2, requires_grad=True)
    keep = torch.tensor([[True, False], [False, True]])
    masked = masks.straight_through(weight, score, keep)
    assert masked.tolist() == [[2.0, 0.0], [0.0, 1.0]]
    input_2 = torch.tensor([1.0, 10.0])
    (masked @ input_2).sum().backward()
    assert weight.grad.tolist() == [[1.0, 0.0], [0.0, 10.0]]
    assert score.grad.tolist() == [[2.0, -30.0], [0.5, 10.0]]


def test_a_step_along_the_gradient_raises_what_moves_away_from_zero():
    weight, score = torch.tensor([1.0, 1.0], requires_grad=True), torch.zeros(2, requires_grad=True)
    masked = masks.straight_through(weight, score, torch.tensor([True, True]))
    (masked * torch.tensor([-1.0, 1.0])).sum().backward()  # the loss falls as the first grows and the second shrinks
    risen = score - 0.1 * score.grad
    assert risen[0] > 0 > risen[1]


def test_bits_by_hand():
    keep = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    assert masks.packed(keep).tolist() == [0b10000001, 0b11000000]
    assert masks.packed(keep).dtype == torch.uint8


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_bits_and_back(rows, columns, seed):
    keep = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = masks.packed(keep)
    assert bits.shape == (-(-rows * columns // 8),)
    assert torch.equal(masks.unpacked(bits, keep.shape), keep)
