"""Losses: scores and targets → one number to minimise. Knows tensors; nothing of models, labels or the loop.

Dimensions: B rows, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(scores_BC: Tensor, targets: Tensor) -> Tensor:
    """The mean over rows of the cross-entropy between the targets and softmax of the scores, at least in float32.

    `targets` are hard (whole numbers of shape B: the right candidate's index) or soft (floats of shape B × C: a distribution a row).

    >>> round(cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item(), 4)
    1.3863
    """
    precision = torch.promote_types(scores_BC.dtype, torch.float32)
    aims = targets.to(precision) if targets.is_floating_point() else targets.long()
    return torch.nn.functional.cross_entropy(scores_BC.to(precision), aims)
