"""Tasks with a closed set of labels, over a single text or a pair. Knows labels and examples, no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.data.example import Example
from fewtune.data.readers import Written
from fewtune.errors import DataError
from fewtune.tasks.metrics import Measures, Ratio, measure
from fewtune.tasks.task import NothingOpen, Offered, Task


@dataclass(frozen=True)
class Classification(NothingOpen):
    """One label of `task.labels` per example."""

    metrics: tuple[str, ...] = ("accuracy", "macro_f1", "mcc", "ece")

    offered: ClassVar[Offered] = "task"
    paired: ClassVar[bool] = True
    estimated: ClassVar[str] = "accuracy"
    independent: ClassVar[bool] = False
    undecided: ClassVar[bool] = False
    written: ClassVar[Written] = Written()

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Those that occur, in alphabetical order."""
        return tuple(sorted({example.label for example in examples if example.label is not None}))

    def check(self, task: Task, examples: Sequence[Example], where: str) -> None:
        """Raise `DataError` for an unlabelled example, a label that the task does not know, or a single label in all of them."""
        for example in examples:
            if example.shares is not None:
                _check_shares(example.shares, task, example.where or where)
                continue
            if example.label is None:
                raise DataError(expected="a label", got="none", where=example.where or where, fix="Label the row or drop it.")
            if example.label not in task.labels:
                raise DataError(
                    expected="a label of the task",
                    got=f'"{example.label}"',
                    where=example.where or where,
                    fix=registry.nearest(example.label, task.labels),
                )
        if len(task.labels) < 2:
            raise DataError(
                expected="at least two labels",
                got=f'only "{task.labels[0]}"',
                where=where,
                fix="Add rows of another label, or name the labels with --labels.",
            )

    def targets(self, task: Task, examples: Sequence[Example]) -> list[int] | list[list[float]]:
        """The index of each example's label in `task.labels`; where one has a soft label, each label's share in each example."""
        if any(example.shares is not None for example in examples):
            return [[_shares(example).get(label, 0.0) for label in task.labels] for example in examples]
        return self._indices(task, examples)

    def _indices(self, task: Task, examples: Sequence[Example]) -> list[int]:
        index = {label: position for position, label in enumerate(task.labels)}
        return [index[_first(example)] for example in examples]

    def answers(self, task: Task, examples: Sequence[Example], probabilities: Sequence[Sequence[float]]) -> list[str]:
        """The most probable label of each row; the first of equals."""
        del examples
        return [task.labels[max(range(len(row)), key=row.__getitem__)] for row in probabilities]

    def confidence(self, task: Task, probabilities: Sequence[float]) -> float | None:
        """The probability of the most probable label."""
        del task
        return max(probabilities)

    def measure(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Measures:
        """See `fewtune.tasks.metrics.measure`."""
        return measure(self._indices(task, examples), probabilities_NC, labels=task.labels, names=self.metrics)

    def ratio(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Ratio:
        """1 where the most probable label is the row's own, else 0; below the line each row counts once."""
        right_N = (probabilities_NC.argmax(1) == np.asarray(self._indices(task, examples))).astype(float)
        return Ratio(self.estimated, right_N, np.ones(len(right_N)))

    def lacking(self, task: Task, examples: Sequence[Example], folds: int) -> str | None:
        """Of each label two rows: one to learn from, one to judge by."""
        del folds
        count = Counter(example.label for example in examples)
        return None if min(count[label] for label in task.labels) >= 2 else "two different rows of each label"

    def groups(self, task: Task, examples: Sequence[Example], quantiles: int) -> list[str]:
        """The labels; of a soft label the most probable."""
        del task, quantiles
        return [_first(example) for example in examples]

    def drawn(self, task: Task, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """Its label."""
        return [(label,) for label in self.groups(task, examples, 1)]

    def described(self, task: Task) -> str:
        """The labels, one of which is the answer."""
        return f"Answers one of: {', '.join(task.labels)}."


def _shares(example: Example) -> Mapping[str, float]:
    """The soft label of an example; a hard one has all of it."""
    return {example.label or "": 1.0} if example.shares is None else example.shares


def _first(example: Example) -> str:
    """The label, or the most probable one of a soft label."""
    shares = _shares(example)
    return max(shares, key=shares.__getitem__)


def _check_shares(shares: Mapping[str, float], task: Task, where: str) -> None:
    """Raise `DataError` unless they are a distribution over labels of the task."""
    for label in shares:
        if label not in task.labels:
            raise DataError(expected="a label of the task", got=f'"{label}"', where=where, fix=registry.nearest(label, task.labels))
    total = sum(shares.values())
    if not abs(total - 1) < 1e-3 or min(shares.values()) < 0:
        got = ", ".join(f"{label} {share:g}" for label, share in shares.items())
        raise DataError(expected="shares of at least 0 that add up to 1", got=got, where=where, fix="Mend the soft label.")
