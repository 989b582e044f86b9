"""Which weights are trained and how fast: those of deltas and readouts at the rate that suits their kind, unless one is named for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from fewtune.deltas.delta import Installed
from fewtune.model import TunedModel
from fewtune.train.fit import Group

Part = tuple[str, Mapping[str, nn.Parameter], float]
"""What stands in front of the names of some weights, these by name, and the learning rate that suits them; 0 for what is not trained."""


def of_deltas(deltas: Sequence[Installed]) -> list[Part]:
    """A part for each delta, told apart by number."""
    return [(f"{number}.", part.weights, part.delta.learning_rate) for number, part in enumerate(deltas)]


def of_model(model: TunedModel) -> list[Part]:
    """Those of its deltas, and its readout's."""
    return [*of_deltas(model.deltas), ("readout.", model.reader.weights, model.readout.learning_rate)]


def grouped(parts: Iterable[Part], rate: float | None) -> list[Group]:
    """A group for each part that has something to train, at its own rate or at `rate`, if one is named."""
    return [
        Group({prefix + name: weight for name, weight in weights.items()}, rate or own) for prefix, weights, own in parts if weights and own
    ]
