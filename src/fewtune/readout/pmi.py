"""Take off what the template alone says: pointwise mutual information. Knows numbers; nothing of texts or models.

Dimensions: N rows, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewtune.readout.calibration import Calibrator, Needs, check, log_probabilities


@dataclass(frozen=True)
class PMI:
    """score(label) = log p(word | prompt) - log p(word | template with empty fields): domain-conditional PMI (Holtzman et al. 2021,
    section 3), whose domain premise is the template's own text, with the task's description in front if it has one.

    Where rows have candidates of their own there is nothing to fit: the bias is computed with each row's (`Calibrator.premise`).
    """

    needs: ClassVar[Needs] = "premise"

    def fit(self, scores_NC: Tensor, targets_N: Tensor | None = None) -> Calibrator:
        """`scores_NC` is the one row of the empty template; the bias is its log-probability of each candidate among all of them, which
        is its score up to a number that is the same for all. Raises `SpecError` without a row, `BackboneError` for scores that are
        not finite.

        >>> import torch
        >>> PMI().fit(torch.tensor([[0.8, 0.2]]).log())(torch.tensor([[0.8, 0.2]]).log()).softmax(-1).tolist()[0][0]
        0.5
        """
        check(scores_NC)
        return Calibrator(bias_C=tuple(log_probabilities(scores_NC).mean(0).tolist()))
