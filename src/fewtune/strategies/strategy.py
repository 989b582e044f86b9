"""The contract of a strategy: a recipe, a split and a backbone in, a tuned model out. Knows everything below, no files, no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.model import TunedModel
from fewtune.recipe import Recipe
from fewtune.routes import Routes
from fewtune.train.fit import Session


class Strategy(Protocol):
    """A frozen dataclass with one verb."""

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """Make a model; the deltas that were installed stay in `backbone` until `TunedModel.remove`."""
        ...


@runtime_checkable
class Joint(Protocol):
    """A strategy that can take several PLMs, each with the recipe that suits it."""

    def over(self, contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, session: Session) -> TunedModel | Routes:
        """Make a model on one of them, or several side by side."""
        ...
