"""Names → scikit-learn and scipy metrics, each with its interval, and what a report shows beside them.

Knows target indices and probabilities; nothing of models, scores, examples or how the numbers are printed.
Dimensions: N rows, C candidates (the task's labels), R resamples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.errors import DataError, SpecError

Array = NDArray[Any]
BINS = 15
RESAMPLES = 1000
_CELLS_AT_ONCE = 4_000_000  # numbers held at a time while resampling: some 30 MB


@dataclass(frozen=True)
class Interval:
    """A measured value and the ends of its confidence interval: `low <= value <= high`."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, low: float, high: float) -> Interval:
        """The interval from `low` to `high`, widened to hold the value."""
        return cls(value, min(float(low), value), max(float(high), value))


ERRORS = ("mae",)
"""The metrics of which less is better."""
_SPOKEN = {"mae": "mean absolute error", "micro_f1": "micro-F1"}


@dataclass(frozen=True)
class Ratio:
    """A metric that is a sum over rows divided by another: what each row adds above the line, over_N, and below it, under_N.

    So it can be had of any rows, whichever fold's model answered them: F1 from sums over all folds is next to unbiased, a mean of the
    folds' F1 is not (Forman & Scholz 2010). `most` is the greatest value that it may have.
    """

    metric: str
    over_N: Array
    under_N: Array
    most: float = 1.0

    @property
    def value(self) -> float:
        """The metric; 0 where it is undefined."""
        return float(divide(self.over_N.sum(), self.under_N.sum()))

    @property
    def counts(self) -> bool:
        """Whether each row is right or wrong, so that the metric is the share of those that are right."""
        return self.metric == "accuracy"

    def of(self, rows: Array) -> Ratio:
        """That of some of the rows, by their numbers."""
        return replace(self, over_N=self.over_N[rows], under_N=self.under_N[rows])


def named(metric: str) -> str:
    """A metric's name as a person says it."""
    return _SPOKEN.get(metric, metric)


def figure(metric: str, value: float) -> str:
    """A metric's value as a person reads it: accuracy in per cent, all others as they are.

    >>> figure("accuracy", 0.84), figure("mae", 0.4166)
    ('84 %', '0.417')
    """
    return f"{100 * value:.0f} %" if metric == "accuracy" else f"{value:.3g}"


def with_interval(found: Mapping[str, Any]) -> tuple[str, str]:
    """The value of an estimate, given as plain data, and its interval, as a person reads them.

    >>> with_interval({"metric": "accuracy", "value": 0.84, "low": 0.66, "high": 0.93, "level": 0.9})
    ('84 %', '90 % interval 66–93')
    """
    value, low, high = (figure(found.get("metric", "accuracy"), found[end]) for end in ("value", "low", "high"))
    return value, f"{100 * found['level']:.0f} % interval {low.removesuffix(' %')}–{high.removesuffix(' %')}"


@dataclass(frozen=True)
class ClassRow:
    """One label's precision, recall and F1 (0 where undefined) and the number of rows that carry it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Measures:
    """All that `measure` found; `registry.to_dict` makes plain data of it.

    `confusion[i][j]` counts the rows of label i that were given label j, in the order of `labels`.
    """

    metrics: Mapping[str, Interval]
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[ClassRow, ...]
    labels: tuple[str, ...]
    rows: int


@contextmanager
def _many_labels_or_one() -> Iterator[None]:
    """Few rows of many labels, or of one, are usual here; scikit-learn warns of both."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found")
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        yield


@_many_labels_or_one()
def accuracy(targets_N: Array, probabilities_NC: Array) -> float:
    """The share of rows whose most probable candidate is the target."""
    from sklearn.metrics import accuracy_score  # type: ignore[import-untyped]

    return float(accuracy_score(targets_N, _answers(probabilities_NC)))


@_many_labels_or_one()
def macro_f1(targets_N: Array, probabilities_NC: Array) -> float:
    """The unweighted mean of F1 over the labels that occur among targets or answers (scikit-learn's own choice); 0 where undefined."""
    from sklearn.metrics import f1_score

    return float(f1_score(targets_N, _answers(probabilities_NC), average="macro", zero_division=0))


