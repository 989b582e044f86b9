"""Nothing is trained: the PLM reads the slot, or compares the text with the labels; a calibration is fitted at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import spread
from fewtune.errors import DataError, TaskError
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.prompt import defaults
from fewtune.prompt.template import Template
from fewtune.readout import sentences
from fewtune.readout.calibration import Calibration, Calibrator, Contextual, Uncalibrated, likeliest
from fewtune.readout.similarity import Similarity, SimilarityReader
from fewtune.readout.states import states
from fewtune.recipe import Recipe
from fewtune.routes import Routes
from fewtune.strategies.searching import searched
from fewtune.tasks import kind_of
from fewtune.train.fit import Session
from fewtune.train.losses import cross_entropy

_TEXT = Template.parse("{text}")
_MOST_UNLABELED = 1000  # as many rows tell the candidates' shares to a point or two
_MOST_LABELED = 500  # and so many which of two calibrations is likelier; all of a large file would cost a pass through the PLM


@dataclass(frozen=True)
class ZeroShot:
    """Answers from the PLM alone. With no calibration named it is contextual, unless labelled rows say that it hurts.

    With demonstrations it is in-context learning (Brown et al. 2020): labelled rows stand in the prompt, and nothing is trained.
    """

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """Labelled rows are used for nothing but the search, the calibration, and demonstrations if they are asked for."""
        if recipe.deltas or not (recipe.readout.needs_slot or isinstance(recipe.readout, Similarity)):
            what = "deltas" if recipe.deltas else "a head"
            raise TaskError(expected="the PLM as it is", got=what, where="strategy zeroshot", fix="Choose --strategy supervised.")
        recipe, about = searched(recipe, split, backbone, session)
        model = TunedModel.assemble(backbone, recipe.task, recipe.readout, max_length=recipe.max_length, seed=recipe.seed)
        for note in model.asked.notes:
            session.say(note)
        if isinstance(model.reader, SimilarityReader):
            model.reader.start(label_embeddings(model, model.reader))
        model = demonstrated(model, recipe, split, session)
        settle_precision(model, recipe.precision, split)
        return replace(model, about=about).calibrated(calibrate(model, recipe.calibration, split, otherwise=Contextual()))


def label_embeddings(model: TunedModel, reader: SimilarityReader) -> Tensor:
    """labels_CD: the mean of the embeddings of each label's sentences."""
    listed = defaults.sentences(model.task)
    prompts = [_TEXT.render({"text": text}) for texts in listed for text in texts]
    embeddings_ND = states(model.backbone, prompts, reader.embeddings, most=model.max_length)
    parts = torch.split(embeddings_ND, [len(texts) for texts in listed])
    return torch.stack([part_KD.mean(0) for part_KD in parts])


def side_by_side(models: Sequence[TunedModel], wanted: Calibration | None, split: Split) -> Routes:
    """Untuned models that answer together, calibrated over all as each of them is: contextual unless told otherwise, none where a readout
    reads the texts or rows have candidates of their own. Raises `TaskError` for free text."""
    if models[0].asking.free is not None:
        fix = "Name one --backbone: texts that are written have no mean."
        raise TaskError(expected="one PLM for free text", got=str(len(models)), where="--backbone", fix=fix)
    usual = Uncalibrated() if any(model.readout.reverses for model in models) else Contextual()
    routes = Routes.of(models)
    return routes.calibrated(_fit(routes, wanted or usual, split)) if routes.task.labels else routes


