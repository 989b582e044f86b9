"""A trained classifier on a pooled state: standard fine-tuning's head. Knows no words.

    states ──► pool ──► [dense layer ► activation] ──► dropout ──► linear ──► scores

Dimensions: B rows, T tokens, D width, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fewtune.backbone import pooler
from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import BackboneError, SpecError
from fewtune.prompt.batch import Batch
from fewtune.readout.readout import Scored

Pool = Literal["auto", "first", "mean", "last", "front"]
Layer = Literal["none", "tanh", "gelu", "relu", "pooler"]

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "gelu": nn.functional.gelu, "relu": torch.relu}


@dataclass(frozen=True)
class Head:
    """Dropout and a linear map on the first token's state, the mean of all, or the last token's.

    `auto` takes the last token of an autoregressive model, which alone has seen the whole text, and the mean otherwise; `front` the
    very first position, which is a trained vector's where such stand in front. `layer` puts a dense layer of the head's own and
    that activation before the linear map (RoBERTa's and ELECTRA's heads), or the frozen backbone's own pooler (BERT's).
    """

    pool: Pool = "auto"
    dropout: float = 0.1
    layer: Layer = "none"
    bias: bool = True

    needs_slot: ClassVar[bool] = False
    spells: ClassVar[bool] = False
    reverses: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise SpecError(expected="at least 0 and below 1", got=repr(self.dropout), where="head.dropout", fix="Change the value.")

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> HeadReader:
        """A head whose weights are drawn as BERT's (N(0, 0.02²)) and whose biases are zero; raises `BackboneError` without a pooler."""
        width, device = backbone.width, backbone.device
        weights = {"head.weight": torch.randn(candidates, width, generator=generator) * 0.02}
        if self.bias:
            weights["head.bias"] = torch.zeros(candidates)
        if self.layer in _ACTIVATIONS:
            weights["dense.weight"] = torch.randn(width, width, generator=generator) * 0.02
            weights["dense.bias"] = torch.zeros(width)
        own = {name: nn.Parameter(weight.to(device)) for name, weight in weights.items()}
        pool = self.pool if self.pool != "auto" else ("last" if backbone.causal else "mean")
        return HeadReader(own, pool, self._before(backbone, own), self.dropout)

    def _before(self, backbone: Backbone, own: Mapping[str, nn.Parameter]) -> Callable[[Tensor], Tensor]:
        """What is done to the pooled state before the linear map."""
        if self.layer == "none":
            return lambda pooled_BD: pooled_BD
        if self.layer == "pooler":
            dense = _pooler(backbone)
            return lambda pooled_BD: torch.tanh(dense(pooled_BD.to(dense.weight.dtype))).float()
        activation = _ACTIVATIONS[self.layer]
        return lambda pooled_BD: activation(nn.functional.linear(pooled_BD, own["dense.weight"], own["dense.bias"]))


def _pooler(backbone: Backbone) -> nn.Linear:
    found = pooler.of(backbone)
    if found is None:
        raise BackboneError(
            expected="a PLM with a pooler",
            got=f"{backbone.name}, which has none beside its LM head" if backbone.has_lm_head else f"{backbone.name}, which has none",
            where="head.layer",
            fix="Use head:layer=tanh, which learns a layer of its own.",
        )
    return found


class HeadReader(Scored):
    """The head's weights over one way of pooling."""

    def __init__(self, weights: Mapping[str, nn.Parameter], pool: Pool, before: Callable[[Tensor], Tensor], dropout: float) -> None:
        self.weights, self.pool, self.before = weights, pool, before
        self.dropout = nn.Dropout(dropout).eval()
        self.train_mode: tuple[nn.Module, ...] = (self.dropout,)

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC of the pooled states."""
        pooled_BD = self._pooled(output, batch)
        return nn.functional.linear(self.dropout(self.before(pooled_BD)), self.weights["head.weight"], self.weights.get("head.bias"))

    def _pooled(self, output: Output, batch: Batch) -> Tensor:
        if self.pool == "front" and output.first_BD is not None:
            return output.first_BD
        return pooled(output.hidden_BTD, batch.mask_BT, self.pool)


def pooled(hidden_BTD: Tensor, mask_BT: Tensor, pool: Pool) -> Tensor:
    """One state a row, pooled_BD; padding, where `mask_BT` is 0, never counts."""
    if pool in ("first", "front"):
        return hidden_BTD[:, 0]
    if pool == "last":
        rows = torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device)
        return hidden_BTD[rows, mask_BT.sum(1) - 1]
    weights_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
    return (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1)
