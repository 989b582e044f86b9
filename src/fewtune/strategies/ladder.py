"""From the cheapest way to the dearest, on one PLM or several: each is judged on labelled rows that it has not seen, and the simplest
that is not worse is kept; of several PLMs the ways that each of them would keep, side by side, unless that is worse.

Tuning can end below what the PLM does by itself, and calibration can help or hurt; which it is, the labelled rows themselves tell. Which
PLM is the better one they hardly ever do, but what one does not know another may.

Dimensions: N rows, C candidates, M rungs, S ways side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtune import estimate, registry
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.data.sampling import derive, distinct, folds
from fewtune.model import TunedModel
from fewtune.precision import settle_precision
from fewtune.readout.mixing import Mix, stacked
from fewtune.recipe import Recipe
from fewtune.routes import Routes
from fewtune.strategies import frozen
from fewtune.strategies.folds import FOLDS, fold_by_fold, groups
from fewtune.strategies.rungs import Joined, Rung, rungs_of
from fewtune.strategies.supervised import Supervised
from fewtune.strategies.verdict import Verdict
from fewtune.tasks import kind_of, one_label
from fewtune.tasks.metrics import Ratio, figure
from fewtune.tasks.task import Task
from fewtune.train.fit import Session

_FIRST, _LEAST = 2, 6
"""After so many folds, of so many rows at least, a dear rung that is not better than a simpler one is given up: 8 % of those that
would prove better by two standard errors in the end (normal errors, half of the rows), 24 % of those by one."""

_JOINED = 1.0
"""Ways on several PLMs stand side by side unless that is worse than the best one alone by so many standard errors: 16 rows can hardly
tell which is the best, and where they are wrong much is lost (bench/results/combine-mpnet-base.md)."""
_HEARD = 0.3
"""A way whose weight is less than this part of an equal share changes hardly an answer, and is not worth another PLM."""


@dataclass(frozen=True)
class Judged:
    """What the labelled rows say of each rung, on rows that it has not seen.

    The last rungs, one for each of the `margins`, are wanted for other reasons, each unless it is worse than what is kept of those before
    it by so many standard errors of the loss; the last of all, if it is `guarded`, neither where fewer of its answers are right, beyond the
    interval of the difference. Those `set_aside` were not better on the first of these rows than a simpler one, and were not judged on the
    others.
    """

    rungs: tuple[Rung | Joined, ...]
    verdicts_M: tuple[Verdict, ...]
    margins: tuple[float, ...] = ()
    set_aside: tuple[str, ...] = ()
    guarded: bool = False

    @property
    def losses_NM(self) -> NDArray[np.float64]:
        """Those of each row and rung."""
        return np.stack([verdict.losses_N for verdict in self.verdicts_M], 1)

    @property
    def ratios_M(self) -> tuple[Ratio, ...]:
        """What each rung's answers add to the metric."""
        return tuple(verdict.ratio for verdict in self.verdicts_M)

    def choose(self, losses_NM: NDArray[np.float64], ratios_M: Sequence[Ratio]) -> int:
        """The rule of choosing: losses_NM and what each rung's answers add to the metric → the number of a rung."""
        kept = estimate.preferring(losses_NM, self.margins)
        if not self.guarded or kept < len(self.rungs) - 1:
            return kept
        before = estimate.preferring(losses_NM[:, :-1], self.margins[:-1])
        return before if estimate.worse(ratios_M[-1], ratios_M[before]) else kept

    @property
    def kept(self) -> int:
        """The number of the rung that is kept: the simplest that is not worse, or one that is preferred to it."""
        return self.choose(self.losses_NM, self.ratios_M)

    def beside(self, rung: Rung | Joined, verdict: Verdict, *, margin: float, guarded: bool = False) -> Judged:
        """The same with one more, which is preferred to those before it unless it is worse by so many standard errors, or `guarded`."""
        rungs, verdicts_M, margins = (*self.rungs, rung), (*self.verdicts_M, verdict), (*self.margins, margin)
        return replace(self, rungs=rungs, verdicts_M=verdicts_M, margins=margins, guarded=guarded)

    def figures(self) -> list[dict[str, Any]]:
        """Each rung's metric and mean loss; the best of them is no estimate."""
        found = zip(self.rungs, self.ratios_M, self.losses_NM.mean(0).tolist(), strict=True)
        return [{"name": rung.name, ratio.metric: ratio.value, "loss": loss} for rung, ratio, loss in found]

    def mended(self, model: TunedModel | Routes) -> TunedModel | Routes:
        """The model of the kept rung, at the temperature that suits rows not seen and with what they chose."""
        verdict = self.verdicts_M[self.kept]
        calibrator = replace(model.calibrator, temperature=model.calibrator.temperature * verdict.temperature)
        return model.settled(replace(model.task, kind=verdict.kind)).calibrated(calibrator)


