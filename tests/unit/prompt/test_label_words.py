"""The formulas of the search for label words: by hand, and against plain loops over everything there is."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.prompt.label_words import assignments, likeliest, pooled, ratios, shared_out


def drawn(seed, rows, words):
    """Log-probabilities of the first `words` of a larger vocabulary."""
    logits = np.random.default_rng(seed).normal(size=(rows, words + 5)) * 2
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[:, :words]


def test_the_likeliest_words_of_a_label_by_hand():
    """Gao et al. 2021, equation 5: the sum over the label's rows, so one row that rules a word out counts."""
    log_NK = np.log([[0.5, 0.4, 0.1], [0.01, 0.4, 0.1], [0.1, 0.2, 0.7]])
    first, second = likeliest(log_NK, np.array([0, 0, 1]), 2, labels=2)
    # Label 0: 0.5 · 0.01 < 0.1 · 0.1 < 0.4 · 0.4.
    assert first.tolist() == [1, 2] and second.tolist() == [2, 1]


def test_the_best_assignment_by_hand():
    # Word 0 is likely everywhere, 1 for label 0 only, 2 for label 1 only: the likeliest words are not those that tell the labels apart.
    log_NK = np.log([[0.5, 0.3, 0.1], [0.5, 0.3, 0.1], [0.5, 0.1, 0.3], [0.5, 0.1, 0.3]])
    best, *others = assignments(log_NK, np.array([0, 0, 1, 1]), [np.array([0, 1]), np.array([0, 2])], most=10)
    assert best.words == (1, 2) and best.accuracy == 1.0 and best.log_likelihood == pytest.approx(math.log(0.75))
    # (0, 0) is none, for a word stands for one label; the other two get half of the rows right, whatever their likelihood.
    assert [one.words for one in others] == [(1, 0), (0, 2)] or [one.words for one in others] == [(0, 2), (1, 0)]
    assert [one.accuracy for one in others] == [0.5, 0.5]


def test_among_equals_the_likelier_comes_first():
    log_NK = np.log([[0.6, 0.2, 0.1], [0.2, 0.6, 0.3]])
    found = assignments(log_NK, np.array([0, 1]), [np.array([0]), np.array([1, 2])], most=2)
    assert [one.accuracy for one in found] == [1.0, 1.0] and [one.words for one in found] == [(0, 1), (0, 2)]


def every_assignment(log_NK, targets_N, candidates):
    """All of them, scored one by one with the plain formula."""
    for words in itertools.product(*(one.tolist() for one in candidates)):
        if len(set(words)) < len(words):
            continue
        chosen_NC = log_NK[:, list(words)]
        own_N = chosen_NC[np.arange(len(targets_N)), targets_N]
        rivals_N = np.where(np.arange(len(words)) == targets_N[:, None], -np.inf, chosen_NC).max(1)
        yield float((own_N > rivals_N).mean()), float((own_N - np.log(np.exp(chosen_NC).sum(1))).mean()), words


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), labels=st.integers(2, 3), rows=st.integers(1, 5), words=st.integers(3, 6))
def test_it_finds_what_trying_everything_finds(seed, labels, rows, words):
    log_NK, targets_N = drawn(seed, rows * labels, 8), np.arange(rows * labels) % labels
    candidates = likeliest(log_NK, targets_N, words, labels=labels)
    wanted = sorted(every_assignment(log_NK, targets_N, candidates), key=lambda one: (-one[0], -one[1]))
    found = assignments(log_NK, targets_N, candidates, most=1000)
    assert [one.words for one in found] == [words for _, _, words in wanted]
    assert [one.accuracy for one in found] == [accuracy for accuracy, _, _ in wanted]
    assert [one.log_likelihood for one in found] == pytest.approx([likelihood for _, likelihood, _ in wanted])


@pytest.mark.slow
def test_twenty_labels_are_searched_without_trying_everything():
    labels, rows = 20, 3
    targets_N = np.repeat(np.arange(labels), rows)
    log_NK = drawn(0, len(targets_N), 200)
    for label in range(labels):
        log_NK[targets_N == label, 100 + label] += 20  # each label has a word that its rows alone make likely
    best = assignments(log_NK, targets_N, likeliest(log_NK, targets_N, 30, labels=labels), most=5)[0]
    assert best.words == tuple(range(100, 120)) and best.accuracy == 1.0


def test_words_that_are_next_to_impossible_do_no_harm():
    log_NK = np.array([[-1.0, -5000.0, -4000.0], [-4000.0, -1.0, -5000.0]])
    found = assignments(log_NK, np.array([0, 1]), [np.array([0, 2]), np.array([1])], most=5)
    assert found[0].words == (0, 1) and all(math.isfinite(one.log_likelihood) for one in found)


def test_the_likelihood_ratio_by_hand():
    """Schick et al. 2020, section 3.2: one row of label 0 against two others, so its odds count twice."""
    log_NK = np.log([[0.5, 0.2], [0.2, 0.1], [0.25, 0.5]])
    ratios_CK = ratios(log_NK, np.array([0, 1, 1]), labels=2)
    odds = [[1.0, 0.25], [0.25, 1 / 9], [1 / 3, 1.0]]
    for word in range(2):
        first, second, third = (math.log(row[word]) for row in odds)
        assert ratios_CK[0, word] == pytest.approx(2 * first - (second + third))
        assert ratios_CK[1, word] == pytest.approx((second + third) / 2 - first)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), labels=st.integers(2, 4))
def test_the_likelihood_ratio_as_its_two_terms(seed, labels):
    log_NK, targets_N = drawn(seed, 3 * labels + 1, 6), np.arange(3 * labels + 1) % labels
    found_CK = ratios(log_NK, targets_N, labels=labels)
    for label, word in itertools.product(range(labels), range(6)):
        q, mine = np.exp(log_NK[:, word]), targets_N == label
        scale = (~mine).sum() / mine.sum()
        positive = scale * (np.log(q[mine]).sum() - np.log(1 - q[mine]).sum())
        negative = np.log(1 - q[~mine]).sum() - np.log(q[~mine]).sum()
        assert found_CK[label, word] == pytest.approx(positive + negative)


def test_a_certain_word_has_finite_odds():
    assert np.isfinite(ratios(np.array([[0.0, -1.0], [-1.0, 0.0]]), np.array([0, 1]), labels=2)).all()


def test_a_word_goes_to_the_label_that_it_says_most_of():
    scores_CK = np.array([[5.0, 4.0, 1.0, 0.0], [6.0, 1.0, 2.0, 3.0]])
    every = [np.arange(4), np.arange(4)]
    assert shared_out(scores_CK, every, keep=2) == ((1, 2), (0, 3))
    assert shared_out(scores_CK, every, keep=1) == ((1,), (0,))


@given(seed=st.integers(0, 1000), labels=st.integers(2, 5), keep=st.integers(1, 3))
def test_every_label_gets_its_words_and_no_two_the_same(seed, labels, keep):
    scores_CK = np.random.default_rng(seed).normal(size=(labels, labels * keep))
    chosen = shared_out(scores_CK, [np.arange(labels * keep)] * labels, keep=keep)
    assert [len(words) for words in chosen] == [keep] * labels
    assert len({word for words in chosen for word in words}) == labels * keep


def test_choices_that_contradict_a_better_one_are_passed_over():
    ordered = [((0,), (1,)), ((1,), (2,)), ((0,), (3,)), ((4,), (1,)), ((5,), (6,))]
    assert pooled(ordered, keep=3) == ([0, 2, 3], ((0, 4), (1, 3)))
    assert pooled(ordered, keep=1) == ([0], ((0,), (1,)))
