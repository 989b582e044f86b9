"""Whether exits still do what they did when they were promised: how many rows leave early, and how many of a sample that goes to the end
are answered otherwise there. Knows counts; no texts and no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fewtune.data.sampling import derive

ALARM = 0.001
"""So unlikely must counts be, were all as it was, before something is said."""


@dataclass
class Monitor:
    """Counts kept over the rows that are answered.

    `agree` is the share that was promised to get the full model's answer, or was seen where something else was; of `tested` rows
    `left_early` left early then. `sample` is the share of rows that are answered by the full model, too; which, the `seed` decides.
    """

    agree: float
    left_early: float
    tested: int
    sample: float = 0.02
    seed: int = 42
    rows: int = 0
    early: int = 0
    compared: int = 0
    otherwise: int = 0
    draws: int = field(default=0, repr=False)

    @classmethod
    def of(cls, about: Mapping[str, Any], *, sample: float = 0.02, seed: int = 42) -> Monitor:
        """For exits with these facts (`Exits.about`)."""
        promise = about["promise"]
        # What was seen has an error of its own; its low end is as sure as a promise.
        agree = promise["value"] if promise["kind"] == "agree" else about["agreement"]["low"]
        return cls(agree, about["left_early"], about["rows"]["tested"], sample, seed)

    def drawn(self, rows: int) -> list[int]:
        """Which of the next rows are to be compared; others each time."""
        self.draws += 1
        generator = torch.Generator().manual_seed(derive(self.seed, "monitor", self.draws))
        found: list[int] = (torch.rand(rows, generator=generator) < self.sample).nonzero()[:, 0].tolist()
        return found

    def note(self, *, rows: int, early: int, compared: int = 0, otherwise: int = 0) -> None:
        """Count rows, those that left early, those compared, and of these the ones that the full model answers otherwise."""
        self.rows, self.early = self.rows + rows, self.early + early
        self.compared, self.otherwise = self.compared + compared, self.otherwise + otherwise

    def __str__(self) -> str:
        compared = f"{self.compared:,} of {self.rows:,} rows also went to the end, where {self.otherwise:,} are answered otherwise"
        return f"{compared}; {self.early / max(1, self.rows):.0%} left early, {self.left_early:.0%} when exits were added."

    def flags(self) -> tuple[str, ...]:
        """What has changed, in sentences; nothing while the counts are as they may be by chance."""
        from scipy.stats import binom, fisher_exact  # type: ignore[import-untyped]

        found = []
        if self.compared and binom.sf(self.otherwise - 1, self.compared, 1 - self.agree) < ALARM:
            found.append(
                f"{self.otherwise} of {self.compared} rows that also went to the end are answered otherwise there, "
                f"where {1 - self.agree:.1%} were to be: add exits anew with rows like these."
            )
        then = round(self.left_early * self.tested)
        if self.rows and fisher_exact([[self.early, self.rows - self.early], [then, self.tested - then]]).pvalue < ALARM:
            share = self.early / self.rows
            found.append(
                f"{share:.0%} of {self.rows:,} rows left early, {self.left_early:.0%} when exits were added: the texts are others."
            )
        return tuple(found)
