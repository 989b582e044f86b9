"""Soft prompts: trained vectors in front of the tokens' embeddings, at the input only. Knows no architecture.

Lester et al. 2021, section 2: drawn from the vocabulary, or the vectors of a text (section 3.2), which starts the model where
that text in front of every input would leave it.

Dimensions: P vectors, D width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone
from fewtune.deltas import words
from fewtune.deltas.delta import Installed, require


@dataclass(frozen=True)
class SoftPrompt:
    """`length` trained vectors in front of the input.

    With `text`, they start as the vectors of its tokens, repeated or cut to `length` (label words, or a hard prompt to go on from);
    `length` 0 takes as many as the text has. Otherwise they are drawn from the vocabulary, or with `random` from U(-0.5, 0.5).
    """

    length: int = 20
    text: str = ""
    random: bool = False

    learning_rate: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        holds = self.length >= 1 or (self.length == 0 and bool(self.text))
        require(holds, where="soft-prompt.length", expected="at least 1, or a text", got=self.length)
        require(not (self.random and self.text), where="soft-prompt.random", expected="no text beside it", got=self.text)

    @property
    def unchanged_at_start(self) -> bool:
        """Whether the model starts as it is without this delta."""
        return False

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Put the vectors in front; raises `BackboneError` for a family that takes no vectors."""
        vectors = nn.Parameter(self._start(backbone, generator).to(backbone.device))
        return Installed(self, backbone, {"soft_prompt": vectors}, undo=(backbone.put_in_front(vectors),), first_block=0)

    def _start(self, backbone: Backbone, generator: torch.Generator) -> Tensor:
        if self.random:
            width = backbone.embed(torch.zeros(1, 1, dtype=torch.long, device=backbone.device)).shape[-1]
            return torch.rand(self.length, width, generator=generator) - 0.5
        if self.text:
            ids = words.of_text(backbone, self.text, length=self.length, where="soft-prompt.text")
        else:
            ids = words.drawn(backbone, length=self.length, generator=generator)
        with torch.no_grad():
            return backbone.embed(torch.tensor([ids], device=backbone.device))[0].detach().float().clone()