@_many_labels_or_one()
def mcc(targets_N: Array, probabilities_NC: Array) -> float:
    """Matthews' correlation for any number of labels (Gorodkin 2004); 0 where targets or answers are all the same."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(targets_N, _answers(probabilities_NC)))


def ece(targets_N: Array, probabilities_NC: Array) -> float:
    """Expected calibration error of the most probable candidate, 15 bins of equal width (Guo et al. 2017, section 2).

    A confidence on an edge belongs to the bin above it.
    """
    gaps_B, _, _ = _calibration_gaps(targets_N, probabilities_NC)
    return float(np.abs(gaps_B).sum() / len(targets_N))


METRICS: Mapping[str, Callable[[Array, Array], float]] = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc, "ece": ece}


def measure(
    targets: Sequence[int],
    probabilities_NC: Array,
    *,
    labels: Sequence[str] | None,
    names: Sequence[str] = tuple(METRICS),
    confidence: float = 0.95,
    seed: int = 0,
) -> Measures:
    """Metrics with intervals, the confusion matrix and a row per label.

    Accuracy has Wilson's interval; the others are bootstrapped over rows (percentile, 1000 resamples, the same for each metric), widened
    to hold the value: the resampled calibration error is biased upwards. Where no resample can differ (every row right) the
    bootstrap has no width: read accuracy's interval there. From one row nothing can be resampled, and the interval is all values possible.

    `targets` are N indices into `labels`, `probabilities_NC` a row of C probabilities each. Without `labels`, where candidates are of each
    row its own, there is neither a confusion matrix nor a row per label. Raises `DataError` when these do not fit
    together or there is no row, `SpecError` for an unknown name or a confidence not between 0 and 1.
    """
    targets_N, probabilities_NC = np.asarray(targets), np.asarray(probabilities_NC, dtype=np.float64)
    _check(targets_N, probabilities_NC, labels)
    _check_choice(names, confidence)
    values = {name: METRICS[name](targets_N, probabilities_NC) for name in names}
    return Measures(
        metrics={name: _interval(name, value, targets_N, probabilities_NC, confidence, seed) for name, value in values.items()},
        confusion=() if labels is None else _confusion(targets_N, probabilities_NC),
        classes=() if labels is None else _classes(targets_N, probabilities_NC, labels),
        labels=tuple(labels or ()),
        rows=len(targets_N),
    )


def _check(targets_N: Array, probabilities_NC: Array, labels: Sequence[str] | None) -> None:
    rows, where = len(targets_N), "measure"
    candidates = probabilities_NC.shape[-1] if labels is None else len(labels)
    if rows == 0:
        raise DataError(expected="at least one labelled row", got="none", where=where, fix="Give rows that carry a label.")
    if probabilities_NC.shape != (rows, candidates):
        got, expected = str(probabilities_NC.shape), f"probabilities of shape {(rows, candidates)}, rows by labels"
        raise DataError(expected=expected, got=got, where=where, fix="Predict exactly the rows that are measured.")
    if not ((probabilities_NC >= 0) & (probabilities_NC <= 1 + 1e-6)).all():
        raise DataError(expected="probabilities from 0 to 1", got="others", where=where, fix="Apply softmax to scores first.")
    if targets_N.dtype.kind not in "iu" or targets_N.min() < 0 or targets_N.max() >= candidates:
        expected = f"targets that are whole numbers from 0 to {candidates - 1}"
        raise DataError(expected=expected, got="others", where=where, fix="Use the task kind's `targets`.")


def _check_choice(names: Sequence[str], confidence: float) -> None:
    for name in names:
        if name not in METRICS:
            raise SpecError(expected="the name of a metric", got=f'"{name}"', where="metrics", fix=registry.nearest(name, METRICS))
    if not 0 < confidence < 1:
        raise SpecError(expected="a number between 0 and 1", got=str(confidence), where="confidence", fix="The usual choice is 0.95.")


def _answers(probabilities_NC: Array) -> Array:
    answers_N: Array = probabilities_NC.argmax(axis=1)
    return answers_N


@_many_labels_or_one()
def _confusion(targets_N: Array, probabilities_NC: Array) -> tuple[tuple[int, ...], ...]:
    from sklearn.metrics import confusion_matrix

    labels = range(probabilities_NC.shape[1])
    return tuple(tuple(map(int, row)) for row in confusion_matrix(targets_N, _answers(probabilities_NC), labels=labels))


@_many_labels_or_one()
def _classes(targets_N: Array, probabilities_NC: Array, labels: Sequence[str]) -> tuple[ClassRow, ...]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(targets_N, _answers(probabilities_NC), labels=range(len(labels)), zero_division=0)
    return tuple(ClassRow(label, float(p), float(r), float(f), int(n)) for label, p, r, f, n in zip(labels, *columns, strict=True))


def _calibration_gaps(targets_N: Array, probabilities_NC: Array) -> tuple[Array, Array, Array]:
    """Sum of correctness minus confidence per bin; and for each row its bin, from 0, and its own difference."""
    from scipy.stats import binned_statistic  # type: ignore[import-untyped]

    confidence_N = probabilities_NC.max(axis=1).clip(0, 1)
    gap_N = (_answers(probabilities_NC) == targets_N) - confidence_N
    found = binned_statistic(confidence_N, gap_N, statistic="sum", bins=BINS, range=(0, 1))
    return found.statistic, found.binnumber - 1, gap_N


def _interval(name: str, value: float, targets_N: Array, probabilities_NC: Array, confidence: float, seed: int) -> Interval:
    rows = len(targets_N)
    if name == "accuracy":
        right = int((_answers(probabilities_NC) == targets_N).sum())
        ends = wilson(right, rows, confidence=confidence)
    elif rows == 1:
        ends = _RANGES[name]
    else:
        statistic = _RESAMPLED[name](targets_N, probabilities_NC)
        ends = bootstrap(statistic, rows, cells=probabilities_NC.shape[1] ** 2, confidence=confidence, seed=seed)
    return Interval.around(value, *ends)


def wilson(right: int, rows: int, *, confidence: float) -> tuple[float, float]:
    """The ends of Wilson's interval of a share of rows."""
    from scipy.stats import binomtest

    ends = binomtest(right, rows).proportion_ci(confidence, method="wilson")
    return float(ends.low), float(ends.high)


