"""Texts → sentence embeddings by a frozen PLM, loaded when the first text comes. Knows no task and no label.

Dimensions: N texts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone, Output
from fewtune.backbone.load import load
from fewtune.errors import BackboneError
from fewtune.prompt.batch import Batch
from fewtune.prompt.template import Template
from fewtune.readout.head import pooled
from fewtune.readout.states import states

MOST_TOKENS = 256
"""Longer texts are cut; the sentence encoders of the catalogue were trained on no longer ones."""
_TEXT = Template.parse("{text}")


@dataclass(frozen=True)
class Sentences:
    """The mean of a PLM's last states, at unit length, so that the product of two is their cosine (Reimers & Gurevych 2019)."""

    backbone: Backbone

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """embeddings_ND, float32 on the processor."""
        return states(self.backbone, [_TEXT.render({"text": text}) for text in texts], _embedding, most=MOST_TOKENS)


def _embedding(output: Output, batch: Batch) -> Tensor:
    return nn.functional.normalize(pooled(output.hidden_BTD, batch.mask_BT, "mean"), dim=-1)


@lru_cache(maxsize=1)
def loaded(name: str) -> Sentences:
    """The encoder called `name`; the one that was asked for last is kept, for folds and models ask for it again."""
    return Sentences(load(name))


def lazily(name: str, fingerprint: str | None = None) -> Callable[[Sequence[str]], Tensor]:
    """A function of texts that loads the encoder at its first call.

    With a `fingerprint`, raises `BackboneError` there for an encoder with other weights.
    """

    def embed(texts: Sequence[str]) -> Tensor:
        encoder = loaded(name)
        if fingerprint not in (None, encoder.backbone.fingerprint):
            raise BackboneError(
                expected=f"{name} with weights {str(fingerprint)[:12]}",
                got=f"weights {encoder.backbone.fingerprint[:12]}",
                where="demonstrations.encoder",
                fix="The model was made with another version of the sentence encoder; use that one or fit again.",
            )
        return encoder(texts)

    return embed
