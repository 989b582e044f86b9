"""From what several models find probable to training sets of texts that have no label: iPET's draws, and how far a pool has shifted. Knows
numbers; no model and no text.

Dimensions: N rows, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fewtune.data.sampling import derive

Merge = Literal["stacked", "probabilities", "logits", "weighted"]


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
    """How much farther texts of a pool lie from the labelled ones than these from each other: 1 all of them.

    Of texts of the same kind about 0.5 where many are labelled; less where few are, for each of these is left out of its own neighbours,
    as no text of the pool is: about 0.35 with two of each label, 0.48 with eight.

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
