"""Calibration from unlabelled rows: no candidate is answered more often than its share. Knows numbers, no texts.

Dimensions: N rows, C candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewtune.errors import SpecError
from fewtune.readout.calibration import LEAST_PROBABILITY, Calibrator, Needs, check, log_probabilities

_ROUNDS, _TOLERANCE = 1000, 1e-9


@dataclass(frozen=True)
class PriorMatching:
    """Biases under which the mean probabilities over unlabelled rows are `prior` (Liusie et al. 2023, section 3.2); uniform if it is empty.

    Of use where the classes are about as frequent as `prior` says; the labels of the rows are never looked at.
    """

    prior: tuple[float, ...] = ()

    needs: ClassVar[Needs] = "unlabeled"

    def __post_init__(self) -> None:
        if self.prior and not (all(share > 0 for share in self.prior) and math.isclose(sum(self.prior), 1, abs_tol=1e-6)):
            raise SpecError(
                expected="shares above 0 that add up to 1", got=str(self.prior), where="prior", fix="For example prior=0.8+0.2."
            )

    def fit(self, scores_NC: Tensor, targets_N: Tensor | None = None) -> Calibrator:
        """The biases, by scaling columns and rows in turn until neither moves (Sinkhorn 1967); probabilities below 1e-6 count as 1e-6.

        Raises `SpecError` without a row or for a prior of another length, `BackboneError` for scores that are not finite.

        >>> calibrator = PriorMatching().fit(torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log())
        >>> [round(share, 6) for share in calibrator(torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()).softmax(-1).mean(0).tolist()]
        [0.5, 0.5]
        """
        check(scores_NC)
        log_NC = log_probabilities(scores_NC).clamp(min=math.log(LEAST_PROBABILITY))
        aim_C = self._aim(log_NC.shape[1]).log()
        bias_C = torch.zeros(log_NC.shape[1], dtype=torch.float64)
        for _ in range(_ROUNDS):
            move_C = (log_NC - bias_C).log_softmax(-1).logsumexp(0) - math.log(len(log_NC)) - aim_C
            bias_C = bias_C + move_C
            if bool(move_C.abs().max() < _TOLERANCE):
                break
        return Calibrator(bias_C=tuple((bias_C - bias_C.mean()).tolist()))

    def _aim(self, candidates: int) -> Tensor:
        if self.prior and len(self.prior) != candidates:
            fix = "Give one share for each label, in the order of the labels."
            raise SpecError(expected=f"{candidates} shares", got=str(len(self.prior)), where="prior", fix=fix)
        return torch.tensor(self.prior or (1 / candidates,) * candidates, dtype=torch.float64)
