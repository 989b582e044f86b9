"""The contract of a readout: from what the backbone gives to scores of the candidates. Knows no loss and no label's meaning.

Dimensions: B rows, C candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone, Output
from fewtune.prompt.batch import Batch
from fewtune.train.losses import cross_entropy


def widened(scores_BC: Tensor, candidates: int) -> Tensor:
    """scores_BC with so many columns: -inf where rows have fewer candidates than others have.

    >>> widened(torch.zeros(1, 1), 2).tolist()
    [[0.0, -inf]]
    """
    return nn.functional.pad(scores_BC, (0, candidates - scores_BC.shape[1]), value=float("-inf"))


class Reader(Protocol):
    """A readout for one backbone: `weights` are what it learns, none or a head's."""

    weights: Mapping[str, nn.Parameter]
    train_mode: tuple[nn.Module, ...]

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC, float32 logits over the candidates of each row; -inf where a row of the batch has fewer than others."""
        ...

    def loss(self, output: Output, batch: Batch, targets_B: Tensor, bias_C: Tensor) -> Tensor:
        """What a step minimises; `bias_C`, or one for each row, is taken off the scores where they are in it."""
        ...

    def settle(self, batches: Iterable[tuple[Output, Batch]], targets_N: Tensor) -> None:
        """What is left to learn once the loop is done, from all rows to learn from, in their order."""
        ...


class Scored(ABC):
    """What readers share that learn by their scores alone."""

    @abstractmethod
    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC; each reader has its own."""

    def loss(self, output: Output, batch: Batch, targets_B: Tensor, bias_C: Tensor) -> Tensor:
        """Cross-entropy of the scores without their bias."""
        return cross_entropy(self.scores(output, batch) - bias_C, targets_B)

    def settle(self, batches: Iterable[tuple[Output, Batch]], targets_N: Tensor) -> None:
        """Nothing is left: all is learned in the loop, and the batches are not even computed."""
        del batches, targets_N


class Readout(Protocol):
    """A frozen dataclass with one verb.

    `needs_slot` says whether prompts must have a slot, `spells` whether every token of the label words counts there, `reverses` whether
    these are put into the slot and the texts behind it are read, `pairs` whether it learns from pairs of rows of a batch. With a
    `learning_rate` of 0 the loop leaves its weights alone.
    """

    needs_slot: ClassVar[bool]
    spells: ClassVar[bool]
    reverses: ClassVar[bool]
    pairs: ClassVar[bool]
    learning_rate: ClassVar[float]

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> Reader:
        """A reader over `candidates` candidates; raises `BackboneError` if the backbone lacks what it reads."""
        ...
