"""A model on labelled examples: its kind's metrics with intervals, the confusion of labels, seconds. Knows no files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fewtune import registry
from fewtune.data.example import Example
from fewtune.model import Tally, TunedModel
from fewtune.tasks import kind_of
from fewtune.tasks.metrics import Measures, Ratio


@dataclass(frozen=True)
class Evaluation:
    """What was measured; `seconds` is the time that predicting took, `shortened` how many rows had a field cut to fit.

    `ratio` says what each row, in order, adds to the metric by which methods are held against each other.
    """

    measures: Measures
    seconds: float
    shortened: int
    ratio: Ratio

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON: metrics, per-class table, confusion matrix (rows: true label), number of rows."""
        data = registry.to_dict(self.measures)
        return {**data, "shortened": self.shortened}


def evaluate(model: TunedModel, examples: Sequence[Example], *, batch_size: int = 32) -> Evaluation:
    """Measure `model` on labelled examples; raises `DataError` for examples that do not fit its task."""
    kind = kind_of(model.task)
    kind.check(model.task, examples, "evaluate")
    tally, start = Tally(), time.perf_counter()
    probabilities_NC = model.probabilities(examples, batch_size=batch_size, tally=tally).numpy()
    seconds = time.perf_counter() - start
    measures = kind.measure(model.task, examples, probabilities_NC)
    return Evaluation(measures, seconds, tally.shortened, kind.ratio(model.task, examples, probabilities_NC))
