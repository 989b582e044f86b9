"""Install the deltas, fit them on the labelled rows. Fine-tuning with a head and prompt tuning differ in the readout only.

Dimensions: N examples, B rows, C candidates.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fewtune import forecast
from fewtune.backbone.backbone import Backbone, Output
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive, folds
from fewtune.deltas.delta import Installed
from fewtune.errors import DataError
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.prompt.encode import Batch, Row, balanced_order, bucketed_order, buckets
from fewtune.readout.calibration import Calibrator, Contextual, Uncalibrated
from fewtune.recipe import Recipe
from fewtune.strategies.searching import searched
from fewtune.strategies.zeroshot import calibrate, targets
from fewtune.tasks import KINDS
from fewtune.train.cache import StateCache
from fewtune.train.fit import Group, Session, fit

_FOLDS = 4
PAIRED = 4
"""A step of a readout that learns from pairs takes so many times the rows, for pairs grow with their square."""

_Epoch = list[tuple[int, list[int]]]


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
        asked, (recipe, about) = recipe, searched(recipe, split, backbone, session)
        model = replace(self._untuned(recipe, split, backbone, session), about=about)
        temperature = 1.0
        if recipe.calibration is not None and recipe.calibration.needs == "targets":
            fold_recipe = replace(asked, calibration=Uncalibrated())  # which searches anew in each fold
            scores_NC = out_of_fold(fold_recipe, split, backbone, session, read=TunedModel.raw_scores)
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
        return model.calibrated(calibrate(model, wanted, split, otherwise=Contextual()))


def out_of_fold(
    recipe: Recipe, split: Split, backbone: Backbone, session: Session, *, read: Callable[[TunedModel, Sequence[Example]], Tensor]
) -> Tensor:
    """What `read` gives for each labelled row, in order, from a model that was tuned without it."""
    found: dict[int, Tensor] = {}
    session.say(f"{_FOLDS} folds, each like the first:")
    for number, (kept, held) in enumerate(folds(split.train, _FOLDS, seed=derive(recipe.seed, "folds"))):
        part = replace(split, train=tuple(split.train[index] for index in kept))
        model = Supervised().run(recipe, part, backbone, session=session.child(f"fold-{number + 1}", told=number > 0))
        found |= zip(held, read(model, [split.train[index] for index in held]), strict=True)
        model.remove()
    return torch.stack([found[index] for index in range(len(split.train))])


def default_steps(rows: int, labels: int, *, pairs: bool = False) -> int:
    """About twenty passes over the rows in steps of 8: at least 40, at most 80 for each label and 400 in all.

    docs/defaults.md shows the runs. With `pairs` ten passes in steps of 32, at least 10 and at most 100.

    >>> default_steps(16, 2), default_steps(128, 2), default_steps(48, 6), default_steps(512, 6), default_steps(48, 6, pairs=True)
    (40, 160, 120, 400, 15)
    """
    return min(100, max(10, rows * 5 // 16)) if pairs else min(400, 80 * labels, max(40, rows * 5 // 2))


def _tune(model: TunedModel, recipe: Recipe, train: tuple[Example, ...], session: Session) -> TunedModel:
    deltas: list[Installed] = []
    for number, delta in enumerate(recipe.deltas):
        generator = torch.Generator().manual_seed(derive(recipe.seed, "init", number))
        deltas.append(delta.install(model.backbone, generator=generator))
    tuned = replace(model, deltas=tuple(deltas))
    steps = recipe.fit.steps
    if steps is None:
        steps = default_steps(len(train), len(model.task.labels), pairs=model.readout.pairs)
    groups = _groups(tuned, recipe)
    try:
        rows = [tuned.rows(train, template) for template in range(len(tuned.asked.templates))]
        if groups and steps:
            _learn(tuned, recipe, train, rows, groups, steps, session)
        tuned.reader.settle(_outputs(tuned, rows), targets(tuned, train).repeat(len(rows)))
    except BaseException:
        tuned.remove()
        raise
    return tuned


def _learn(
    tuned: TunedModel,
    recipe: Recipe,
    train: tuple[Example, ...],
    rows: Sequence[Sequence[Row]],
    groups: Sequence[Group],
    steps: int,
    session: Session,
) -> None:
    """Say what is going to be done and for how long, and do it."""
    epoch = _epochs(tuned, recipe, train, rows)
    if not session.told:
        seconds = _forecast(tuned, rows, recipe, epoch(0), steps, session.cache)
        session.say(
            f"Tuning {tuned.trained_parameters:,} of {tuned.backbone.parameters:,} weights on {len(train)} rows: "
            f"{steps} steps of {_step_rows(recipe)}, about {seconds:.0f} s."
        )
    with tuned.training():
        batches = _batches(rows, tuned, epoch)
        loss = _loss(tuned, train, rows, _kept_below(tuned, rows, recipe, steps, session))
        fit(groups, batches, loss, steps=steps, options=recipe.fit, seed=recipe.seed, session=session)


def _outputs(model: TunedModel, rows: Sequence[Sequence[Row]]) -> Iterator[tuple[Output, Batch]]:
    """What the backbone makes of every row, template by template, in order."""
    for template, encoded in enumerate(rows):
        for start in range(0, len(encoded), 32):
            batch = model.collate(encoded[start : start + 32], template)
            with torch.no_grad():
                yield model.output(batch), batch


def _forecast(model: TunedModel, rows: Sequence[Sequence[Row]], recipe: Recipe, epoch: _Epoch, steps: int, cache: StateCache) -> float:
    """Seconds that the steps will take, each like one on a batch of the middle size, and once those of filling the cache."""
    sizes = [len(indices) * max(len(rows[template][index].ids) for index in indices) for template, indices in epoch]
    middle = statistics.fmean(sizes)
    size, (template, indices) = min(zip(sizes, epoch, strict=True), key=lambda sized: abs(sized[0] - middle))
    new = [len(encoded[index].ids) for _, encoded, missing in _uncached(model, rows, cache) for index in missing]
    cached = _pays(model, recipe, steps, len(new))
    batch = model.collate([rows[template][index] for index in indices], template)
    found = forecast.seconds(model, batch, cached=cached, most=max(1, steps // 20))
    return found.step * steps * middle / size + found.states * sum(new) / size


def _groups(model: TunedModel, recipe: Recipe) -> list[Group]:
    """Weights with the learning rate that suits their kind, unless the recipe names one for all."""
    parts = [(f"{number}.", part.weights, part.delta.learning_rate) for number, part in enumerate(model.deltas)]
    parts.append(("readout.", model.reader.weights, model.readout.learning_rate))
    named = [({prefix + name: weight for name, weight in weights.items()}, rate) for prefix, weights, rate in parts if weights and rate]
    return [Group(weights, recipe.fit.learning_rate or rate) for weights, rate in named]


@dataclass(frozen=True)
class _Drawn:
    """One training batch: which template, which examples, and their encoded rows."""

    batch: Batch
    template: int
    indices: list[int]


def _batches(rows: Sequence[Sequence[Row]], model: TunedModel, epoch: Callable[[int], _Epoch]) -> Callable[[int], _Drawn]:
    """step → batch: a pure function."""

    def at(step: int) -> _Drawn:
        length = len(epoch(0))
        template, indices = epoch(step // length)[step % length]
        return _Drawn(model.collate([rows[template][index] for index in indices], template), template, indices)

    return at


def _epochs(model: TunedModel, recipe: Recipe, train: tuple[Example, ...], rows: Sequence[Sequence[Row]]) -> Callable[[int], _Epoch]:
    """number → epoch: a pure function. Each template has its own batches; an epoch holds all of them."""
    targets_N = targets(model, train).tolist()

    @lru_cache(maxsize=2)
    def epoch(number: int) -> _Epoch:
        return _paired(targets_N, len(rows), recipe, number) if model.readout.pairs else _epoch(rows, recipe, number)

    return epoch


def _step_rows(recipe: Recipe) -> int:
    """How many rows a step takes."""
    return recipe.fit.batch_size * (PAIRED if recipe.readout.pairs else 1)


def _paired(targets: Sequence[int], templates: int, recipe: Recipe, number: int) -> _Epoch:
    """Batches in which rows have partners of their label, a label as often as another."""
    size = _step_rows(recipe)
    return [
        (template, indices)
        for template in range(templates)
        for indices in balanced_order(targets, size=size, seed=derive(recipe.seed, "order", number, template))
    ]


def _epoch(rows: Sequence[Sequence[Row]], recipe: Recipe, number: int) -> _Epoch:
    batches = [
        (template, indices)
        for template, encoded in enumerate(rows)
        for indices in bucketed_order(
            [len(row.ids) for row in encoded], size=recipe.fit.batch_size, seed=derive(recipe.seed, "order", number, template)
        )
    ]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(derive(recipe.seed, "order", number)))
    return [batches[index] for index in order.tolist()] if len(rows) > 1 else batches


def _loss(
    model: TunedModel, train: tuple[Example, ...], rows: Sequence[Sequence[Row]], cache: StateCache | None
) -> Callable[[_Drawn], Tensor]:
    targets_N = targets(model, train).to(model.backbone.device)
    bias_C = torch.tensor(model.calibrator.bias_C, device=model.backbone.device)

    def loss(drawn: _Drawn) -> Tensor:
        encoded = [rows[drawn.template][index] for index in drawn.indices]
        below_BTD = cache.get(_keys(model, encoded, drawn.template), model.backbone.device) if cache else None
        return model.reader.loss(model.output(drawn.batch, below_BTD), drawn.batch, targets_N[drawn.indices], bias_C)

    return loss


def _keys(model: TunedModel, rows: Sequence[Row], template: int) -> list[Hashable]:
    """What the rows' states below the first trained block depend on: the frozen weights there, how they compute, and the tokens."""
    frozen = model.backbone.fingerprint, model.backbone.precision, model.first_block
    return [(*frozen, *given) for row in rows for given in model.given(row, template)]