def demonstrated(model: TunedModel, recipe: Recipe, split: Split, session: Session) -> TunedModel:
    """The model with demonstrations from the labelled rows, if the recipe asks for them; calibration then sees them, too.

    Raises `DataError` without labelled rows, `TaskError` for a readout that reads no word and where they do not fit.
    """
    spec = recipe.demonstrations
    if spec is None:
        return model
    if not recipe.readout.needs_slot:
        fix = "Use --readout cloze, or leave --demonstrations out."
        raise TaskError(expected="a readout that reads a word", got="another", where="--demonstrations", fix=fix)
    if recipe.readout.reverses:
        fix = "Use --readout cloze or likelihood, or leave --demonstrations out."
        raise TaskError(expected="a readout of label words", got="one that reads the texts", where="--demonstrations", fix=fix)
    if not split.train:
        raise DataError(expected="labelled rows", got="none", where="--demonstrations", fix="Give a file with labels to show some of.")
    kind_of(recipe.task).check(recipe.task, split.train, "--demonstrations")
    embed = sentences.lazily(spec.encoder)
    shown = spec.of(split.train, recipe.task, seed=recipe.seed, in_front=model.backbone.causal, embed=embed)
    model = replace(model, demonstrations=shown)
    model.asking.check_budget()
    counts = {label: len(numbers) for label, numbers in shown.members.items()}
    if unseen := [label for label in recipe.task.labels if label not in counts]:
        session.say(f"No demonstration of {', '.join(unseen)}: no labelled row has that label.")
    if min(counts.values()) < 2 and not session.told:
        rare = min(counts, key=counts.__getitem__)
        session.say(f'The only row of "{rare}" is learned from without demonstrations; with two or more it would have some.')
    return model


def calibrate(model: TunedModel, wanted: Calibration | None, split: Split, *, otherwise: Calibration) -> Calibrator:
    """Fit the calibration that is wanted on an untuned model.

    With none named: whichever of none and contextual makes the labelled rows likelier, or `otherwise` where there are none; none where
    the readout reads the texts, so that texts which say nothing tell nothing. Raises `TaskError` for a calibration by such texts there.
    """
    if model.asking.free is not None:
        if wanted not in (None, Uncalibrated()):
            fix = "Leave --calibration out."
            raise TaskError(expected="none for free text", got=type(wanted).__name__.lower(), where="--calibration", fix=fix)
        model.asking.rows(
            [Example(dict.fromkeys(model.task.fields, ""))], 0
        )  # a template that cannot be read is refused before anything is done
        return model.calibrator
    if model.readout.reverses:
        wanted = wanted or Uncalibrated()
        if wanted.needs in ("content_free", "premise"):
            got, fix = "one by texts that say nothing", "Choose none, prior (with --unlabeled) or temperature."
            raise TaskError(expected="another calibration for readout channel", got=got, where="--calibration", fix=fix)
    if not model.task.labels:
        return _of_rows(model, wanted, split)
    if wanted is None and not split.train:
        wanted = otherwise
    if wanted is not None:
        return _fit(model, wanted, split)
    some = spread(split.train, _MOST_LABELED)
    scores_NC, targets_N = model.raw_scores(some), targets(model, some)
    return likeliest((_fit(model, choice, split) for choice in (Uncalibrated(), Contextual())), scores_NC, targets_N)


def _of_rows(model: TunedModel, wanted: Calibration | None, split: Split) -> Calibrator:
    """The same where rows have candidates of their own, which no bias that all rows share can mend: none, PMI or a temperature.

    With none named: whichever of none and PMI makes the labelled rows likelier, none where there are none. Raises `TaskError` for another.
    """
    plain = Calibrator.identity(0)
    against = replace(plain, premise=True)
    if wanted is None and split.train:
        some = spread(split.train, _MOST_LABELED)
        raw_NC, targets_N = model.raw_scores(some), targets(model, some)
        losses = [
            cross_entropy(one(scores_NC), targets_N).item() for one, scores_NC in ((plain, raw_NC), (against, raw_NC - model.premise(some)))
        ]
        return against if losses[1] < losses[0] else plain
    if wanted is None or wanted.needs == "nothing":
        return plain
    if wanted.needs == "premise":
        return against
    if wanted.needs == "targets":
        return replace(plain, temperature=_fit(model, wanted, split).temperature)
    got, fix = "one that has a bias for each label", "Choose none, pmi, or temperature."
    raise TaskError(expected="a calibration for candidates of each row's own", got=got, where="--calibration", fix=fix)


def targets(model: TunedModel | Routes, labeled: tuple[Example, ...]) -> Tensor:
    """What scores are to learn, as the kind of task has it: an index a row, targets_N, or a number for each candidate, targets_NC."""
    return torch.tensor(kind_of(model.task).targets(model.task, labeled))


def _fit(model: TunedModel | Routes, calibration: Calibration, split: Split) -> Calibrator:
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
        return calibration.fit(model.raw_scores(spread(split.unlabeled, _MOST_UNLABELED)), None)
    return Calibrator.identity(len(model.task.labels))
