"""TunedModel: a backbone, its deltas, templates, a readout and a calibrator. The same object is trained, evaluated, saved and
served. Knows its parts; no files, no flags, no training.

Dimensions: N examples, B rows, C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone, Output
from fewtune.backbone.shared import beginnings
from fewtune.data import choices
from fewtune.data.example import Example, Prediction
from fewtune.deltas.delta import Installed, remove_all
from fewtune.errors import DataError
from fewtune.exits.cascade import Through, leave
from fewtune.exits.exits import Exits
from fewtune.prompt import defaults
from fewtune.prompt.defaults import Asked
from fewtune.prompt.demonstrations import Demonstrated
from fewtune.prompt.encode import (
    Batch,
    Encoder,
    Row,
    buckets,
    collate,
    collate_answered,
    collate_filled,
    collate_spelled,
    collate_written,
)
from fewtune.prompt.spelling import Filling, Spelling, spell
from fewtune.prompt.template import Prompt
from fewtune.prompt.tokens import sentinel
from fewtune.prompt.verbalizer import WholeWords, WordIds, spelled
from fewtune.readout.calibration import CONTENT_FREE, Calibrator
from fewtune.readout.free_text import FreeText
from fewtune.readout.readout import Reader, Readout, widened
from fewtune.registry import Plain
from fewtune.tasks import kind_of
from fewtune.tasks.generation import Generation
from fewtune.tasks.task import Task, candidates_of

WINDOW = 512
"""So many rows are held at a time where rows stream; they are batched by length among themselves."""
DEFAULT_LENGTH = 256


@dataclass
class Tally:
    """Counts kept over a run: rows seen, and rows in which a field was shortened to fit."""

    rows: int = 0
    shortened: int = 0


@dataclass
class TunedModel:
    """Everything that turns texts into answers.

    `asked` holds the templates and label words as they were settled for this tokenizer; `demonstrations` are the labelled examples
    that are shown beside a prompt, if any; `exits` let rows leave the stack early; `about` holds plain facts for the artifact (how it was
    made).
    """

    backbone: Backbone
    task: Task
    asked: Asked
    readout: Readout
    reader: Reader
    calibrator: Calibrator
    deltas: tuple[Installed, ...] = ()
    max_length: int = DEFAULT_LENGTH
    demonstrations: Demonstrated | None = None
    exits: Exits | None = None
    about: Mapping[str, Plain] = field(default_factory=dict)

    @classmethod
    def assemble(
        cls,
        backbone: Backbone,
        task: Task,
        readout: Readout,
        *,
        deltas: tuple[Installed, ...] = (),
        max_length: int = DEFAULT_LENGTH,
        seed: int = 0,
    ) -> TunedModel:
        """Settle templates and words for this backbone, install the readout, and calibrate nothing."""
        generator = torch.Generator().manual_seed(seed)
        reader = readout.install(backbone, candidates=len(task.labels), generator=generator)
        asked = defaults.resolve(
            task,
            backbone.tokenizer,
            slot=readout.needs_slot,
            whole=readout.spells,
            reverses=readout.reverses,
            seq2seq=backbone.seq2seq,
        )
        length = min(max_length, backbone.max_length)
        return cls(backbone, task, asked, readout, reader, Calibrator.identity(len(task.labels)), deltas, length)

    @property
    def trained_parameters(self) -> int:
        """How many numbers were trained: those of the deltas and of the readout."""
        return sum(delta.trained_parameters for delta in self.deltas) + sum(w.numel() for w in self.reader.weights.values())

    def remove(self) -> None:
        """Take the deltas out, so that the backbone is as it was before, to the bit."""
        remove_all(self.deltas)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within it, dropout is on where the parts ask for it."""
        modules = [*(module for delta in self.deltas for module in delta.train_mode), *self.reader.train_mode]
        for module in modules:
            module.train()
        try:
            yield
        finally:
            for module in modules:
                module.eval()

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

    def written(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> tuple[list[Example], Tensor]:
        """The examples of a task of free text, each with what the PLM writes as its only candidate, and log-probabilities_N1 of these."""
        rows, free = self.rows(examples, 0), self.free
        assert free is not None
        if tally:
            _count(tally, rows)
        texts, log_N1 = free.write(rows, batch_size=batch_size)
        return [replace(one, candidates=(text,)) for one, text in zip(examples, texts, strict=True)], log_N1

    def answered(
        self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None
    ) -> tuple[Sequence[Example], Tensor, Tensor]:
        """The examples with what they are answered from, and its scores and layers as `scored` gives them."""
        if self.free is None:
            return (examples, *self.scored(examples, batch_size=batch_size, tally=tally))
        depth_N = torch.full((len(examples),), self.backbone.depth)
        return (*self.written(examples, batch_size=batch_size, tally=tally), depth_N)

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

    @property
    def first_block(self) -> int:
        """The lowest block that a delta changed; the depth if none is."""
        return min((delta.first_block for delta in self.deltas), default=self.backbone.depth)

    def batch_scores(self, batch: Batch, below_BTD: Tensor | None = None) -> Tensor:
        """Uncalibrated scores_BC of one batch; carries a graph when something is trained.

        `below_BTD` are the states that `first_block` is given, if they are known already.
        """
        return self.reader.scores(self.output(batch, below_BTD), batch)

    def output(self, batch: Batch, below_BTD: Tensor | None = None) -> Output:
        """What the backbone makes of one batch with the deltas in it."""
        return self.backbone.forward(
            batch.ids_BT,
            batch.mask_BT,
            batch.types_BT,
            start=self.first_block,
            below_BTD=below_BTD,
            trees=batch.trees,
            written_BFJ=batch.written_BFJ,
        )

    def below(self, batch: Batch) -> Tensor:
        """The states hidden_BTD of one batch that `first_block` is given."""
        return self.backbone.below(batch.ids_BT, batch.mask_BT, batch.types_BT, start=self.first_block, trees=batch.trees)

    def scored(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> tuple[Tensor, Tensor]:
        """(scores_NC as `scores` has them, after how many steps of the stack each row left): at an exit as soon as one is sure enough."""
        layers_N = torch.full((len(examples),), self.backbone.depth)
        raw_NC = self.raw_scores(examples, batch_size=batch_size, tally=tally, layers_N=layers_N)
        return self._against(raw_NC, examples, batch_size), layers_N

    def raw_scores(
        self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None, layers_N: Tensor | None = None
    ) -> Tensor:
        """Uncalibrated scores_NC of the whole stack, averaged over templates and draws of demonstrations, float32 on the processor.

        Where rows have candidates of their own, C is the number of the most of them, and a row that has fewer scores -inf behind them.
        Where `layers_N` is given, rows may leave early, and it takes after how many steps each did.
        """
        if self.free is not None:
            return self.written(examples, batch_size=batch_size, tally=tally)[1]
        total_NC = torch.zeros(len(examples), self.most(examples))
        for number, (template, rows) in enumerate(self.encoded(examples)):
            for members, start in self._beginnings(rows):
                rest = [rows[index].after(start) for index in members]
                with torch.inference_mode():
                    scores_NC, left_N = self._row_scores(rest, template, batch_size, total_NC.shape[1], early=layers_N is not None)
                total_NC[members] += scores_NC
                if layers_N is not None:
                    layers_N[members] = left_N
            if tally and number == 0:
                _count(tally, rows)
        return total_NC / self.passes

    def _row_scores(self, rows: Sequence[Row], template: int, batch_size: int, candidates: int, *, early: bool) -> tuple[Tensor, Tensor]:
        scores_NC, layers_N = torch.zeros(len(rows), candidates), torch.full((len(rows),), self.backbone.depth)
        for indices in self.buckets(rows, template, size=batch_size):
            batch = self.collate([rows[index] for index in indices], template)
            if early and self.exits is not None and self.exits.on:
                left = leave(self.backbone, batch, Through(self.reader, self.calibrator, self.exits))
                scores_NC[indices], layers_N[indices] = left.scores_BC.cpu(), left.layers_B.cpu()
            else:
                scores_NC[indices] = widened(self.batch_scores(batch).cpu(), candidates)
        return scores_NC, layers_N

    def most(self, examples: Sequence[Example]) -> int:
        """How many candidates a row has at most."""
        return len(self.task.labels) or max((len(candidates_of(self.task, one)) for one in examples), default=0)

    def _beginnings(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], int]]:
        """Rows by their numbers, with how many of their first tokens were computed once for all of them, and are in front for as long as
        they are the last that were given; none where more is read of a row than its slot."""
        if not self.readout.needs_slot or self.readout.reverses:
            yield list(range(len(rows))), 0
            return
        for members, start in beginnings(self.backbone, [row.ids for row in rows]):
            yield sorted(members), start

    def scores(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> Tensor:
        """scores_NC for the calibrator: uncalibrated, without what each candidate gets in the template alone where that is the bias."""
        return self._against(self.raw_scores(examples, batch_size=batch_size, tally=tally), examples, batch_size)

    def _against(self, raw_NC: Tensor, examples: Sequence[Example], batch_size: int) -> Tensor:
        return raw_NC - self.premise(examples, batch_size=batch_size) if self.calibrator.premise else raw_NC

    def premise(self, examples: Sequence[Example], *, batch_size: int = 32) -> Tensor:
        """What the PLM without deltas makes of each row's candidates in the template alone, its fields being empty; 0 behind them."""
        empty = dict.fromkeys(self.task.fields, "")
        with self.backbone.bare():
            found_NC = self.raw_scores([replace(one, fields=empty) for one in examples], batch_size=batch_size)
        return found_NC.masked_fill(found_NC.isneginf(), 0.0)

    def content_free_scores(self) -> Tensor:
        """Uncalibrated scores of inputs that say nothing (`CONTENT_FREE` in every field)."""
        return self.raw_scores([Example({name: text for name in self.task.fields}) for text in CONTENT_FREE])

    def probabilities(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> Tensor:
        """Calibrated probabilities_NC, float64."""
        return self.likely(self.scores(examples, batch_size=batch_size, tally=tally))

    def likely(self, scores_NC: Tensor) -> Tensor:
        """Calibrated probabilities_NC, float64, of what `scores` gives; the kind of task says whether they add up to 1. Free text has that
        of its tokens."""
        if self.free is not None:
            return scores_NC.double().exp()
        if kind_of(self.task).independent:
            return self.calibrator.each(scores_NC).sigmoid()
        return self.calibrator(scores_NC).softmax(-1)

    def log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Calibrated log-probabilities_NC, float64; log-odds where each candidate is judged for itself."""
        scores_NC = self.scores(examples)
        return self.calibrator.each(scores_NC) if kind_of(self.task).independent else self.calibrator(scores_NC).log_softmax(-1)

    def predict(self, texts: Iterable[object], *, batch_size: int = 32) -> list[Prediction]:
        """An answer for each text: a string (for a task of one field), a tuple, a dict of fields, or an `Example`."""
        return list(self.stream(self.examples(texts), batch_size=batch_size))

    def examples(self, texts: Iterable[object]) -> Iterator[Example]:
        """What the caller has, as examples of this task; raises `DataError` when it does not fit the task's fields."""
        if isinstance(texts, str | Mapping):
            raise DataError(expected="a list of texts", got="a single one", where="predict", fix="Put it into a list: [text].")
        return (self._example(item, f"item {number}") for number, item in enumerate(texts))

    def _example(self, item: object, where: str) -> Example:
        example, written = _example(item, self.task.fields, where), kind_of(self.task).written
        if not written.candidates:
            return example
        return replace(example, candidates=choices.given(item, written.candidates, written.between, where))

    def stream(
        self, examples: Iterable[Example], *, batch_size: int = 32, window: int = WINDOW, tally: Tally | None = None
    ) -> Iterator[Prediction]:
        """Answers in the order of the examples, `window` of which are held at a time."""
        iterator = iter(examples)
        while chunk := list(itertools.islice(iterator, window)):
            yield from self._answer(chunk, batch_size, tally)

    def _answer(self, examples: Sequence[Example], batch_size: int, tally: Tally | None) -> Iterator[Prediction]:
        yield from self.answers(*self.answered(examples, batch_size=batch_size, tally=tally))

    def answers(self, examples: Sequence[Example], scores_NC: Tensor, layers_N: Tensor | None = None) -> list[Prediction]:
        """What scores, as `scores` gives them, answer to the examples, which left after `layers_N` steps of the stack, or at the end."""
        layers = [self.backbone.depth] * len(examples) if layers_N is None else layers_N.tolist()
        kind, rows = kind_of(self.task), self.likely(scores_NC).tolist()
        shares = [dict(zip(candidates_of(self.task, one), row, strict=False)) for one, row in zip(examples, rows, strict=True)]
        return [
            Prediction(answer, kind.confidence(self.task, row), own, layer)
            for answer, row, own, layer in zip(kind.answers(self.task, examples, rows), rows, shares, layers, strict=True)
        ]

    def calibrated(self, calibrator: Calibrator) -> TunedModel:
        """The same model with another calibrator."""
        return replace(self, calibrator=calibrator)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the artifact; see `fewtune.artifact.save`."""
        # The one upward edge of the package, so that `model.save(…)` reads as everybody expects.
        from fewtune import artifact

        return artifact.save(self, folder, overwrite=overwrite)


def _count(tally: Tally, rows: Sequence[Row]) -> None:
    tally.rows += len(rows)
    tally.shortened += sum(row.shortened for row in rows)


def _example(item: object, fields: Sequence[str], where: str) -> Example:
    if isinstance(item, Example):
        values: object = item.fields
    elif isinstance(item, str):
        values = (item,)
    else:
        values = item
    if isinstance(values, tuple | list) and len(values) == len(fields):
        values = dict(zip(fields, values, strict=True))
    if not isinstance(values, Mapping) or any(not isinstance(values.get(name), str) for name in fields):
        raise DataError(
            expected=f"text for {', '.join(fields)}", got=repr(item)[:60], where=where, fix="Give a string, a tuple or a dict of fields."
        )
    if not any(values[name].strip() for name in fields):
        raise DataError(expected="text", got="none but white space", where=where, fix="Drop the row.")
    return Example({name: values[name] for name in fields}, where=where)
