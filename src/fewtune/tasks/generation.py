r"""Tasks whose answer is free text, which the PLM writes itself. Knows texts and examples, no model.

What was written stands in the place of a row's candidates (`Example.candidates`), the only one, and its probability is that of its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fewtune.data.example import Example
from fewtune.data.readers import Written
from fewtune.errors import DataError, SpecError
from fewtune.tasks import generation_metrics
from fewtune.tasks.metrics import Measures, Ratio
from fewtune.tasks.task import NothingOpen, Offered, Task

_ESCAPE = re.compile(r"\\(n|t|\\|u[0-9a-fA-F]{4})")


@dataclass(frozen=True)
class Generation(NothingOpen):
    r"""Free text of at most `max_tokens` tokens, which ends before any of `stop`, or where the PLM ends it.

    In `stop` a new line is written `\n`, a tab `\t`, a backslash `\\`, and any other character may be `\u002c` (a comma, which a flag
    cannot hold; a plus is `\u002b`, a space at an edge `\u0020`). With `stop=` there is none.
    """

    stop: tuple[str, ...] = (r"\n",)
    max_tokens: int = 32

    metrics: ClassVar[tuple[str, ...]] = generation_metrics.METRICS
    offered: ClassVar[Offered] = "none"
    paired: ClassVar[bool] = False
    estimated: ClassVar[str] = "exact_match"
    independent: ClassVar[bool] = False
    undecided: ClassVar[bool] = False
    written: ClassVar[Written] = Written()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            fix = "For example generation:max_tokens=32."
            raise SpecError(expected="at least 1", got=str(self.max_tokens), where="task.kind max_tokens", fix=fix)

    @property
    def stops(self) -> tuple[str, ...]:
        r"""The texts before which an answer ends.

        >>> Generation((r"\n", r"\u002c")).stops
        ('\n', ',')
        """
        return tuple(_ESCAPE.sub(_meant, stop) for stop in self.stop if stop)

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """None."""
        del examples
        return ()

    def check(self, task: Task, examples: Sequence[Example], where: str) -> None:
        """Raise `DataError` for a row without an answer, and for an answer that could not be given, for it would be stopped."""
        del task
        for example in examples:
            if not (example.label or "").strip():
                raise DataError(expected="an answer", got="none", where=example.where or where, fix="Fill it in or drop the row.")
            for stop in self.stops:
                if stop in (example.label or "").strip():
                    fix = "Choose another, like --kind generation:stop=###."
                    raise DataError(
                        expected=f"answers without the stop {stop!r}", got=repr(example.label)[:60], where=example.where or where, fix=fix
                    )

    def targets(self, task: Task, examples: Sequence[Example]) -> list[int]:
        """The row's own answer, which is the only candidate that it has."""
        del task
        return [0] * len(examples)

    def answers(self, task: Task, examples: Sequence[Example], probabilities: Sequence[Sequence[float]]) -> list[str]:
        """What was written for each row."""
        del task, probabilities
        return [_written(example) for example in examples]

    def confidence(self, task: Task, probabilities: Sequence[float]) -> float | None:
        """How probable exactly that text is, its end included."""
        del task
        return probabilities[0]

    def measure(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Measures:
        """See `fewtune.tasks.generation_metrics.measure`."""
        del task, probabilities_NC
        return generation_metrics.measure([example.label or "" for example in examples], list(map(_written, examples)))

    def ratio(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Ratio:
        """1 where the text is the row's own answer when both are normalised, else 0."""
        del task, probabilities_NC
        right_N = np.array([generation_metrics.exact_match(example.label or "", _written(example)) for example in examples])
        return Ratio(self.estimated, right_N, np.ones(len(right_N)))

    def lacking(self, task: Task, examples: Sequence[Example], folds: int) -> str | None:
        """Ways are judged by how probable they find the right one of several answers, and here there are no others."""
        del task, examples, folds
        return "answers to choose from, and free text has none"

    def groups(self, task: Task, examples: Sequence[Example], quantiles: int) -> list[str]:
        """All rows are of one group."""
        del task, quantiles
        return [""] * len(examples)

    def drawn(self, task: Task, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """All rows are shots of one thing: an answer."""
        del task
        return [("answer",)] * len(examples)

    def described(self, task: Task) -> str:
        """That it is free text, and how long at most."""
        del task
        return f"Answers in free text of at most {self.max_tokens} tokens."


def _meant(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if code[0] == "u" else {"n": "\n", "t": "\t"}.get(code, code)


def _written(example: Example) -> str:
    return (example.candidates or ("",))[0]
