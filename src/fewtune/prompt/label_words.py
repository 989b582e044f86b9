"""Label words out of log-probabilities: the likeliest of each label, the assignments that tell labels apart, the likelihood ratio.

Numbers in, numbers out; knows no word, no tokenizer and no model. `log_NK` are log-probabilities, over the whole vocabulary, of K words in
the slot of N labelled rows; `targets_N` are the rows' labels as numbers from 0.

Dimensions: N rows, K words, C labels, S partial assignments, W words of one label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

Chosen = tuple[tuple[int, ...], ...]
"""For each label, its words by their places among the K."""

_BEAM = 100
"""Partial assignments that are carried from label to label: with up to as many words of a label, two labels are searched wholly."""


@dataclass(frozen=True)
class Assignment:
    """One word of the K for each label, and what it answers without training: the share of rows that are right, and how likely they are."""

    words: tuple[int, ...]
    accuracy: float
    log_likelihood: float


def likeliest(log_NK: Array, targets_N: Indices, most: int, *, labels: int) -> tuple[Indices, ...]:
    """For each label the `most` words that are likeliest in the slots of its rows, the likeliest first.

    Gao et al. 2021, section 5.1, equation 5: the sum of log P(word | prompt) over the label's rows.

    >>> [words.tolist() for words in likeliest(np.log([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]), np.array([0, 1]), 2, labels=2)]
    [[0, 1], [2, 1]]
    """
    return tuple(np.argsort(-log_NK[targets_N == label].sum(0), kind="stable")[:most] for label in range(labels))


def assignments(log_NK: Array, targets_N: Indices, candidates: Sequence[Indices], *, most: int) -> list[Assignment]:
    """The `most` best choices of one candidate for each label, no word twice: by accuracy, and among equals by likelihood.

    Gao et al. 2021, section 5.1, step two. Accuracy on a few labelled rows has many equals, so the likelihood of the right label under
    a softmax over the chosen words decides among them. Labels are added one after another, and the best hundred partial assignments are
    carried on, judged on the rows of the labels that they have; for two labels that is every pair of a hundred words each.
    """
    rows = len(targets_N)
    states = [_Partial((), np.full(rows, -np.inf), np.full(rows, -np.inf), np.zeros(rows))]
    relative_NK = np.maximum(log_NK - log_NK.max(1, keepdims=True), -700.0)  # so that no sum of probabilities vanishes
    for label, words in enumerate(candidates):
        states = _extended(states, relative_NK, targets_N, label, words, max(most, _BEAM))
    found = (Assignment(state.words, state.accuracy, state.log_likelihood) for state in states)
    return list(found)[:most]


@dataclass(frozen=True)
class _Partial:
    """Words for the first labels: own_N the right label's score where it has a word, rival_N the best other's, total_N the sum of
    exponentials."""

    words: tuple[int, ...]
    own_N: Array
    rival_N: Array
    total_N: Array
    accuracy: float = 0.0
    log_likelihood: float = 0.0


def _extended(states: list[_Partial], log_NK: Array, targets_N: Indices, label: int, words: Indices, most: int) -> list[_Partial]:
    """The best of all states with one more label's word."""
    new_WN, mine_N, judged_N = log_NK[:, words].T, targets_N == label, targets_N <= label
    accuracies, likelihoods = [], []
    for state in states:
        own_WN, rival_WN = _added(state, new_WN, mine_N)
        total_WN = state.total_N + np.exp(new_WN)
        free_W = ~np.isin(words, state.words)
        right_W = (own_WN > rival_WN)[:, judged_N].mean(1)
        accuracies.append(np.where(free_W, right_W, -np.inf))
        likelihoods.append((own_WN - np.log(total_WN))[:, judged_N].mean(1))
    accuracy_SW, likelihood_SW = np.stack(accuracies), np.stack(likelihoods)
    order = np.lexsort((-likelihood_SW.ravel(), -accuracy_SW.ravel()))[:most]
    best = [divmod(int(place), len(words)) for place in order if np.isfinite(accuracy_SW.ravel()[place])]
    return [
        _with(states[state], int(words[word]), new_WN[word], mine_N, float(accuracy_SW[state, word]), float(likelihood_SW[state, word]))
        for state, word in best
    ]


def _added(state: _Partial, new_WN: Array, mine_N: NDArray[np.bool_]) -> tuple[Array, Array]:
    """own_WN and rival_WN with another label's word: its own rows get their score, all others one more rival."""
    return np.where(mine_N, new_WN, state.own_N), np.where(mine_N, state.rival_N, np.maximum(state.rival_N, new_WN))


def _with(state: _Partial, word: int, new_N: Array, mine_N: NDArray[np.bool_], accuracy: float, log_likelihood: float) -> _Partial:
    own_1N, rival_1N = _added(state, new_N[None], mine_N)
    return _Partial((*state.words, word), own_1N[0], rival_1N[0], state.total_N + np.exp(new_N), accuracy, log_likelihood)


def ratios(log_NK: Array, targets_N: Indices, *, labels: int) -> Array:
    """How much better each word says "this label" than "another one", ratios_CK.

    The likelihood ratio of Schick, Schmid & Schütze 2020, section 3.2, with positive and negative rows given equal weight: s times the
    sum of log (q / (1 - q)) over the label's rows, less the same sum over the other rows; q is the word's probability, s the number of
    other rows for each row of the label.
    """
    odds_NK = log_NK - np.log1p(-np.exp(np.minimum(log_NK, -1e-12)))  # a probability of 1 has no finite odds
    own_CK = np.stack([odds_NK[targets_N == label].sum(0) for label in range(labels)])
    counts_C1 = np.bincount(targets_N, minlength=labels)[:, None]
    ratios_CK: Array = (len(targets_N) - counts_C1) / counts_C1 * own_CK - (odds_NK.sum(0) - own_CK)
    return ratios_CK


def shared_out(scores_CK: Array, candidates: Sequence[Indices], *, keep: int) -> Chosen:
    """For each label up to `keep` of its candidates, the highest scores first; no word for two labels, the higher score has it."""
    pairs = sorted((-scores_CK[label, word], label, int(word)) for label, words in enumerate(candidates) for word in words)
    chosen: list[list[int]] = [[] for _ in candidates]
    taken: set[int] = set()
    for _, label, word in pairs:
        if word not in taken and len(chosen[label]) < keep:
            chosen[label].append(word)
            taken.add(word)
    return tuple(map(tuple, chosen))


def pooled(ordered: Sequence[Chosen], *, keep: int) -> tuple[list[int], Chosen]:
    """The places of the first `keep` choices that do not contradict one another, and each label's words in them.

    A word that stands for one label in a better choice cannot stand for another; so averaging over the words is averaging over the
    choices, each word once.

    >>> pooled([((0,), (1,)), ((0,), (2,)), ((2,), (1,)), ((3,), (1,))], keep=3)
    ([0, 1, 3], ((0, 3), (1, 2)))
    """
    owner: dict[int, int] = {}
    kept: list[int] = []
    for place, chosen in enumerate(ordered):
        claims = {word: label for label, words in enumerate(chosen) for word in words}
        if len(kept) < keep and all(owner.get(word, label) == label for word, label in claims.items()):
            owner |= claims
            kept.append(place)
    labels = range(len(ordered[0]))
    return kept, tuple(tuple(dict.fromkeys(word for place in kept for word in ordered[place][label])) for label in labels)
