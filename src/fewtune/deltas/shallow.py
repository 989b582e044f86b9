"""Fewer layers: some steps of the stack are left out. Trains nothing by itself; knows which steps remain, no architecture."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewtune.backbone import shorten
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.delta import Installed, require
from fewtune.errors import BackboneError


@dataclass(frozen=True)
class Shallow:
    """`layers` says which steps of the stack remain, counted from 0 at the bottom, or how many: these are spread evenly from the first to
    the last (`shorten.spread`). The final norm and the LM head stay.

    Deltas that are installed after it number the blocks that remain, and store what they train of these alone. All rows of the
    backbone run the same blocks, so no other model shares its batches.
    """

    layers: int | tuple[int, ...] = 3

    def __post_init__(self) -> None:
        fits = self.layers >= 1 if isinstance(self.layers, int) else bool(self.layers) and min(self.layers) >= 0
        require(fits, where="shallow.layers", expected="at least one layer, by number from 0", got=self.layers)

    @property
    def learning_rate(self) -> float:
        """Nothing is trained."""
        return 0.0

    @property
    def unchanged_at_start(self) -> bool:
        """A layer less is a change."""
        return False

    def steps(self, depth: int) -> tuple[int, ...]:
        """Those that remain of so many; raises `BackboneError` where there are not as many, or they are not in order."""
        if not isinstance(self.layers, int):
            shorten.check_order(self.layers, depth, "shallow.layers")
            return self.layers
        if self.layers > depth:
            raise BackboneError(expected=f"at most {depth} layers", got=str(self.layers), where="shallow.layers", fix="Change the value.")
        return shorten.spread(self.layers, depth)

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Take the other steps out of the stack; raises `BackboneError` where the family cannot do without, or other models are there."""
        del generator  # nothing is drawn
        steps = self.steps(backbone.depth)
        undo = [backbone.claim("a model with fewer layers"), shorten.keep(backbone, steps)]
        same = next((number for number, step in enumerate(steps) if number != step), len(steps))
        return Installed(self, backbone, {}, undo=undo, first_block=same)
