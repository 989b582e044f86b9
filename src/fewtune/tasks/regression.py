"""Tasks whose answer is a number between two poles, over a single text or a pair. Knows values and poles, no model.

A value is a place between the poles: with p the probability of the high one of the two, value = low + p · (high - low), and what is
learned is p (Gao et al. 2021, section 4.2). The target of a row is the distribution (1 - p, p) itself, so that the loss is least exactly
where the value is right, at the ends as in the middle; the authors' code takes the exponential of it first, which keeps every
answer between 27 % and 73 % of the range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fewtune.data.example import Example
from fewtune.data.readers import Written
from fewtune.errors import DataError, SpecError, TaskError
from fewtune.tasks.metrics import Measures, Ratio
from fewtune.tasks.regression_metrics import METRICS, measure
from fewtune.tasks.task import Offered, Task

POLES = ("low", "high")


@dataclass(frozen=True)
class Regression:
    """A number from `low` to `high`; what is left open is the least and the greatest value of the labelled rows.

    A task's two labels are the poles, the low one first.
    """

    low: float | None = None
    high: float | None = None

    metrics: ClassVar[tuple[str, ...]] = tuple(METRICS)
    offered: ClassVar[Offered] = "task"
    paired: ClassVar[bool] = False
    estimated: ClassVar[str] = "mae"
    independent: ClassVar[bool] = False
    undecided: ClassVar[bool] = False
    written: ClassVar[Written] = Written(number=True)

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        if not all(map(math.isfinite, ends)) or ends != sorted(set(ends)):
            got = f"{self.low} and {self.high}"
            fix = "Label rows of other values, or name the range: regression:low=0,high=5."
            raise SpecError(expected="a low end below the high one", got=got, where="task.kind", fix=fix)

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """`low` and `high`; better words are the user's to name."""
        del examples
        return POLES

    def settled(self, task: Task, examples: Sequence[Example]) -> tuple[Task, str | None]:
        """The task with both ends of its range; raises `TaskError` for one that rows must give and do not."""
        _check_poles(task)
        self.check(task, examples, "fit")
        values = [_value(example) for example in examples]
        whole = Regression(self._end("low", min(values, default=None)), self._end("high", max(values, default=None)))
        for example in examples:
            whole._share(example)
        if whole == self:
            return task, None
        text = f"regression:low={_spoken(whole.low)},high={_spoken(whole.high)}"
        note = f"Values lie between {whole.low:g} and {whole.high:g}, as in the labelled rows; --kind {text} says so, or otherwise."
        return replace(task, kind=text), note

    def _end(self, name: str, seen: float | None) -> float:
        given: float | None = getattr(self, name)
        end = seen if given is None else given
        if end is None:
            fix = "Without labelled rows the range must be given: --kind regression:low=0,high=5."
            raise TaskError(expected=f"the {name} end of the range", got="none", where="task.kind", fix=fix)
        return end

    def decided(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Task:
        """The task as it is: nothing is left to decide."""
        del examples, probabilities_NC
        return task

    def check(self, task: Task, examples: Sequence[Example], where: str) -> None:
        """Raise `DataError` for an example without a number. Rows that only measure may lie outside the range."""
        _check_poles(task)
        for example in examples:
            try:
                value = float(example.label or "")
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                got = "none" if example.label is None else f'"{example.label}"'
                raise DataError(expected="a number", got=got, where=example.where or where, fix="Write 3.5, or drop the row.")

    def targets(self, task: Task, examples: Sequence[Example]) -> list[list[float]]:
        """The probabilities of the low and the high pole under which the value comes out; raises `DataError` outside the range."""
        shares = [self._share(example) for example in examples]
        return [[1 - share, share] for share in shares]

    def _share(self, example: Example) -> float:
        low, high = self._range()
        share = (_value(example) - low) / (high - low)
        if not 0 <= share <= 1:
            fix = f"Widen the range with --kind regression:low={low:g},high={high:g}, or drop the row."
            expected, where = f"a value from {low:g} to {high:g}", example.where or "fit"
            raise DataError(expected=expected, got=str(example.label), where=where, fix=fix)
        return share

    def _range(self) -> tuple[float, float]:
        """Both ends; raises `TaskError` where one is open still."""
        return self._end("low", None), self._end("high", None)

    def values(self, probabilities_NC: NDArray[Any]) -> NDArray[np.float64]:
        """values_N from the poles' probabilities."""
        low, high = self._range()
        values_N: NDArray[np.float64] = low + (high - low) * np.asarray(probabilities_NC, dtype=np.float64)[:, 1]
        return values_N

    def answers(self, task: Task, examples: Sequence[Example], probabilities: Sequence[Sequence[float]]) -> list[str]:
        """Each row's value, written to about a ten-thousandth of the range.

        >>> Regression(0, 5).answers(Task(POLES), (), [[0.25, 0.75], [1.0, 0.0]])
        ['3.7500', '0.0000']
        """
        del examples
        low, high = self._range()
        decimals = max(0, 4 - math.floor(math.log10(high - low)))
        return [f"{value:.{decimals}f}" for value in self.values(np.reshape(probabilities, (-1, 2))).tolist()]

    def confidence(self, task: Task, probabilities: Sequence[float]) -> float | None:
        """None: the poles' probabilities are the value, and say nothing of how sure it is."""
        del task, probabilities
        return None

    def measure(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Measures:
        """Of the values as they are, before they are rounded to be written."""
        low, high = self._range()
        values_N = np.array([_value(example) for example in examples])
        return measure(values_N, self.values(probabilities_NC), labels=task.labels, span=high - low)

    def ratio(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Ratio:
        """How far each value is off; below the line each row counts once.

        An error belongs to its row, whichever fold's model made it. A correlation does not: pooled over folds it compares the answers of
        models that differ, as AUC does (Forman & Scholz 2010), in a fold of four rows it says nothing, and with sixteen rows its standard
        error is a quarter.
        """
        del task
        low, high = self._range()
        values_N = np.array([_value(example) for example in examples])
        return Ratio(self.estimated, np.abs(self.values(probabilities_NC) - values_N), np.ones(len(values_N)), most=high - low)

    def lacking(self, task: Task, examples: Sequence[Example], folds: int) -> str | None:
        """A row for each part."""
        del task
        return None if len(examples) >= folds else f"{folds} different rows"

    def groups(self, task: Task, examples: Sequence[Example], quantiles: int) -> list[str]:
        """Which quantile each value lies in; two, split at the median, stand for two labels (Gao et al. 2021, section 5)."""
        del task
        rank_N = np.argsort(np.argsort([_value(example) for example in examples], kind="stable"))
        return [str(rank * quantiles // len(examples)) for rank in rank_N.tolist()]

    def drawn(self, task: Task, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """Its side of the median (Gao et al. 2021, section 5)."""
        return [("upper half" if half == "1" else "lower half",) for half in self.groups(task, examples, 2)]

    def described(self, task: Task) -> str:
        """The range and its poles."""
        low, high = self._range()
        return f"Answers a number from {low:g} ({task.labels[0]}) to {high:g} ({task.labels[1]})."


def _spoken(value: float | None) -> str:
    return str(value).removesuffix(".0")


def _value(example: Example) -> float:
    return float(example.label or "nan")


def _check_poles(task: Task) -> None:
    if len(task.labels) != 2:
        fix = "Name them with --labels, the low one first: --labels terrible,great."
        raise TaskError(expected="two poles", got=", ".join(task.labels), where="task.labels", fix=fix)
