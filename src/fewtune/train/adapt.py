"""What is learned from unlabelled texts beside what is learned from labels: their language. Values only; knows no text and no model."""

from __future__ import annotations

from dataclasses import dataclass

from fewtune.errors import SpecError
from fewtune.registry import Table


@dataclass(frozen=True)
class TaskAdaptive:
    """Task-adaptive pre-training (Gururangan et al. 2020, section 4): before the first step on labels, the deltas are trained on the
    language of the unlabelled rows' texts as they are, for `steps` steps of `batch_size` of them.

    With no `learning_rate` each delta has its own.
    """

    steps: int = 200
    batch_size: int = 8
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        rate = self.learning_rate
        _require(self.steps >= 1, "tapt.steps", "a number above 0", self.steps)
        _require(self.batch_size >= 1, "tapt.batch_size", "a number above 0", self.batch_size)
        _require(rate is None or rate > 0, "tapt.learning_rate", "a number above 0", rate)


@dataclass(frozen=True)
class Auxiliary:
    """Auxiliary language modelling (Schick & Schütze 2021, section 3.2): each step on labels minimises
    (1 - `weight`) × their loss + `weight` × the language-modelling loss of `batch_size` unlabelled rows, in the templates that labelled
    ones have, with nothing predicted in the slot."""

    weight: float = 1e-4
    batch_size: int = 8

    def __post_init__(self) -> None:
        _require(0 < self.weight < 1, "auxiliary.weight", "a number between 0 and 1", self.weight)
        _require(self.batch_size >= 1, "auxiliary.batch_size", "a number above 0", self.batch_size)


Adaptation = TaskAdaptive | Auxiliary
ADAPTATIONS: Table[Adaptation] = Table("way to adapt", {"tapt": TaskAdaptive, "auxiliary": Auxiliary})


def _require(holds: bool, where: str, expected: str, got: object) -> None:
    if not holds:
        raise SpecError(expected=expected, got=repr(got), where=where, fix="Change the value.")
