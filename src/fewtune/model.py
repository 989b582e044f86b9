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

from fewtune.asking import Asking
from fewtune.backbone.backbone import Backbone, Output
from fewtune.data import choices
from fewtune.data.example import Example, Prediction
from fewtune.deltas.delta import Installed, remove_all
from fewtune.errors import DataError
from fewtune.exits.cascade import Through, leave
from fewtune.exits.exits import Exits
from fewtune.prompt import defaults
from fewtune.prompt.batch import Batch
from fewtune.prompt.defaults import Asked
from fewtune.prompt.demonstrations import Demonstrated
from fewtune.prompt.encode import Row
from fewtune.readout.calibration import CONTENT_FREE, Calibrator
from fewtune.readout.readout import Reader, Readout, widened
from fewtune.registry import Plain
from fewtune.tasks import kind_of
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

    @cached_property
    def asking(self) -> Asking:
        """How the task is asked of this PLM: from examples to batches."""
        return Asking(self.backbone, self.task, self.asked, self.readout, self.max_length, self.demonstrations)

    @property
    def trained_parameters(self) -> int:
        """How many numbers were trained: those of the deltas and of the readout."""
        return sum(delta.trained_parameters for delta in self.deltas) + sum(w.numel() for w in self.reader.weights.values())

    @property
    def backbone_parameters(self) -> int:
        """How many numbers its PLM has."""
        return int(self.backbone.parameters)

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

    def written(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> tuple[list[Example], Tensor]:
        """The examples of a task of free text, each with what the PLM writes as its only candidate, and log-probabilities_N1 of these."""
        rows, free = self.asking.rows(examples, 0), self.asking.free
        assert free is not None
        if tally:
            _count(tally, rows)
        texts, log_N1 = free.write(rows, batch_size=batch_size)
        return [replace(one, candidates=(text,)) for one, text in zip(examples, texts, strict=True)], log_N1

    def answered(
        self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None
    ) -> tuple[Sequence[Example], Tensor, Tensor]:
        """The examples with what they are answered from, and its scores and layers as `scored` gives them."""
        if self.asking.free is None:
            return (examples, *self.scored(examples, batch_size=batch_size, tally=tally))
        depth_N = torch.full((len(examples),), self.backbone.depth)
        return (*self.written(examples, batch_size=batch_size, tally=tally), depth_N)

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
        if self.asking.free is not None:
            return self.written(examples, batch_size=batch_size, tally=tally)[1]
        total_NC = torch.zeros(len(examples), self.most(examples))
        for number, (template, rows) in enumerate(self.asking.encoded(examples)):
            for members, start in self.asking.beginnings(rows):
                rest = [rows[index].after(start) for index in members]
                with torch.inference_mode():
                    scores_NC, left_N = self._row_scores(rest, template, batch_size, total_NC.shape[1], early=layers_N is not None)
                total_NC[members] += scores_NC
                if layers_N is not None:
                    layers_N[members] = left_N
            if tally and number == 0:
                _count(tally, rows)
        return total_NC / self.asking.passes

    def _row_scores(self, rows: Sequence[Row], template: int, batch_size: int, candidates: int, *, early: bool) -> tuple[Tensor, Tensor]:
        scores_NC, layers_N = torch.zeros(len(rows), candidates), torch.full((len(rows),), self.backbone.depth)
        for indices in self.asking.buckets(rows, template, size=batch_size):
            batch = self.asking.collate([rows[index] for index in indices], template)
            if early and self.exits is not None and self.exits.on:
                left = leave(self.backbone, batch, Through(self.reader, self.calibrator, self.exits))
                scores_NC[indices], layers_N[indices] = left.scores_BC.cpu(), left.layers_B.cpu()
            else:
                scores_NC[indices] = widened(self.batch_scores(batch).cpu(), candidates)
        return scores_NC, layers_N

    def most(self, examples: Sequence[Example]) -> int:
        """How many candidates a row has at most."""
        return len(self.task.labels) or max((len(candidates_of(self.task, one)) for one in examples), default=0)

    def scores(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> Tensor:
        """scores_NC for the calibrator: uncalibrated, without what each candidate gets in the template alone where that is the bias."""
        return self._against(self.raw_scores(examples, batch_size=batch_size, tally=tally), examples, batch_size)

    def _against(self, raw_NC: Tensor, examples: Sequence[Example], batch_size: int = 32) -> Tensor:
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
        if self.asking.free is not None:
            return scores_NC.double().exp()
        if kind_of(self.task).independent:
            return self.calibrator.each(scores_NC).sigmoid()
        return self.calibrator(scores_NC).softmax(-1)

    def log_probabilities(self, examples: Sequence[Example], raw_NC: Tensor | None = None) -> Tensor:
        """Calibrated log-probabilities_NC, float64; log-odds where each candidate is judged for itself.

        `raw_NC` are the examples' uncalibrated scores, if they are known already.
        """
        scores_NC = self.scores(examples) if raw_NC is None else self._against(raw_NC, examples)
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
        for chunk in windows(examples, window):
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

    def settled(self, task: Task) -> TunedModel:
        """The same model of a task that has settled what it left open."""
        return replace(self, task=task)

    def calibrated(self, calibrator: Calibrator) -> TunedModel:
        """The same model with another calibrator."""
        return replace(self, calibrator=calibrator)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the artifact; see `fewtune.artifact.save`."""
        # The one upward edge of the package, so that `model.save(…)` reads as everybody expects.
        from fewtune import artifact

        return artifact.save(self, folder, overwrite=overwrite)


def windows(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """The examples in their order, `size` of them at a time."""
    iterator = iter(examples)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


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
