"""Answers in free text: the PLM writes them, and learns to by how likely it finds the right ones. Knows no text.

Dimensions: B rows, T tokens, D width, K tokens that are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtune.backbone import generation
from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import TaskError
from fewtune.prompt.batch import Batch
from fewtune.readout.readout import Scored


@dataclass(frozen=True)
class Generate:
    """The likeliest token each time (greedy). The LM head stays as it is; deltas learn by the cross-entropy of the right answers' tokens,
    the one that ends them included, the mean over all tokens of a batch."""

    needs_slot: ClassVar[bool] = True
    spells: ClassVar[bool] = False
    reverses: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 0.0

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> GenerateReader:
        """A reader of answers; raises `BackboneError` for a model that writes no text."""
        del candidates, generator  # there is nothing to choose from, and nothing is drawn
        generation.require(backbone)
        return GenerateReader(backbone)


class GenerateReader(Scored):
    """The tokens of the answers in `batch.answers`, each given those before it."""

    weights: Mapping[str, nn.Parameter] = {}
    train_mode: tuple[nn.Module, ...] = ()

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC of the one candidate that each row has, its own answer: the sum of its tokens' log-probabilities."""
        row_K, loss_K = self._losses(output, batch)
        return torch.zeros(len(batch), device=loss_K.device).index_add(0, row_K, -loss_K)[:, None]

    def loss(self, output: Output, batch: Batch, targets_B: Tensor, bias_C: Tensor) -> Tensor:
        """The mean over all tokens of all answers."""
        del targets_B, bias_C
        return self._losses(output, batch)[1].mean()

    def _losses(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
        if not batch.answers:
            raise TaskError(expected="rows with answers", got="none", where="readout generate", fix="Give labelled rows.")
        device = output.hidden_BTD.device
        lengths_B = torch.tensor([len(answer) for answer in batch.answers], device=device)
        row_K = torch.arange(len(batch), device=device).repeat_interleave(lengths_B)
        step_K = torch.cat([torch.arange(len(answer), device=device) for answer in batch.answers])
        token_K = torch.tensor(list(itertools.chain(*batch.answers)), device=device)
        logits_KV = self.backbone.lm_logits(output.hidden_BTD[row_K, batch.slot_B[row_K] + step_K], None)
        return row_K, nn.functional.cross_entropy(logits_KV, token_K, reduction="none")
