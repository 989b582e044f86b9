"""Answers in free text for one PLM: which tokens a right one is, what a decoder begins with, and what the PLM writes. Knows no task's
fields and no label's meaning.

Dimensions: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.generation import generate
from fewtune.errors import TaskError
from fewtune.prompt import defaults
from fewtune.prompt.encode import Row
from fewtune.prompt.stopping import Stops
from fewtune.prompt.template import Template
from fewtune.prompt.tokens import sentinel
from fewtune.tasks.generation import Generation


@dataclass(frozen=True)
class FreeText:
    """What is said of the answers, and who writes them."""

    kind: Generation
    backbone: Backbone

    @cached_property
    def _stops(self) -> Stops:
        return Stops(self.backbone.tokenizer, self.kind.stops)

    def room(self, length: int) -> int:
        """How many of `length` tokens an answer may take; raises `TaskError` where no prompt would fit in front of it."""
        if self.backbone.seq2seq:
            return 0  # it stands in the decoder
        if self.kind.max_tokens >= length:
            fix = "Lower it, or raise --max-length."
            raise TaskError(
                expected=f"fewer than the {length} tokens that there are",
                got=str(self.kind.max_tokens),
                where="task.kind max_tokens",
                fix=fix,
            )
        return self.kind.max_tokens

    def ids(self, label: str | None, template: Template) -> tuple[int, ...]:
        """The tokens of the right answer behind a template, its end included; none where it is not known."""
        if label is None:
            return ()
        seq2seq = self.backbone.seq2seq
        return self._stops.answer(label, lead=defaults.lead(template, seq2seq=seq2seq), seq2seq=seq2seq, most=self.kind.max_tokens)

    def begin(self, rows: Sequence[Row]) -> tuple[int, ...]:
        """What a decoder's text begins with, for rows of one template; nothing without a decoder."""
        if not self.backbone.seq2seq or not rows:
            return ()
        found = sentinel(self.backbone.tokenizer) if rows[0].slot else None
        return (self.backbone.start,) if found is None else (self.backbone.start, found)

    def write(self, rows: Sequence[Row], *, batch_size: int) -> tuple[list[str], Tensor]:
        """(what the PLM writes behind each row, log-probabilities_N1 of its tokens, the one that ends it included), float64."""
        prompts, kind = [row.ids for row in rows], self.kind
        found = generate(
            self.backbone, prompts, most=kind.max_tokens, ended=self._stops.ended, begin=self.begin(rows), batch_size=batch_size
        )
        logs_N1 = torch.tensor([[own.log_probability] for own in found], dtype=torch.float64).reshape(-1, 1)
        return [self._stops.text(own.ids) for own in found], logs_N1
