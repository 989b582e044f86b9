"""How good answers of several labels are, each measure with its interval, and a row for each label. Knows yes and no, and probabilities.

Each measure is a function of how often each row counts, so that a value (once each) and its resamples come from the same lines; the tests
hold them to scikit-learn's. Dimensions: N rows, C labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewtune.errors import DataError
from fewtune.tasks.metrics import ClassRow, Interval, Measures, bootstrap, divide, sums, wilson

Array = NDArray[Any]


@dataclass(frozen=True)
class _Answers:
    """What is true, what was answered, and how probable it was."""

    targets_NC: Array
    answers_NC: Array
    probabilities_NC: Array

    @cached_property
    def right_NC(self) -> Array:
        return self.targets_NC & self.answers_NC

    def f1(self, weights_RN: Array) -> tuple[Array, Array]:
        """Twice the rights, and the trues and answers together, of each label: F1 is their quotient."""
        return 2 * weights_RN @ self.right_NC, weights_RN @ self.targets_NC.astype(float) + weights_RN @ self.answers_NC.astype(float)

    @cached_property
    def ranked(self) -> tuple[tuple[Array, Array], ...]:
        """For each label its rows from the most probable down, and the last place of each group of equals."""
        order_NC = np.argsort(-self.probabilities_NC, axis=0, kind="stable")
        sorted_NC = np.take_along_axis(self.probabilities_NC, order_NC, axis=0)
        ends = [np.append(np.flatnonzero(np.diff(column_N)), len(column_N) - 1) for column_N in sorted_NC.T]
        return tuple(zip(order_NC.T, ends, strict=True))


def micro_f1(found: _Answers, weights_RN: Array) -> Array:
    """F1 over all rows and labels at once; 0 where undefined."""
    over_RC, under_RC = found.f1(weights_RN)
    return divide(over_RC.sum(-1), under_RC.sum(-1))


def macro_f1(found: _Answers, weights_RN: Array) -> Array:
    """The unweighted mean of the labels' F1; 0 where undefined."""
    return np.asarray(divide(*found.f1(weights_RN)).mean(-1))


def subset_accuracy(found: _Answers, weights_RN: Array) -> Array:
    """The share of rows with exactly the right labels."""
    return np.asarray(weights_RN @ (found.targets_NC == found.answers_NC).all(1) / weights_RN.sum(-1))


def hamming_loss(found: _Answers, weights_RN: Array) -> Array:
    """The share of rows × labels that are answered wrong."""
    return np.asarray(weights_RN @ (found.targets_NC != found.answers_NC).mean(1) / weights_RN.sum(-1))


def mean_average_precision(found: _Answers, weights_RN: Array) -> Array:
    """The mean of the labels' average precision, over those that occur; 0 where none does. No threshold has a part in it."""
    precision, occurs = zip(*(_average_precision(found, label, weights_RN) for label in range(found.targets_NC.shape[1])), strict=True)
    return divide(np.sum(precision, axis=0), np.sum(occurs, axis=0).astype(float))


def _average_precision(found: _Answers, label: int, weights_RN: Array) -> tuple[Array, Array]:
    order_N, ends_K = found.ranked[label]
    count_RN = weights_RN[:, order_N]
    given_RK = count_RN.cumsum(-1)[:, ends_K]
    right_RK = (count_RN * found.targets_NC[order_N, label]).cumsum(-1)[:, ends_K]
    gained_RK = np.diff(right_RK, prepend=0.0)
    return divide((gained_RK * divide(right_RK, given_RK)).sum(-1), right_RK[:, -1]), right_RK[:, -1] > 0


METRICS: Mapping[str, Callable[[_Answers, Array], Array]] = {
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    "subset_accuracy": subset_accuracy,
    "hamming_loss": hamming_loss,
    "mean_average_precision": mean_average_precision,
}


def measure(
    targets_NC: Array, probabilities_NC: Array, *, labels: Sequence[str], threshold: float, confidence: float = 0.95, seed: int = 0
) -> Measures:
    """Every measure with its interval, and a row for each label; a label is answered where its probability reaches `threshold`.

    Subset accuracy has Wilson's interval; the others are bootstrapped over rows as those of classification are (percentile, widened to
    hold the value), and from one row the interval is all values possible. There is no confusion of labels that stand side by side.
    Raises `DataError` when targets and probabilities do not fit together or there is no row.
    """
    targets_NC, probabilities_NC = np.asarray(targets_NC, dtype=bool), np.asarray(probabilities_NC, dtype=np.float64)
    if targets_NC.shape != probabilities_NC.shape or targets_NC.shape[1:] != (len(labels),) or not len(targets_NC):
        got, fix = f"{probabilities_NC.shape} for {targets_NC.shape}", "Predict exactly the rows that are measured."
        raise DataError(expected="probabilities for each labelled row, label by label", got=got, where="measure", fix=fix)
    found = _Answers(targets_NC, probabilities_NC >= threshold, probabilities_NC)
    return Measures(
        metrics={name: _interval(name, found, confidence, seed) for name in METRICS},
        confusion=(),
        classes=tuple(_row(found, place, label) for place, label in enumerate(labels)),
        labels=tuple(labels),
        rows=len(targets_NC),
    )


def _interval(name: str, found: _Answers, confidence: float, seed: int) -> Interval:
    rows = len(found.targets_NC)
    value = float(METRICS[name](found, np.ones((1, rows)))[0])
    if name == "subset_accuracy":
        low, high = wilson(round(value * rows), rows, confidence=confidence)
    elif rows == 1:
        low, high = 0.0, 1.0
    else:
        low, high = bootstrap(_resampled(name, found), rows, confidence=confidence, seed=seed)
    return Interval.around(value, low, high)


def _resampled(name: str, found: _Answers) -> Callable[[Array], Array]:
    def statistic(rows_RN: Array) -> Array:
        weights = sums(rows_RN, rows_RN.shape[-1], None)
        values_R = METRICS[name](found, np.atleast_2d(weights))
        return values_R if rows_RN.ndim > 1 else values_R[0]

    return statistic


def _row(found: _Answers, place: int, label: str) -> ClassRow:
    right, true, given = (int(each_NC[:, place].sum()) for each_NC in (found.right_NC, found.targets_NC, found.answers_NC))
    precision, recall, f1 = (over / under if under else 0.0 for over, under in ((right, given), (right, true), (2 * right, true + given)))
    return ClassRow(label, precision, recall, f1, true)
