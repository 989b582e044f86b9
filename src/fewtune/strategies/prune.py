"""Prune a tuned model: fewer and fewer weights, while those that remain learn labels and what the model answered before. Knows no files.

                    ┌─ matrices of the blocks ──► scores, schedule ──► bits and values
    tuned model ────┼─ embeddings of the words ─► magnitude ─────────► bits
                    └─ norms, or all the rest ──► trained as they are

What is counted: `share` is of all the weights that a file of the whole PLM would hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewtune import forecast, plm, registry
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.data.sampling import derive
from fewtune.deltas.delta import Installed, install_saved, load_strictly, remove_all
from fewtune.deltas.mask import BLOCKS, Mask, gone
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError, SpecError, TaskError
from fewtune.model import TunedModel
from fewtune.plm import BackboneName
from fewtune.strategies import trainable
from fewtune.strategies.distill import Distill, Drawn, Teaching, check
from fewtune.strategies.student import smaller_already
from fewtune.strategies.thinning import Thinning
from fewtune.train import masks
from fewtune.train.fit import FitOptions, Group, Session, fit

_FIRST = {
    "int8": "Prune first, and round last: --by prune --by int8.",
    "narrow": "Narrow it with narrow:trained=deltas, whose matrices are the PLM's and can be pruned.",
    "share": "Take one of the two ways: pruned blocks would share nothing.",
}
"""What to do with a model that was made smaller before."""
By = Literal["magnitude", "movement", "soft-movement", "lottery"]


@dataclass(frozen=True)
class Prune:
    """Half of all weights, or another `share` of them, go.

    `by` says which: those of least `magnitude`, the fewer remain the fewer go at a time (Zhu & Gupta 2017); those that training draws
    towards 0, by learned scores (`movement`, hard: Sanh et al. 2020); by scores below a `threshold`, where `strength` pulls all of them
    down and how many go is what comes of it (`soft-movement`); or `lottery`: in `rounds`, each of which trains anew from the PLM's own
    weights those that were largest after the one before (Frankle & Carbin 2019; of PLMs: Chen et al. 2020).

    Scores begin with `head_start` times |W| / mean |W|, so that few steps, in which nothing moves far, prune by magnitude; with 0 they
    begin as in the paper, whose runs are of many thousand steps.

    In each matrix of the blocks as many go, or where they rank lowest of `all` matrices (`within`). Of the embeddings of `words` the
    smallest go, and what remains is the PLM's `own`, so that it need not be stored; or it is `trained`, too; `whole`: none goes.
    Nothing goes during `warmup`, nothing more during `cooldown`, shares of the steps. Of a labelled row its own label has a part of
    `gold` in the loss, the rest is what the model answered before, at `temperature`. Rows are seen `passes` times, in 200 steps at
    least, unless `steps` are named.
    """

    share: float = 0.5
    by: By = "movement"
    within: Literal["matrix", "all"] = "matrix"
    words: Literal["own", "trained", "whole"] = "own"
    warmup: float = 0.1
    cooldown: float = 0.3
    threshold: float = 0.1
    strength: float = 100.0
    rounds: int = 3
    gold: float = 0.5
    temperature: float = 2.0
    passes: int = 4
    steps: int | None = None
    learning_rate: float | None = None
    score_rate: float = 1e-2
    head_start: float = 1.0
    batch_size: int = 16
    seed: int = 42

    def __post_init__(self) -> None:
        fewest = 0 if self.by == "magnitude" else 1
        fits = {
            "share": (0 < self.share < 1, "above 0 and below 1"),
            "warmup": (0 <= self.warmup <= 1, "from 0 to 1"),
            "cooldown": (0 <= self.cooldown <= 1 - self.warmup, "from 0 to what warmup leaves of 1"),
            "threshold": (0 < self.threshold < 1, "above 0 and below 1"),
            "strength": (self.strength >= 0, "at least 0"),
            "rounds": (self.rounds >= 1, "at least 1"),
            "gold": (0 <= self.gold <= 1, "from 0 to 1"),
            "temperature": (self.temperature > 0, "above 0"),
            "passes": (self.passes >= 1, "at least 1"),
            "steps": (self.steps is None or self.steps >= fewest, f"at least {fewest}"),
            "learning_rate": (self.learning_rate is None or self.learning_rate > 0, "above 0"),
            "score_rate": (self.score_rate > 0, "above 0"),
            "head_start": (self.head_start >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
        }
        registry.check_ranges(self, "prune", fits)

    def run(self, model: TunedModel, split: Split, *, session: Session) -> TunedModel:
        """The pruned model, on a PLM of its own; raises `InputError` for what cannot be pruned, `Interrupted` after Ctrl-C."""
        check((model,), split, "prune")
        if model.exits is not None:
            fix = "Prune the model that they were added to, then add them to what comes of it."
            raise TaskError(expected="a model without exits", got="one that has some", where="prune", fix=fix)
        work = _begun(self, model)
        try:
            work.learn(Teaching.of(self.taught, (model,), work.student, split, session), session)
            return work.finished(session)
        except BaseException:
            work.student.remove()
            raise

    @property
    def taught(self) -> Distill:
        """How labels and answers are learned."""
        return Distill(
            temperature=self.temperature,
            gold=self.gold,
            passes=self.passes,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def parts(self) -> list[Mask]:
        """Where weights can go."""
        words = Mask(sites=("words",), values="own" if self.words == "own" else "trained")
        return [Mask(sites=BLOCKS), *([] if self.words == "whole" else [words])]

    def of(self, prunable: int, total: int) -> float:
        """What goes of the `prunable` weights, so that it is `share` of all; raises `SpecError` where these are not enough."""
        share = self.share * total / prunable
        if share >= 1:
            got, fix = f"{self.share:g} of {total:,} weights, of which {prunable:,} can go", "Lower prune:share, or leave words as it is."
            raise SpecError(expected="a share that leaves something", got=got, where="prune.share", fix=fix)
        return share


@dataclass(frozen=True)
class _Work:
    """A model on its way: of its deltas some are `thin` and lose weights, until `share` is gone; `total` is how many weights there were.
    `own` and `tuned` are the weights of the PLM without and with what was tuned."""

    spec: Prune
    student: TunedModel
    thin: tuple[Thinning, ...]
    own: Mapping[str, Tensor]
    tuned: Mapping[str, Tensor]
    share: float
    total: int

    def learn(self, teaching: Teaching, session: Session) -> None:
        """Let weights go while the others are trained."""
        if self.spec.by == "lottery":
            self._rounds(teaching, session)
        else:
            self._fit(teaching, session.child("prune"), self._at)
            self._at(1.0)

    def _at(self, done: float) -> None:
        """Let go what is to be gone when so much is done of all that goes."""
        spec = self.spec
        for one in self.thin:
            if spec.by == "soft-movement" and one.scores:
                one.keep_above(spec.threshold * done)
            else:
                one.keep_largest(self.share * done, together=spec.within == "all")

    def _rounds(self, teaching: Teaching, session: Session) -> None:
        """The tuned model is the first that was trained; every round begins anew with what was largest after the one before."""
        weights = {name: weight for group in self._groups() for name, weight in group.weights.items()}
        first = {name: weight.detach().clone() for name, weight in weights.items()}
        for number in range(1, self.spec.rounds + 1):
            for one in self.thin:
                one.forget()
                one.keep_largest(1 - (1 - self.share) ** (number / self.spec.rounds), together=self.spec.within == "all")
                one.start_from(self.own)
            self._fit(teaching, session.child(f"round-{number}", told=number > 1), lambda done: None)
            if number < self.spec.rounds:
                self._again(weights, first)

    @torch.no_grad()
    def _again(self, weights: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> None:
        """Rewind what loses nothing; the matrices rank by what they have learned, and are rewound after that."""
        thin = {id(weight) for one in self.thin for weight in one.installed.weights.values()}
        for name, weight in weights.items():
            if id(weight) not in thin:
                weight.copy_(first[name])

    def _fit(self, teaching: Teaching, session: Session, at: Callable[[float], None]) -> None:
        """Say what is going to be done and for how long, and do it; what has gone by a step is a function of its number."""
        spec, student = self.spec, self.student
        steps = spec.taught.steps_for(len(teaching.rows))
        if not steps:
            return
        drawn, taught = teaching.batches(), teaching.loss()

        def batches(number: int) -> tuple[int, Drawn]:
            return number // session.world.size, drawn(number)

        def loss(batch: tuple[int, Drawn]) -> Tensor:
            done = masks.gradual(batch[0], steps=steps, warmup=spec.warmup, cooldown=spec.cooldown)
            at(done)
            return taught(batch[1]) + self._pull(done)

        with student.training():
            if not session.told:
                self._forecast(teaching, steps, lambda: loss(batches(steps // 2)), session)
            options = FitOptions(steps=steps, batch_size=spec.batch_size, weight_decay=0.0, average=spec.cooldown)
            fit(self._groups(), batches, loss, steps=steps, options=options, seed=spec.seed, session=session)

    def _pull(self, done: float) -> Tensor:
        """What draws the scores of soft movement down, harder as the threshold rises."""
        scores = [score for one in self.thin for score in one.scores] if self.spec.by == "soft-movement" else []
        return self.spec.strength * done * masks.pull(scores) if scores else torch.zeros((), device=self.student.backbone.device)

    def _forecast(self, teaching: Teaching, steps: int, loss: Callable[[], Tensor], session: Session) -> None:
        seconds = steps * forecast.step_seconds(self.student, loss, most=max(1, steps // 20))
        rounds = f"{self.spec.rounds} rounds of " if self.spec.by == "lottery" else ""
        session.say(
            f"Pruning {self.total:,} weights by {self.spec.by}, {self.student.trained_parameters:,} numbers being trained on "
            f"{len(teaching.rows):,} rows: {rounds}{steps} steps of {self.spec.batch_size}, about {seconds:.0f} s."
        )

    def _groups(self) -> list[Group]:
        """Weights with the learning rate that suits their kind; scores have their own."""
        scores = {id(score) for one in self.thin for score in one.scores}
        found = []
        for group in trainable.grouped(trainable.of_model(self.student), self.spec.learning_rate):
            own = {name: weight for name, weight in group.weights.items() if id(weight) in scores}
            rest = {name: weight for name, weight in group.weights.items() if name not in own}
            found += [Group(rest, group.learning_rate), *([Group(own, self.spec.score_rate)] if own else [])]
        return found

    def finished(self, session: Session) -> TunedModel:
        """The model with masks in the place of what lost weights."""
        thin = {id(one.installed): one for one in self.thin}
        deltas = tuple(thin[id(part)].settled() if id(part) in thin else part for part in self.student.deltas)
        out = sum(gone(part) for part in deltas if isinstance(part.delta, Mask))
        session.say(f"{out:,} of {self.total:,} weights are gone ({out / self.total:.1%}).")
        pruned = {"by": self.spec.by, "weights": self.total, "gone": out, "share": out / self.total}
        return replace(self.student, deltas=deltas, about={**self.student.about, "pruned": pruned})


def _begun(spec: Prune, model: TunedModel) -> _Work:
    """Everything as the tuned model has it, in a PLM of its own, from which nothing is missing yet but words."""
    shape = [part for part in model.deltas if not part.edits and not part.weights]
    tuned = _merged(model, [part for part in model.deltas if part not in shape])
    student, installed = _bare(spec, model), list[Installed]()
    backbone, drawn = student.backbone, torch.Generator()
    try:
        installed += install_saved(backbone, [(part.delta, part.state_dict(), "the model to be pruned") for part in shape])
        own = {name: weight.detach().clone() for name, weight in backbone.model.named_parameters()}
        names = {name for part in spec.parts() for name in part.weights(backbone)}
        total = sum(weight.numel() for weight in own.values())
        share, thin, held = spec.of(sum(own[name].numel() for name in names), total), list[Thinning](), set(names)
        for part in spec.parts():
            held |= part.biases(backbone).keys()
            if part.values == "own":
                installed.append(replace(part, share=share).install(backbone, generator=drawn))
            else:
                thin.append(
                    Thinning.of(part, backbone, tuned, scored=spec.head_start if "movement" in spec.by and part.sites == BLOCKS else None)
                )
                installed.append(thin[-1].installed)
        installed.append(_rest(backbone, own, tuned, held))
    except BaseException:
        remove_all(installed)
        raise
    if spec.by != "lottery":
        installed[-1].load_state_dict({name: tuned[name] for name in installed[-1].weights})
        load_strictly(student.reader.weights, dict(model.reader.weights), "the model to be pruned")
    return _Work(spec, replace(student, deltas=tuple(installed)), tuple(thin), own, tuned, share, total)


def _rest(backbone: Backbone, own: Mapping[str, Tensor], tuned: Mapping[str, Tensor], held: set[str]) -> Installed:
    """What is trained beside the matrices `held`: the norms, or all where more was tuned."""
    norms = Subset("norms").install(backbone, generator=torch.Generator())
    others = own.keys() - held - norms.weights.keys()
    if all(torch.equal(own[name], tuned[name]) for name in others):
        return norms
    norms.remove()
    return Subset("all").install(backbone, generator=torch.Generator())


def _bare(spec: Prune, model: TunedModel) -> TunedModel:
    """The model on a PLM of its own, without deltas, its readout as it was drawn; it is asked as before."""
    backbone = BackboneName.of(model.backbone).load("prune", device=str(model.backbone.device))
    backbone.precision = model.backbone.precision
    seed = derive(spec.seed, "init", "readout")
    bare = TunedModel.assemble(backbone, model.task, model.readout, max_length=model.max_length, seed=seed)
    # What was estimated of the whole model is not true of this one.
    about = {name: fact for name, fact in model.about.items() if name != "estimate"}
    return replace(bare, calibrator=model.calibrator, demonstrations=model.demonstrations, about=about)


def _merged(model: TunedModel, deltas: Sequence[Installed]) -> dict[str, Tensor]:
    """All weights with the deltas in them."""
    name = smaller_already(deltas)
    fix = _FIRST.get(name, "Tune with lora, ia3 or subset, each at a place of its own.")
    try:
        if name != "share":  # whose matrices would each be one's own again, and the model larger
            return plm.merged(model.backbone, deltas)
        got, cause = f"one by {name}", None
    except BackboneError as error:
        got, cause = f"one by {name}" if name else error.got, error
    raise SpecError(expected="a model whose deltas are changes of weights", got=got, where="prune", fix=fix) from cause
