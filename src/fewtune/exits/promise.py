"""A promise on early exits, and the loosest threshold of which rows that had no part in it show that it is kept. Knows numbers only.

Thresholds are tried in a fixed order, from the one that surely keeps the promise on, and the first that cannot be shown to keep it ends the
row: so the chance that the chosen one breaks the promise is at most 1 - confidence, however many are tried (Learn then Test: Angelopoulos
et al. 2021, fixed sequence testing). Nothing is assumed but that later rows are drawn as these are.
Dimensions: N rows, L exits, T thresholds, G bets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtune.errors import SpecError

Array = NDArray[Any]
TRIED = 200
"""So many thresholds are tried at most."""
_BETS = np.geomspace(0.01, 0.95, 24)


@dataclass(frozen=True)
class Promise:
    """What must hold of all later rows together, with at least this `confidence`.

    `agree`: at least this share of them get the answer that the full model gives. `drop`: no more than so many points of accuracy are
    lost, of a regression hundredths of its range in the mean error. `budget`: no more than this share of the layers is computed in the
    mean; it says nothing of the answers.
    """

    kind: Literal["agree", "drop", "budget"] = "agree"
    value: float = 0.98
    confidence: float = 0.9

    def __post_init__(self) -> None:
        fits = {"agree": 0 < self.value < 1, "drop": 0 < self.value < 100, "budget": 0 < self.value <= 1}[self.kind]
        ranges = {"agree": "a share between 0 and 1", "drop": "points between 0 and 100", "budget": "a share of the layers above 0"}
        for name, holds, expected in (
            (self.kind, fits, ranges[self.kind]),
            ("confidence", 0 < self.confidence < 1, "between 0 and 1"),
        ):
            if not holds:
                got = str(self.value if name == self.kind else self.confidence)
                raise SpecError(expected=expected, got=got, where=f"--{name}", fix="Change the value.")

    @property
    def most(self) -> float:
        """The greatest mean loss with which it is kept."""
        return {"agree": 1 - self.value, "drop": self.value / 100, "budget": self.value}[self.kind]

    @property
    def fewest(self) -> int:
        """So many rows are needed at least, where none of them speaks against it.

        >>> Promise("agree", 0.98).fewest, Promise("agree", 0.95, confidence=0.95).fewest
        (114, 59)
        """
        return math.ceil(math.log(1 - self.confidence) / math.log1p(-min(self.most, 1 - 1e-9)))

    def __str__(self) -> str:
        said = {
            "agree": f"agrees with the full model on at least {self.value:.1%} of inputs",
            "drop": f"loses at most {self.value:g} points",
            "budget": f"computes at most {self.value:.0%} of the layers in the mean",
        }
        return f"{said[self.kind]} (confidence {self.confidence:.0%})"


def thresholds(sure_NL: Tensor) -> list[float]:
    """Quantiles of how sure rows are, the greatest first; from rows that have no part in testing them."""
    values = np.unique(sure_NL.double().numpy())[::-1]
    places = np.linspace(0, len(values) - 1, min(TRIED, len(values))).round().astype(int)
    found: list[float] = values[places].tolist()
    return found


def exit_numbers(sure_NL: Tensor, threshold: float) -> Tensor:
    """The number of the exit at which each row leaves, L where it goes to the end; numbers_N."""
    done_NL = sure_NL.double() >= threshold
    last_N1 = torch.ones(len(done_NL), 1, dtype=torch.bool, device=done_NL.device)
    return torch.cat([done_NL, last_N1], 1).int().argmax(1)


def kept_until(losses_TN: Iterable[Array], promise: Promise) -> int | None:
    """The number of the last threshold of the sequence up to which each is shown to keep the promise; None if the first is not."""
    last = None
    for number, losses_N in enumerate(losses_TN):
        if p_value(losses_N, promise.most) > 1 - promise.confidence:
            return last
        last = number
    return last


def p_value(losses_N: Array, most: float) -> float:
    """How likely losses as small as these are, at most, where their mean over all rows is above `most`.

    Where each loss is 0 or 1 it is the exact tail of the binomial distribution, else that of a betting game.

    >>> round(p_value(np.zeros(114), 0.02), 4), round(p_value(np.zeros(113), 0.02), 4)
    (0.0999, 0.102)
    """
    from scipy.stats import binom  # type: ignore[import-untyped]

    losses_N = np.asarray(losses_N, dtype=np.float64)
    if np.isin(losses_N, (0.0, 1.0)).all():
        return float(binom.cdf(losses_N.sum(), len(losses_N), most))
    return betting(losses_N, most)


def betting(losses_N: Array, most: float) -> float:
    """1 / capital of a gambler who bets on losses below `most`, in the mean over bets of several sizes.

    Losses lie between -1 and 1. Where their mean is at least `most` the game is not in the gambler's favour, so the capital is expected to
    be no more than it began with, and seldom great (Waudby-Smith & Ramdas 2024, section 4; Markov's inequality).
    """
    bets_G = _BETS / (1 - most)
    logs_G = np.log1p(bets_G[:, None] * (most - losses_N)).sum(1)
    capital = float(np.logaddexp.reduce(logs_G) - math.log(len(bets_G)))
    return min(1.0, math.exp(-capital)) if capital > 0 else 1.0
