"""Nothing is trained: the PLM reads the slot; a calibration is fitted at most."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.errors import DataError, TaskError
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.readout.calibration import Calibration, Calibrator, Contextual, Uncalibrated
from fewtune.recipe import Recipe
from fewtune.strategies.searching import searched
from fewtune.tasks import KINDS
from fewtune.train.fit import Session

_MOST_UNLABELED = 1000  # as many rows tell the candidates' shares to a point or two


@dataclass(frozen=True)
class ZeroShot:
    """Answers from the PLM alone. With no calibration named it is contextual, unless labelled rows say that it hurts."""

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """Labelled rows are used for nothing but the search and the calibration."""
        if recipe.deltas or not recipe.readout.needs_slot:
            what = "deltas" if recipe.deltas else "a head"
            raise TaskError(expected="the PLM as it is", got=what, where="strategy zeroshot", fix="Choose --strategy supervised.")
        recipe, about = searched(recipe, split, backbone, session)
        model = TunedModel.assemble(backbone, recipe.task, recipe.readout, max_length=recipe.max_length, seed=recipe.seed)
        for note in model.asked.notes:
            session.say(note)
        settle_precision(model, recipe.precision, split)
        return replace(model, about=about).calibrated(calibrate(model, recipe.calibration, split, otherwise=Contextual()))


def calibrate(model: TunedModel, wanted: Calibration | None, split: Split, *, otherwise: Calibration) -> Calibrator:
    """Fit the calibration that is wanted on an untuned model.

    With none named: whichever of none and contextual makes the labelled rows likelier, or `otherwise` where there are none.
    """
    if wanted is None and not split.train:
        wanted = otherwise
    if wanted is not None:
        return _fit(model, wanted, split)
    scores_NC, targets_N = model.raw_scores(split.train), targets(model, split.train)
    choices = [_fit(model, choice, split) for choice in (Uncalibrated(), Contextual())]
    return min(choices, key=lambda calibrator: _loss(calibrator, scores_NC, targets_N))


def targets(model: TunedModel, labeled: tuple[Example, ...]) -> Tensor:
    """The index of each example's label, targets_N."""
    return torch.tensor(KINDS.member(model.task.kind)().targets(model.task, labeled))


def _loss(calibrator: Calibrator, scores_NC: Tensor, targets_N: Tensor) -> float:
    return torch.nn.functional.cross_entropy(calibrator(scores_NC), targets_N).item()


def _fit(model: TunedModel, calibration: Calibration, split: Split) -> Calibrator:
    if calibration.needs == "content_free":
        return calibration.fit(model.content_free_scores(), None)
    if calibration.needs == "premise":
        return calibration.fit(model.raw_scores([Example(dict.fromkeys(model.task.fields, ""))]), None)
    if calibration.needs == "targets":
        if not split.train:
            raise DataError(
                expected="labelled rows", got="none", where="--calibration", fix="Give labelled rows, or --calibration contextual."
            )
        return calibration.fit(model.raw_scores(split.train), targets(model, split.train))
    if calibration.needs == "unlabeled":
        if not split.unlabeled:
            fix = "Give texts with --unlabeled, or --calibration contextual."
            raise DataError(expected="unlabelled rows", got="none", where="--calibration", fix=fix)
        return calibration.fit(model.raw_scores(split.unlabeled[:_MOST_UNLABELED]), None)
    return Calibrator.identity(len(model.task.labels))
