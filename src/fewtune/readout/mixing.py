"""Mixes: how what several models find probable becomes one, and the mix that suits labelled rows. Knows numbers; no model and no text.

Dimensions: M members, N rows, C candidates.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtune.readout.calibration import expected_temperature

_PRIOR_ROWS = 2.0  # as many rows say beforehand that all members are as good as each other
_ROUNDS = 1000


@dataclass(frozen=True)
class Mix:
    """How the predictions of members become one: each at its temperature and with its weight, as probabilities or as logits."""

    weights_M: tuple[float, ...]
    temperatures_M: tuple[float, ...]
    logits: bool = False

    @classmethod
    def equal(cls, members: int, *, logits: bool = False) -> Mix:
        """All members alike, as they are."""
        return cls((1.0,) * members, (1.0,) * members, logits)

    def __call__(self, log_MNC: Tensor) -> Tensor:
        """shares_NC, float64: how probable the members together hold each candidate to be.

        Rows of which a member says nothing (not a number) are left to the others.

        >>> one = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
        >>> [round(mix(one)[0, 0].item(), 4) for mix in (Mix.equal(2), Mix.equal(2, logits=True), Mix((3, 1), (1, 1), logits=True))]
        [0.7, 0.75, 0.8386]
        """
        return self.log(log_MNC).exp()

    def log(self, log_MNC: Tensor) -> Tensor:
        """The logarithms of the same, log_NC, which do not vanish."""
        weights_M11, temperatures_M11 = (
            torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (self.weights_M, self.temperatures_M)
        )
        log_MNC = (log_MNC.double() / temperatures_M11).log_softmax(-1)
        heard_MN1 = weights_M11 * ~log_MNC.isnan().any(-1, keepdim=True)
        heard_MN1 = heard_MN1 / heard_MN1.sum(0)
        if self.logits:
            return torch.where(heard_MN1 > 0, heard_MN1 * log_MNC, 0.0).sum(0).log_softmax(-1)
        return (heard_MN1.log() + torch.where(heard_MN1 > 0, log_MNC, 0.0)).logsumexp(0)

    def only(self, chosen: Sequence[int]) -> Mix:
        """The same of some members."""
        return replace(
            self,
            weights_M=tuple(self.weights_M[number] for number in chosen),
            temperatures_M=tuple(self.temperatures_M[number] for number in chosen),
        )

    @classmethod
    def pooled(cls, mixes: Sequence[Mix]) -> Mix:
        """One of several of the same members: mean weights, and geometric means of temperatures.

        >>> Mix.pooled([Mix((0.5, 0.5), (1.0, 2.0)), Mix((0.25, 0.75), (1.0, 8.0))])
        Mix(weights_M=(0.375, 0.625), temperatures_M=(1.0, 4.0), logits=False)
        """
        weights, temperatures = ([getattr(one, name) for one in mixes] for name in ("weights_M", "temperatures_M"))
        warm = (statistics.geometric_mean(each) for each in zip(*temperatures, strict=True))
        return replace(mixes[0], weights_M=tuple(map(statistics.fmean, zip(*weights, strict=True))), temperatures_M=tuple(warm))


def stacked(log_MNC: Tensor, targets_N: Tensor) -> Mix:
    """The mix under which labelled rows that no member has seen are likeliest (stacking of distributions: Yao et al. 2018, section 3).

    Each member's temperature first, as the ladder has it; then the weights of its probabilities, by expectation maximisation, with two
    rows' worth of belief beforehand that all members are alike: so few rows cannot give one member everything. A row of which a member
    says nothing tells nothing of it.
    """
    temperatures_M = [_temperature(log_NC, targets_N) for log_NC in log_MNC]
    tempered_MNC = torch.stack([log_NC / warm for log_NC, warm in zip(log_MNC.double(), temperatures_M, strict=True)]).softmax(-1)
    likely_MN = tempered_MNC.gather(2, targets_N[None, :, None].expand(len(log_MNC), -1, 1))[..., 0].clamp(min=1e-12)
    likely_MN = torch.where(likely_MN.isnan(), likely_MN.nanmean(0), likely_MN).nan_to_num(1.0)
    weights_M = torch.full((len(log_MNC),), 1 / len(log_MNC), dtype=torch.float64)
    for _ in range(_ROUNDS):
        blame_MN = weights_M[:, None] * likely_MN
        new_M = (blame_MN / blame_MN.sum(0)).sum(1) + _PRIOR_ROWS / len(log_MNC)
        before, weights_M = weights_M, new_M / new_M.sum()
        if float((weights_M - before).abs().max()) < 1e-9:
            break
    return Mix(tuple(weights_M.tolist()), tuple(temperatures_M))


def _temperature(log_NC: Tensor, targets_N: Tensor) -> float:
    """That of the rows of which a member says something; 1 where there are none."""
    said_N = ~log_NC.isnan().any(-1)
    return expected_temperature(log_NC[said_N], targets_N[said_N]) if said_N.any() else 1.0