@dataclass(frozen=True)
class Ladder:
    """Zero-shot, zero-shot with what a search finds where that is wanted, in-context, tuned; what trains nothing plain and calibrated.

    Where no word is read, tuned and frozen embeddings, or tuned alone. Of several PLMs one way of each side by side, or with
    `combine=false` the one way that is best.
    """

    combine: bool = True

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """See `climb`."""
        model = climb([(recipe, backbone)], split, session=session)
        assert isinstance(model, TunedModel)  # on the one PLM
        return model

    def over(self, contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, session: Session) -> TunedModel | Routes:
        """See `climb`."""
        return climb(contestants, split, session=session, combine=self.combine)


def climb(contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, session: Session, combine: bool = True) -> TunedModel | Routes:
    """The model of the rung that was kept, of all rungs of all recipes; `about` holds its estimate and each rung's figures.

    With `combine`, ways on several PLMs may be kept side by side. Where rows are lacking (two distinct ones of each label) nothing can be
    held out: then the first recipe is tuned, with no estimate.
    """
    task = contestants[0][0].task
    if split.train:
        kind_of(task).check(task, split.train, "fit")
        contestants = settled(contestants, split)
    judging = replace(split, train=distinct(split.train))
    if lacking := kind_of(task).lacking(task, judging.train, FOLDS):
        session.say(f"No estimate: it needs {lacking}.")
        return Supervised().run(contestants[0][0], split, contestants[0][1], session=session)
    tempered = contestants[0][0].calibration is None
    judged = judge(rungs_of(contestants, judging), judging, session, tempered=tempered, brief=True, combine=combine)
    return finished(judged, split, session)


def settled(contestants: Sequence[tuple[Recipe, Backbone]], split: Split) -> list[tuple[Recipe, Backbone]]:
    """The same, each with the precision of all models that are made by it, which is looked for once, without demonstrations."""
    found = []
    for recipe, backbone in contestants:
        model = TunedModel.assemble(backbone, recipe.task, recipe.readout, max_length=recipe.max_length, seed=recipe.seed)
        settle_precision(model, recipe.precision, split)
        found.append((replace(recipe, precision=backbone.precision), backbone))
    return found


