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
from fewtune.data.sampling import derive
from fewtune.errors import DataError, TaskError
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.prompt.batch import Batch, balanced_order, bucketed_order
from fewtune.prompt.encode import Row
from fewtune.readout.calibration import Contextual, Uncalibrated
from fewtune.recipe import Recipe
from fewtune.strategies import adapting, starting, trainable
from fewtune.strategies.folds import FOLDS, out_of_fold, provisional
from fewtune.strategies.searching import searched
from fewtune.strategies.zeroshot import calibrate, demonstrated, targets
from fewtune.tasks import kind_of
from fewtune.train.cache import StateCache
from fewtune.train.fit import Group, Session, fit
from fewtune.train.losses import distillation

PAIRED = 4
"""A step of a readout that learns from pairs takes so many times the rows, for pairs grow with their square."""

_Epoch = list[tuple[int, list[int]]]
_Rows = Sequence[Sequence[Row]]
"""The rows of each template, in the order of the examples."""


@dataclass(frozen=True)
class Supervised:
    """Tune on labelled rows.

    Contextual calibration is fitted on the untuned model and stays in the scores while the deltas are trained, so that tuning
    starts from the best that the PLM does by itself. A temperature is fitted on rows that a fold's model has not seen.

    With demonstrations, each row is shown others of each epoch's own draw (LM-BFF: Gao et al. 2021, section 6); nothing is cached then,
    for no row is the same twice.

    With a start the deltas begin as those of a saved model (`starting`).

    Rows with soft labels are learned at `temperature`, beside hard ones at 1 (`losses.distillation`).
    """

    temperature: float = 2.0

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """Raises `DataError` for examples that do not fit the task, `Interrupted` after Ctrl-C."""
        if not split.train:
            raise DataError(expected="labelled rows", got="none", where="fit", fix="Give a file with labels, or use zeroshot.")
        kind_of(recipe.task).check(recipe.task, split.train, "fit")
        if recipe.readout.pairs and any(example.shares for example in split.train):
            fix = "Choose --readout head."
            raise TaskError(expected="labels that rows share", got="soft labels", where="a readout that learns from pairs", fix=fix)
        asked, (recipe, about) = recipe, searched(recipe, split, backbone, session)
        model = replace(self.untuned(recipe, split, backbone, session), about=about)
        model = _decided(model, asked, split, session)
        tuned = _tune(model, recipe, split, session, self.temperature)
        return tuned.calibrated(replace(tuned.calibrator, temperature=model.calibrator.temperature))

    def untuned(self, recipe: Recipe, split: Split, backbone: Backbone, session: Session) -> TunedModel:
        """The model before it learns anything, with demonstrations and calibrated where a word is read."""
        model = TunedModel.assemble(
            backbone, recipe.task, recipe.readout, max_length=recipe.max_length, seed=derive(recipe.seed, "init", "readout")
        )
        for note in model.asked.notes:
            session.say(note)
        model = demonstrated(model, recipe, split, session)
        settle_precision(model, recipe.precision, split)
        if not recipe.readout.needs_slot:
            return model  # a fresh head says nothing yet that could be calibrated
        if found := starting.calibrator(recipe):
            return model.calibrated(found)
        wanted = recipe.calibration if recipe.calibration is None or recipe.calibration.needs != "targets" else None
        return model.calibrated(calibrate(model, wanted, split, otherwise=Contextual()))


def _decided(model: TunedModel, asked: Recipe, split: Split, session: Session) -> TunedModel:
    """The untuned model with what only rows not seen can tell of the tuned one: the temperature, and what its kind of task leaves open.

    `asked` is the recipe before its search, which is made anew in each fold.
    """
    kind, calibration = kind_of(model.task), asked.calibration
    by_targets = calibration is not None and calibration.needs == "targets"
    if not by_targets and not (kind.undecided and len(split.train) >= FOLDS):
        return replace(model, task=provisional(model.task))
    fold_recipe = replace(asked, task=provisional(asked.task), calibration=Uncalibrated(), precision=model.backbone.precision)
    scores_NC = out_of_fold(Supervised(), fold_recipe, split, model.backbone, session, read=TunedModel.raw_scores)
    if calibration is not None and by_targets:
        fitted = calibration.fit(scores_NC, targets(model, split.train))
        model = model.calibrated(replace(model.calibrator, temperature=fitted.temperature))
    task = kind.decided(model.task, split.train, model.likely(scores_NC).numpy())
    if task != model.task:
        session.say(f"Chosen on rows not seen: --kind {task.kind}.")
    return replace(model, task=task)


