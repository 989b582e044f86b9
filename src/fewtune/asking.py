"""How a task is asked of one PLM: examples → prompts → rows of tokens → batches, with demonstrations, words of several tokens and
candidates of each row's own. Knows templates, words and the tokenizer; no deltas, no scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.shared import beginnings
from fewtune.data.example import Example
from fewtune.prompt import defaults
from fewtune.prompt.batch import Batch, buckets, collate, collate_answered, collate_filled, collate_spelled, collate_written
from fewtune.prompt.defaults import Asked
from fewtune.prompt.demonstrations import Demonstrated
from fewtune.prompt.encode import Encoder, Row
from fewtune.prompt.spelling import Filling, Spelling, spell
from fewtune.prompt.template import Prompt
from fewtune.prompt.tokens import sentinel
from fewtune.prompt.verbalizer import WholeWords, WordIds, spelled
from fewtune.readout.free_text import FreeText
from fewtune.readout.readout import Readout
from fewtune.tasks import kind_of
from fewtune.tasks.generation import Generation
from fewtune.tasks.task import Task


@dataclass(frozen=True)
class Asking:
    """`asked` holds the templates and label words as they were settled for this tokenizer; rows have at most `max_length` tokens."""

    backbone: Backbone
    task: Task
    asked: Asked
    readout: Readout
    max_length: int
    demonstrations: Demonstrated | None = None

    @cached_property
    def fillings(self) -> tuple[Filling, ...]:
        """For each template the words that are put into its slot, where the readout reads the texts behind them."""
        return tuple(Filling(words.ids) for words in self.asked.words if isinstance(words, WholeWords)) if self.readout.reverses else ()

    @cached_property
    def spellings(self) -> tuple[Spelling, ...]:
        """For each template how the labels' words of several tokens are read, where the readout reads all of their tokens."""
        whole = [words for words in self.asked.words if isinstance(words, WholeWords) and not self.readout.reverses]
        return tuple(spell(words, causal=self.backbone.causal, seq2seq=self.backbone.seq2seq) for words in whole)

    @property
    def writes(self) -> bool:
        """Whether what is read is a decoder's."""
        return self.backbone.seq2seq and self.readout.needs_slot

    @cached_property
    def free(self) -> FreeText | None:
        """How answers in free text are written, if the task asks for such."""
        kind = kind_of(self.task)
        return FreeText(kind, self.backbone) if isinstance(kind, Generation) else None

    def encoder(self, template: int) -> Encoder:
        """From prompts to rows, within what is left of the PLM's length beside demonstrations and label words of several tokens."""
        words = () if self.writes else self.spellings or self.fillings
        length = min(self.max_length, self.backbone.room - self.budget)
        room = self.free.room(length) if self.free is not None else words[template].room if words else 0
        return Encoder(
            self.backbone.tokenizer,
            causal=self.backbone.causal,
            max_length=length - room,
            reverses=self.readout.reverses,
            seq2seq=self.backbone.seq2seq,
        )

    @property
    def budget(self) -> int:
        """The most tokens that demonstrations take."""
        return 0 if self.demonstrations is None else min(self.demonstrations.spec.budget, self.backbone.room // 2)

    def rows(self, examples: Sequence[Example], template: int) -> list[Row]:
        """Each example rendered through template number `template` and encoded, without demonstrations."""
        chosen = self.asked.templates[template]
        prompts = [chosen.render(example.fields) for example in examples]
        if self.free is not None:
            rows = self.encoder(template).encode(prompts)
            return [replace(row, answer=self.free.ids(one.label, chosen)) for row, one in zip(rows, examples, strict=True)]
        own = self._own(examples, defaults.lead(chosen, seq2seq=self.backbone.seq2seq))
        rows = self.encoder(template).encode(prompts, rooms=[0 if self.writes else spelling.reach for spelling in own])
        return [replace(row, spelling=spelling) for row, spelling in zip(rows, own, strict=True)] if own else rows

    def _own(self, examples: Sequence[Example], lead: str | None) -> list[Spelling]:
        """How each row's own candidates are read, where rows have some; `lead` is what stands before the slot."""
        if kind_of(self.task).offered != "row":
            return []
        words = (spelled(self.backbone.tokenizer, one.candidates or (), lead=lead, where=one.where or "candidates") for one in examples)
        return [spell(one, causal=self.backbone.causal, seq2seq=self.backbone.seq2seq) for one in words]

    def showing(self, rows: Sequence[Row], template: int, chosen: Sequence[tuple[int, ...]]) -> list[Row]:
        """`rows` of one template, each with the examples that were chosen for it; raises `TaskError` where these cannot be cut to fit."""
        encoder = self.encoder(template)
        parts = {one: encoder.demonstrations(self._filled(one, template), most=self.budget) for one in dict.fromkeys(chosen)}
        return [encoder.join(row, parts[one]) for row, one in zip(rows, chosen, strict=True)]

    def _filled(self, chosen: Sequence[int], template: int) -> list[Prompt]:
        """The chosen examples' prompts, each with its label's word in the slot."""
        assert self.demonstrations is not None
        fills, examples = self._fills, [self.demonstrations.examples[number] for number in chosen]
        return [self.asked.templates[template].render(one.fields).filled(fills[one.label or ""]) for one in examples]

    def check_budget(self) -> None:
        """Raise `TaskError` where the demonstrations of all labels do not fit, even with their texts left out."""
        shown = self.demonstrations
        if shown is None:
            return
        empty = {name: "" for name in self.task.fields}
        for number, template in enumerate(self.asked.templates):
            prompts = [template.render(empty).filled(fill) for label, fill in self._fills.items() if label in shown.members]
            self.encoder(number).demonstrations(prompts * shown.most, most=self.budget)

    @property
    def _fills(self) -> dict[str, str]:
        """The word that stands in the slot for each label."""
        return dict(zip(self.task.labels, self.asked.fills, strict=True))

    @property
    def passes(self) -> int:
        """How many scores each row gets, of which the mean is taken: one for each template and draw of demonstrations."""
        return len(self.asked.templates) * (1 if self.demonstrations is None else self.demonstrations.spec.draws)

    def encoded(self, examples: Sequence[Example]) -> Iterator[tuple[int, list[Row]]]:
        """For each pass its template and the examples' rows, as they are answered."""
        shown = self.demonstrations
        similarity_QN = None if shown is None else shown.similarity(examples)
        for template in range(len(self.asked.templates)):
            rows = self.rows(examples, template)
            if shown is None:
                yield template, rows
                continue
            for draw in range(shown.spec.draws):
                yield template, self.showing(rows, template, shown.draw(examples, draw, similarity_QN))

    def given(self, row: Row, template: int) -> list[tuple[tuple[int, ...], ...]]:
        """What decides the states of each row that `collate` makes of this one: tokens, segments, and how the last tokens go on."""
        if self.fillings:
            return [*self.fillings[template].put(row.ids, row.types, row.slot)]
        if row.answer and not self.writes:
            return [(row.ids + row.answer, row.types)]
        spelling = row.spelling or (self.spellings[template] if self.spellings else None)
        if self.writes or spelling is None:
            return [(row.ids, row.types)]
        return [(*put, spelling.parents) for put in spelling.put(row.ids, row.types, row.slot, self._mask)]

    @property
    def _mask(self) -> int | None:
        """The token that stands for a word to be read; None for autoregressive models, which read what follows."""
        mask: int | None = None if self.backbone.causal else self.backbone.tokenizer.mask_token_id
        return mask

    def collate(self, rows: Sequence[Row], template: int) -> Batch:
        """One batch of rows of the same template, on the backbone's device."""
        tokenizer = self.backbone.tokenizer
        pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if self.fillings:
            return collate_filled(rows, self.fillings[template], pad=pad).to(self.backbone.device)
        if self.free is not None and all(row.answer for row in rows):
            return collate_answered(rows, pad=pad, begin=self.free.begin(rows)).to(self.backbone.device)
        if self.writes:
            return self._collate_written(rows, template, pad).to(self.backbone.device)
        if spellings := self._spelled(rows, template):
            return collate_spelled(rows, spellings, pad=pad, mask=self._mask).to(self.backbone.device)
        words = self.asked.words[template] if self.asked.words else None
        ids = words.ids if isinstance(words, WordIds) else None
        return collate(rows, pad=pad, words=ids).to(self.backbone.device)

    def _spelled(self, rows: Sequence[Row], template: int) -> tuple[Spelling, ...]:
        """How words of several tokens are read: one way for all rows, or each row's own candidates."""
        return self.spellings[template : template + 1] or tuple(row.spelling for row in rows if row.spelling)

    def _collate_written(self, rows: Sequence[Row], template: int, pad: int) -> Batch:
        words = self.asked.words[template] if self.asked.words else None
        read = words.ids if isinstance(words, WordIds) else None
        begin, tokenizer = self.backbone.start, self.backbone.tokenizer
        return collate_written(
            rows, pad=pad, start=begin, sentinel=sentinel(tokenizer), words=read, spellings=self._spelled(rows, template)
        )

    def buckets(self, rows: Sequence[Row], template: int, *, size: int) -> list[list[int]]:
        """Indices in batches of `size` rows of like length; of fewer where `collate` makes several of each."""
        words = self.spellings or self.fillings
        fills = len(words[template].fills) if words else max((len(row.spelling.fills) for row in rows if row.spelling), default=1)
        return buckets([row.length for row in rows], size=max(1, size // fills))

    def beginnings(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], int]]:
        """Rows by their numbers, with how many of their first tokens were computed once for all of them, and are in front for as long as
        they are the last that were given; none where more is read of a row than its slot."""
        if not self.readout.needs_slot or self.readout.reverses:
            yield list(range(len(rows))), 0
            return
        for members, start in beginnings(self.backbone, [row.ids for row in rows]):
            yield sorted(members), start
