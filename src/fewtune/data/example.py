"""Values: an example, a split of examples, a prediction. They know nothing of tokens, models or files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """One text, or several, with the label if it is known.

    `fields` maps a field's name to its text; `where` says where the row came from (`reviews.csv:17`), for messages. `shares` are a soft
    label in the label's place: how probable each label is held to be; they add up to 1. `candidates` are what this row alone is answered
    from, where that differs from row to row.
    """

    fields: Mapping[str, str]
    label: str | None = None
    where: str = field(default="", compare=False)
    shares: Mapping[str, float] | None = None
    candidates: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Split:
    """The examples of one job: those with labels to learn from, those without, those that only measure, and those that a teacher from
    elsewhere has given soft labels."""

    train: tuple[Example, ...] = ()
    unlabeled: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    taught: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """One answer: the label, its probability, every label's probability, and the layer at which the model stopped.

    Of a regression the label is the value, which has no probability of its own; `probabilities` are those of the two poles.
    """

    label: str
    probability: float | None
    probabilities: Mapping[str, float]
    exit_layer: int