def _kept_below(model: TunedModel, rows: Sequence[Sequence[Row]], recipe: Recipe, steps: int, session: Session) -> StateCache | None:
    """The session's cache with the states below the first trained block, which stay the same from epoch to epoch and from fold to fold.

    None where it would not be faster: nothing is frozen below, or the steps see hardly more rows than would have to be computed.
    That is counted, not timed, and the cache is filled before the first step in an order of its own, so that a run that goes on
    later has the same bits in it.
    """
    cache = session.cache
    new = _uncached(model, rows, cache)
    if not _pays(model, recipe, steps, sum(len(indices) for _, _, indices in new)):
        return None
    for template, encoded, indices in new:
        if not _fill(model, [encoded[index] for index in indices], template, cache):
            session.say("The cache of frozen states is full; the rest is computed anew at each step.")
            break
    size = cache.bytes + cache.disk_bytes
    if not session.told:
        session.say(f"States below block {model.first_block} of {model.backbone.depth} are computed once and kept: {size / 1e6:.1f} MB.")
    return cache


def _uncached(model: TunedModel, rows: Sequence[Sequence[Row]], cache: StateCache) -> list[tuple[int, Sequence[Row], list[int]]]:
    """For each template, its rows and the indices of those whose states are not kept yet."""
    return [
        (template, encoded, [index for index, row in enumerate(encoded) if not all(key in cache for key in _keys(model, [row], template))])
        for template, encoded in enumerate(rows)
    ]


def _pays(model: TunedModel, recipe: Recipe, steps: int, computed: int) -> bool:
    """Whether the steps see more rows than would have to be computed for the cache."""
    return model.first_block > 0 and steps * _step_rows(recipe) > computed


def _fill(model: TunedModel, rows: Sequence[Row], template: int, cache: StateCache) -> bool:
    for indices in buckets([len(row.ids) for row in rows], size=32):
        chosen = [rows[index] for index in indices]
        batch = model.collate(chosen, template)
        with torch.no_grad():
            hidden_BTD = model.below(batch)
        if not cache.add(_keys(model, chosen, template), batch.mask_BT.sum(1).tolist(), hidden_BTD):
            return False
    return True
