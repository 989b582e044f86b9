"""Which weights remain: rules from scores to masks, the schedule by which the others go, and the gradient through a mask. Knows tensors;
no model, no layer and no loop.

A mask is true where a weight remains; a share is always of those that go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def largest(scores: Tensor, share: float) -> Tensor:
    """The mask of the largest scores, the `share` of lowest ones being out; of equal scores the first remain.

    With |W| it is magnitude pruning (Han et al. 2015), with learned scores hard movement pruning (top-v: Sanh et al. 2020).

    >>> largest(torch.tensor([[0.3, -2.0], [1.0, 0.3]]), 0.5).tolist()
    [[True, False], [True, False]]
    """
    flat_N = scores.detach().reshape(-1)
    out = round(len(flat_N) * share)
    if out in (0, len(flat_N)):
        return torch.full_like(scores, out == 0, dtype=torch.bool)
    # Several times faster than torch.kthvalue.
    least = float(np.partition(flat_N.cpu().numpy(), out)[out])
    keep_N = flat_N > least
    equal_E = (flat_N == least).nonzero()[:, 0]
    keep_N[equal_E[: len(flat_N) - out - int(keep_N.sum())]] = True
    return keep_N.view(scores.shape)


def largest_of_all(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The masks of the largest scores among those of all matrices.

    >>> masks = largest_of_all({"low": torch.tensor([1.0, 2.0]), "high": torch.tensor([3.0, 4.0])}, 0.5)
    >>> masks["low"].tolist(), masks["high"].tolist()
    ([False, False], [True, True])
    """
    keep_N = largest(torch.cat([tensor.detach().reshape(-1) for tensor in scores.values()]), share)
    parts = torch.split(keep_N, [tensor.numel() for tensor in scores.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(scores.items(), parts, strict=True)}


def above(scores: Tensor, threshold: float) -> Tensor:
    """The mask of soft movement pruning: sigmoid(S) > threshold (Sanh et al. 2020, section 3.3).

    >>> above(torch.tensor([-3.0, 0.0, 3.0]), 0.1).tolist()
    [False, True, True]
    """
    return scores.detach().sigmoid() > threshold


def pull(scores: Iterable[Tensor]) -> Tensor:
    """The mean of sigmoid(S) over all matrices, which soft movement pruning adds to the loss, so that scores fall.

    >>> pull([torch.zeros(2), torch.full((2, 1), 100.0)]).item()
    0.75
    """
    every = list(scores)
    return torch.stack([tensor.sigmoid().sum() for tensor in every]).sum() / sum(tensor.numel() for tensor in every)


def gradual(step: int, *, steps: int, warmup: float, cooldown: float) -> float:
    """How much of what is to go has gone at `step`: nothing while `warmup` (a share of the steps) lasts, all in `cooldown`, and between
    them 1 - (1 - t)³ (Zhu & Gupta 2017, section 3): fast while there is much to choose from, then slowly.

    >>> [gradual(step, steps=8, warmup=0.25, cooldown=0.25) for step in range(8)]
    [0.0, 0.0, 0.0, 0.578125, 0.875, 0.984375, 1.0, 1.0]
    """
    first, last = round(steps * warmup), steps - round(steps * cooldown)
    if step >= last:
        return 1.0
    return 1 - (1 - max(0, step - first) / max(1, last - first)) ** 3


def straight_through(weight: Tensor, score: Tensor, keep: Tensor) -> Tensor:
    """The weights that remain, 0 for the others. The scores' gradient is dL/dW' · W, as if the mask were the scores (Sanh et al. 2020,
    section 3.2): a weight that moves away from 0 gains, and one that is out may come back."""
    masked: Tensor = _StraightThrough.apply(weight, score, keep)  # type: ignore[no-untyped-call]
    return masked


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, keep: Tensor) -> Tensor:
        del score
        ctx.save_for_backward(weight, keep)
        return weight * keep

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, keep = ctx.saved_tensors
        return gradient * keep, gradient * weight, None


def packed(keep: Tensor) -> Tensor:
    """A mask as bits, eight in a byte (uint8), the first one highest; the last byte is filled with zeros.

    >>> packed(torch.tensor([[True, False], [True, True]])).tolist()
    [176]
    """
    return torch.from_numpy(np.packbits(keep.detach().cpu().numpy().reshape(-1)))


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """The mask of that shape whose bits these are."""
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=shape.numel()).astype(bool)).view(shape)
