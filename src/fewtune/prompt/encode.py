"""Prompts → token ids with the slot's place; what is too long is shortened in its fields only, never in the template or the slot. Knows the
tokenizer, no model and no label."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fewtune.errors import TaskError
from fewtune.prompt.spelling import Spelling
from fewtune.prompt.template import Piece, Prompt, Sep, Slot
from fewtune.prompt.tokens import SENTINEL, Specials, blank_line, ends, plain_batch, specials
from fewtune.prompt.verbalizer import Word


@dataclass(frozen=True)
class Row:
    """One encoded prompt; `slot` is the token whose output is read: the mask, the last token of an autoregressive model, or, where a
    decoder writes, that of the answer's beginning: the start alone (0), or the sentinel behind it (1).

    The first `front` tokens are demonstrations and what stands before any text. Where the prompt is turned around, `slot` is the place
    where words are put in, `own` are the tokens of the fields behind it, and `said` is the number of words in these. `spelling` says how
    the row's own candidates are read, where it has some; `answer` is
    the right one in free text, if it is known.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    slot: int
    shortened: bool = False
    front: int = 0
    own: tuple[int, ...] = ()
    said: int = 0
    spelling: Spelling | None = None
    answer: Word = ()

    def after(self, count: int) -> Row:
        """What comes after the first `count` tokens."""
        return replace(self, ids=self.ids[count:], types=self.types[count:], slot=self.slot - count, front=max(0, self.front - count))

    @property
    def length(self) -> int:
        """How many tokens it has where its own candidates are read."""
        return len(self.ids) + (self.spelling.room if self.spelling else 0)


