"""Install the deltas, fit them on the labelled rows. Fine-tuning with a head and prompt tuning differ in the readout only.

Dimensions: N examples, B rows, C candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive, folds
from fewtune.deltas.delta import Installed
from fewtune.errors import DataError
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.prompt.encode import Batch, Row, bucketed_order, buckets
from fewtune.readout.calibration import Calibrator, Contextual, Uncalibrated
from fewtune.recipe import Recipe
from fewtune.strategies.zeroshot import calibrate, targets
from fewtune.tasks import KINDS
from fewtune.train.cache import StateCache
from fewtune.train.fit import Group, Session, fit
from fewtune.train.losses import cross_entropy

_FOLDS = 4


@dataclass(frozen=True)
class Supervised:
    """Tune on labelled rows.

    Contextual calibration is fitted on the untuned model and stays in the scores while the deltas are trained, so that tuning
    starts from the best that the PLM does by itself. A temperature is fitted on rows that a fold's model has not seen.
    """

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """Raises `DataError` for examples that do not fit the task, `Interrupted` after Ctrl-C."""
        if not split.train:
            raise DataError(expected="labelled rows", got="none", where="fit", fix="Give a file with labels, or use zeroshot.")
        KINDS.member(recipe.task.kind)().check(recipe.task, split.train, "fit")
        model = self._untuned(recipe, split, backbone, session)
        temperature = 1.0
        if recipe.calibration is not None and recipe.calibration.needs == "targets":
            scores_NC = self._out_of_fold(recipe, split.train, backbone, session)
            temperature = recipe.calibration.fit(scores_NC, targets(model, split.train)).temperature
        tuned = _tune(model, recipe, split.train, session)
        return tuned.calibrated(Calibrator(tuned.calibrator.bias_C, temperature))

    def _untuned(self, recipe: Recipe, split: Split, backbone: Backbone, session: Session) -> TunedModel:
        model = TunedModel.assemble(
            backbone, recipe.task, recipe.readout, max_length=recipe.max_length, seed=derive(recipe.seed, "init", "readout")
        )
        for note in model.asked.notes:
            session.say(note)
        settle_precision(model, recipe.precision, split)
        if not recipe.readout.needs_slot:
            return model  # a fresh head says nothing yet that could be calibrated
        wanted = recipe.calibration if recipe.calibration is None or recipe.calibration.needs != "targets" else None
        return model.calibrated(calibrate(model, wanted, split.train, otherwise=Contextual()))

    def _out_of_fold(self, recipe: Recipe, train: tuple[Example, ...], backbone: Backbone, session: Session) -> Tensor:
        """Uncalibrated scores_NC of each labelled row by a model that was tuned without it."""
        scores_NC = torch.zeros(len(train), len(recipe.task.labels))
        fold_recipe = replace(recipe, calibration=Uncalibrated())
        for number, (kept, held) in enumerate(folds(train, _FOLDS, seed=derive(recipe.seed, "folds"))):
            part = Split(train=tuple(train[index] for index in kept))
            model = self.run(fold_recipe, part, backbone, session=session.child(f"fold-{number + 1}"))
            scores_NC[list(held)] = model.raw_scores([train[index] for index in held])
            model.remove()
        return scores_NC


def default_steps(rows: int) -> int:
    """About twenty passes over the rows in steps of 8, at least 40 and at most 400 steps; docs/defaults.md shows the runs.

    >>> default_steps(16), default_steps(48), default_steps(512)
    (40, 120, 400)
    """
    return min(400, max(40, rows * 5 // 2))


def _tune(model: TunedModel, recipe: Recipe, train: tuple[Example, ...], session: Session) -> TunedModel:
    deltas: list[Installed] = []
    for number, delta in enumerate(recipe.deltas):
        generator = torch.Generator().manual_seed(derive(recipe.seed, "init", number))
        deltas.append(delta.install(model.backbone, generator=generator))
    tuned = replace(model, deltas=tuple(deltas))
    steps = recipe.fit.steps if recipe.fit.steps is not None else default_steps(len(train))
    groups = _groups(tuned, recipe)
    if not groups or steps == 0:
        return tuned
    try:
        rows = [tuned.rows(train, template) for template in range(len(tuned.asked.templates))]
        session.say(
            f"Tuning {tuned.trained_parameters:,} of {model.backbone.parameters:,} weights on {len(train)} rows: "
            f"{steps} steps of {recipe.fit.batch_size}, about {_forecast(tuned, rows, recipe, steps):.0f} s."
        )
        with tuned.training():
            batches, loss = _batches(rows, tuned, recipe), _loss(tuned, train, _fill(tuned, rows, recipe, steps))
            fit(groups, batches, loss, steps=steps, options=recipe.fit, seed=recipe.seed, session=session)
    except BaseException:
        tuned.remove()
        raise
    return tuned


def _forecast(model: TunedModel, rows: Sequence[Sequence[Row]], recipe: Recipe, steps: int) -> float:
    """Seconds that the steps will take, from one forward: going back through a block costs about as much again, and once more
    for its weights' own gradients where the whole block is trained; what lies below the first trained block is computed once."""
    batch = model.collate(rows[0][: recipe.fit.batch_size], 0)
    with torch.inference_mode():
        model.batch_scores(batch)
        start = time.perf_counter()
        model.batch_scores(batch)
        forward = time.perf_counter() - start
    trained = 1 - model.first_block / model.backbone.depth
    backward = 2 if model.trained_parameters > model.backbone.parameters / 10 else 1
    once = sum(map(len, rows)) / len(batch) * (1 - trained)
    return forward * (once + steps * trained * (1 + backward))


