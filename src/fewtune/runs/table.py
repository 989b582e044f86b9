"""Results → one table: mean ± sample deviation over seeds, and each method held against the first. Knows numbers, runs nothing.

Dimensions: N test rows, S seeds.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewtune import registry
from fewtune.errors import Interrupted
from fewtune.runs.grid import Cell, Grid
from fewtune.runs.store import Result
from fewtune.tasks.metrics import Interval

LEVEL = 0.1
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
    """A method held against the baseline: the mean difference of accuracies, the test of it, and what may be said."""

    difference: float
    p: float
    test: str
    verdict: str


@dataclass(frozen=True)
class Row:
    """A cell of the grid: how many of its runs are done, what they came to, and why others failed."""

    data: str
    shots: int | None
    method: str
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
    differences = [_accuracy(method) - _accuracy(baseline) for baseline, method in pairs]
    rows = [mcnemar(baseline.right, method.right) for baseline, method in pairs]
    # Differences that are all alike have no spread to hold their mean against; then the least sure seed speaks, row by row.
    by_seed = len(pairs) > 1 and len(set(differences)) > 1
    p = paired_t(differences) if by_seed else max(rows)
    mean = statistics.mean(differences)
    verdict = APART if p >= LEVEL else "better" if mean > 0 else "worse"
    return Contrast(mean, p, "t" if by_seed else "mcnemar", verdict)


def _accuracy(result: Result) -> float:
    return result.right.count("1") / len(result.right)


def mcnemar(baseline_N: str, method_N: str) -> float:
    """The two-sided p of the exact test (McNemar 1947) that each is right as often where the other is wrong; rows as 0 or 1.

    >>> mcnemar("00000011", "11111001"), mcnemar("01", "01")
    (0.21875, 1.0)
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    gained = sum(pair == ("0", "1") for pair in zip(baseline_N, method_N, strict=True))
    lost = sum(pair == ("1", "0") for pair in zip(baseline_N, method_N, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_t(differences_S: Sequence[float]) -> float:
    """The two-sided p of Student's paired test that the differences, seed by seed, have the mean 0; they must differ among themselves."""
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss occurred")  # differences that are alike but for their last digits
        return float(ttest_rel(differences_S, [0.0] * len(differences_S)).pvalue)
