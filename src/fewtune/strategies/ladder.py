"""From the cheapest way to the dearest, on one PLM or several: each is judged on labelled rows that it has not seen, and the simplest
that is not worse is kept.

Tuning can end below what the PLM does by itself, and calibration can help or hurt; which it is, the labelled rows themselves tell.

Dimensions: N rows, C candidates, M rungs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fewtune import estimate, registry
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.data.sampling import distinct
from fewtune.errors import TaskError
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.readout.calibration import Calibration, Contextual, Uncalibrated
from fewtune.readout.pmi import PMI
from fewtune.recipe import Recipe
from fewtune.strategies import frozen
from fewtune.strategies.folds import FOLDS, fold_by_fold, provisional
from fewtune.strategies.strategy import Strategy
from fewtune.strategies.supervised import Supervised
from fewtune.strategies.verdict import Verdict
from fewtune.strategies.zeroshot import ZeroShot, demonstrated
from fewtune.tasks import kind_of
from fewtune.tasks.metrics import Ratio, figure
from fewtune.train.fit import Session

SHOWN = Demonstrations(similar=1)
"""What is shown in-context where nothing else is wanted: the same examples to all, which autoregressive PLMs read once."""
_FIRST, _LEAST = 2, 6
"""After so many folds, of so many rows at least, a dear rung that is not better than a simpler one is given up: 8 % of those that
would prove better by two standard errors in the end (normal errors, half of the rows), 24 % of those by one."""


@dataclass(frozen=True)
class Rung:
    """One way, with the recipe that it runs and the PLM that it runs on."""

    name: str
    strategy: Strategy
    recipe: Recipe
    backbone: Backbone

    @property
    def learns(self) -> bool:
        """Whether it learns from labelled rows, so that it must be judged on others."""
        return isinstance(self.strategy, Supervised)

    @property
    def shows(self) -> bool:
        """Whether labelled rows stand in its prompts; no row is ever shown itself, so that all can judge."""
        return self.recipe.demonstrations is not None

    @property
    def cost(self) -> tuple[bool, bool, int, bool]:
        """What makes it dearer than another: that it needs labelled rows, that it has something to train, the size of its PLM. Frozen
        embeddings come behind tuned ones of their PLM, for few rows prefer them too readily (bench/preference.py)."""
        frozen = self.learns and not self.recipe.deltas and self.recipe.readout.pairs
        return self.learns or self.shows, bool(self.recipe.deltas) or frozen, self.backbone.parameters, frozen

    @property
    def dear(self) -> bool:
        """Whether it takes minutes: a language model is tuned. What learns from pairs takes seconds."""
        return bool(self.recipe.deltas) and not self.recipe.readout.pairs

    @property
    def given(self) -> Recipe:
        """The recipe as it is run: what only rows not seen can choose is chosen by those that judge, not by folds within the folds."""
        return replace(self.recipe, task=provisional(self.recipe.task))

    def run(self, split: Split, session: Session) -> TunedModel:
        """A model made this way."""
        return self.strategy.run(self.given, split, self.backbone, session=session)


@dataclass(frozen=True)
class Judged:
    """What the labelled rows say of each rung, on rows that it has not seen.

    With a `margin` the last rung is wanted for other reasons, unless it is worse by so many standard errors. Those `set_aside` were not
    better on the first of these rows than a simpler one, and were not judged on the others.
    """

    rungs: tuple[Rung, ...]
    verdicts_M: tuple[Verdict, ...]
    margin: float | None = None
    set_aside: tuple[str, ...] = ()

    @property
    def losses_NM(self) -> NDArray[np.float64]:
        """Those of each row and rung."""
        return np.stack([verdict.losses_N for verdict in self.verdicts_M], 1)

    @property
    def ratios_M(self) -> tuple[Ratio, ...]:
        """What each rung's answers add to the metric."""
        return tuple(verdict.ratio for verdict in self.verdicts_M)

    @property
    def choose(self) -> Callable[[NDArray[np.float64]], int]:
        """The rule of choosing: losses_NM → the number of a rung."""
        return estimate.simplest if self.margin is None else partial(estimate.last_or_simplest, errors=self.margin)

    @property
    def kept(self) -> int:
        """The number of the rung that is kept: the simplest that is not worse."""
        return self.choose(self.losses_NM)

    def figures(self) -> list[dict[str, Any]]:
        """Each rung's metric and mean loss; the best of them is no estimate."""
        found = zip(self.rungs, self.ratios_M, self.losses_NM.mean(0).tolist(), strict=True)
        return [{"name": rung.name, ratio.metric: ratio.value, "loss": loss} for rung, ratio, loss in found]

    def mended(self, model: TunedModel) -> TunedModel:
        """The model of the kept rung, at the temperature that suits rows not seen and with what they chose."""
        verdict = self.verdicts_M[self.kept]
        calibrator = replace(model.calibrator, temperature=model.calibrator.temperature * verdict.temperature)
        return replace(model, task=replace(model.task, kind=verdict.kind), calibrator=calibrator)


