"""Read whole label words in the slot: how likely the PLM finds all of their tokens, one after another. Knows no text.

Dimensions: B rows, T tokens, P places, D width, V vocabulary, K tokens that are read, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import TaskError
from fewtune.prompt.encode import Batch
from fewtune.prompt.spelling import Spelling
from fewtune.readout.readout import Scored

AT_ONCE = 2**25
"""Logits that are held at a time: 128 MiB."""


@dataclass(frozen=True)
class Likelihood:
    """score(label) = log p(word | prompt), the mean over the label's words; the LM head stays as it is and nothing new is learned.

    An autoregressive model's is that of the word's tokens one after another; a masked model reads a word of n tokens over n masks, from
    left to right, each token given those before it. `per` token or byte divides by the word's length (Brown et al. 2020, section 2.4;
    lm-evaluation-harness' acc_norm), which takes away that longer words are less likely; so does the calibration `pmi`, which takes off
    what the word gets in the template alone (Holtzman et al. 2021, section 3).
    """

    per: Literal["word", "token", "byte"] = "word"

    needs_slot: ClassVar[bool] = True
    spells: ClassVar[bool] = True
    reverses: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 0.0

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> LikelihoodReader:
        """A reader of the slot; raises `BackboneError` for a model without an LM head."""
        del candidates, generator  # the words come with each batch, and nothing is drawn
        backbone.require_lm_head()
        return LikelihoodReader(self, backbone)


class LikelihoodReader(Scored):
    """Log-probabilities over the whole vocabulary at the places that the batch's spelling names."""

    weights: Mapping[str, nn.Parameter] = {}
    train_mode: tuple[nn.Module, ...] = ()

    def __init__(self, spec: Likelihood, backbone: Backbone) -> None:
        self.spec, self.backbone = spec, backbone

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC from the states at `batch.places_BP`."""
        if batch.spelling is None or batch.places_BP is None:
            raise TaskError(expected="label words", got="none", where="readout likelihood", fix="Give the task words or label names.")
        hidden_BPD = output.hidden_BTD.flatten(0, 1)[batch.places_BP]
        tokens = [token for candidate in batch.spelling.words for word in candidate for token in word]
        place_K = torch.tensor([token.place for token in tokens], device=hidden_BPD.device)
        token_K = torch.tensor([token.token for token in tokens], device=hidden_BPD.device)
        rows = max(1, AT_ONCE // (hidden_BPD.shape[1] * self.backbone.vocabulary))
        log_BK = torch.cat([self._log(part_BPD, place_K, token_K) for part_BPD in torch.split(hidden_BPD, rows)])
        return log_BK @ weighing(batch.spelling, self.spec.per).to(log_BK.device)

    def _log(self, hidden_BPD: Tensor, place_K: Tensor, token_K: Tensor) -> Tensor:
        """log_BK, the log-probability of each token at its place."""
        logits_BPV = self.backbone.lm_logits(hidden_BPD, None)
        log_BK: Tensor = logits_BPV[:, place_K, token_K] - logits_BPV.logsumexp(-1)[:, place_K]
        return log_BK


def weighing(spelling: Spelling, per: Literal["word", "token", "byte"]) -> Tensor:
    """The matrix_KC that makes of the tokens' log-probabilities the mean over each candidate's words, each by its length."""
    matrix_KC = torch.zeros(sum(len(word) for words in spelling.words for word in words), len(spelling.words))
    start = 0
    for candidate, (words, sizes) in enumerate(zip(spelling.words, spelling.sizes, strict=True)):
        for word, size in zip(words, sizes, strict=True):
            length = {"word": 1, "token": len(word), "byte": size}[per]
            matrix_KC[start : start + len(word), candidate] = 1 / (len(words) * length)
            start += len(word)
    return matrix_KC
