"""Read the word in the slot: the LM head's logits there, at the label words only. Knows no text.

Dimensions: B rows, T tokens, D width, C candidates, K chosen rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import TaskError
from fewtune.prompt.batch import Batch
from fewtune.readout.readout import Scored
from fewtune.readout.states import at_slot


@dataclass(frozen=True)
class Cloze:
    """The LM head stays as it is and nothing new is learned (Schick & Schütze 2021; Gao et al. 2021, section 4)."""

    needs_slot: ClassVar[bool] = True
    spells: ClassVar[bool] = False
    reverses: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 0.0

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> ClozeReader:
        """A reader of the slot; raises `BackboneError` for a model without an LM head."""
        del candidates, generator  # the words come with each batch, and nothing is drawn
        backbone.require_lm_head()
        return ClozeReader(backbone)


class ClozeReader(Scored):
    """score(label) = mean over the label's words of the slot's logit (PET, section 3.1).

    Averaging logits is averaging log-probabilities, up to a constant that softmax over the labels removes.
    """

    weights: Mapping[str, nn.Parameter] = {}
    train_mode: tuple[nn.Module, ...] = ()

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC from the states at `batch.slot_B`, through the rows of `batch.words`."""
        if batch.words is None:
            raise TaskError(expected="label words", got="none", where="readout cloze", fix="Give the task words or label names.")
        hidden_BD = at_slot(output, batch)
        tokens_K = torch.tensor([token for words in batch.words for token in words], device=hidden_BD.device)
        logits_BK = self.backbone.lm_logits(hidden_BD, tokens_K)
        return logits_BK @ averaging(batch.words).to(logits_BK.device)


def averaging(words: Sequence[Sequence[object]]) -> Tensor:
    """The matrix_KC that takes the mean over each candidate's words, the words of all candidates being laid out in a row."""
    matrix_KC = torch.zeros(sum(map(len, words)), len(words))
    start = 0
    for candidate, tokens in enumerate(words):
        matrix_KC[start : start + len(tokens), candidate] = 1 / len(tokens)
        start += len(tokens)
    return matrix_KC
