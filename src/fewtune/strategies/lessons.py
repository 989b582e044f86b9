"""Who teaches what to whom in PET, as it is asked for: its fields, the rows that are learned from, the student's PLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fewtune import registry
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import distinct, pool
from fewtune.errors import DataError
from fewtune.plm import load
from fewtune.strategies.members import Words
from fewtune.strategies.teachers import Merge


@dataclass(frozen=True)
class Lessons:
    """Who teaches what to whom.

    `patterns` is how many templates of the library are tried where the task names none; those it names are the patterns; with 0 no member
    is tuned, and a teacher from elsewhere stands alone. `words=each` makes a verbalizer of all labels' first words, one of the second,
    and so on. With `shown` autoregressive PLMs are members in-context, too. `merge` says how the members' predictions become labels:
    `stacked` by how well each does on labelled rows that it has not seen, or as the papers have it: `probabilities` added, mean `logits`,
    or logits `weighted` by accuracy before tuning. The student learns soft labels at `temperature` (KL × T²), with `gold` beside the
    labelled rows by their own labels, else alone, as the official code has it. `student` names its PLM, the smallest at hand by default.
    At most `most` unlabelled rows are learned from, those first that a teacher from elsewhere has labelled.

    `generations` more follow the first one: each member learns from what a `share` of the other members, drawn at random, are sure of;
    the training set has `growth` times as many rows each time. Without labelled rows each begins with the `first` likeliest of a label.
    """

    name: ClassVar[str] = "pet"

    patterns: int = 3
    words: Words = "averaged"
    shown: bool = True
    merge: Merge = "stacked"
    temperature: float = 2.0
    gold: bool = True
    student: str | None = None
    most: int = 2000
    generations: int = 0
    growth: float = 5.0
    share: float = 0.25
    first: int = 100

    def __post_init__(self) -> None:
        fits = {
            "patterns": (self.patterns >= 0, "at least 0"),
            "temperature": (self.temperature > 0, "above 0"),
            "most": (self.most >= 1, "at least 1"),
            "generations": (self.generations >= 0, "at least 0"),
            "growth": (self.growth > 1, "above 1"),
            "share": (0 < self.share <= 1, "above 0 and at most 1"),
            "first": (self.first >= 1, "at least 1"),
        }
        registry.check_ranges(self, self.name, fits)

    def drawn(self, split: Split, seed: int) -> tuple[Example, ...]:
        """The rows that are learned from: all that a teacher from elsewhere has labelled, and as many others as there is room for.

        Raises `DataError` where there are none.
        """
        taught, others = distinct(split.taught), distinct(split.unlabeled) if self.patterns else ()
        if not (taught or others):
            fix = "Give texts with --unlabeled, or choose --strategy supervised."
            raise DataError(expected="unlabelled rows", got="none", where=f"strategy {self.name}", fix=fix)
        chosen = pool(taught, self.most, seed=seed, without=split.train)
        if room := self.most - len(chosen):
            chosen = (*pool(others, room, seed=seed, without=(*split.train, *chosen)), *chosen)
        if not chosen:
            fix = "Give other texts with --unlabeled, or choose --strategy supervised."
            raise DataError(expected="unlabelled rows", got="none but labelled ones", where=f"strategy {self.name}", fix=fix)
        return chosen

    def learner(self, backbones: Sequence[Backbone]) -> Backbone:
        """The student's PLM: one of those that are loaded already, if it is the one that is named, or the smallest of them."""
        if self.student is None:
            return min(backbones, key=lambda backbone: backbone.parameters)
        known = {backbone.name: backbone for backbone in backbones}
        return known.get(self.student) or load(self.student, device=str(backbones[0].device))
