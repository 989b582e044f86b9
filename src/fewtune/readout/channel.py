"""Read the text behind each label's word: how likely the PLM finds its tokens, one after another. Knows no text.

Dimensions: B rows, R rows with a word put in (B × F), F words, T tokens, D width, K tokens that are read, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import BackboneError, TaskError
from fewtune.prompt.batch import Batch
from fewtune.readout.cloze import averaging
from fewtune.readout.likelihood import AT_ONCE
from fewtune.readout.readout import Scored


@dataclass(frozen=True)
class Channel:
    """score(label) = log p(text | word), the mean over the label's words: the noisy channel of Min et al. 2022.

    The word stands in the slot, and the fields behind it are scored, each token given all that comes before it: their own tokens only,
    neither the template's nor an end of text. That is a pass for each word, where `cloze` and `likelihood` need one for all. The LM head
    stays as it is and nothing new is learned; deltas learn by the cross-entropy of the scores (in the paper by how likely each text is
    with its own label alone).

    By default the score is the sum over the text's tokens, so that softmax is Bayes' rule with equal priors. All labels have the same text;
    `per` token (as in the paper's own code) or word changes no answer of a single template, only how sure it is: much less.

    Texts that say nothing have no say here: p(text | word) adds up to one over all texts whatever the word, so no word is ahead from the
    start, and the score of a short text is no measure for a long one. The default is uncalibrated; `contextual` and `pmi` are refused.
    """

    per: Literal["text", "token", "word"] = "text"

    needs_slot: ClassVar[bool] = True
    spells: ClassVar[bool] = True
    reverses: ClassVar[bool] = True
    pairs: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 0.0

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> ChannelReader:
        """A reader of texts; raises `BackboneError` for a model that is not autoregressive or has no LM head."""
        del candidates, generator  # the words come with each batch, and nothing is drawn
        if not backbone.causal:
            got, fix = f"{backbone.name}, which gives a whole text no probability", "Take another --backbone, or --readout cloze."
            raise BackboneError(expected="an autoregressive PLM", got=got, where="--readout", fix=fix)
        backbone.require_lm_head()
        return ChannelReader(self, backbone)


class ChannelReader(Scored):
    """Log-probabilities of the tokens that `batch.own_BT` names, summed for each row."""

    weights: Mapping[str, nn.Parameter] = {}
    train_mode: tuple[nn.Module, ...] = ()

    def __init__(self, spec: Channel, backbone: Backbone) -> None:
        self.spec, self.backbone = spec, backbone

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC from the states before each token that is read; 0 for a text without a token."""
        if batch.filling is None or batch.own_BT is None or batch.said_B is None:
            raise TaskError(expected="label words", got="none", where="readout channel", fix="Give the task words or label names.")
        row_K, place_K = batch.own_BT.nonzero(as_tuple=True)
        log_K = self._log(output.hidden_BTD[row_K, place_K - 1], batch.ids_BT[row_K, place_K])
        log_R = torch.zeros(len(batch.own_BT), device=log_K.device).index_add(0, row_K, log_K)
        log_BF = log_R.view(len(batch), -1)
        if self.spec.per != "text":
            length_B = batch.said_B if self.spec.per == "word" else batch.own_BT.sum(1).view(log_BF.shape)[:, 0]
            log_BF = log_BF / length_B.clamp(min=1)[:, None]
        return log_BF @ averaging(batch.filling.words).to(log_BF.device)

    def _log(self, hidden_KD: Tensor, token_K: Tensor) -> Tensor:
        """log_K, the log-probability of each token behind its state; in training the logits of one part at a time are there, made again on
        the way back where there are several."""
        size = max(1, AT_ONCE // self.backbone.vocabulary)
        parts = list(zip(torch.split(hidden_KD, size), torch.split(token_K, size), strict=True))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._part(*part) for part in parts])
        return torch.cat([checkpoint(self._part, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])

    def _part(self, hidden_KD: Tensor, token_K: Tensor) -> Tensor:
        logits_KV = self.backbone.lm_logits(hidden_KD, None)
        return -nn.functional.cross_entropy(logits_KV, token_K, reduction="none")
