"""iPET's draws, and the shift of a pool: known answers, and what holds for all inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewtune.strategies.teachers import apportioned, grown, likeliest, shift


@given(st.integers(0, 500), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_apportioned_adds_up_and_is_within_one_of_the_exact_share(size, counts):
    found = apportioned(size, counts)
    assert sum(found) == size
    assert all(abs(one - size * count / sum(counts)) < 1 for one, count in zip(found, counts, strict=True))


SHARES = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]], dtype=torch.float64)


def test_grown_draws_in_the_proportions_of_the_labelled_rows_without_replacement():
    drawn = grown(SHARES, (1, 1), 4, seed=3)
    assert [label for _, label in drawn] == [0, 0, 1, 1] and len({row for row, _ in drawn}) == 4
    assert all(SHARES[row].argmax() == label for row, label in drawn)
    assert grown(SHARES, (1, 1), 4, seed=3) == drawn


def test_grown_prefers_what_is_sure():
    times = np.zeros(3)
    for seed in range(300):
        ((row, _),) = grown(SHARES[:3], (1, 0), 1, seed=seed)
        times[row] += 1
    assert times / 300 == pytest.approx(np.array([0.9, 0.6, 0.8]) / 2.3, abs=0.09)


def test_a_label_that_nobody_is_given_ends_and_is_left_out():
    assert [label for _, label in grown(SHARES[:3], (1, 1), 6, seed=0)] == [0, 0, 0]
    assert grown(SHARES[:3], (0, 1), 6, seed=0) == []


@given(st.integers(0, 40), st.integers(0, 99))
def test_grown_never_takes_more_than_there_is(size, seed):
    drawn = grown(SHARES, (2, 1), size, seed=seed)
    assert len(drawn) <= min(size, len(SHARES)) and len({row for row, _ in drawn}) == len(drawn)


def test_the_likeliest_of_each_label_and_each_row_once():
    assert likeliest(SHARES, 2) == [(0, 0), (2, 0), (3, 1), (4, 1)]
    nobody = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert likeliest(nobody, 1) == [(0, 0), (2, 1)], "a label whose rows are none the likeliest has its likeliest one"


def test_a_pool_like_the_labelled_rows_has_not_shifted_and_another_has():
    random = np.random.default_rng(0)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    middle, far = np.eye(8)[0], np.eye(8)[1]
    known, same, other = (unit(where + random.normal(size=(rows, 8)) * 0.2) for where, rows in ((middle, 20), (middle, 200), (far, 200)))
    assert abs(shift(known, same) - 0.5) < 0.15
    assert shift(known, other) > 0.95


def test_with_few_labelled_rows_a_pool_of_the_same_kind_lies_lower():
    random = np.random.default_rng(0)
    found = {}
    for rows in (2, 8):
        drawn = []
        for _ in range(200):
            centres = random.normal(size=(2, 20))
            known, pool = (
                centres[labels] + random.normal(size=(len(labels), 20)) for labels in (np.arange(2).repeat(rows), np.arange(100) % 2)
            )
            drawn.append(shift(*(each / np.linalg.norm(each, axis=1, keepdims=True) for each in (known, pool))))
        found[rows] = float(np.mean(drawn))
    assert abs(found[2] - 0.35) < 0.03 and abs(found[8] - 0.48) < 0.03


def test_a_rare_label_is_no_shift():
    random = np.random.default_rng(0)
    one, two = np.eye(8)[0] * 5, np.eye(8)[1] * 5
    known = np.vstack([random.normal(one, 0.5, (8, 8)), random.normal(two, 0.5, (8, 8))])
    pool = np.vstack([random.normal(one, 0.5, (190, 8)), random.normal(two, 0.5, (10, 8))])
    known, pool = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (known, pool))
    assert abs(shift(known, pool) - 0.5) < 0.2


def test_shift_by_hand():
    known, pool = np.eye(3)[[0, 0, 1, 1]], np.eye(3)[[0, 2]]
    # Each labelled row has another at cosine 1; of the pool one row is at 1 (a tie) and one at 0: (0.5 + 1) / 2.
    assert shift(known, pool) == 0.75
