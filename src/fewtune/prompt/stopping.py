"""Where an answer in free text ends, and which tokens one is: for one tokenizer. Knows no model and no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewtune.prompt.verbalizer import running_ids


@dataclass(frozen=True)
class Stops:
    """An answer ends before one of `texts`, or at a special token, such as the one for the end of a text.

    White space in front of an answer is no part of it and ends nothing: many PLMs begin with a new line.
    """

    tokenizer: Any
    texts: tuple[str, ...] = ()

    @cached_property
    def _special(self) -> frozenset[int]:
        # A chat model's end of turn is often listed among the added tokens alone.
        added = {token for token, about in self.tokenizer.added_tokens_decoder.items() if about.special}
        return frozenset({*self.tokenizer.all_special_ids, *added} - {self.tokenizer.unk_token_id})

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether these tokens hold the end of an answer."""
        return ids[-1] in self._special or any(text in self._said(ids) for text in self.texts)

    def text(self, ids: Sequence[int]) -> str:
        """The answer that the tokens hold, without white space around it."""
        said = self._said(ids)
        ends = [said.index(text) for text in self.texts if text in said]
        return said[: min(ends, default=len(said))].strip()

    def _said(self, ids: Sequence[int]) -> str:
        first = next((number for number, token in enumerate(ids) if token in self._special), len(ids))
        return str(self.tokenizer.decode(list(ids[:first]), clean_up_tokenization_spaces=False)).lstrip()

    def answer(self, text: str, *, lead: str | None, seq2seq: bool, most: int) -> tuple[int, ...]:
        """The tokens of an answer as it is to be written, its end included: the first stop, or the token that ends texts where there is no
        stop or a decoder writes. At most `most`, for what is longer cannot be written."""
        stop = self.texts[0] if self.texts and not seq2seq else ""
        ids = running_ids(self.tokenizer, text.strip() + stop, lead)
        end = self.tokenizer.eos_token_id
        return tuple([*ids, *([] if stop or end is None else [end])][:most])
