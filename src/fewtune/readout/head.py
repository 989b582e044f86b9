"""A trained linear classifier on a pooled state: standard fine-tuning's head. Knows no words.

Dimensions: B rows, T tokens, D width, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import SpecError
from fewtune.prompt.encode import Batch

Pool = Literal["auto", "first", "mean", "last"]


@dataclass(frozen=True)
class Head:
    """Dropout and a linear map on the first token's state, the mean of all, or the last token's.

    `auto` takes the last token of an autoregressive model, which alone has seen the whole text, and the mean otherwise.
    """

    pool: Pool = "auto"
    dropout: float = 0.1

    needs_slot: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise SpecError(expected="at least 0 and below 1", got=repr(self.dropout), where="head.dropout", fix="Change the value.")

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> HeadReader:
        """A head whose weight is drawn as BERT's (N(0, 0.02²)) and whose bias is zero."""
        pool = self.pool if self.pool != "auto" else ("last" if backbone.causal else "mean")
        weight_CD = torch.randn(candidates, backbone.width, generator=generator) * 0.02
        return HeadReader(weight_CD.to(backbone.device), torch.zeros(candidates, device=backbone.device), pool, self.dropout)


class HeadReader:
    """The head's weights over one way of pooling."""

    def __init__(self, weight_CD: Tensor, bias_C: Tensor, pool: Pool, dropout: float) -> None:
        self.weight_CD, self.bias_C, self.pool = nn.Parameter(weight_CD), nn.Parameter(bias_C), pool
        self.dropout = nn.Dropout(dropout).eval()
        self.weights: Mapping[str, nn.Parameter] = {"head.weight": self.weight_CD, "head.bias": self.bias_C}
        self.train_mode: tuple[nn.Module, ...] = (self.dropout,)

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC of the pooled states."""
        pooled_BD = pooled(output.hidden_BTD, batch.mask_BT, self.pool)
        return nn.functional.linear(self.dropout(pooled_BD), self.weight_CD, self.bias_C)


def pooled(hidden_BTD: Tensor, mask_BT: Tensor, pool: Pool) -> Tensor:
    """One state a row, pooled_BD; padding, where `mask_BT` is 0, never counts."""
    if pool == "first":
        return hidden_BTD[:, 0]
    if pool == "last":
        rows = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
        return hidden_BTD[rows, mask_BT.sum(1) - 1]
    weights_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
    return (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1)
