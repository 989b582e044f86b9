"""Tasks whose answer is any number of labels, over a single text or a pair: a yes or no for each. Knows labels and examples, no model.

Labels are judged one by one (binary relevance), each by a sigmoid of its own score, for that one is there says nothing of another. Which
probability is a yes is one threshold for all labels, the one with the best micro-F1 on labelled rows not seen: at 0.5 rare labels are
hardly ever answered, and a threshold of its own for each label follows the few rows that it was chosen on (Yang 2001).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.data.example import Example
from fewtune.data.readers import Written
from fewtune.errors import DataError, SpecError
from fewtune.tasks.metrics import Measures, Ratio
from fewtune.tasks.multilabel_metrics import METRICS, measure
from fewtune.tasks.task import Offered, Task

_SPELLED = {"comma": ",", "space": " "}
"""Separators that a flag cannot hold, by name."""


@dataclass(frozen=True)
class Multilabel:
    """Any of `task.labels`, written with `separator` between them; none is an empty label.

    `separator` may be `comma` or `space`. A `threshold` of `None` is chosen on labelled rows.
    """

    separator: str = "|"
    threshold: float | None = None

    metrics: ClassVar[tuple[str, ...]] = tuple(METRICS)
    offered: ClassVar[Offered] = "task"
    paired: ClassVar[bool] = True
    estimated: ClassVar[str] = "micro_f1"
    independent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.separator.strip() or "," in self.separator:
            fix = "A comma is written separator=comma, white space separator=space."
            raise SpecError(expected="a separator", got=repr(self.separator), where="task.kind", fix=fix)
        if self.threshold is not None and not 0 < self.threshold < 1:
            fix = "Leave it out, and labelled rows choose it."
            raise SpecError(expected="a threshold between 0 and 1", got=str(self.threshold), where="task.kind", fix=fix)

    @property
    def _between(self) -> str:
        return _SPELLED.get(self.separator, self.separator)

    @property
    def written(self) -> Written:
        """Several labels in a cell."""
        return Written(separator=self._between)

    @property
    def undecided(self) -> bool:
        """Whether the threshold is still to be chosen."""
        return self.threshold is None

    def parts(self, example: Example) -> tuple[str, ...]:
        """The labels of a row.

        >>> Multilabel().parts(Example({}, "joy|fear"))
        ('joy', 'fear')
        """
        return tuple(part.strip() for part in (example.label or "").split(self._between) if part.strip())

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Those that occur, in alphabetical order."""
        return tuple(sorted({part for example in examples for part in self.parts(example)}))

    def settled(self, task: Task, examples: Sequence[Example]) -> tuple[Task, str | None]:
        """The task as it is: its labels say all."""
        del examples
        return task, None

    def decided(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Task:
        """The task with the threshold under which rows not seen are answered best; 0.5 where there is none."""
        if not self.undecided:
            return task
        threshold = best_threshold(np.array(self.targets(task, examples), dtype=bool).reshape(probabilities_NC.shape), probabilities_NC)
        return replace(task, kind=f"multilabel:separator={self.separator},threshold={threshold}")

    def check(self, task: Task, examples: Sequence[Example], where: str) -> None:
        """Raise `DataError` for an unlabelled example, or a label that the task does not know."""
        for example in examples:
            if example.label is None:
                fix = "Label the row (an empty label is none of them) or drop it."
                raise DataError(expected="labels", got="none", where=example.where or where, fix=fix)
            for part in self.parts(example):
                if part not in task.labels:
                    fix = registry.nearest(part, task.labels)
                    raise DataError(expected="labels of the task", got=f'"{part}"', where=example.where or where, fix=fix)
        for label in task.labels:
            if self._between in label:
                fix = "Choose another, like --kind multilabel:separator=;."
                raise DataError(expected=f'labels without the separator "{self._between}"', got=f'"{label}"', where=where, fix=fix)

    def targets(self, task: Task, examples: Sequence[Example]) -> list[list[bool]]:
        """Of each row and each label whether the row has it."""
        found = [set(self.parts(example)) for example in examples]
        return [[label in parts for label in task.labels] for parts in found]

    def answers(self, task: Task, examples: Sequence[Example], probabilities: Sequence[Sequence[float]]) -> list[str]:
        """The labels whose probability reaches the threshold, in the task's order; an empty text where none does."""
        del examples
        return [self._between.join(label for label, yes in zip(task.labels, self._yes(row), strict=True) if yes) for row in probabilities]

    def _yes(self, probabilities: Sequence[float]) -> list[bool]:
        return [share >= self._threshold for share in probabilities]

    @property
    def _threshold(self) -> float:
        return 0.5 if self.threshold is None else self.threshold

    def confidence(self, task: Task, probabilities: Sequence[float]) -> float | None:
        """That of exactly these labels and no others, each being judged for itself: a product over all labels."""
        del task
        return math.prod(share if yes else 1 - share for share, yes in zip(probabilities, self._yes(probabilities), strict=True))

    def measure(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Measures:
        """See `fewtune.tasks.multilabel_metrics.measure`."""
        targets_NC = np.array(self.targets(task, examples), dtype=bool).reshape(-1, len(task.labels))
        return measure(targets_NC, probabilities_NC, labels=task.labels, threshold=self._threshold)

    def ratio(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Ratio:
        """Twice the labels that were answered rightly, over those that it has and those that were answered: summed, that is micro-F1."""
        targets_NC = np.array(self.targets(task, examples), dtype=bool).reshape(probabilities_NC.shape)
        answers_NC = probabilities_NC >= self._threshold
        both_N = targets_NC.sum(1) + answers_NC.sum(1)
        return Ratio(self.estimated, 2.0 * (targets_NC & answers_NC).sum(1), both_N.astype(float))

    def lacking(self, task: Task, examples: Sequence[Example], folds: int) -> str | None:
        """A row for each part: a rare label may have a single row, which is then answered by a model that has not seen the label."""
        del task
        return None if len(examples) >= folds else f"{folds} different rows"

    def groups(self, task: Task, examples: Sequence[Example], quantiles: int) -> list[str]:
        """Each row's rarest label, for that is the one that a draw may miss; an empty text for none (Sechidis et al. 2011)."""
        del quantiles
        count = Counter(part for example in examples for part in self.parts(example))
        order = {label: (count[label], place) for place, label in enumerate(task.labels)}
        return [min(self.parts(example), key=order.__getitem__, default="") for example in examples]

    def drawn(self, task: Task, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """All of its labels."""
        del task
        return [self.parts(example) for example in examples]

    def described(self, task: Task) -> str:
        """The labels, any of which may be the answer."""
        return f"Answers any of, or none of: {', '.join(task.labels)}."


def best_threshold(targets_NC: NDArray[np.bool_], probabilities_NC: NDArray[Any]) -> float:
    """The threshold with the highest micro-F1 over all rows and labels; of equals the one nearest to 0.5, rounded to four digits.

    Tried are 0.5 and the middle between each two probabilities that stand side by side, 0 and 1 among them; without a yes it is 0.5.

    >>> best_threshold(np.array([[True], [True], [False]]), np.array([[0.4], [0.3], [0.1]]))
    0.2
    """
    shares, yes = probabilities_NC.ravel(), targets_NC.ravel()
    if not yes.any():
        return 0.5
    known = np.unique([0.0, *shares, 1.0])
    tried = np.unique(np.concatenate([[0.5], (known[1:] + known[:-1]) / 2]).round(4).clip(0.0001, 0.9999))
    order = np.sort(shares), np.sort(shares[yes])
    given, right = (len(each) - np.searchsorted(each, tried) for each in order)
    f1 = 2 * right / (given + yes.sum())
    best = tried[f1 == f1.max()]
    return float(best[np.abs(best - 0.5).argmin()])
