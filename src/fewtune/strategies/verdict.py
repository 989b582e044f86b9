"""What labelled rows say of one way that has not seen them: how much it loses on each, and what its answers add to the metric.

Each row is answered as the other rows would have it: at the temperature that suits them, and with what a kind of task leaves to rows not
seen, such as a threshold. Knows log-probabilities; no rung, no model. Dimensions: N rows, C candidates.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtune.data.example import Example
from fewtune.data.sampling import derive, folds
from fewtune.readout.calibration import expected_temperature
from fewtune.strategies.folds import FOLDS, groups
from fewtune.tasks import kind_of
from fewtune.tasks.metrics import Ratio
from fewtune.tasks.task import Task
from fewtune.train.losses import row_losses


@dataclass(frozen=True)
class Verdict:
    """losses_N and the ratio of rows not seen; the temperature of the scores, and the kind of task with what these rows choose for it.

    `partings` is how often the rows were parted into folds; 0 where what answers has learned from none.
    """

    losses_N: NDArray[np.float64]
    ratio: Ratio
    temperature: float
    kind: str
    partings: int = 1

    @classmethod
    def of(cls, log_NC: Tensor, task: Task, examples: Sequence[Example], *, seed: int, tempered: bool) -> Verdict:
        """From log_NC of labelled examples, log-probabilities by models that have not seen them (log-odds where each candidate is judged
        for itself).

        With `tempered`, at the temperature that suits the scores, a row at that of the other rows: how sure of itself a way is says nothing
        of how often it is right, can be mended, and differs much between readouts.
        """
        targets = torch.tensor(kind_of(task).targets(task, examples))
        whole = _Mended.by(task, log_NC, targets, examples, tempered=tempered)
        judged_NC, over_N, under_N = log_NC.clone(), np.zeros(len(log_NC)), np.zeros(len(log_NC))
        for kept, held in folds(examples, FOLDS, seed=derive(seed, "temperature"), groups=groups(task, examples)):
            rows, others = list(held), list(kept)
            mended = _Mended.by(task, log_NC[others], targets[others], [examples[row] for row in others], tempered=tempered)
            judged_NC[rows] = mended(log_NC[rows])
            ratio = mended.ratio(judged_NC[rows], [examples[row] for row in rows])
            over_N[rows], under_N[rows] = ratio.over_N, ratio.under_N
        losses_N = row_losses(judged_NC, targets).numpy()
        return cls(losses_N, replace(ratio, over_N=over_N, under_N=under_N), whole.temperature or 1.0, whole.task.kind)

    @classmethod
    def pooled(cls, verdicts: Sequence[Verdict]) -> Verdict:
        """Of several partings of the same rows one: means, row by row; what is chosen for the task is the first one's."""
        first, ratios = verdicts[0], [one.ratio for one in verdicts]
        over_N, under_N = (np.mean(parts, axis=0) for parts in ([one.over_N for one in ratios], [one.under_N for one in ratios]))
        temperature = math.exp(statistics.fmean(math.log(one.temperature) for one in verdicts))
        losses_N = np.mean([one.losses_N for one in verdicts], axis=0)
        return cls(losses_N, replace(first.ratio, over_N=over_N, under_N=under_N), temperature, first.kind, len(verdicts))


@dataclass(frozen=True)
class _Mended:
    """What rows say of scores: their temperature, None where they are left as they are, and what the task leaves open."""

    task: Task
    temperature: float | None

    @classmethod
    def by(cls, task: Task, log_NC: Tensor, targets: Tensor, examples: Sequence[Example], *, tempered: bool) -> _Mended:
        found = cls(task, expected_temperature(log_NC, targets) if tempered else None)
        return replace(found, task=kind_of(task).decided(task, examples, found.likely(found(log_NC))))

    def __call__(self, log_NC: Tensor) -> Tensor:
        """log_NC at the temperature."""
        if self.temperature is None:
            return log_NC
        cooled_NC = log_NC / self.temperature
        return cooled_NC if kind_of(self.task).independent else cooled_NC.log_softmax(-1)

    def likely(self, log_NC: Tensor) -> NDArray[np.float64]:
        """probabilities_NC."""
        found: NDArray[np.float64] = (log_NC.sigmoid() if kind_of(self.task).independent else log_NC.exp()).numpy()
        return found

    def ratio(self, log_NC: Tensor, examples: Sequence[Example]) -> Ratio:
        """What the answers add to the metric."""
        return kind_of(self.task).ratio(self.task, examples, self.likely(log_NC))
