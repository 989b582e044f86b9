"""Nothing is trained: the PLM reads the slot; a calibration is fitted at most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.errors import DataError, TaskError
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.readout.calibration import Calibration, Calibrator, Contextual, Uncalibrated
from fewtune.recipe import Recipe
from fewtune.tasks import KINDS
from fewtune.train.fit import Session


@dataclass(frozen=True)
class ZeroShot:
    """Answers from the PLM alone. With no calibration named it is contextual, unless labelled rows say that it hurts."""

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """Labelled rows are used for nothing but the calibration."""
        if recipe.deltas or not recipe.readout.needs_slot:
            what = "deltas" if recipe.deltas else "a head"
            raise TaskError(expected="the PLM as it is", got=what, where="strategy zeroshot", fix="Choose --strategy supervised.")
        model = TunedModel.assemble(backbone, recipe.task, recipe.readout, max_length=recipe.max_length, seed=recipe.seed)
        for note in model.asked.notes:
            session.say(note)
        settle_precision(model, recipe.precision, split)
        return model.calibrated(calibrate(model, recipe.calibration, split.train, otherwise=Contextual()))


def calibrate(model: TunedModel, wanted: Calibration | None, labeled: tuple[Example, ...], *, otherwise: Calibration) -> Calibrator:
    """Fit the calibration that is wanted on an untuned model.

    With none named: whichever of none and contextual makes the labelled rows likelier, or `otherwise` where there are none.
    """
    if wanted is None and not labeled:
        wanted = otherwise
    if wanted is not None:
        return _fit(model, wanted, labeled)
    scores_NC, targets_N = model.raw_scores(labeled), targets(model, labeled)
    choices = [_fit(model, choice, labeled) for choice in (Uncalibrated(), Contextual())]
    return min(choices, key=lambda calibrator: _loss(calibrator, scores_NC, targets_N))


def targets(model: TunedModel, labeled: tuple[Example, ...]) -> Tensor:
    """The index of each example's label, targets_N."""
    return torch.tensor(KINDS.member(model.task.kind)().targets(model.task, labeled))


def _loss(calibrator: Calibrator, scores_NC: Tensor, targets_N: Tensor) -> float:
    return torch.nn.functional.cross_entropy(calibrator(scores_NC), targets_N).item()


def _fit(model: TunedModel, calibration: Calibration, labeled: tuple[Example, ...]) -> Calibrator:
    if calibration.needs == "content_free":
        return calibration.fit(model.content_free_scores(), None)
    if calibration.needs == "targets":
        if not labeled:
            raise DataError(
                expected="labelled rows", got="none", where="--calibration", fix="Give labelled rows, or --calibration contextual."
            )
        return calibration.fit(model.raw_scores(labeled), targets(model, labeled))
    return Calibrator.identity(len(model.task.labels))
