"""What tuning changed: how far each step of the stack moves from where the bare backbone has it (h → h + Δh), and which answers are
others than before. Knows a model and texts; no labels of theirs and no training.

Dimensions: N examples, B rows, T tokens, C candidates, L states: the embeddings, then each step's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewtune import artifact, registry, sources
from fewtune.backbone.bank import NOBODY
from fewtune.data.example import Example
from fewtune.errors import TaskError
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch
from fewtune.readout.readout import widened

SHOWN = 20
_TINY = 1e-12  # below every norm of a state that is not zero


@dataclass(frozen=True)
class Answer:
    """A label and its probability, which a value has none of."""

    label: str
    probability: float | None


@dataclass(frozen=True)
class Changed:
    """A row, counted from 0, whose answer after tuning is another than before."""

    row: int
    text: str
    before: Answer
    after: Answer


@dataclass(frozen=True)
class Inspection:
    """`moved` is ‖Δh‖/‖h‖ after each step of the stack, `embeddings` the same before the first, `changed` every row whose label
    changed. `note` says why there is no answer from before tuning, where there is none."""

    rows: int
    embeddings: float
    moved: tuple[float, ...]
    changed: tuple[Changed, ...] = ()
    note: str | None = None

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON; of the changed rows the first ones only, with their number."""
        return {
            "rows": self.rows,
            "embeddings": self.embeddings,
            "layers": [{"step": step, "moved": moved} for step, moved in enumerate(self.moved)],
            "changed_rows": None if self.note else len(self.changed),
            "changed": [registry.to_dict(changed) for changed in self.changed[:SHOWN]],
            "note": self.note,
        }


def inspect_files(
    folder: Path, source: sources.Source, *, batch_size: int = 32, device: str | None = None, say: sources.Say = lambda line: None
) -> Inspection:
    """`fewtune inspect`: read the model and the texts, and look; raises `InputError` for what cannot be read."""
    artifact.read_manifest(folder)
    sources.check_source(source)
    model = artifact.load_one(folder, device=device)
    return inspect(model, sources.read(source, labeled=False, task=model.task, say=say).examples, batch_size=batch_size)


@torch.inference_mode()
def inspect(model: TunedModel, examples: Sequence[Example], *, batch_size: int = 32) -> Inspection:
    """Every text goes through the backbone with its deltas and without them, in the same prompt and with the same calibration.

    Δh is the difference between a token's two states; its length relative to h is averaged over a text's tokens, then over texts.
    A readout that was trained itself has no answer from before.
    """
    if model.asking.free is not None:
        fix = "Read what `fewtune predict` writes, before and after."
        raise TaskError(expected="answers to choose from", got=model.task.kind, where="inspect", fix=fix)
    note = "The readout was trained, too, so there is no answer from before tuning." if model.reader.weights else None
    moved_NL = torch.zeros(len(examples), 1 + model.backbone.depth)
    before_NC, after_NC = torch.zeros(2, len(examples), model.most(examples))
    for indices, batch in _batches(model, examples, batch_size):
        moved_NL[indices] += moved(model, batch).cpu()
        after_NC[indices] += widened(_scores(model, batch, 0).cpu(), after_NC.shape[1])
        before_NC[indices] += widened(_scores(model, batch, NOBODY).cpu(), before_NC.shape[1])
    if model.calibrator.premise:
        premise_NC = model.asking.passes * model.premise(examples, batch_size=batch_size)
        after_NC, before_NC = after_NC - premise_NC, before_NC - premise_NC
    embeddings, *steps = (moved_NL / model.asking.passes).mean(0).tolist()
    changed = () if note else tuple(_changed(model, examples, before_NC, after_NC))
    return Inspection(len(examples), embeddings, tuple(steps), changed, note)


def moved(model: TunedModel, batch: Batch) -> Tensor:
    """How far each row's states are from those of the bare backbone, relative to them, moved_BL."""
    tuned, bare = _walk(model, batch, 0), _walk(model, batch, NOBODY)
    pairs = zip(tuned, bare, strict=True)
    moved_RL = torch.stack([_relative(after_BTD, before_BTD, batch.mask_BT) for after_BTD, before_BTD in pairs], 1)
    return torch.stack([moved_FL.mean(0) for moved_FL in torch.split(moved_RL, batch.fills)])


def _walk(model: TunedModel, batch: Batch, entry: int) -> list[Tensor]:
    states = model.backbone.layers(batch.ids_BT, batch.mask_BT, batch.types_BT, route_B=_route(batch, entry), trees=batch.trees)
    return [hidden_BTD.float() for hidden_BTD in states]


def _route(batch: Batch, entry: int) -> Tensor:
    return torch.full((len(batch.ids_BT),), entry, device=batch.ids_BT.device)


def _relative(after_BTD: Tensor, before_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over each row's real tokens of ‖Δh‖/‖h‖."""
    ratio_BT = (after_BTD - before_BTD).norm(dim=-1) / before_BTD.norm(dim=-1).clamp(min=_TINY)
    mean_B: Tensor = (ratio_BT * mask_BT).sum(1) / mask_BT.sum(1)
    return mean_B


def _scores(model: TunedModel, batch: Batch, entry: int) -> Tensor:
    """Uncalibrated scores_BC; the LM head, too, is read as the entry has it."""
    route_B = _route(batch, entry)
    with model.backbone.routing.of(route_B):
        output = model.backbone.forward(
            batch.ids_BT, batch.mask_BT, batch.types_BT, route_B=route_B, trees=batch.trees, written_BFJ=batch.written_BFJ
        )
        scores_BC: Tensor = model.reader.scores(output, batch)
        return scores_BC


def _batches(model: TunedModel, examples: Sequence[Example], size: int) -> Iterator[tuple[list[int], Batch]]:
    for template, rows in model.asking.encoded(examples):
        for indices in model.asking.buckets(rows, template, size=size):
            yield indices, model.asking.collate([rows[index] for index in indices], template)


def _changed(model: TunedModel, examples: Sequence[Example], before_NC: Tensor, after_NC: Tensor) -> Iterator[Changed]:
    before, after = _answers(model, examples, before_NC), _answers(model, examples, after_NC)
    for row, (example, first, second) in enumerate(zip(examples, before, after, strict=True)):
        if first.label != second.label:
            yield Changed(row, " / ".join(example.fields[name] for name in model.task.fields), first, second)


def _answers(model: TunedModel, examples: Sequence[Example], scores_NC: Tensor) -> list[Answer]:
    return [Answer(answer.label, answer.probability) for answer in model.answers(examples, scores_NC / model.asking.passes)]
