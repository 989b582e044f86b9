"""Give a tuned model exits: train them, then choose how sure a row must be to leave, so that a promise is kept. Knows no files.

    rows ─┬─► to learn from ─► exits ─────────┐
          ├─► to judge by ──► the criterion's predictor, thresholds to try
          └─► to test on ───► the loosest threshold that keeps the promise (fewtune.exits.promise)

Dimensions: N rows, L exits, C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewtune import early, registry
from fewtune.data.example import Example
from fewtune.data.sampling import derive
from fewtune.early import Seen, Ways
from fewtune.errors import DataError, SpecError
from fewtune.exits.criteria import NEVER, Confidence, Criterion, figures
from fewtune.exits.exits import Exits, mended
from fewtune.exits.promise import Promise, kept_until, thresholds
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch, bucketed_order
from fewtune.readout.similarity import logistic
from fewtune.strategies import trainable
from fewtune.strategies.zeroshot import targets
from fewtune.tasks import kind_of
from fewtune.tasks.metrics import ERRORS, wilson
from fewtune.train.fit import FitOptions, Group, Session, fit
from fewtune.train.losses import cross_entropy

Training = Literal["distill", "two-stage", "joint", "alternate"]
Read = Callable[[TunedModel, Sequence[Example], Sequence[int]], Seen]
"""What exits at some layers of a model read of examples: `early.seen`, or one that remembers what it has read."""
_LEAST = 1e-4  # below every deviation of a state that says something
_PASSES = 20


@dataclass(frozen=True)
class AddExits:
    """How exits are made and what is promised of them.

    `training`: with `distill` and `two-stage` the model is left as it is, to the bit, and its states are computed once. Exits learn what it
    answers (self-distillation: Liu et al. 2020, FastBERT), from rows without labels, too; or from labels (Xin et al. 2020, DeeBERT). With
    `joint` all that was tuned is tuned on, with the sum of all readouts' losses, each weighted by its layer (Zhou et al. 2020, PABEE);
    with `alternate` every second step is the last readout's alone (Xin et al. 2021, BERxiT).

    `layers` are those that get an exit, by default all but the last; `tolerance` is the share of a value's range within which two are
    one answer.
    """

    criterion: Criterion = field(default_factory=Confidence)
    promise: Promise = field(default_factory=Promise)
    training: Training = "distill"
    layers: tuple[int, ...] | None = None
    ensemble: bool = False
    tolerance: float = 0.05
    fit: FitOptions = field(default_factory=lambda: FitOptions(batch_size=64, weight_decay=0.05))
    seed: int = 42

    def run(
        self, model: TunedModel, rows: Sequence[Example], *, taught: Sequence[Example] = (), read: Read = early.seen, session: Session
    ) -> TunedModel:
        """The model with exits, which are off where no threshold can be shown to keep the promise.

        `rows` need labels where points are counted; a part of them tests the promise, so the model must not have been tuned on them.
        `taught` are labelled rows that exits learn from, those that the model was tuned on, say. With a `read` that remembers, several
        criteria share one pass over the rows. Raises `InputError` for what does not fit.
        """
        early.check(model)
        self._check(model, rows, taught)
        exits = self._installed(model)
        learn, judge, test = parts(rows, self.seed, fewest=self.promise.fewest, taught=bool(taught))
        model = replace(model, exits=exits)
        if self.training in ("joint", "alternate"):
            self._alone(model, tuple(taught), (), read, session)
            self._together(model, tuple(taught), session)
        else:
            self._alone(model, tuple(taught), tuple(learn), read, session)
        judged = read(model, judge, exits.layers)
        if exits.judge.weights:
            _learn_to_judge(model, exits, judged)
        tested = read(model, test, exits.layers)
        return self._promised(model, judged, test, tested, learned=len(learn) + len(taught), session=session)

    def _check(self, model: TunedModel, rows: Sequence[Example], taught: Sequence[Example]) -> None:
        kind = kind_of(model.task)
        if self.promise.kind == "drop":
            kind.check(model.task, rows, "exits")
        if taught:
            kind.check(model.task, taught, "exits")
        if self.training != "distill" and not taught:
            fix = "Give them with --train, or choose --training distill, which needs none."
            raise DataError(expected="labelled rows to learn from", got="none", where=f"--training {self.training}", fix=fix)
        if self.training in ("joint", "alternate") and (model.readout.pairs or not (model.deltas or model.readout.learning_rate)):
            got = "a readout that learns from pairs" if model.readout.pairs else "a model of which nothing is tuned"
            raise SpecError(expected="something that steps can tune on", got=got, where="--training", fix="Choose two-stage or distill.")

    def _installed(self, model: TunedModel) -> Exits:
        valued = kind_of(model.task).metrics[0] != "accuracy"
        criterion = self.criterion
        if valued and hasattr(criterion, "tolerance"):
            criterion = replace(criterion, tolerance=self.tolerance)  # type: ignore[type-var]
        return Exits.install(
            criterion,
            self.layers or tuple(range(1, model.backbone.depth)),
            backbone=model.backbone,
            reader=model.reader,
            candidates=len(model.task.labels),
            ensemble=self.ensemble,
            tolerance=self.tolerance if valued else None,
        )

    # Training

    def _alone(self, model: TunedModel, taught: tuple[Example, ...], others: tuple[Example, ...], read: Read, session: Session) -> None:
        """Train the exits on states that do not change."""
        exits = model.exits
        assert exits is not None
        rows = (*taught, *others) if self.training == "distill" else taught
        session.say(f"Reading {len(rows)} rows on {len(exits.layers)} layers.")
        found = read(model, rows, exits.layers)
        aims = mended(found.full_NC, model.calibrator).softmax(-1).detach() if self.training == "distill" else targets(model, rows)
        fit_on_states(exits, found, aims, model=model, options=self.fit, seed=derive(self.seed, "exits"), session=session)

    def _together(self, model: TunedModel, taught: tuple[Example, ...], session: Session) -> None:
        """Tune on what was tuned, and the exits with it."""
        exits, rows, aims_N = model.exits, model.asking.rows(taught, 0), targets(model, taught).to(model.backbone.device)
        assert exits is not None
        bias_C = torch.tensor(model.calibrator.bias_C, device=model.backbone.device)
        size = min(self.fit.batch_size, 16)
        steps = self.fit.steps if self.fit.steps is not None else min(2000, max(60, 3 * len(rows) // size))
        order = partial(bucketed_order, [len(row.ids) for row in rows], size=size)
        length = len(order(seed=0))
        weight_L = torch.tensor([*exits.layers, model.backbone.depth], dtype=torch.float32)
        weight_L = weight_L / weight_L.sum()

        def batches(step: int) -> tuple[int, Batch, list[int]]:
            indices = order(seed=derive(self.seed, "order", step // length))[step % length]
            return step, model.asking.collate([rows[index] for index in indices], 0), indices

        def loss(drawn: tuple[int, Batch, list[int]]) -> Tensor:
            step, batch, indices = drawn
            read, output = early.climbed(model, batch, exits.layers)
            last = model.reader.loss(output, batch, aims_N[indices], bias_C)
            if self.training == "alternate" and step % 2 == 0:
                return last
            losses = [cross_entropy(exits.scores(number, own) - bias_C, aims_N[indices]) for number, own in enumerate(read)]
            return (torch.stack([*losses, last]) * weight_L.to(last.device)).sum()

        session.say(f"Tuning {len(taught)} rows' readouts on all layers: {steps} steps of {size}.")
        with model.training():
            fit(self._groups(model), batches, loss, steps=steps, options=self.fit, seed=self.seed, session=session.child("all"))

    def _groups(self, model: TunedModel) -> list[Group]:
        assert model.exits is not None
        own = {name: weight for name, weight in model.exits.weights.items() if name.startswith("exits.")}
        return trainable.grouped([*trainable.of_model(model), ("", own, 1e-3)], self.fit.learning_rate)

    # The promise

    def _promised(
        self, model: TunedModel, judged: Seen, test: Sequence[Example], tested: Seen, *, learned: int, session: Session
    ) -> TunedModel:
        exits = model.exits
        assert exits is not None
        tried = thresholds(early.ways(model, exits, judged).sure_NL)
        if self.promise.kind == "budget":
            tried = tried[::-1]  # the loosest surely keeps it
        found = early.ways(model, exits, tested)
        last = kept_until(self._losses(model, exits, found, test, tried), self.promise)
        threshold = NEVER if last is None else tried[last]
        about = {
            "method": f"{self.training}, {type(self.criterion).__name__.lower()}{', ensemble' if self.ensemble else ''}",
            "promised": str(self.promise),
            "promise": registry.to_dict(self.promise),
            "rows": {"learned": learned, "judged": len(judged), "tested": len(test)},
            "depth": model.backbone.depth,
            **self._measured(model, exits, found, threshold),
        }
        if last is None:
            reason = f"Of {len(test)} rows no threshold could be shown to keep it: {self.promise}."
            session.say(f"{reason} The exits are off.")
            about["reason"] = reason
        return replace(model, exits=replace(exits.at(threshold), about=about))

    def _losses(
        self, model: TunedModel, exits: Exits, found: Ways, test: Sequence[Example], tried: Sequence[float]
    ) -> Iterator[NDArray[Any]]:
        """What each row adds, at each threshold in turn, to the mean that the promise bounds."""
        loss = self._loss(model, exits, found, test)
        for threshold in tried:
            yield loss(*found.at(threshold))

    def _loss(self, model: TunedModel, exits: Exits, found: Ways, test: Sequence[Example]) -> Callable[[Tensor, Tensor], NDArray[Any]]:
        if self.promise.kind == "agree":
            return lambda scores_NC, layers_N: 1.0 - early.agree(model, exits, scores_NC, found.full_NC).double().numpy()
        if self.promise.kind == "budget":
            return lambda scores_NC, layers_N: layers_N.double().numpy() / found.depth
        kind = kind_of(model.task)

        def points(scores_NC: Tensor) -> NDArray[Any]:
            ratio = kind.ratio(model.task, test, model.likely(scores_NC).numpy())
            return np.asarray(ratio.over_N / ratio.most * (-1 if ratio.metric in ERRORS else 1))

        full_N = points(found.full_NC)
        return lambda scores_NC, layers_N: full_N - points(scores_NC)

    @staticmethod
    def _measured(model: TunedModel, exits: Exits, found: Ways, threshold: float) -> dict[str, registry.Plain]:
        """What the rows that tested the promise show."""
        scores_NC, layers_N = found.at(threshold)
        agree_N = early.agree(model, exits, scores_NC, found.full_NC)
        low, high = wilson(int(agree_N.sum()), len(agree_N), confidence=0.95)
        return {
            "agreement": {"value": float(agree_N.double().mean()), "low": low, "high": high, "level": 0.95},
            "mean_layer": float(layers_N.double().mean()),
            "left_early": float((layers_N < found.depth).double().mean()),
        }


def parts(rows: Sequence[Example], seed: int, *, fewest: int, taught: bool = False) -> tuple[list[Example], list[Example], list[Example]]:
    """(to learn from, to judge by, to test on): half of the rows test, a third of the others judge, or two thirds where other rows are
    `taught`. Raises `DataError` for too few."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(derive(seed, "exits", "parts"))).tolist()
    test = max(len(rows) // 2, min(fewest, 3 * len(rows) // 4))
    judge = (len(rows) - test) * (2 if taught else 1) // 3
    if judge < 1 or test < fewest:
        fix = "Give more rows with --data (they need no labels), or promise less."
        raise DataError(expected=f"at least {fewest * 4 // 3 + 4} rows", got=str(len(rows)), where="exits", fix=fix)
    shuffled = [rows[index] for index in order]
    return shuffled[test + judge :], shuffled[test : test + judge], shuffled[:test]


def fit_on_states(exits: Exits, found: Seen, aims: Tensor, *, model: TunedModel, options: FitOptions, seed: int, session: Session) -> None:
    """Train all exits at once on what they read, which is standardised for that; what does so is put into the weights afterwards."""
    mean_LD, deviation_LD = found.states_NLD.mean(0), found.states_NLD.std(0, correction=0).clamp(min=_LEAST)
    states_NLD = (found.states_NLD - mean_LD) / deviation_LD
    weight_LCD, bias_LC = (nn.Parameter(torch.zeros(exits.weights[f"exits.{name}"].shape)) for name in ("weight", "bias"))
    aims_LN = aims.float() if aims.is_floating_point() else aims

    def loss(rows_B: Tensor) -> Tensor:
        scores_BLC = torch.einsum("bld,lcd->blc", states_NLD[rows_B], weight_LCD) + bias_LC
        aims_B = aims_LN[rows_B]
        each = mended(scores_BLC, model.calibrator)
        return torch.stack([cross_entropy(each[:, number], aims_B) for number in range(each.shape[1])]).sum()

    size = options.batch_size
    steps = options.steps if options.steps is not None else min(3000, max(200, _PASSES * len(found) // size))

    def batches(step: int) -> Tensor:
        return torch.randint(len(found), (min(size, len(found)),), generator=torch.Generator().manual_seed(derive(seed, "order", step)))

    group = Group({"exits.weight": weight_LCD, "exits.bias": bias_LC}, options.learning_rate or 3e-3)
    fit([group], batches, loss, steps=steps, options=replace(options, clip=1e3), seed=seed, session=session.child("exits"))
    with torch.no_grad():
        folded_LCD = weight_LCD / deviation_LD[:, None]
        exits.weights["exits.weight"].copy_(folded_LCD)
        exits.weights["exits.bias"].copy_(bias_LC - (folded_LCD * mean_LD[:, None]).sum(-1))


@torch.no_grad()
def _learn_to_judge(model: TunedModel, exits: Exits, judged: Seen) -> None:
    """Fit the confidence predictor: whether an exit's answer is the full model's, by figures for all exits, then for each by its state."""
    assert isinstance(exits.criterion, Confidence)
    strength, weights = exits.criterion.strength, exits.judge.weights
    found = early.ways(model, exits, judged)
    mended_LNC = mended(found.answers_LNC, model.calibrator)
    stands_LN = torch.stack([early.agree(model, exits, answers_NC, found.full_NC) for answers_NC in found.answers_LNC])
    figures_LNF = torch.stack([figures(mended_LNC[: number + 1]) for number in range(len(exits.layers))]).double()
    common_F, own_L = _by_figures(figures_LNF, stands_LN, strength)
    mean_LD, deviation_LD = judged.states_NLD.mean(0), judged.states_NLD.std(0, correction=0).clamp(min=_LEAST)
    scale = judged.states_NLD.shape[-1] ** -0.5  # so that all states together count as much as one figure
    for number, stands_N in enumerate(stands_LN):
        sure_N1 = (figures_LNF[number] @ common_F + own_L[number])[:, None].float()
        state_ND = (judged.states_NLD[:, number] - mean_LD[number]) / deviation_LD[number] * scale
        row_D, bias, share = torch.zeros(state_ND.shape[1], dtype=torch.float64), 0.0, 1.0
        if 0 < int(stands_N.sum()) < len(stands_N):
            row_F, bias = _odds(torch.cat([state_ND, sure_N1], 1), stands_N, strength)
            row_D, share = row_F[:-1], float(row_F[-1])
        state_D = row_D * scale / deviation_LD[number]
        weights["confidence.state"][number] = state_D
        weights["confidence.figures"][number] = common_F * share
        weights["confidence.bias"][number] = own_L[number] * share + bias - float(state_D @ mean_LD[number].double())


def _by_figures(figures_LNF: Tensor, stands_LN: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """(weights_F of all exits, bias_L of each) of the log-odds that an answer stands."""
    exits, rows, size = figures_LNF.shape
    mean_F, deviation_F = figures_LNF.mean((0, 1)), figures_LNF.std((0, 1), correction=0).clamp(min=_LEAST)
    which_LNL = torch.eye(exits, dtype=torch.float64)[:, None].expand(-1, rows, -1)
    read_LNF = torch.cat([(figures_LNF - mean_F) / deviation_F, which_LNL], -1)
    row_F, bias = _odds(read_LNF.flatten(0, 1), stands_LN.flatten(), strength)
    common_F = row_F[:size] / deviation_F
    return common_F, row_F[size:] + bias - common_F @ mean_F


def _odds(read_NF: Tensor, stands_N: Tensor, strength: float) -> tuple[Tensor, float]:
    """(weights_F, bias) of the log-odds that an answer stands; where all do, or none, the odds alone (Laplace's rule)."""
    right = int(stands_N.sum())
    if right in (0, len(stands_N)):
        return torch.zeros(read_NF.shape[1], dtype=torch.float64), float(np.log((right + 1) / (len(stands_N) - right + 1)))
    weight_CF, bias_C = logistic(read_NF, stands_N.long(), candidates=2, strength=strength)
    return weight_CF[1] - weight_CF[0], float(bias_C[1] - bias_C[0])
