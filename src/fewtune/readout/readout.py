"""The contract of a readout: from what the backbone gives to scores of the candidates. Knows no loss and no label's meaning.

Dimensions: B rows, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone, Output
from fewtune.prompt.encode import Batch


class Reader(Protocol):
    """A readout for one backbone: `weights` are what it learns, none or a head's."""

    weights: Mapping[str, nn.Parameter]
    train_mode: tuple[nn.Module, ...]

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC, float32 logits over the candidates of each row."""
        ...


class Readout(Protocol):
    """A frozen dataclass with one verb; `needs_slot` says whether prompts must have a slot."""

    needs_slot: ClassVar[bool]
    learning_rate: ClassVar[float]

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> Reader:
        """A reader over `candidates` candidates; raises `BackboneError` if the backbone lacks what it reads."""
        ...
