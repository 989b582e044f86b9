"""From the cheapest way to the dearest, on one PLM or several: each is judged on labelled rows that it has not seen, and the simplest
that is not worse is kept.

Tuning can end below what the PLM does by itself, and calibration can help or hurt; which it is, the labelled rows themselves tell.

Dimensions: N rows, C candidates, M rungs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtune import estimate
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.data.sampling import derive, distinct, folds
from fewtune.errors import TaskError
from fewtune.model import TunedModel
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.readout.calibration import Calibration, Contextual, Uncalibrated, expected_temperature
from fewtune.recipe import Recipe
from fewtune.strategies.strategy import Strategy
from fewtune.strategies.supervised import FOLDS, Supervised, out_of_fold
from fewtune.strategies.zeroshot import ZeroShot, demonstrated
from fewtune.tasks import kind_of
from fewtune.train.fit import Session

SHOWN = Demonstrations(similar=1)
"""What is shown in-context where nothing else is wanted: the same examples to all, which autoregressive PLMs read once."""


@dataclass(frozen=True)
class Rung:
    """One way, with the recipe that it runs and the PLM that it runs on."""

    name: str
    strategy: Strategy
    recipe: Recipe
    backbone: Backbone

    @property
    def learns(self) -> bool:
        """Whether it learns from labelled rows or shows some, so that it must be judged on others."""
        return isinstance(self.strategy, Supervised) or self.recipe.demonstrations is not None

    @property
    def cost(self) -> tuple[bool, bool, int]:
        """What makes it dearer than another: that it learns, that it has something to train, the size of its PLM."""
        return self.learns, bool(self.recipe.deltas), self.backbone.parameters

    def run(self, split: Split, session: Session) -> TunedModel:
        """A model made this way."""
        return self.strategy.run(self.recipe, split, self.backbone, session=session)


@dataclass(frozen=True)
class Judged:
    """What the labelled rows say of each rung: losses_NM and right_NM of rows that it has not seen, and the temperature of its scores.

    `prefers_last` is for a last rung that is wanted for other reasons, unless it is worse.
    """

    rungs: tuple[Rung, ...]
    losses_NM: NDArray[np.float64]
    right_NM: NDArray[np.float64]
    temperatures_M: tuple[float, ...]
    prefers_last: bool = False

    @property
    def choose(self) -> Callable[[NDArray[np.float64]], int]:
        """The rule of choosing: losses_NM → the number of a rung."""
        return estimate.last_or_simplest if self.prefers_last else estimate.simplest

    @property
    def kept(self) -> int:
        """The number of the rung that is kept: the simplest that is not worse."""
        return self.choose(self.losses_NM)

    def figures(self) -> list[dict[str, Any]]:
        """Each rung's accuracy and mean loss; the best of them is no estimate."""
        means = zip(self.rungs, self.right_NM.mean(0).tolist(), self.losses_NM.mean(0).tolist(), strict=True)
        return [{"name": rung.name, "accuracy": right, "loss": loss} for rung, right, loss in means]


@dataclass(frozen=True)
class Ladder:
    """Zero-shot, zero-shot calibrated, zero-shot with what a search finds where that is wanted, in-context, tuned.

    Where no word is read, frozen embeddings and tuned, or tuned alone.
    """

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """See `climb`."""
        return climb([(recipe, backbone)], split, session=session)

    def over(self, contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, session: Session) -> TunedModel:
        """See `climb`."""
        return climb(contestants, split, session=session)


def climb(contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, session: Session) -> TunedModel:
    """The model of the rung that was kept, of all rungs of all recipes; `about` holds its estimate and each rung's figures.

    Without two distinct rows of each label nothing can be held out: then the first recipe is tuned, with no estimate.
    """
    task = contestants[0][0].task
    if split.train:
        kind_of(task).check(task, split.train, "fit")
    judging = replace(split, train=distinct(split.train))
    if min((Counter(example.label for example in judging.train)[label] for label in task.labels), default=0) < 2:
        session.say("No estimate: it needs two different rows of each label.")
        return Supervised().run(contestants[0][0], split, contestants[0][1], session=session)
    judged = judge(rungs_of(contestants, judging), judging, session, tempered=contestants[0][0].calibration is None)
    return finished(judged, split, session)