def finished(judged: Judged, split: Split, session: Session) -> TunedModel | Routes:
    """The model of the rung that is kept; `about` holds its estimate and each rung's figures."""
    kept, figures = judged.rungs[judged.kept], judged.figures()
    widened = estimate.widened(judged.verdicts_M[judged.kept].partings)
    found = estimate.chosen(judged.losses_NM, judged.ratios_M, seed=judged.rungs[0].recipe.seed, choose=judged.choose, widened=widened)
    each = ", ".join(f"{one['name']} {figure(found.metric, one[found.metric])} (loss {one['loss']:.2f})" for one in figures)
    session.say(f"On rows not seen: {each}. Kept: {kept.name}. Estimate: {estimate.spoken(found)}.")
    model = judged.mended(kept.run(split, session))
    if model.task.kind != kept.recipe.task.kind:
        session.say(f"Chosen on rows not seen: --kind {model.task.kind}.")
    about = {"kept": kept.name, "estimate": found.to_dict(), "rungs": figures}
    about |= {"recipe": kept.recipe.to_dict()} if isinstance(kept, Rung) else {}
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
    combine: bool = True,
) -> Judged:
    """What the labelled rows say of each rung, with `tempered` at the temperature that suits its scores (see `Verdict.of`).

    What `known` has of one, log_NC of the rows by models that have not seen them, is not made anew. With `brief`, a dear rung is set aside
    where it is not better, on the rows of the first folds, than what would be kept of those before it. With `combine`, of rungs on several
    PLMs the last one joins the ways that each of them would keep, if answers of this kind can be mixed.
    """
    names = ", ".join(rung.name for rung in rungs)
    session.say(f"Judging {names} on {len(judging.train)} labelled rows, each by a model that has not seen it.")
    task, seed, raw = rungs[0].recipe.task, rungs[0].recipe.seed, dict[str, Tensor]()

    def verdict_of(log_NC: Tensor, rows: Sequence[int]) -> Verdict:
        return Verdict.of(log_NC, task, [judging.train[row] for row in rows], seed=seed, tempered=tempered)

    def pooled(partings: Sequence[Tensor], learned: bool) -> Verdict:
        verdict = Verdict.pooled([verdict_of(log_NC, range(len(judging.train))) for log_NC in partings])
        return verdict if learned else replace(verdict, partings=0)

    kept, verdicts, aside, answers_M = list[Rung](), list[Verdict](), list[str](), list[list[Tensor]]()

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
        kept.append(rung)
        answers_M.append(partings)
        verdicts.append(pooled(partings, rung.learns))
    judged = Judged(tuple(kept), tuple(verdicts), set_aside=tuple(aside))
    return _joining(judged, answers_M, judging, pooled) if combine else judged


def _joining(
    judged: Judged, answers_M: Sequence[Sequence[Tensor]], judging: Split, pooled: Callable[[Sequence[Tensor], bool], Verdict]
) -> Judged:
    """The same with the ways that each PLM would keep side by side as the last rung, where there are several that are heard, and answers of
    this kind can be mixed. `answers_M` are log_NC of each parting; `pooled` makes a verdict of such, told whether anything was learned."""
    task, seed = judged.rungs[0].recipe.task, judged.rungs[0].recipe.seed
    rungs = [rung for rung in judged.rungs if isinstance(rung, Rung)]
    if not one_label(task):
        return judged
    own = [[number for number, rung in enumerate(rungs) if rung.backbone is plm] for plm in dict.fromkeys(rung.backbone for rung in rungs)]
    best_S = sorted(numbers[estimate.simplest(judged.losses_NM[:, numbers])] for numbers in own)
    while len(best_S) > 1:
        each = [_mixed(log_SNC, judging, task, seed) for log_SNC in _side_by_side([answers_M[number] for number in best_S])]
        mix = Mix.pooled([one for _, one in each])
        heard_S = [number for number, share in zip(best_S, mix.weights_M, strict=True) if share * len(best_S) >= _HEARD]
        if heard_S == best_S:
            joined = Joined(tuple(rungs[number] for number in best_S), mix)
            verdict = pooled([log_NC for log_NC, _ in each], any(rung.learns for rung in joined.rungs))
            return judged.beside(joined, verdict, margin=_JOINED)
        best_S = heard_S
    return judged


def _side_by_side(answers_S: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """log_SNC of each parting; what was not parted so often says the same again."""
    most = max(map(len, answers_S))
    return [torch.stack([partings[number % len(partings)].double() for partings in answers_S]) for number in range(most)]


def _mixed(log_SNC: Tensor, judging: Split, task: Task, seed: int) -> tuple[Tensor, Mix]:
    """log_NC of rows, each by the mix that suits the others, and the mix that suits all of them."""
    rows, targets_N = judging.train, torch.tensor(kind_of(task).targets(task, judging.train))
    log_NC = torch.zeros_like(log_SNC[0])
    for kept, held in folds(rows, FOLDS, seed=derive(seed, "mix"), groups=groups(task, rows)):
        log_NC[list(held)] = stacked(log_SNC[:, list(kept)], targets_N[list(kept)]).log(log_SNC[:, list(held)])
    return log_NC, stacked(log_SNC, targets_N)


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
