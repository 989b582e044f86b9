"""The ways that a job may go, from the cheapest to the dearest: rungs on one PLM or several, and such side by side. Knows how a model is
made of each; judges none.

Dimensions: M ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.errors import TaskError
from fewtune.model import TunedModel
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.readout.calibration import Calibration, Calibrator, Contextual, Uncalibrated
from fewtune.readout.mixing import Mix
from fewtune.readout.pmi import PMI
from fewtune.recipe import Recipe
from fewtune.routes import Routes
from fewtune.strategies.folds import provisional
from fewtune.strategies.strategy import Strategy
from fewtune.strategies.supervised import Supervised
from fewtune.strategies.zeroshot import ZeroShot, demonstrated
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
class Joined:
    """Ways on different PLMs side by side, whose answers become one by `mix`."""

    rungs: tuple[Rung, ...]
    mix: Mix

    @property
    def name(self) -> str:
        """Those of the ways."""
        return " + ".join(rung.name for rung in self.rungs)

    @property
    def recipe(self) -> Recipe:
        """That of the first; all have its task."""
        return self.rungs[0].recipe

    def run(self, split: Split, session: Session) -> Routes:
        """A model of each way, side by side, each as sure of itself as suits it alone."""
        models = []
        for number, (rung, warm) in enumerate(zip(self.rungs, self.mix.temperatures_M, strict=True), start=1):
            model = rung.run(split, session.child(f"route-{number}"))
            about = {"kept": rung.name.removesuffix(f" ({rung.backbone.name})"), "recipe": rung.recipe.to_dict()}
            own = replace(model.calibrator, temperature=model.calibrator.temperature * warm)
            models.append(replace(model, calibrator=own, about={**model.about, **about}))
        mix = replace(self.mix, temperatures_M=(1.0,) * len(models))
        return Routes(tuple(models), mix, Calibrator.identity(len(self.recipe.task.labels)))


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