def finished(judged: Judged, split: Split, session: Session) -> TunedModel:
    """The model of the rung that is kept; `about` holds its estimate and each rung's figures."""
    kept, figures = judged.rungs[judged.kept], judged.figures()
    found = estimate.chosen(judged.losses_NM, judged.right_NM, seed=judged.rungs[0].recipe.seed, choose=judged.choose)
    each = ", ".join(f"{one['name']} {100 * one['accuracy']:.0f} % (loss {one['loss']:.2f})" for one in figures)
    session.say(f"On rows not seen: {each}. Kept: {kept.name}. Estimate: {estimate.spoken(found)}.")
    model = kept.run(split, session)
    model = model.calibrated(replace(model.calibrator, temperature=model.calibrator.temperature * judged.temperatures_M[judged.kept]))
    about = {"kept": kept.name, "estimate": found.to_dict(), "rungs": figures, "recipe": kept.recipe.to_dict()}
    return replace(model, about={**model.about, **about})


def judge(
    rungs: tuple[Rung, ...],
    judging: Split,
    session: Session,
    *,
    tempered: bool,
    known: Callable[[Rung], Tensor | None] = lambda rung: None,
) -> Judged:
    """What the labelled rows say of each rung.

    What `known` has of one, log_NC of the rows by models that have not seen them, is not made anew.

    With `tempered`, each rung is judged at the temperature that suits its scores, a row at that of the other rows: how sure of itself
    a way is says nothing of how often it is right, can be mended, and differs much between readouts."""
    names = ", ".join(rung.name for rung in rungs)
    session.say(f"Judging {names} on {len(judging.train)} labelled rows, each by a model that has not seen it.")
    recipe = rungs[0].recipe
    targets_N = torch.tensor(kind_of(recipe.task).targets(recipe.task, judging.train))
    parts = temperature_parts(judging, recipe)
    losses, right, temperatures = [], [], []
    for number, rung in enumerate(rungs):
        log_NC = known(rung)
        if log_NC is None:
            log_NC = _unseen(rung, judging, session.child(f"rung-{number}"))
        right.append((log_NC.argmax(1) == targets_N).double())
        temperatures.append(expected_temperature(log_NC, targets_N) if tempered else 1.0)
        losses.append(unseen_losses(log_NC, targets_N, parts if tempered else ()))
    return Judged(rungs, torch.stack(losses, 1).numpy(), torch.stack(right, 1).numpy(), tuple(temperatures))


def temperature_parts(judging: Split, recipe: Recipe) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """The rows by which the temperature of other rows is found."""
    return folds(judging.train, FOLDS, seed=derive(recipe.seed, "temperature"))


def unseen_losses(log_NC: Tensor, targets_N: Tensor, parts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """losses_N, each row at the temperature that suits the rows it is held out from; as they are without `parts`."""
    judged_NC = log_NC.clone()
    for kept, held in parts:
        temperature = expected_temperature(log_NC[list(kept)], targets_N[list(kept)])
        judged_NC[list(held)] = (log_NC[list(held)] / temperature).log_softmax(-1)
    return -judged_NC.gather(1, targets_N[:, None])[:, 0]


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
        frozen = Rung("frozen embeddings", Supervised(), bare, backbone)
        return (frozen, tuned) if recipe.readout.pairs and recipe.deltas else (tuned,)
    kinds: dict[str, Calibration] = {"zero-shot": Uncalibrated()}
    if not recipe.readout.reverses:
        kinds["zero-shot calibrated"] = Contextual()
    if recipe.calibration is not None and recipe.calibration.needs != "targets":
        kinds = {"zero-shot": recipe.calibration}
    rungs = [Rung(name, ZeroShot(), replace(bare, calibration=kind), backbone) for name, kind in kinds.items()]
    if recipe.search:
        # Without a delta nothing is tuned, and what is found is found from the rows that a fold may see.
        rungs.append(Rung("zero-shot, searched", Supervised(), replace(bare, search=recipe.search), backbone))
    shown = replace(bare, demonstrations=recipe.demonstrations or SHOWN)
    if recipe.demonstrations or (backbone.causal and fits(shown, backbone, judging)):
        rungs.append(Rung("in-context", ZeroShot(), shown, backbone))
    return (*rungs, tuned)


def fits(recipe: Recipe, backbone: Backbone, judging: Split) -> bool:
    """Whether there is room for an example of each label beside a query."""
    model = TunedModel.assemble(backbone, recipe.task, recipe.readout, max_length=recipe.max_length)
    try:
        demonstrated(model, recipe, judging, Session())
    except TaskError:
        return False
    return True


def _unseen(rung: Rung, judging: Split, session: Session) -> Tensor:
    """Calibrated log-probabilities_NC of each row by a model that has not learned from it."""
    if rung.learns:
        return out_of_fold(rung.recipe, judging, rung.backbone, session, read=TunedModel.log_probabilities, strategy=rung.strategy)
    return rung.run(replace(judging, train=()), session).log_probabilities(judging.train)
