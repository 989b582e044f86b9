"""When a row may leave: how sure its exits are of the answer, from the scores of all exits so far. Knows numbers; no layers, no models.

A criterion says how sure each row is; a row is done where it is at least as sure as the `threshold`. One number decides for all exits, so
that a promise can be kept by choosing it.
Dimensions: L exits so far, B rows, C candidates, D width, F figures of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

NEVER = math.inf
"""The strictest threshold: no row is ever so sure."""
FIGURES = 5
"""How many figures the confidence predictor reads beside the state."""
_FAR = 15.0


@dataclass(frozen=True)
class Judge:
    """A criterion ready to judge: `sure(scores_LBC, state_BD)` gives sure_B for the last of the exits; `weights` are what it learns."""

    sure: Callable[[Tensor, Tensor], Tensor]
    threshold: float
    weights: Mapping[str, nn.Parameter] = field(default_factory=dict)

    def done(self, scores_LBC: Tensor, state_BD: Tensor) -> Tensor:
        """done_B after the last of these exits; each row for itself. `state_BD` is what that exit read."""
        return self.sure(scores_LBC, state_BD) >= self.threshold


class Criterion(Protocol):
    """A frozen dataclass with one verb.

    `valued` says whether it can judge a value between two poles, of which softmax says nothing of how sure it is; `start` is a threshold
    to begin with before a promise chooses one.
    """

    valued: ClassVar[bool]

    def install(self, *, exits: int, width: int, threshold: float) -> Judge:
        """A judge of rows with up to `exits` exits that read states of `width`."""
        ...


@dataclass(frozen=True)
class Entropy:
    """1 - H(p) / log C of the latest exit's probabilities p (DeeBERT: Xin et al. 2020; divided as in FastBERT: Liu et al. 2020)."""

    valued: ClassVar[bool] = False

    def install(self, *, exits: int, width: int, threshold: float) -> Judge:
        """Nothing is learned."""
        del exits, width
        return Judge(lambda scores_LBC, state_BD: 1 - _entropy(scores_LBC[-1]), threshold)


@dataclass(frozen=True)
class Margin:
    """The latest exit's greatest probability (`by="top"`: Schwartz et al. 2020), or how far it is above the second one."""

    by: Literal["margin", "top"] = "margin"

    valued: ClassVar[bool] = False

    def install(self, *, exits: int, width: int, threshold: float) -> Judge:
        """Nothing is learned."""
        del exits, width
        return Judge(lambda scores_LBC, state_BD: _margin(scores_LBC[-1], above_second=self.by == "margin"), threshold)


@dataclass(frozen=True)
class Patience:
    """How many exits before the latest one, without a gap, gave the answer that it gives (PABEE: Zhou et al. 2020).

    With a `tolerance` an answer is a value between two poles, which is the same if it changed by no more than this share of the range.
    """

    tolerance: float | None = None

    valued: ClassVar[bool] = True

    def install(self, *, exits: int, width: int, threshold: float) -> Judge:
        """Nothing is learned."""
        del exits, width
        return Judge(lambda scores_LBC, state_BD: self._patience(scores_LBC), threshold)

    def _patience(self, scores_LBC: Tensor) -> Tensor:
        if len(scores_LBC) == 1:
            return scores_LBC.new_zeros(scores_LBC.shape[1])
        same_LB = same(scores_LBC[1:], scores_LBC[:-1], self.tolerance)
        return same_LB.flip(0).cumprod(0).sum(0).to(scores_LBC.dtype)


@dataclass(frozen=True)
class Confidence:
    """What a small predictor, trained for each exit, holds for the probability that the answer will stand.

    It reads the state that the exit reads (learning to exit, BERxiT: Xin et al. 2021) and figures of the scores of this and earlier
    exits (the meta-classifier of CATs: Schuster et al. 2021). What figures say is learned from all exits together, for at most layers few
    answers change; each then learns what its state adds. Both are logistic regressions, `strength` is the inverse of their L2 penalty.
    """

    strength: float = 1.0

    valued: ClassVar[bool] = True

    def install(self, *, exits: int, width: int, threshold: float) -> Judge:
        """Weights of zero, with which every answer is held for as likely to stand as not."""
        shapes = {"state": (exits, width), "figures": (exits, FIGURES), "bias": (exits,)}
        weights = {f"confidence.{name}": nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}

        def sure(scores_LBC: Tensor, state_BD: Tensor) -> Tensor:
            last = len(scores_LBC) - 1
            own = [weights[f"confidence.{name}"][last] for name in shapes]
            return (state_BD @ own[0] + figures(scores_LBC) @ own[1] + own[2]).sigmoid()

        return Judge(sure, threshold, weights)


def figures(scores_LBC: Tensor) -> Tensor:
    """figures_BF: how far the best log-probability is above the second, the negative logarithm of the entropy, the log-probability that the
    exit before gave to this answer (0 at the first), and how far the probabilities are from those of the exit before and from the mean of
    all before (half the sum of differences), which is 1 at the first exit.

    Logarithms, because answers that are nearly sure differ in nothing else, and cut off where single precision ends.
    """
    log_LBC = scores_LBC.log_softmax(-1)
    probabilities_LBC, last_BC = log_LBC.exp(), log_LBC[-1]
    before_LBC = probabilities_LBC[:-1]
    if len(before_LBC):
        changes = [_apart(probabilities_LBC[-1], before_LBC[-1]), _apart(probabilities_LBC[-1], before_LBC.mean(0))]
        held_B = log_LBC[-2].gather(-1, last_BC.argmax(-1, keepdim=True))[:, 0]
    else:
        changes, held_B = [last_BC.new_ones(len(last_BC))] * 2, last_BC.new_zeros(len(last_BC))
    best_BK = last_BC.topk(min(2, last_BC.shape[-1]), -1).values
    own = [best_BK[:, 0] - best_BK[:, -1], -_entropy(scores_LBC[-1]).clamp(min=math.exp(-_FAR)).log(), held_B]
    return torch.stack([*(figure_B.clamp(-_FAR, _FAR) for figure_B in own), *changes], 1)


def same(scores_BC: Tensor, others_BC: Tensor, tolerance: float | None) -> Tensor:
    """Whether two scores of a row give one answer: the same candidate is first, or values lie no farther apart than `tolerance`."""
    if tolerance is None:
        return scores_BC.argmax(-1) == others_BC.argmax(-1)
    return (scores_BC.softmax(-1)[..., 1] - others_BC.softmax(-1)[..., 1]).abs() <= tolerance


def _entropy(scores_BC: Tensor) -> Tensor:
    """Between 0 and 1."""
    log_BC = scores_BC.log_softmax(-1)
    return -(log_BC.exp() * log_BC).sum(-1) / math.log(max(2, scores_BC.shape[-1]))


def _margin(scores_BC: Tensor, *, above_second: bool) -> Tensor:
    best_BK = scores_BC.softmax(-1).topk(min(2, scores_BC.shape[-1]), -1).values
    return best_BK[:, 0] - best_BK[:, 1] if above_second and best_BK.shape[1] > 1 else best_BK[:, 0]


def _apart(probabilities_BC: Tensor, others_BC: Tensor) -> Tensor:
    return (probabilities_BC - others_BC).abs().sum(-1) / 2