@dataclass(frozen=True)
class Encoder:
    """For one tokenizer and a greatest length in tokens, special ones included; `reverses` where texts are read behind the slot, `seq2seq`
    where a decoder writes what belongs there.

    A slot at the end of the prompt has no token for a decoder, which begins its answer then (T0: Sanh et al. 2022); one with text behind
    it is a sentinel, after which the decoder writes the span that is left out (Raffel et al. 2020, section 3.1.4).
    """

    tokenizer: Any
    causal: bool
    max_length: int
    reverses: bool = False
    seq2seq: bool = False

    @cached_property
    def specials(self) -> Specials:
        """What this tokenizer puts around texts."""
        return specials(self.tokenizer, causal=self.causal, seq2seq=self.seq2seq)

    def encode(self, prompts: Sequence[Prompt], *, rooms: Sequence[int] = ()) -> list[Row]:
        """A row for each prompt, shorter by each one's of the `rooms` where these are given; raises `TaskError` where the template alone is
        too long or text follows an autoregressive slot."""
        runs = [_runs(prompt) for prompt in prompts]
        ids = iter(plain_batch(self.tokenizer, [_text(run) for row in runs for run in row if isinstance(run, list)]))
        rows = [self._join(row, ids) for row in runs]
        most = [self.max_length - room for room in rooms or [0] * len(rows)]
        listed = zip(rows, prompts, most, strict=True)
        return [row if len(row.ids) <= longest else self._shorten(prompt, longest) for row, prompt, longest in listed]

    def demonstrations(self, prompts: Sequence[Prompt], *, most: int) -> tuple[Row, ...]:
        """Filled prompts as they stand beside another one: without what begins a text, each with what ends it (a blank line for
        autoregressive models). Together they have at most `most` tokens; what is too long is cut in its longest fields, over all of
        them alike. Raises `TaskError` where the templates and words alone are too long.
        """
        begin, end = len(self.specials.prefix), self._between
        rows = self._fitted(prompts, most + len(prompts) * (begin - len(end)))
        parts = [(*row.ids[begin:], *end) for row in rows]
        if (size := sum(map(len, parts))) > most:
            raise TaskError(
                expected=f"demonstrations of at most {most} tokens",
                got=f"{size} without any field",
                where="demonstrations.budget",
                fix="Raise it if the PLM takes more, show fewer for each label, or shorten the template.",
            )
        return tuple(Row(part, (int(self.specials.types),) * len(part), 0) for part in parts)

    def join(self, query: Row, demonstrations: Sequence[Row]) -> Row:
        """The query with its demonstrations behind it, as a second segment; in front of it for autoregressive models."""
        ids = tuple(itertools.chain(*(row.ids for row in demonstrations)))
        types = tuple(itertools.chain(*(row.types for row in demonstrations)))
        if not self.causal:
            return replace(query, ids=query.ids + ids, types=query.types + types)
        begin = len(self.specials.prefix)
        front = begin + len(ids) if ids and len(query.ids) > begin else 0
        ids, types = query.ids[:begin] + ids + query.ids[begin:], query.types[:begin] + types + query.types[begin:]
        return Row(ids, types, len(ids) - 1, query.shortened, front)

    @cached_property
    def _between(self) -> tuple[int, ...]:
        return blank_line(self.tokenizer) if self.causal else ()

    def _one(self, prompt: Prompt) -> Row:
        runs = _runs(prompt)
        return self._join(runs, iter(plain_batch(self.tokenizer, [_text(run) for run in runs if isinstance(run, list)])))

    def _join(self, runs: Sequence[list[Piece] | Slot | Sep], tokens: Iterator[list[int]]) -> Row:
        """`tokens` are those of each run of text, in order."""
        if self.causal and not self.reverses and any(isinstance(run, Slot) for run in runs[:-1]):
            raise TaskError(
                expected="{slot} at the end",
                got="text after it",
                where="template",
                fix="An autoregressive model reads from left to right: put {slot} last.",
            )
        ids, types, slot, segment = list(self.specials.prefix), [0] * len(self.specials.prefix), 0, 0
        own: list[int] = []
        for run in runs:
            if isinstance(run, Slot):
                slot = len(ids)
                added, own = [] if self.causal or (self.seq2seq and run is runs[-1]) else [self._mask()], []
                slot = len(added) if self.seq2seq else slot
            elif isinstance(run, Sep):
                added = list(self.specials.sep)
            else:
                added = next(tokens)
                own += [len(ids) + place for place in self._own(run, added)] if self.reverses else []
            ids += added
            types += [segment] * len(added)
            segment = 1 if isinstance(run, Sep) else segment
        ids += self.specials.suffix
        ids = ids or list(self.specials.sep)  # an empty text, where nothing stands around texts, is a new line: something must be read
        types += [segment] * (len(ids) - len(types))
        if self.reverses:
            return Row(tuple(ids), tuple(types), slot, own=tuple(own), said=_said(runs))
        return Row(tuple(ids), tuple(types), len(ids) - 1 if self.causal else slot)

    def _own(self, run: Sequence[Piece], ids: Sequence[int]) -> Iterator[int]:
        """The places of the tokens that fields have a part in, also of one that goes over a field's edge into the template."""
        for number, piece in enumerate(run):
            if piece.field and piece.text:
                before, until = plain_batch(self.tokenizer, [_text(run[:number]), _text(run[: number + 1])])
                alike = _alike(until, ids)
                yield from range(_alike(before, ids), alike + (alike < len(until)))

    def _mask(self) -> int:
        if self.specials.mask is None:
            what, fix = "a mask token", "Use --readout head with this PLM."
            if self.seq2seq:
                what, fix = f"the sentinel {SENTINEL}", "Put {slot} last: the answer is written there then."
            raise TaskError(expected=f"a tokenizer with {what}", got="one without", where="template", fix=fix)
        return self.specials.mask

    def _shorten(self, prompt: Prompt, most: int) -> Row:
        (row,) = self._fitted([prompt], most)
        if len(row.ids) > most:
            raise TaskError(
                expected=f"a template of at most {most} tokens",
                got=f"{len(row.ids)} tokens without any field",
                where="template",
                fix="Shorten the template or raise --max-length.",
            )
        return replace(row, shortened=True)

    def _fitted(self, prompts: Sequence[Prompt], most: int) -> list[Row]:
        """Cut the longest fields of all prompts to a common length, from the end, until the rows together have `most` tokens or no
        field is left."""
        stops = [self._stops(prompt) for prompt in prompts]
        lengths = [len(stop) for own in stops for stop in own if stop is not None]
        room = sum(lengths)
        rows = [self._one(prompt) for prompt in prompts]
        while (size := sum(len(row.ids) for row in rows)) > most and room:
            room = max(0, room - (size - most))
            longest = level(lengths, room)
            rows = [self._one(_cut(prompt, own, longest)) for prompt, own in zip(prompts, stops, strict=True)]
        return rows

    def _stops(self, prompt: Prompt) -> list[list[int] | None]:
        """For each piece that may be shortened, where its tokens end."""
        return [ends(self.tokenizer, piece.text) if isinstance(piece, Piece) and piece.field else None for piece in prompt.pieces]


def _runs(prompt: Prompt) -> list[list[Piece] | Slot | Sep]:
    """Pieces that stand side by side together, so that their text is tokenised as one."""
    runs: list[list[Piece] | Slot | Sep] = []
    for piece in prompt.pieces:
        if not isinstance(piece, Piece):
            runs.append(piece)
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _said(runs: Sequence[list[Piece] | Slot | Sep]) -> int:
    """How many words the fields behind the slot have."""
    start = next(number for number, run in enumerate(runs) if isinstance(run, Slot))
    return sum(len(piece.text.split()) for run in runs[start:] if isinstance(run, list) for piece in run if piece.field)


def _text(run: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in run)


def _cut(prompt: Prompt, stops: Sequence[list[int] | None], most: int) -> Prompt:
    pieces: list[Piece | Slot | Sep] = []
    for piece, stop in zip(prompt.pieces, stops, strict=True):
        if stop is not None and isinstance(piece, Piece) and len(stop) > most:
            piece = replace(piece, text=piece.text[: stop[most - 1]].rstrip() if most else "")
        pieces.append(piece)
    return Prompt(tuple(pieces))


def level(lengths: Sequence[int], room: int) -> int:
    """The greatest common length to which the longest are cut so that all fit into `room`.

    >>> level([3, 10, 20], 23)
    10
    """
    best = 0
    for most in range(max(lengths, default=0) + 1):
        if sum(min(length, most) for length in lengths) <= room:
            best = most
    return best
