"""Results → one table: mean ± sample deviation over seeds, and each method held against the first. Knows numbers, runs nothing.

Dimensions: N test rows, S seeds, R ways of exchanging answers.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.errors import Interrupted
from fewtune.runs.grid import Cell, Grid
from fewtune.runs.store import Result
from fewtune.tasks.metrics import ERRORS, Interval, Ratio, divide

Array = NDArray[Any]
LEVEL = 0.1
RESAMPLES = 9999
_CELLS_AT_ONCE = 1_000_000  # numbers held at a time while resampling
APART = "cannot be told apart"


@dataclass(frozen=True)
class Figure:
    """A metric: of one run its value and the ends of its interval, of several their mean and sample standard deviation."""

    value: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class Contrast:
    """A method held against the baseline: the mean difference of the metric, the test of it, and what may be said."""

    difference: float
    p: float
    test: str
    verdict: str


@dataclass(frozen=True)
class Row:
    """A cell of the grid: how many of its runs are done, what they came to, and why others failed; `metric` is what contrasts are of."""

    data: str
    shots: int | None
    method: str
    metric: str
    runs: int
    done: int
    metrics: Mapping[str, Figure]
    contrast: Contrast | None
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The table; how many jobs there are and how many are left to run; and where results are kept."""

    rows: tuple[Row, ...]
    baseline: str
    jobs: int
    left: int
    out: Path

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        rows = [registry.to_dict(row) for row in self.rows]
        return {"baseline": self.baseline, "rows": rows, "jobs": self.jobs, "left": self.left, "results": str(self.out)}

    def check(self) -> None:
        """Raise `Interrupted` where jobs are left to run."""
        if self.left:
            fix = f"What is done is kept in {self.out}: type the same command again to go on."
            raise Interrupted(expected=f"{self.jobs} jobs", got=f"{self.jobs - self.left} when it was stopped", where="compare", fix=fix)


def table(grid: Grid, results: Mapping[str, Result], out: Path) -> Comparison:
    """A row for each cell, from the results that are there; the first method is the baseline of its data set and shots."""
    first = grid.cells[0].method
    baselines = {(cell.data, cell.shots): cell for cell in grid.cells if cell.method == first}
    rows = tuple(_row(cell, baselines[cell.data, cell.shots], results) for cell in grid.cells)
    left = sum(job.key not in results for job in grid.jobs)
    return Comparison(rows, first, len(grid.jobs), left, out)


def _row(cell: Cell, baseline: Cell, results: Mapping[str, Result]) -> Row:
    keys = tuple(dict.fromkeys(cell.keys))
    found = [results[key] for key in keys if key in results]
    done = [result for result in found if result.failed is None]
    pairs = dict.fromkeys(zip(baseline.keys, cell.keys, strict=True))
    usable = [
        (results[base], results[key])
        for base, key in pairs
        if base in results and key in results and not results[base].failed and not results[key].failed
    ]
    return Row(
        data=cell.data,
        shots=cell.shots,
        method=cell.method,
        metric=cell.metric,
        runs=len(keys),
        done=len(done),
        metrics={name: _figure([result.metrics[name] for result in done]) for name in (done[0].metrics if done else ())},
        contrast=_contrast(usable) if usable and cell is not baseline else None,
        failed=tuple(dict.fromkeys(result.failed for result in found if result.failed)),
    )


def _figure(found: Sequence[Interval]) -> Figure:
    if len(found) == 1:
        return Figure(found[0].value, found[0].low, found[0].high)
    values = [one.value for one in found]
    return Figure(statistics.mean(values), deviation=statistics.stdev(values))


def _contrast(pairs: Sequence[tuple[Result, Result]]) -> Contrast:
    """Row by row where there is one pair of runs, seed by seed where there are several."""
    ratios = [(baseline.ratio, method.ratio) for baseline, method in pairs]
    differences = [method.value - baseline.value for baseline, method in ratios]
    mean = statistics.mean(differences)
    # Differences that are all alike have no spread to hold their mean against; then the least sure seed speaks, row by row.
    if len(pairs) > 1 and len(set(differences)) > 1:
        test, p = "t", paired_t(differences)
    elif ratios[0][0].counts:
        test, p = "mcnemar", max(mcnemar(*pair) for pair in ratios)
    else:
        test, p = "permutation", max(permuted(*pair) for pair in ratios)
    better = mean < 0 if ratios[0][0].metric in ERRORS else mean > 0
    return Contrast(mean, p, test, APART if p >= LEVEL else "better" if better else "worse")


def mcnemar(baseline: Ratio, method: Ratio) -> float:
    """The two-sided p of the exact test (McNemar 1947) that each is right as often where the other is wrong."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    gained, lost = int((method.over_N > baseline.over_N).sum()), int((method.over_N < baseline.over_N).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def permuted(baseline: Ratio, method: Ratio) -> float:
    """The two-sided p of the paired permutation test that it is chance which of a row's two answers is whose (Noreen 1989; Yeh 2000 of F1).

    Up to 13 rows all ways of exchanging them are counted, else ten thousand are drawn. Of rows that are right or wrong it is McNemar's.
    """
    from scipy.stats import permutation_test

    rows = len(baseline.over_N)
    if rows < 2:
        return 1.0
    over, under = (np.concatenate(sides) for sides in ((baseline.over_N, method.over_N), (baseline.under_N, method.under_N)))

    def difference(first_RN: Array, second_RN: Array, axis: int) -> Array:
        baseline_R, method_R = (divide(over[answers_RN].sum(axis), under[answers_RN].sum(axis)) for answers_RN in (first_RN, second_RN))
        return np.asarray(method_R - baseline_R)

    found = permutation_test(
        (np.arange(rows), np.arange(rows, 2 * rows)),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _CELLS_AT_ONCE // rows),
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def paired_t(differences_S: Sequence[float]) -> float:
    """The two-sided p of Student's paired test that the differences, seed by seed, have the mean 0; they must differ among themselves."""
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss occurred")  # differences that are alike but for their last digits
        return float(ttest_rel(differences_S, [0.0] * len(differences_S)).pvalue)
