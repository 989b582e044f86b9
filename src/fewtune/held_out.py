"""How a PLM does on tasks over all of their templates, and how much better it does than before: medians, spreads, paired intervals.

Knows which answers are right; no text, no model.

Dimensions: P prompts (a task's templates), N its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewtune import registry
from fewtune.data.sampling import derive
from fewtune.tasks.metrics import RESAMPLES, Interval

Array = NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """A task, asked in each of its templates: the right answers, right_PN, before and after training.

    Median and spread over templates are what Sanh et al. (2022, section 4) report; no template is chosen.
    """

    name: str
    templates: tuple[str, ...]
    before_PN: Array
    after_PN: Array

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        each = [
            {"template": template, "before": float(before_N.mean()), "after": float(after_N.mean())}
            for template, before_N, after_N in zip(self.templates, self.before_PN, self.after_PN, strict=True)
        ]
        spreads = {"before": spread(self.before_PN), "after": spread(self.after_PN)}
        return {"rows": int(self.before_PN.shape[1]), **spreads, "gain": registry.to_dict(gain([self])), "templates": each}


def spread(right_PN: Array) -> dict[str, float]:
    """The median accuracy over prompts, the quartiles, the least and the greatest."""
    least, low, median, high, most = np.quantile(right_PN.mean(1), (0, 0.25, 0.5, 0.75, 1))
    return {"median": float(median), "low": float(low), "high": float(high), "least": float(least), "most": float(most)}


def gain(scores: Sequence[Score], *, level: float = 0.95) -> Interval:
    """How much higher the median accuracy is after training, the mean over tasks, with the interval of a bootstrap over rows.

    A draw takes the same rows of a task before and after and in all templates. The tasks and the templates are those there are; the
    interval says nothing of others.
    """
    draws = np.stack([_draws(score) for score in scores]).mean(0)
    value = float(np.mean([_median(score.after_PN) - _median(score.before_PN) for score in scores]))
    return Interval.around(value, *np.quantile(draws, ((1 - level) / 2, (1 + level) / 2)))


def mean_median(rights: Sequence[Array]) -> float:
    """The mean over tasks of the median over templates."""
    return float(np.mean([_median(right_PN) for right_PN in rights]))


def _median(right_PN: Array) -> float:
    return float(np.median(right_PN.mean(1)))


def _draws(score: Score) -> NDArray[np.float64]:
    rows = score.before_PN.shape[1]
    counts_RN = np.random.default_rng(derive(0, "rows", score.name)).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
    before_RP, after_RP = (counts_RN @ right_PN.T / rows for right_PN in (score.before_PN, score.after_PN))
    found: NDArray[np.float64] = np.median(after_RP, axis=1) - np.median(before_RP, axis=1)
    return found
