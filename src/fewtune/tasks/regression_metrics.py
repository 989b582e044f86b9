"""How near predicted values are to the true ones: correlations and errors, each with its interval. Knows two rows of numbers.

Each measure works along the last axis, so that a value and its resamples come from the same lines; the tests hold them to scipy's and
scikit-learn's. Dimensions: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewtune.errors import DataError
from fewtune.tasks.metrics import Interval, Measures, bootstrap

Array = NDArray[Any]


def pearson(values_RN: Array, predicted_RN: Array) -> Array:
    """Pearson's correlation; 0 where either side does not vary."""
    varies_R = (np.ptp(values_RN, axis=-1) > 0) & (np.ptp(predicted_RN, axis=-1) > 0)
    left_RN, right_RN = (side_RN - side_RN.mean(-1, keepdims=True) for side_RN in (values_RN, predicted_RN))
    spread_R = np.sqrt((left_RN**2).sum(-1) * (right_RN**2).sum(-1))
    together_R = (left_RN * right_RN).sum(-1)
    found_R = np.divide(together_R, spread_R, out=np.zeros(np.shape(spread_R)), where=varies_R & (spread_R > 0))
    return np.asarray(found_R.clip(-1, 1))


def spearman(values_RN: Array, predicted_RN: Array) -> Array:
    """Spearman's rank correlation: Pearson's of the ranks, equals sharing theirs; 0 where either side does not vary."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    return pearson(rankdata(values_RN, axis=-1), rankdata(predicted_RN, axis=-1))


def mae(values_RN: Array, predicted_RN: Array) -> Array:
    """The mean absolute error, in the unit of the values."""
    return np.asarray(np.abs(predicted_RN - values_RN).mean(-1))


def rmse(values_RN: Array, predicted_RN: Array) -> Array:
    """The root of the mean squared error, in the unit of the values."""
    return np.asarray(np.sqrt(((predicted_RN - values_RN) ** 2).mean(-1)))


METRICS: Mapping[str, Callable[[Array, Array], Array]] = {"pearson": pearson, "spearman": spearman, "mae": mae, "rmse": rmse}
_CORRELATIONS = ("pearson", "spearman")


def measure(values: Array, predicted: Array, *, labels: Sequence[str], span: float, confidence: float = 0.95, seed: int = 0) -> Measures:
    """Every measure with its interval, bootstrapped over rows as those of classification are (percentile, widened to hold the value).

    From one row nothing can be resampled, and the interval is all values possible, an error being at most `span`, the length of the
    range. Nothing is counted label by label. Raises `DataError` when the two do not fit together or there is no row.
    """
    values_N, predicted_N = np.asarray(values, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if values_N.shape != predicted_N.shape or values_N.ndim != 1 or not len(values_N):
        got = f"{predicted_N.shape} for {values_N.shape}"
        raise DataError(
            expected="a predicted value for each labelled row", got=got, where="measure", fix="Predict the rows that are measured."
        )
    found = {name: _interval(name, values_N, predicted_N, span, confidence, seed) for name in METRICS}
    return Measures(metrics=found, confusion=(), classes=(), labels=tuple(labels), rows=len(values_N))


def _interval(name: str, values_N: Array, predicted_N: Array, span: float, confidence: float, seed: int) -> Interval:
    metric = METRICS[name]
    value = float(metric(values_N, predicted_N))
    if len(values_N) == 1:
        low, high = (-1.0, 1.0) if name in _CORRELATIONS else (0.0, span)
    else:
        low, high = bootstrap(
            lambda rows_RN: metric(values_N[rows_RN], predicted_N[rows_RN]), len(values_N), confidence=confidence, seed=seed
        )
    return Interval.around(value, low, high)