def default_steps(rows: int, labels: int, *, pairs: bool = False) -> int:
    """About twenty passes over the rows in steps of 8: at least 40, at most 80 for each label, if there are labels, and 400 in all.

    docs/defaults.md shows the runs. With `pairs` ten passes in steps of 32, at least 10 and at most 100.

    >>> default_steps(16, 2), default_steps(128, 2), default_steps(48, 6), default_steps(512, 6), default_steps(48, 6, pairs=True)
    (40, 160, 120, 400, 15)
    """
    return min(100, max(10, rows * 5 // 16)) if pairs else min(400, 80 * labels or 400, max(40, rows * 5 // 2))


def _tune(model: TunedModel, recipe: Recipe, split: Split, session: Session, temperature: float) -> TunedModel:
    train = split.train
    start = starting.start_of(recipe, model.backbone)
    tuned = replace(model, deltas=starting.begun(recipe, start, model.backbone))
    steps = recipe.fit.steps
    if steps is None:
        steps = default_steps(len(train), model.most(train), pairs=model.readout.pairs)
    try:
        if start:
            starting.read_on(tuned, recipe, start, session)
        groups = trainable.grouped(trainable.of_model(tuned), recipe.fit.learning_rate)
        adapting.before(tuned, recipe, split.unlabeled, session)
        rows = epoch_rows(tuned, train)
        if groups and steps:
            _learn(tuned, recipe, split, rows, groups, steps, session, temperature)
        encoded = rows(0)
        tuned.reader.settle(outputs(tuned, encoded), torch.cat([targets(tuned, train)] * len(encoded)))
    except BaseException:
        tuned.remove()
        raise
    return tuned


def epoch_rows(model: TunedModel, train: tuple[Example, ...]) -> Callable[[int], _Rows]:
    """epoch → rows: a pure function, and without demonstrations always the same rows."""
    plain = [model.asking.rows(train, template) for template in range(len(model.asked.templates))]
    shown = model.demonstrations
    if shown is None:
        return lambda number: plain
    similarity_NN = shown.similarity(train)

    @lru_cache(maxsize=2)
    def rows(number: int) -> _Rows:
        chosen = shown.epoch(train, number, similarity_NN)
        return [model.asking.showing(own, template, chosen) for template, own in enumerate(plain)]

    return rows


def _learn(
    tuned: TunedModel,
    recipe: Recipe,
    split: Split,
    rows: Callable[[int], _Rows],
    groups: Sequence[Group],
    steps: int,
    session: Session,
    temperature: float,
) -> None:
    """Say what is going to be done and for how long, and do it."""
    train, beside = split.train, adapting.beside(tuned, recipe, split.unlabeled)
    epoch = _epochs(tuned, recipe, train, rows)
    if not session.told:
        seconds = _forecast(tuned, rows(0), recipe, epoch(0), steps, session.cache)
        if beside:
            session.say(str(beside))
            seconds += beside.language.seconds(steps)
        session.say(
            f"Tuning {tuned.trained_parameters:,} of {tuned.backbone.parameters:,} weights on {len(train)} rows: "
            f"{steps} steps of {_step_rows(recipe)}, about {seconds:.0f} s."
        )
    with tuned.training():
        batches = _batches(rows, tuned, epoch)
        loss = _loss(tuned, train, _kept_below(tuned, rows(0), recipe, steps, session), temperature)
        both = beside.joined(batches, loss) if beside else (batches, loss)
        fit(groups, *both, steps=steps, options=recipe.fit, seed=recipe.seed, session=session)


def outputs(model: TunedModel, rows: _Rows) -> Iterator[tuple[Output, Batch]]:
    """What the backbone makes of every row, template by template, in order."""
    for template, encoded in enumerate(rows):
        for start in range(0, len(encoded), 32):
            batch = model.asking.collate(encoded[start : start + 32], template)
            with torch.no_grad():
                yield model.output(batch), batch


def _forecast(model: TunedModel, rows: _Rows, recipe: Recipe, epoch: _Epoch, steps: int, cache: StateCache) -> float:
    """Seconds that the steps will take, each like one on a batch of the middle size, and once those of filling the cache; measured on a
    few rows of that batch where the steps are few."""
    tokens = [sum(len(rows[template][index].ids) for index in indices) for template, indices in epoch]
    middle = statistics.fmean(tokens)
    template, indices = min(zip(tokens, epoch, strict=True), key=lambda sized: abs(sized[0] - middle))[1]
    few = [rows[template][index] for index in indices[: max(2, len(indices) * steps // 100)]]
    new = [len(encoded[index].ids) for _, encoded, missing in _uncached(model, rows, cache) for index in missing]
    cached = _pays(model, recipe, steps, len(new))
    found = forecast.seconds(model, model.asking.collate(few, template), cached=cached, most=max(1, steps // 20))
    size = sum(len(row.ids) for row in few)
    return found.step * steps * middle / size + found.states * sum(new) / size


@dataclass(frozen=True)
class _Drawn:
    """One training batch: which template and examples, their rows, and these as one batch."""

    batch: Batch
    template: int
    rows: list[Row]
    indices: list[int]


def _batches(rows: Callable[[int], _Rows], model: TunedModel, epoch: Callable[[int], _Epoch]) -> Callable[[int], _Drawn]:
    """step → batch: a pure function."""
    length = len(epoch(0))  # as many in every epoch

    def at(step: int) -> _Drawn:
        number = step // length
        template, indices = epoch(number)[step % length]
        chosen = [rows(number)[template][index] for index in indices]
        return _Drawn(model.asking.collate(chosen, template), template, chosen, indices)

    return at


def _epochs(model: TunedModel, recipe: Recipe, train: tuple[Example, ...], rows: Callable[[int], _Rows]) -> Callable[[int], _Epoch]:
    """number → epoch: a pure function. Each template has its own batches; an epoch holds all of them."""
    alike, templates = _alike(model, train) if model.readout.pairs else [], len(model.asked.templates)

    @lru_cache(maxsize=2)
    def epoch(number: int) -> _Epoch:
        if model.readout.pairs:
            return _paired(alike, templates, recipe, number)
        return mixed_epoch(rows(number), size=recipe.fit.batch_size, seed=recipe.seed, number=number)

    return epoch


def _alike(model: TunedModel, train: tuple[Example, ...]) -> list[int]:
    """For each row the number of its label, or of one of its labels: rows of one number are partners."""
    found = targets(model, train)
    if found.ndim == 1:
        return [int(target) for target in found.tolist()]
    groups = kind_of(model.task).groups(model.task, train, 2)
    return [sorted(set(groups)).index(group) for group in groups]


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


def mixed_epoch(rows: _Rows, *, size: int, seed: int, number: int) -> _Epoch:
    """Batches of `size` rows of like length, each of one template; all rows in all templates, in an order of this epoch's own."""
    batches = [
        (template, indices)
        for template, encoded in enumerate(rows)
        for indices in bucketed_order([len(row.ids) for row in encoded], size=size, seed=derive(seed, "order", number, template))
    ]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(derive(seed, "order", number)))
    return [batches[index] for index in order.tolist()] if len(rows) > 1 else batches


def _loss(model: TunedModel, train: tuple[Example, ...], cache: StateCache | None, temperature: float) -> Callable[[_Drawn], Tensor]:
    targets_N = targets(model, train).to(model.backbone.device)
    bias_C = model.calibrator.bias.float().to(model.backbone.device)
    premise_NC = model.premise(train).to(model.backbone.device) if model.calibrator.premise else None
    soft = any(example.shares for example in train)
    temperature_N = torch.tensor([temperature if example.shares else 1.0 for example in train], device=model.backbone.device)

    def loss(drawn: _Drawn) -> Tensor:
        below_BTD = cache.get(_keys(model, drawn.rows, drawn.template), model.backbone.device) if cache else None
        output, targets_B = model.output(drawn.batch, below_BTD), targets_N[drawn.indices]
        if soft:
            return distillation(model.reader.scores(output, drawn.batch) - bias_C, targets_B, temperature_N[drawn.indices])
        bias = bias_C if premise_NC is None else premise_NC[drawn.indices, : model.most([train[index] for index in drawn.indices])]
        return model.reader.loss(output, drawn.batch, targets_B, bias)

    return loss


def _keys(model: TunedModel, rows: Sequence[Row], template: int) -> list[Hashable]:
    """What the rows' states below the first trained block depend on: the frozen weights there, how they compute, and the tokens."""
    frozen = model.backbone.fingerprint, model.backbone.precision, model.first_block
    return [(*frozen, *given) for row in rows for given in model.asking.given(row, template)]


def _kept_below(model: TunedModel, rows: _Rows, recipe: Recipe, steps: int, session: Session) -> StateCache | None:
    """The session's cache with the states below the first trained block, which stay the same from epoch to epoch and from fold to fold.

    None where it would not be faster: nothing is frozen below, rows change with their demonstrations, or the steps see hardly more rows
    than would have to be computed.
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


def _uncached(model: TunedModel, rows: _Rows, cache: StateCache) -> list[tuple[int, Sequence[Row], list[int]]]:
    """For each template, its rows and the indices of those whose states are not kept yet."""
    return [
        (template, encoded, [index for index, row in enumerate(encoded) if not all(key in cache for key in _keys(model, [row], template))])
        for template, encoded in enumerate(rows)
    ]


def _pays(model: TunedModel, recipe: Recipe, steps: int, computed: int) -> bool:
    """Whether the steps see more rows than would have to be computed for the cache."""
    return model.first_block > 0 and model.demonstrations is None and steps * _step_rows(recipe) > computed


def _fill(model: TunedModel, rows: Sequence[Row], template: int, cache: StateCache) -> bool:
    for indices in model.asking.buckets(rows, template, size=32):
        chosen = [rows[index] for index in indices]
        batch = model.asking.collate(chosen, template)
        with torch.no_grad():
            hidden_BTD = model.below(batch)
        if not cache.add(_keys(model, chosen, template), batch.mask_BT.sum(1).tolist(), hidden_BTD):
            return False
    return True