def _groups(model: TunedModel, recipe: Recipe) -> list[Group]:
    """Weights with the learning rate that suits their kind, unless the recipe names one for all."""
    parts = [(f"{number}.", part.weights, part.delta.learning_rate) for number, part in enumerate(model.deltas)]
    parts.append(("readout.", model.reader.weights, model.readout.learning_rate))
    named = [({prefix + name: weight for name, weight in weights.items()}, rate) for prefix, weights, rate in parts if weights]
    return [Group(weights, recipe.fit.learning_rate or rate) for weights, rate in named]


@dataclass(frozen=True)
class _Drawn:
    """One training batch: which template, which examples, and their encoded rows."""

    batch: Batch
    template: int
    indices: list[int]


def _batches(rows: Sequence[Sequence[Row]], model: TunedModel, recipe: Recipe) -> Callable[[int], _Drawn]:
    """step → batch: a pure function. Each template has its own batches; an epoch holds all of them."""

    @lru_cache(maxsize=2)
    def epoch(number: int) -> list[tuple[int, list[int]]]:
        return _epoch(rows, recipe, number)

    def at(step: int) -> _Drawn:
        length = len(epoch(0))
        template, indices = epoch(step // length)[step % length]
        return _Drawn(model.collate([rows[template][index] for index in indices], template), template, indices)

    return at


def _epoch(rows: Sequence[Sequence[Row]], recipe: Recipe, number: int) -> list[tuple[int, list[int]]]:
    batches = [
        (template, indices)
        for template, encoded in enumerate(rows)
        for indices in bucketed_order(
            [len(row.ids) for row in encoded], size=recipe.fit.batch_size, seed=derive(recipe.seed, "order", number, template)
        )
    ]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(derive(recipe.seed, "order", number)))
    return [batches[index] for index in order.tolist()] if len(rows) > 1 else batches


def _loss(model: TunedModel, train: tuple[Example, ...], cache: StateCache) -> Callable[[_Drawn], Tensor]:
    targets_N = targets(model, train).to(model.backbone.device)
    bias_C = torch.tensor(model.calibrator.bias_C, device=model.backbone.device)

    def loss(drawn: _Drawn) -> Tensor:
        below_BTD = cache.get([(drawn.template, index) for index in drawn.indices])
        return cross_entropy(model.batch_scores(drawn.batch, below_BTD) - bias_C, targets_N[drawn.indices])

    return loss


def _fill(model: TunedModel, rows: Sequence[Sequence[Row]], recipe: Recipe, steps: int) -> StateCache:
    """The states below the first trained block, which stay the same from epoch to epoch.

    Filled before the first step and in an order of its own, so that a run that goes on later has the same bits in it.
    """
    cache, start = StateCache(), model.first_block
    if start == 0 or steps * recipe.fit.batch_size <= sum(map(len, rows)):
        return cache
    for template, encoded in enumerate(rows):
        for indices in buckets([len(row.ids) for row in encoded], size=32):
            batch = model.collate([encoded[index] for index in indices], template)
            with torch.no_grad():
                hidden_BTD = model.backbone.below(batch.ids_BT, batch.mask_BT, batch.types_BT, start=start)
            if not cache.add([(template, index) for index in indices], batch.mask_BT.sum(1).tolist(), hidden_BTD):
                return cache
    return cache
