"""Tasks with a closed set of labels, over a single text or a pair. Knows labels and examples, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fewtune import registry
from fewtune.data.example import Example
from fewtune.errors import DataError
from fewtune.tasks.task import Task


@dataclass(frozen=True)
class Classification:
    """One label of `task.labels` per example."""

    metrics: tuple[str, ...] = ("accuracy", "macro_f1", "mcc", "ece")

    def check(self, task: Task, examples: Sequence[Example], where: str) -> None:
        """Raise `DataError` for an unlabelled example, a label that the task does not know, or a single label in all of them."""
        for example in examples:
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

    def targets(self, task: Task, examples: Sequence[Example]) -> list[int]:
        """The index of each example's label in `task.labels`."""
        index = {label: position for position, label in enumerate(task.labels)}
        return [index[example.label or ""] for example in examples]

    def answers(self, task: Task, probabilities: Sequence[Sequence[float]]) -> list[str]:
        """The most probable label of each row; the first of equals."""
        return [task.labels[max(range(len(row)), key=row.__getitem__)] for row in probabilities]
