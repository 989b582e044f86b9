"""Read whole label words in the slot: how likely the PLM finds all of their tokens, one after another. Knows no text.

Dimensions: B rows, T tokens, P places that are read in all rows, D width, V vocabulary, K tokens that are read of a row, N of all rows,
C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import TaskError
from fewtune.prompt.batch import Batch
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
        """scores_BC from the states at `batch.places_N`; -inf where a row has fewer candidates than others."""
        if not batch.spellings or batch.places_N is None:
            raise TaskError(expected="label words", got="none", where="readout likelihood", fix="Give the task words or label names.")
        hidden_PD = output.hidden_BTD.flatten(0, 1)[batch.places_N]
        spellings = batch.spellings * len(batch) if len(batch.spellings) == 1 else batch.spellings
        place_N, token_N = (part_N.to(hidden_PD.device) for part_N in _read(spellings))
        log_N = self._log(hidden_PD, place_N, token_N)
        if len(batch.spellings) == 1:
            return log_N.view(len(batch), -1) @ weighing(batch.spellings[0], self.spec.per).to(log_N.device)
        parts = torch.split(log_N, [len(spelling.tokens) for spelling in spellings])
        rows = [log_K @ weighing(own, self.spec.per).to(log_K.device) for log_K, own in zip(parts, spellings, strict=True)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("-inf"))

    def _log(self, hidden_PD: Tensor, place_N: Tensor, token_N: Tensor) -> Tensor:
        """log_N, the log-probability of each token at its place, by as many logits at a time as there is room for.

        In training these are made again on the way back where one time is not enough.
        """
        size, log_N = max(1, AT_ONCE // self.backbone.vocabulary), torch.zeros(len(place_N), device=hidden_PD.device)
        for start, part_PD in zip(range(0, len(hidden_PD), size), torch.split(hidden_PD, size), strict=True):
            (inside,) = ((place_N >= start) & (place_N < start + size)).nonzero(as_tuple=True)
            given = part_PD, place_N[inside] - start, token_N[inside]
            again = torch.is_grad_enabled() and len(hidden_PD) > size
            log_M = checkpoint(self._part, *given, use_reentrant=False, preserve_rng_state=False) if again else self._part(*given)
            log_N = log_N.index_put((inside,), log_M)
        return log_N

    def _part(self, hidden_PD: Tensor, place_M: Tensor, token_M: Tensor) -> Tensor:
        logits_PV = self.backbone.lm_logits(hidden_PD, None)
        log_M: Tensor = logits_PV[place_M, token_M] - logits_PV.logsumexp(-1)[place_M]
        return log_M


def _read(spellings: Sequence[Spelling]) -> tuple[Tensor, Tensor]:
    """(place_N, token_N): which state says how likely which token is, row after row."""
    starts = itertools.accumulate((len(spelling.places) for spelling in spellings), initial=0)
    places = [start + token.place for start, own in zip(starts, spellings, strict=False) for token in own.tokens]
    return torch.tensor(places), torch.tensor([token.token for own in spellings for token in own.tokens])


def weighing(spelling: Spelling, per: Literal["word", "token", "byte"]) -> Tensor:
    """The matrix_KC that makes of the tokens' log-probabilities the mean over each candidate's words, each by its length."""
    matrix_KC = torch.zeros(len(spelling.tokens), len(spelling.words))
    start = 0
    for candidate, (words, sizes) in enumerate(zip(spelling.words, spelling.sizes, strict=True)):
        for word, size in zip(words, sizes, strict=True):
            length = {"word": 1, "token": len(word), "byte": size}[per]
            matrix_KC[start : start + len(word), candidate] = 1 / (len(words) * length)
            start += len(word)
    return matrix_KC
