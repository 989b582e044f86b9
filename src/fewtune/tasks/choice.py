"""Tasks whose candidates differ from row to row: a question with the answers to choose from, two ways a story goes on. Knows rows and
their candidates, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.data import choices
from fewtune.data.example import Example
from fewtune.data.readers import Written
from fewtune.errors import DataError, SpecError
from fewtune.tasks.metrics import Measures, Ratio, measure
from fewtune.tasks.task import Offered, Task

_SPELLED = {"comma": ",", "space": " "}
"""Separators that a flag cannot hold, by name."""


@dataclass(frozen=True)
class Choice:
    """One of each row's own candidates, of which there are two or more.

    `candidates` names the column that has them, as a list or with `separator` between them, or the columns that have one each. `label` is
    how a label names one: by its `text`, its `column`, or its place, `label` being what the first one is called (`0`, `1`, `A`, `choice1`);
    left out, it is settled where labelled rows leave no doubt.
    """

    candidates: tuple[str, ...] = ("choices",)
    separator: str = "|"
    label: str | None = None

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "ece")
    offered: ClassVar[Offered] = "row"
    paired: ClassVar[bool] = False
    estimated: ClassVar[str] = "accuracy"
    independent: ClassVar[bool] = False
    undecided: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not all(self.candidates) or len(set(self.candidates)) < max(1, len(self.candidates)):
            fix = "For example candidates=choices, or candidates=text_b+text_c."
            raise SpecError(expected="columns of candidates", got=", ".join(self.candidates) or "none", where="task.kind", fix=fix)
        if not self.separator or "," in self.separator:
            fix = "A comma is written separator=comma, white space separator=space."
            raise SpecError(expected="a separator", got=repr(self.separator), where="task.kind", fix=fix)
        if self.label is not None and not (self.label in (choices.TEXT, choices.COLUMN) or choices.counting(self.label)):
            fix = "Say text, column, or what the first candidate is called: 0, 1, A."
            raise SpecError(expected="how labels name a candidate", got=repr(self.label), where="task.kind", fix=fix)

    @property
    def written(self) -> Written:
        """A row has candidates, and its label names one of them."""
        separator = _SPELLED.get(self.separator, self.separator)
        return Written(candidates=self.candidates, between=separator, named=self.label)

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """None: rows have candidates of their own."""
        del examples
        return ()

    def settled(self, task: Task, examples: Sequence[Example]) -> tuple[Task, str | None]:
        """The task with how labels name candidates, which is said unless it is by their texts."""
        if self.label is not None or not examples:
            return task, None
        form = self._form(examples)
        kind = f"{task.kind}{',' if ':' in task.kind else ':'}label={form}"
        return replace(task, kind=kind), None if form == choices.TEXT else f"A label names its candidate {choices.spoken(form)}."

    def decided(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Task:
        """The task as it is: nothing is left to decide."""
        del examples, probabilities_NC
        return task

    def check(self, task: Task, examples: Sequence[Example], where: str) -> None:
        """Raise `DataError` for an example with fewer than two candidates or two alike, and for a label that names none of them."""
        for example in examples:
            choices.checked(example.candidates or (), example.where or where)
            if example.label is None:
                raise DataError(expected="a label", got="none", where=example.where or where, fix="Label the row or drop it.")
        self.targets(task, examples)

    def targets(self, task: Task, examples: Sequence[Example]) -> list[int]:
        """The number of the right candidate among the row's own; raises `DataError` for a label that names none."""
        del task
        form = self._form(examples) if examples else choices.TEXT
        found = [choices.place(one.label or "", one.candidates or (), form, self.candidates) for one in examples]
        for example, number in zip(examples, found, strict=True):
            if number is None:
                fix = registry.nearest(example.label or "", example.candidates or ())
                expected = f"a label that names a candidate {choices.spoken(form)}"
                raise DataError(expected=expected, got=f'"{example.label}"', where=example.where or "labels", fix=fix)
        return [number for number in found if number is not None]

    def _form(self, examples: Sequence[Example]) -> str:
        return self.label or choices.form_of(examples, self.candidates)

    def answers(self, task: Task, examples: Sequence[Example], probabilities: Sequence[Sequence[float]]) -> list[str]:
        """The text of each row's most probable candidate; the first of equals."""
        del task
        rows = zip(examples, probabilities, strict=True)
        return [(one.candidates or ())[max(range(len(one.candidates or ())), key=row.__getitem__)] for one, row in rows]

    def confidence(self, task: Task, probabilities: Sequence[float]) -> float | None:
        """The probability of the most probable candidate."""
        del task
        return max(probabilities)

    def measure(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Measures:
        """Accuracy and calibration error; there are no labels of which one could say how often they are right."""
        return measure(self.targets(task, examples), probabilities_NC, labels=None, names=self.metrics)

    def ratio(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Ratio:
        """1 where the most probable candidate is the right one, else 0; below the line each row counts once."""
        right_N = (probabilities_NC.argmax(1) == np.asarray(self.targets(task, examples))).astype(float)
        return Ratio(self.estimated, right_N, np.ones(len(right_N)))

    def lacking(self, task: Task, examples: Sequence[Example], folds: int) -> str | None:
        """A row for each part."""
        del task
        return None if len(examples) >= folds else f"{folds} different rows"

    def groups(self, task: Task, examples: Sequence[Example], quantiles: int) -> list[str]:
        """The place of the right candidate, so that none is learned from more often than it is judged."""
        del quantiles
        return [str(number) for number in self.targets(task, examples)]

    def drawn(self, task: Task, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """A row: a candidate is no label that other rows have, too."""
        del task
        return [("row",)] * len(examples)

    def described(self, task: Task) -> str:
        """Where the candidates stand, one of which is the answer."""
        del task
        return f"Answers one of the candidates that each row has of its own ({', '.join(self.candidates)})."
