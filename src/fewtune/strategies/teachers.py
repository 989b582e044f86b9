"""From the predictions of several models to labels for texts that have none: merging them, and iPET's draws. Knows numbers; no model
and no text.

Dimensions: M members, N rows, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtune.data.sampling import derive
from fewtune.readout.calibration import expected_temperature

Merge = Literal["stacked", "probabilities", "logits", "weighted"]
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
        weights_M11, temperatures_M11 = (
            torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (self.weights_M, self.temperatures_M)
        )
        log_MNC = (log_MNC.double() / temperatures_M11).log_softmax(-1)
        heard_MN1 = weights_M11 * ~log_MNC.isnan().any(-1, keepdim=True)
        heard_MN1 = heard_MN1 / heard_MN1.sum(0)
        log_MNC = log_MNC.nan_to_num(0.0)
        return (heard_MN1 * log_MNC).sum(0).softmax(-1) if self.logits else (heard_MN1 * log_MNC.exp()).sum(0)

    def only(self, chosen: Sequence[int]) -> Mix:
        """The same of some members."""
        return replace(
            self,
            weights_M=tuple(self.weights_M[number] for number in chosen),
            temperatures_M=tuple(self.temperatures_M[number] for number in chosen),
        )


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


def grown(shares_NC: Tensor, counts_C: Sequence[int], size: int, *, seed: int) -> list[tuple[int, int]]:
    """Rows with the label that is most probable, `size` in all, the labels in the proportions of `counts_C` (iPET: Schick & Schütze
    2021, section 3.4).

    Rows of a label are drawn without replacement, the surer the likelier. Of a label that too few rows are given, all of them are
    taken, and nothing is taken in their place: the proportions are those of the labelled rows or below, and it always ends.
    """
    random = np.random.default_rng(derive(seed, "grown"))
    shares, first_N = shares_NC.numpy(), shares_NC.argmax(1).numpy()
    drawn: list[tuple[int, int]] = []
    for label, wanted in enumerate(apportioned(size, counts_C)):
        members = np.flatnonzero(first_N == label)
        taken = min(wanted, len(members))
        if taken:
            sure = shares[members, label] / shares[members, label].sum()
            drawn += [(int(row), label) for row in sorted(random.choice(members, taken, replace=False, p=sure))]
    return drawn


def apportioned(size: int, counts: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `size`, in the proportions of `counts`, by largest remainders.

    >>> apportioned(10, (8, 8, 4)), apportioned(5, (1, 1))
    ([4, 4, 2], [3, 2])
    """
    exact = [size * count / sum(counts) for count in counts]
    whole = [int(share) for share in exact]
    rest = sorted(range(len(counts)), key=lambda place: (whole[place] - exact[place], place))
    for place in rest[: size - sum(whole)]:
        whole[place] += 1
    return whole


def likeliest(shares_NC: Tensor, per_label: int) -> list[tuple[int, int]]:
    """The `per_label` rows with the largest share of each label, for a start without any labelled row (iPET, section 3.4).

    A label whose rows are none the likeliest has some nonetheless, so that none is lost; a row has one label, that of its larger share.
    """
    order_NC = shares_NC.argsort(stable=True, dim=0, descending=True)[:per_label]
    claims = [(float(shares_NC[row, label]), int(row), label) for label in range(shares_NC.shape[1]) for row in order_NC[:, label].tolist()]
    taken: dict[int, int] = {}
    for _, row, label in sorted(claims, key=lambda claim: (-claim[0], claim[1:])):
        taken.setdefault(row, label)
    return sorted(taken.items())


def shift(known_ND: NDArray[np.float64], pool_ND: NDArray[np.float64]) -> float:
    """How much farther texts of a pool lie from the labelled ones than these from each other: 0.5 not at all, 1 all of them.

    Embeddings have unit length. The area under the curve (the statistic of Mann & Whitney 1947, divided by the number of pairs) that
    tells the two apart by the cosine to the nearest labelled text other than itself. So a pool in which a label is rare is none that
    has shifted, as long as it lies near rows of some label.
    """
    from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]

    known_NN = known_ND @ known_ND.T
    np.fill_diagonal(known_NN, -np.inf)
    near_N, far_N = known_NN.max(1), (pool_ND @ known_ND.T).max(1)
    statistic = float(mannwhitneyu(near_N, far_N).statistic)
    return statistic / (len(near_N) * len(far_N))