def wald_paired(more: int, fewer: int, rows: int, *, confidence: float) -> tuple[float, float]:
    """The ends of the interval of a difference of two shares of the same rows: `more` count for the first alone, `fewer` for the second.

    Wald's with one row added to each of the two (Bonett & Price 2012), so that it has a width where no row differs, too.
    """
    from scipy.stats import norm

    one, other, total = more + 1, fewer + 1, rows + 2
    difference = (one - other) / total
    width = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(((one + other) / total - difference**2) / total)
    return max(-1.0, difference - width), min(1.0, difference + width)


def bootstrap(statistic: Callable[[Array], Array], rows: int, *, cells: int = 0, confidence: float, seed: int) -> tuple[float, float]:
    """The ends of the percentile interval of a statistic, which takes resampled row numbers rows_RN and gives R values.

    `cells` is how many numbers it holds for each resample, where these are more than the rows.
    """
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.arange(rows),),
        lambda rows_RN, axis: statistic(rows_RN),
        n_resamples=RESAMPLES,
        batch=max(1, _CELLS_AT_ONCE // max(rows, cells)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval.low, found.confidence_interval.high


# A scikit-learn call takes milliseconds whatever its size, a thousand take seconds. These give what the function of the same name above
# gives, for many resamples at once; the tests hold the two together.


def _macro_f1_resampled(targets_N: Array, probabilities_NC: Array) -> Callable[[Array], Array]:
    confusions = _confusions(targets_N, probabilities_NC)

    def statistic(rows_RN: Array) -> Array:
        right_RC, marked_RC, given_RC, _ = confusions(rows_RN)
        f1_RC = divide(2 * right_RC, marked_RC + given_RC)
        return divide(f1_RC.sum(-1), (marked_RC + given_RC > 0).sum(-1))

    return statistic


def _mcc_resampled(targets_N: Array, probabilities_NC: Array) -> Callable[[Array], Array]:
    confusions = _confusions(targets_N, probabilities_NC)

    def statistic(rows_RN: Array) -> Array:
        right_RC, marked_RC, given_RC, rows = confusions(rows_RN)
        together_R = right_RC.sum(-1) * rows - (marked_RC * given_RC).sum(-1)
        spread_R = (rows**2 - (marked_RC**2).sum(-1)) * (rows**2 - (given_RC**2).sum(-1))
        return divide(together_R, np.sqrt(spread_R))

    return statistic


def _ece_resampled(targets_N: Array, probabilities_NC: Array) -> Callable[[Array], Array]:
    _, bin_N, gap_N = _calibration_gaps(targets_N, probabilities_NC)

    def statistic(rows_RN: Array) -> Array:
        gaps_RB = sums(bin_N[rows_RN], BINS, gap_N[rows_RN])
        return np.asarray(np.abs(gaps_RB).sum(-1) / rows_RN.shape[-1])

    return statistic


def _confusions(targets_N: Array, probabilities_NC: Array) -> Callable[[Array], tuple[Array, Array, Array, float]]:
    """From resampled rows: how often each label is right, is the target, is the answer; and the number of rows."""
    candidates = probabilities_NC.shape[1]
    cell_N = targets_N * candidates + _answers(probabilities_NC)

    def count(rows_RN: Array) -> tuple[Array, Array, Array, float]:
        cells = sums(cell_N[rows_RN], candidates**2, None)
        confusion_RCC = cells.reshape(*cells.shape[:-1], candidates, candidates)
        right_RC = confusion_RCC.diagonal(axis1=-2, axis2=-1)
        return right_RC, confusion_RCC.sum(-1), confusion_RCC.sum(-2), float(rows_RN.shape[-1])

    return count


def sums(bin_RN: Array, bins: int, weight_RN: Array | None) -> Array:
    """The sum of weights (1 if none are given) in each bin, a resample a row; leading dimensions are kept, none included."""
    flat_RN = bin_RN.reshape(-1, bin_RN.shape[-1])
    place = flat_RN + np.arange(len(flat_RN))[:, None] * bins
    weight = None if weight_RN is None else weight_RN.ravel()
    sums = np.bincount(place.ravel(), weight, minlength=len(flat_RN) * bins)
    return sums.astype(np.float64).reshape(*bin_RN.shape[:-1], bins)


def divide(over: Array, under: Array) -> Array:
    """0 where `under` is 0."""
    return np.asarray(np.divide(over, under, out=np.zeros(np.shape(over)), where=under > 0))


_RESAMPLED = {"macro_f1": _macro_f1_resampled, "mcc": _mcc_resampled, "ece": _ece_resampled}
_RANGES = {"macro_f1": (0.0, 1.0), "mcc": (-1.0, 1.0), "ece": (0.0, 1.0)}
