"""What lm-evaluation-harness asks a language model, in text, answered by a backbone with whatever deltas are in it. Knows no harness:
lists in, lists out, in the same order.

Texts become tokens as they do in the harness' own models (its version 0.4), so that scores can be held against theirs: context and
continuation are tokenised together, white space between them belongs to the continuation, and what is too long loses its beginning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.generation import generate
from fewtune.backbone.scoring import Request, Score, score
from fewtune.backbone.shared import Ids
from fewtune.errors import BackboneError

MOST = 256
"""Tokens that are written where a task says nothing, as in the harness."""


@dataclass(frozen=True)
class Answers:
    """The three questions of the harness; `max_length` is how many tokens of a row the model is given at most, all it takes by default."""

    backbone: Backbone
    max_length: int | None = None

    @cached_property
    def room(self) -> int:
        """How many tokens a row may have."""
        return min(self.max_length or self.backbone.room, self.backbone.room)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation) the log-probability of the continuation, and whether it is what greedy decoding writes.

        Continuations of the same context are read together. Raises `BackboneError` for a PLM that is not autoregressive.
        """
        return [(found.total, found.greedy) for found in self._scores([self._cut(*self._pair(*pair)) for pair in pairs])]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each whole text, in windows as long as the model takes, each token predicted once."""
        windows = [list(self._windows(self._ids(text))) for text in texts]
        scores = iter(self._scores([window for own in windows for window in own]))
        return [sum(next(scores).total for _ in own) for own in windows]

    def until(self, asked: Sequence[tuple[str, Sequence[str], int]]) -> list[str]:
        """What is written greedily behind each (context, stops, most tokens): up to the first stop, which is left out, or the end."""
        groups: dict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
        for number, (_, stops, most) in enumerate(asked):
            groups[tuple(stops), most].append(number)
        written = [""] * len(asked)
        for (stops, most), numbers in groups.items():
            for number, text in zip(numbers, self._written([asked[number][0] for number in numbers], stops, most), strict=True):
                written[number] = text
        return written

    def _scores(self, requests: Sequence[tuple[Ids, Ids]]) -> list[Score]:
        """A score of each (context, continuation), in order."""
        known: dict[Ids, dict[Ids, None]] = {}
        for context, ids in requests:
            known.setdefault(context, {})[ids] = None
        found = score(self.backbone, [Request(context, tuple(own)) for context, own in known.items()])
        scores = {
            (context, ids): one for (context, own), row in zip(known.items(), found, strict=True) for ids, one in zip(own, row, strict=True)
        }
        return [scores[request] for request in requests]

    def _pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        if not context:
            ids = self._ids(continuation, special=False)
            return ((self._first,), ids) if ids[:1] != (self._first,) else (ids[:1], ids[1:])
        kept = context.rstrip()
        ids, whole = self._ids(kept), self._ids(kept + context[len(kept) :] + continuation)
        return (ids, whole[len(ids) :]) if ids else ((self._first,), whole)

    def _cut(self, context: Ids, ids: Ids) -> tuple[Ids, Ids]:
        """The end of a context that leaves room for a continuation, whose last token is not read."""
        if len(ids) > self.room:
            got, fix = f"{len(ids)}", "Take another --backbone, or shorter continuations."
            raise BackboneError(expected=f"a continuation of at most {self.room} tokens", got=got, where="loglikelihood", fix=fix)
        return context[-(self.room + 1 - len(ids)) :], ids

    def _windows(self, ids: Ids) -> Iterator[tuple[Ids, Ids]]:
        """(what is only seen, what is predicted): the last window reaches back as far as the model takes."""
        for start in range(0, len(ids), self.room):
            said = ids[start : start + self.room]
            before = (self._first, *ids[:start])
            yield before[len(before) - 1 - (self.room - len(said) if start else 0) :], said

    def _written(self, contexts: Sequence[str], stops: Sequence[str], most: int) -> Iterator[str]:
        tokenizer, end = self.backbone.tokenizer, self.backbone.tokenizer.eos_token_id

        def ended(ids: Sequence[int]) -> bool:
            return ids[-1] == end or any(stop in tokenizer.decode(list(ids)) for stop in stops if stop)

        if most >= self.room:
            fix = "Let the task write less (max_gen_toks)."
            raise BackboneError(expected=f"fewer than {self.room} tokens to write", got=f"{most}", where="generate_until", fix=fix)
        prompts = [self._ids(context)[-(self.room - most) :] or (self._first,) for context in contexts]
        for found in generate(self.backbone, prompts, most=most, ended=ended):
            text = str(tokenizer.decode(list(found.ids), skip_special_tokens=True))
            yield text[: min((text.find(stop) for stop in stops if stop and stop in text), default=len(text))]

    @property
    def _first(self) -> int:
        """The token that stands before a text where nothing does."""
        tokenizer = self.backbone.tokenizer
        first: int = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return first

    def _ids(self, text: str, *, special: bool = True) -> Ids:
        given: Mapping[str, list[int]] = self.backbone.tokenizer(text, add_special_tokens=special, verbose=False)
        return tuple(given["input_ids"])
