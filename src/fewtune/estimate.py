"""How good a method is, from the labelled rows alone: cross-validated, with an interval, and corrected for having chosen. Knows which
answers were right; no model, no text.

Dimensions: N rows, M methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.data.sampling import derive
from fewtune.errors import DataError

Array = NDArray[np.float64]
LEVEL = 0.9
RESAMPLES = 1000

_TIE = 1e-3


@dataclass(frozen=True)
class Estimate:
    """An accuracy that was not measured on a test set; `low` to `high` is its interval of the given `level`, `rows` what it rests on."""

    value: float
    low: float
    high: float
    rows: int
    level: float = LEVEL

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return registry.to_dict(self)


def accuracy(value: float, rows: int, *, level: float = LEVEL) -> Estimate:
    """The interval (Wilson 1927) around a share of `rows` distinct rows; at no share is it without width.

    By the formula, for a share that is a mean over draws is no whole number of rows, which scipy asks for; where it is one, the two agree.

    Raises `DataError` without a row.

    >>> found = accuracy(1.0, 16)
    >>> round(found.low, 2), found.high
    (0.86, 1.0)
    """
    from scipy.stats import norm  # type: ignore[import-untyped]

    if rows < 1:
        raise DataError(expected="labelled rows", got="none", where="estimate", fix="Label at least two rows of each label.")
    z = float(norm.ppf((1 + level) / 2))
    middle = (value + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * (value * (1 - value) / rows + z * z / (4 * rows * rows)) ** 0.5
    return Estimate(value, max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half)), rows, level)


def simplest(losses_NM: Array) -> int:
    """The first method that is not worse than the best: a dearer one must be better by more than chance would make it, but needs no
    proof, which sixteen rows could hardly ever give."""
    return int(alike(losses_NM).argmax())


def last_or_simplest(losses_NM: Array) -> int:
    """The last method, unless it is worse than what `simplest` chooses among the others: for one that is wanted for other reasons."""
    other, last = simplest(losses_NM[:, :-1]), losses_NM.shape[1] - 1
    return last if alike(losses_NM[:, [other, last]])[1] else other


def chosen(losses_NM: Array, right_NM: Array, *, seed: int, level: float = LEVEL, choose: Callable[[Array], int] = simplest) -> Estimate:
    """The accuracy of what `choose` takes of methods, ordered from the simplest, given each method's out-of-fold losses.

    The winner's own score is too good, for it was chosen by these very rows. So rows are drawn again and again, with replacement; a
    method is chosen on those drawn and judged on those left out, and the mean over the draws is the estimate (bootstrap bias
    corrected cross-validation: Tsamardinos et al. 2018, algorithm 3).
    """
    rows = len(losses_NM)
    if losses_NM.shape[1] == 1:
        return accuracy(float(right_NM.mean()), rows, level=level)
    random = np.random.default_rng(derive(seed, "estimate"))
    judged = []
    for _ in range(RESAMPLES):
        drawn = random.integers(rows, size=rows)
        left = np.setdiff1d(np.arange(rows), drawn)
        if len(left):
            judged.append(right_NM[left, choose(losses_NM[drawn])].mean())
    value = float(np.mean(judged)) if judged else float(right_NM[:, choose(losses_NM)].mean())
    return accuracy(value, rows, level=level)


def alike(losses_NM: Array) -> NDArray[np.bool_]:
    """For each method, whether its mean loss is within one standard error of the best one's, row by row compared, alike_M.

    The rule of one standard error (Breiman et al. 1984, section 3.4.3) on the paired difference. A thousandth of a nat is never one.
    """
    best, rows = int(losses_NM.mean(0).argmin()), len(losses_NM)
    difference_NM = losses_NM - losses_NM[:, best : best + 1]
    error_M = difference_NM.std(0, ddof=1) / rows**0.5 if rows > 1 else np.zeros(losses_NM.shape[1])
    within_M: NDArray[np.bool_] = difference_NM.mean(0) <= np.maximum(error_M, _TIE)
    return within_M


def spoken(estimate: Estimate) -> str:
    """The estimate as a person reads it.

    >>> spoken(Estimate(0.84, 0.66, 0.93, 16))
    '84 % (90 % interval 66–93, from 16 labelled rows)'
    """
    ends = f"{100 * estimate.low:.0f}–{100 * estimate.high:.0f}"
    return f"{100 * estimate.value:.0f} % ({100 * estimate.level:.0f} % interval {ends}, from {estimate.rows} labelled rows)"