@dataclass(frozen=True)
class Ladder:
    """Zero-shot, zero-shot with what a search finds where that is wanted, in-context, tuned; what trains nothing plain and calibrated.

    Where no word is read, tuned and frozen embeddings, or tuned alone.
    """

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """See `climb`."""
        return climb([(recipe, backbone)], split, session=session)

    def over(self, contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, session: Session) -> TunedModel:
        """See `climb`."""
        return climb(contestants, split, session=session)


def climb(contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, session: Session) -> TunedModel:
    """The model of the rung that was kept, of all rungs of all recipes; `about` holds its estimate and each rung's figures.

    Where rows are lacking (two distinct ones of each label) nothing can be held out: then the first recipe is tuned, with no estimate.
    """
    task = contestants[0][0].task
    if split.train:
        kind_of(task).check(task, split.train, "fit")
        contestants = settled(contestants, split)
    judging = replace(split, train=distinct(split.train))
    if lacking := kind_of(task).lacking(task, judging.train, FOLDS):
        session.say(f"No estimate: it needs {lacking}.")
        return Supervised().run(contestants[0][0], split, contestants[0][1], session=session)
    judged = judge(rungs_of(contestants, judging), judging, session, tempered=contestants[0][0].calibration is None, brief=True)
    return finished(judged, split, session)


def settled(contestants: Sequence[tuple[Recipe, Backbone]], split: Split) -> list[tuple[Recipe, Backbone]]:
    """The same, each with the precision of all models that are made by it, which is looked for once, without demonstrations."""
    found = []
    for recipe, backbone in contestants:
        model = TunedModel.assemble(backbone, recipe.task, recipe.readout, max_length=recipe.max_length, seed=recipe.seed)
        settle_precision(model, recipe.precision, split)
        found.append((replace(recipe, precision=backbone.precision), backbone))
    return found


def finished(judged: Judged, split: Split, session: Session) -> TunedModel:
    """The model of the rung that is kept; `about` holds its estimate and each rung's figures."""
    kept, figures = judged.rungs[judged.kept], judged.figures()
    widened = estimate.widened(judged.verdicts_M[judged.kept].partings)
    found = estimate.chosen(judged.losses_NM, judged.ratios_M, seed=judged.rungs[0].recipe.seed, choose=judged.choose, widened=widened)
    each = ", ".join(f"{one['name']} {figure(found.metric, one[found.metric])} (loss {one['loss']:.2f})" for one in figures)
    session.say(f"On rows not seen: {each}. Kept: {kept.name}. Estimate: {estimate.spoken(found)}.")
    model = judged.mended(kept.run(split, session))
    if model.task.kind != kept.recipe.task.kind:
        session.say(f"Chosen on rows not seen: --kind {model.task.kind}.")
    about = {"kept": kept.name, "estimate": found.to_dict(), "rungs": figures, "recipe": kept.recipe.to_dict()}
    about |= {"set_aside": list(judged.set_aside)} if judged.set_aside else {}
    return replace(model, about={**model.about, **about})


def judge(
    rungs: tuple[Rung, ...],
    judging: Split,
    session: Session,
    *,
    tempered: bool,
    known: Callable[[Rung], Tensor | None] = lambda rung: None,
    brief: bool = False,
) -> Judged:
    """What the labelled rows say of each rung, with `tempered` at the temperature that suits its scores (see `Verdict.of`).

    What `known` has of one, log_NC of the rows by models that have not seen them, is not made anew. With `brief`, a dear rung is set aside
    where it is not better, on the rows of the first folds, than what would be kept of those before it.
    """
    names = ", ".join(rung.name for rung in rungs)
    session.say(f"Judging {names} on {len(judging.train)} labelled rows, each by a model that has not seen it.")
    task, seed, raw = rungs[0].recipe.task, rungs[0].recipe.seed, dict[str, Tensor]()

    def verdict_of(log_NC: Tensor, rows: Sequence[int]) -> Verdict:
        return Verdict.of(log_NC, task, [judging.train[row] for row in rows], seed=seed, tempered=tempered)

    kept, verdicts, aside = list[Rung](), list[Verdict](), list[str]()

    def hopeless(rows: Sequence[int], log_NC: Tensor) -> bool:
        before = Judged(tuple(kept), tuple(verdicts))
        simpler_N = before.verdicts_M[before.kept].losses_N[list(rows)]
        return bool(verdict_of(log_NC, rows).losses_N.mean() >= simpler_N.mean())

    for number, rung in enumerate(rungs):
        log_NC = known(rung)
        doubted = hopeless if brief and kept and rung.dear else None
        partings = [log_NC] if log_NC is not None else _unseen(rung, judging, session.child(f"rung-{number}"), raw, doubted)
        if not partings:
            aside.append(rung.name)
            session.say(f"Set aside: {rung.name}, which is not better than a simpler way on the rows of the first {_FIRST} folds.")
            continue
        verdict = Verdict.pooled([verdict_of(one, range(len(judging.train))) for one in partings])
        kept.append(rung)
        verdicts.append(verdict if rung.learns else replace(verdict, partings=0))
    return Judged(tuple(kept), tuple(verdicts), set_aside=tuple(aside))


