"""How good a method is, from the labelled rows alone: cross-validated, with an interval, and corrected for having chosen. Knows what each
answer adds to a metric; no model, no text.

Dimensions: N rows, M methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.data.sampling import derive
from fewtune.errors import DataError
from fewtune.tasks.metrics import Ratio, named, with_interval

Array = NDArray[np.float64]
LEVEL = 0.9
RESAMPLES = 1000

_TIE = 1e-3
_SAME = 1e-18  # a variance that rounding alone makes


@dataclass(frozen=True)
class Estimate:
    """A metric that was not measured on a test set; `low` to `high` is its interval of the given `level`, `rows` what it rests on."""

    value: float
    low: float
    high: float
    rows: int
    level: float = LEVEL
    metric: str = "accuracy"

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return registry.to_dict(self)


def widened(partings: int) -> float:
    """How many times the variance of independent rows that of rows held out in folds is, which were parted so often; 1 for those that
    nothing was learned from (0).

    Rows held out share models, models share rows, and much hangs on how rows are parted. From simulations with 8 to 128 labelled rows of
    several data sets (bench/results/partings.md); no estimate from the same rows could be unbiased (Bengio & Grandvalet 2004).

    >>> widened(0), widened(1), widened(10)
    (1.0, 1.75, 1.345)
    """
    return 1.3 + 0.45 / partings if partings else 1.0


def accuracy(value: float, rows: int, *, level: float = LEVEL, widened: float = 1.0) -> Estimate:
    """The interval (Wilson 1927) around a share of `rows` distinct rows; at no share is it without width. Where rows hang together their
    variance is `widened` so many times.

    Raises `DataError` without a row.

    >>> found = accuracy(1.0, 16)
    >>> round(found.low, 2), found.high
    (0.86, 1.0)
    """
    if rows < 1:
        raise DataError(expected="labelled rows", got="none", where="estimate", fix="Label at least two rows of each label.")
    return Estimate(value, *_wilson(value, rows / widened, level), rows, level)


def around(value: float, ratio: Ratio, *, level: float = LEVEL, widened: float = 1.0) -> Estimate:
    """The same for any ratio: as a share of the most that it can be, the interval is Wilson's of `effective_rows`.

    In simulations (errors half normal, exponential or with outliers; F1 of three or five labels that depend on each other) an interval of
    90 % held the truth in 87 to 91 of 100 cases from 16 to 64 rows; a percentile bootstrap in 82 to 91, Student's interval in 85 to 91.
    """
    if ratio.counts:
        return accuracy(value, len(ratio.over_N), level=level, widened=widened)
    low, high = _wilson(value / ratio.most, effective_rows(ratio, level=level) / widened, level)
    return Estimate(value, min(value, low * ratio.most), max(value, high * ratio.most), len(ratio.over_N), level, ratio.metric)


def effective_rows(ratio: Ratio, *, level: float = LEVEL) -> float:
    """How many rows that are right or wrong would say as much of a share as these say of the ratio.

    The variance of a share, p (1 - p) / n, is set to that of the ratio, from its residuals (Cochran 1977, section 2.11); as that is itself
    estimated, n is less by the square of normal over Student's quantile (Korn & Graubard 1998). Rows that do not differ count once each.
    """
    from scipy.stats import norm, t  # type: ignore[import-untyped]

    rows, share = len(ratio.over_N), ratio.value / ratio.most
    if rows < 2 or not 0 < share < 1:
        return rows
    residual_N = (ratio.over_N - ratio.value * ratio.under_N) / ratio.under_N.mean() / ratio.most
    variance = float(residual_N.var(ddof=1)) / rows
    quantiles = norm.ppf((1 + level) / 2) / t.ppf((1 + level) / 2, rows - 1)
    return float(share * (1 - share) / variance * quantiles**2) if variance > _SAME else rows


def _wilson(share: float, rows: float, level: float) -> tuple[float, float]:
    """By the formula, for a share that is a mean over draws is no whole number of rows, which scipy asks for; where it is one, the two
    agree."""
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * (share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def simplest(losses_NM: Array) -> int:
    """The first method that is not worse than the best: a dearer one must be better by more than chance would make it, but needs no
    proof, which sixteen rows could hardly ever give."""
    return int(alike(losses_NM).argmax())


def preferring(losses_NM: Array, margins: Sequence[float]) -> int:
    """What `simplest` chooses, but of the last methods, one for each of the `margins`, each is taken in turn instead of what was chosen
    among those before it, unless it is worse by more than so many standard errors: for methods that are wanted for other reasons."""
    first = losses_NM.shape[1] - len(margins)
    kept = simplest(losses_NM[:, :first])
    for method, errors in enumerate(margins, start=first):
        if alike(losses_NM[:, [kept, method]], errors=errors)[1]:
            kept = method
    return kept


def chosen(
    losses_NM: Array,
    ratios_M: Sequence[Ratio],
    *,
    seed: int,
    level: float = LEVEL,
    choose: Callable[[Array, Sequence[Ratio]], int] = lambda losses_NM, ratios_M: simplest(losses_NM),
    widened: float = 1.0,
) -> Estimate:
    """The metric of what `choose` takes of methods, ordered from the simplest, given each method's out-of-fold losses and what its
    out-of-fold answers add to the metric; its variance is `widened` so many times.

    The winner's own score is too good, for it was chosen by these very rows. So rows are drawn again and again, with replacement; a
    method is chosen on those drawn and judged on those left out, and the mean over the draws is the estimate (bootstrap bias
    corrected cross-validation: Tsamardinos et al. 2018, algorithm 3).
    """
    rows, kept = len(losses_NM), ratios_M[choose(losses_NM, ratios_M)]
    if len(ratios_M) == 1:
        return around(kept.value, kept, level=level, widened=widened)
    random = np.random.default_rng(derive(seed, "estimate"))
    judged = []
    for _ in range(RESAMPLES):
        drawn = random.integers(rows, size=rows)
        left = np.setdiff1d(np.arange(rows), drawn)
        if len(left):
            judged.append(ratios_M[choose(losses_NM[drawn], [ratio.of(drawn) for ratio in ratios_M])].of(left).value)
    return around(float(np.mean(judged)) if judged else kept.value, kept, level=level, widened=widened)


def alike(losses_NM: Array, *, errors: float = 1.0) -> NDArray[np.bool_]:
    """For each method, whether its mean loss is within one standard error of the best one's (or so many), row by row compared, alike_M.

    The rule of one standard error (Breiman et al. 1984, section 3.4.3) on the paired difference. A thousandth of a nat is never one.
    """
    best, rows = int(losses_NM.mean(0).argmin()), len(losses_NM)
    difference_NM = losses_NM - losses_NM[:, best : best + 1]
    error_M = difference_NM.std(0, ddof=1) / rows**0.5 if rows > 1 else np.zeros(losses_NM.shape[1])
    within_M: NDArray[np.bool_] = difference_NM.mean(0) <= np.maximum(errors * error_M, _TIE)
    return within_M


def worse(one: Ratio, other: Ratio, *, level: float = LEVEL) -> bool:
    """Whether the accuracy of one method is below that of another on the same rows, beyond the interval of the difference.

    Wald's for pairs, with one row added to each of the two (Bonett & Price 2012); a row may be right in a part of several partings.
    """
    from scipy.stats import norm

    difference_N = np.append(one.over_N - other.over_N, (1.0, -1.0))
    half = float(norm.ppf((1 + level) / 2)) * float(difference_N.std()) / len(difference_N) ** 0.5
    return bool(difference_N.mean() + half < 0)


def spoken(estimate: Estimate) -> str:
    """The estimate as a person reads it.

    >>> spoken(Estimate(0.84, 0.66, 0.93, 16))
    '84 % (90 % interval 66–93, from 16 labelled rows)'
    >>> spoken(Estimate(0.416, 0.3, 0.55, 16, metric="mae"))
    'mean absolute error 0.416 (90 % interval 0.3–0.55, from 16 labelled rows)'
    """
    value, interval = with_interval(estimate.to_dict())
    name = "" if estimate.metric == "accuracy" else f"{named(estimate.metric)} "
    return f"{name}{value} ({interval}, from {estimate.rows} labelled rows)"
