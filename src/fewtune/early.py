"""What a model's exits would answer, every layer computed for every row: to train exits, to choose a threshold and to measure. Knows a
model and texts; nothing of promises.

Dimensions: N examples, B rows, L exits, C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtune.backbone.backbone import Output
from fewtune.data.example import Example, Prediction
from fewtune.errors import TaskError
from fewtune.exits.criteria import same
from fewtune.exits.exits import Exits, mended, place_of, state
from fewtune.exits.monitor import Monitor
from fewtune.exits.promise import exit_numbers
from fewtune.model import WINDOW, Tally, TunedModel, windows
from fewtune.prompt.batch import Batch
from fewtune.tasks import kind_of


@dataclass(frozen=True)
class Seen:
    """What exits at some layers read of examples, states_NLD, and what the whole stack scores, full_NC (before calibration)."""

    states_NLD: Tensor
    full_NC: Tensor

    def __len__(self) -> int:
        return len(self.full_NC)

    def rows(self, numbers: Sequence[int] | Tensor) -> Seen:
        """Those of some examples."""
        return Seen(self.states_NLD[numbers], self.full_NC[numbers])


@dataclass(frozen=True)
class Ways:
    """Every way out: answers_LNC of each exit, sure_NL, and full_NC where none is taken."""

    answers_LNC: Tensor
    sure_NL: Tensor
    full_NC: Tensor
    layers: tuple[int, ...]
    depth: int

    def at(self, threshold: float) -> tuple[Tensor, Tensor]:
        """(scores_NC, layers_N) where rows leave that are as sure as the threshold."""
        numbers_N = exit_numbers(self.sure_NL, threshold)
        every_LNC = torch.cat([self.answers_LNC, self.full_NC[None]])
        return every_LNC[numbers_N, torch.arange(len(numbers_N))], torch.tensor([*self.layers, self.depth])[numbers_N]


def check(model: TunedModel) -> None:
    """Raise `TaskError` for a model that no exits can be put into."""
    place_of(model.reader)
    kind = kind_of(model.task)
    if kind.independent or not kind.metrics or kind.metrics[0] not in ("accuracy", "pearson"):
        reason = "labels that are judged each for itself" if kind.independent else model.task.kind
        fix = "Of several labels each would be done on a layer of its own, which is not built." if kind.independent else "Leave exits out."
        raise TaskError(expected="a task with one label of a closed set, or a value", got=reason, where="exits", fix=fix)
    if model.asking.writes:
        got = "a decoder, which writes the answer once the whole text is read"
        raise TaskError(expected="a readout of the stack that reads the text", got=got, where="exits", fix="Fit with --readout head.")
    if model.asking.passes > 1:
        got = f"the mean of {model.asking.passes}, whose rows would leave on as many layers"
        raise TaskError(expected="answers from one prompt", got=got, where="exits", fix="Fit with one --template and draws=1.")


@torch.inference_mode()
def seen(model: TunedModel, examples: Sequence[Example], layers: Sequence[int], *, batch_size: int = 32) -> Seen:
    """One pass over all layers; the last readout's scores are those of the model without exits, to the bit."""
    states_NLD = torch.zeros(len(examples), len(layers), model.backbone.width)
    full_NC = torch.zeros(len(examples), len(model.task.labels))
    for template, rows in model.asking.encoded(examples):
        for indices in model.asking.buckets(rows, template, size=batch_size):
            batch = model.asking.collate([rows[index] for index in indices], template)
            read, output = climbed(model, batch, layers)
            states_NLD[indices] = torch.stack(read, 1).cpu()
            full_NC[indices] = model.reader.scores(output, batch).float().cpu()
    return Seen(states_NLD.clone(), full_NC.clone())


def climbed(model: TunedModel, batch: Batch, layers: Sequence[int]) -> tuple[list[Tensor], Output]:
    """(what an exit after each of the layers reads, the states at the end); carries a graph when something is trained."""
    climb, place, read = model.backbone.climb(batch.ids_BT, batch.mask_BT, batch.types_BT), place_of(model.reader), []
    for step in range(1, model.backbone.depth + 1):
        climb.up()
        if step in layers:
            read.append(state(model.backbone, Output(climb.hidden_BTD, climb.first_BD), batch, place))
    return read, Output(model.backbone.norm(climb.hidden_BTD), model.backbone.norm(climb.first_BD))


def watched(
    model: TunedModel,
    examples: Iterable[Example],
    monitor: Monitor,
    *,
    batch_size: int = 32,
    window: int = WINDOW,
    tally: Tally | None = None,
) -> Iterator[Prediction]:
    """`model.stream`, with what the monitor wants to know; the rows that it draws are answered by the whole stack, too."""
    whole, exits = replace(model, exits=None), model.exits
    for chunk in windows(examples, window):
        scores_NC, layers_N = model.scored(chunk, batch_size=batch_size, tally=tally)
        drawn = monitor.drawn(len(chunk)) if exits is not None else []
        otherwise = 0
        if exits is not None and drawn:
            full_NC, _ = whole.scored([chunk[row] for row in drawn], batch_size=batch_size)
            otherwise = int((~agree(model, exits, scores_NC[drawn], full_NC)).sum())
        early = int((layers_N < model.backbone.depth).sum())
        monitor.note(rows=len(chunk), early=early, compared=len(drawn), otherwise=otherwise)
        yield from model.answers(chunk, scores_NC, layers_N)


@torch.no_grad()
def ways(model: TunedModel, exits: Exits, found: Seen) -> Ways:
    """What each exit answers and how sure it is, on the processor."""
    on_device_NLD = found.states_NLD.to(model.backbone.device)
    answers_LNC = exits.answers(exits.all_scores(on_device_NLD))
    sure_NL = exits.sure(answers_LNC, on_device_NLD, model.calibrator)
    return Ways(answers_LNC.cpu(), sure_NL.cpu(), found.full_NC, exits.layers, model.backbone.depth)


def agree(model: TunedModel, exits: Exits, scores_NC: Tensor, others_NC: Tensor) -> Tensor:
    """Whether two scores of each row give one answer, agree_N."""
    return same(mended(scores_NC, model.calibrator), mended(others_NC, model.calibrator), exits.tolerance)