def rungs_of(contestants: Sequence[tuple[Recipe, Backbone]], judging: Split) -> tuple[Rung, ...]:
    """Those of all PLMs, from the cheapest; with several of them a rung's name says which it is."""
    found = [rung for recipe, backbone in contestants for rung in _rungs(recipe, backbone, judging)]
    if len(contestants) > 1:
        found = [replace(rung, name=f"{rung.name} ({rung.backbone.name})") for rung in found]
    return tuple(sorted(found, key=lambda rung: rung.cost))


def _rungs(recipe: Recipe, backbone: Backbone, judging: Split) -> tuple[Rung, ...]:
    tuned = Rung("tuned", Supervised(), recipe, backbone)
    bare = replace(recipe, deltas=(), search=(), adapt=(), demonstrations=None)
    if not recipe.readout.needs_slot:
        embedded = Rung("frozen embeddings", Supervised(), bare, backbone)
        return (embedded, tuned) if recipe.readout.pairs and recipe.deltas else (tuned,)
    ways: dict[str, Calibration] = {"": Uncalibrated()}
    labels = bool(recipe.task.labels)
    if not recipe.readout.reverses:
        ways[" calibrated"] = Contextual() if labels else PMI()
    if recipe.calibration is not None and recipe.calibration.needs != "targets":
        ways = {"": recipe.calibration}

    def untuned(name: str, own: Recipe) -> list[Rung]:
        return [Rung(name + way, ZeroShot(), replace(own, calibration=kind), backbone) for way, kind in ways.items()]

    rungs = untuned("zero-shot", bare)
    if recipe.search:
        # Without a delta nothing is tuned, and what is found is found from the rows that a fold may see.
        rungs.append(Rung("zero-shot, searched", Supervised(), replace(bare, search=recipe.search), backbone))
    shown = replace(bare, demonstrations=recipe.demonstrations or SHOWN)
    if recipe.demonstrations or (labels and backbone.causal and fits(shown, backbone, judging)):
        rungs += untuned("in-context", shown)
    return (*rungs, tuned)


def fits(recipe: Recipe, backbone: Backbone, judging: Split) -> bool:
    """Whether there is room for an example of each label beside a query."""
    model = TunedModel.assemble(backbone, recipe.task, recipe.readout, max_length=recipe.max_length)
    try:
        demonstrated(model, recipe, judging, Session())
    except TaskError:
        return False
    return True


def _unseen(
    rung: Rung, judging: Split, session: Session, raw: dict[str, Tensor], hopeless: Callable[[Sequence[int], Tensor], bool] | None
) -> list[Tensor]:
    """Calibrated log-probabilities_NC of each row by a model that has not learned from it; of several partings where these cost nothing,
    and of none where the rows of the first folds are `hopeless`.

    Where nothing is learned, ways that differ in their calibration alone share one pass over the rows, kept in `raw`.
    """
    if rung.learns and frozen.applies(rung.given):
        return frozen.unseen(rung.given, judging, rung.backbone, session)
    if rung.learns:
        parting: list[Tensor] = []
        found = fold_by_fold(rung.strategy, rung.given, judging, rung.backbone, session, read=TunedModel.log_probabilities)
        for fold, (rows, log_NC) in enumerate(found, start=1):
            if hopeless is not None and fold == _FIRST and len(rows) >= _LEAST and hopeless(rows, log_NC):
                return []
            parting = [log_NC]
        return parting
    model = rung.run(judging if rung.shows else replace(judging, train=()), session)
    key = registry.key_of([replace(rung.recipe, calibration=None).to_dict(), rung.backbone.fingerprint])
    if key not in raw:
        raw[key] = model.raw_scores(judging.train)
    return [model.log_probabilities(judging.train, raw[key])]
