"""Teacher → student: a smaller model learns what a tuned one answers, and, where that is wanted, what goes on inside it. Knows no files.

    labelled, soft-labelled, unlabelled texts ──► teachers ──► shares ─┐
                                             ├──► teacher's states ────┼──► loss ──► student
                                             └──► labels ──────────────┘

What a student starts from is `fewtune.strategies.student`. PET's student (`school.py`) learns soft labels, too, but from members that
never become smaller: it starts from a PLM and has no teacher to look into.

Dimensions: M teachers, N rows, B rows of a batch, C candidates, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from fewtune import forecast, registry
from fewtune.backbone import watch
from fewtune.backbone.watch import Inside
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive
from fewtune.errors import DataError, SpecError, TaskError
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch
from fewtune.readout.mixing import Mix
from fewtune.strategies import trainable
from fewtune.strategies.student import Trained, smaller
from fewtune.strategies.supervised import epoch_rows, mixed_epoch
from fewtune.tasks import kind_of
from fewtune.train.fit import FitOptions, Group, Session, fit
from fewtune.train.losses import cross_entropy, distillation, distillation_each, relations_apart, states_apart

Drawn = tuple[Batch, list[int]]
"""A batch, and the numbers of its rows."""


@dataclass(frozen=True)
class Distill:
    """A student of `layers` layers of the teacher (how many, or which: `Shallow`), half of them where nothing is said, or on the smaller
    PLM called `backbone`; with both, of so many layers of that PLM.

    It learns the teacher's probabilities at `temperature` (Hinton et al. 2015). Of a labelled row its own label has a part of `gold` in
    the loss. `hidden` weighs the squared distance of its states to the teacher's, layer by layer (`layer_map`; through a learned
    projection, which is thrown away, where widths differ), `relations` how its last layer's queries, keys and values are related
    among themselves, cut into `heads` heads of relations (MiniLMv2: Wang et al. 2021), by default as many as its attention has.
    `trained`: all weights, or the deltas that the teacher has. Rows are seen `passes` times, in 200 steps at least, unless `steps`
    are named.
    """

    layers: int | tuple[int, ...] | None = None
    backbone: str | None = None
    temperature: float = 2.0
    gold: float = 0.5
    hidden: float = 0.0
    relations: float = 0.0
    heads: int | None = None
    trained: Trained = "all"
    passes: int = 3
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = 16
    seed: int = 42

    def __post_init__(self) -> None:
        fits = {
            "temperature": (self.temperature > 0, "above 0"),
            "gold": (0 <= self.gold <= 1, "from 0 to 1"),
            "hidden": (self.hidden >= 0, "at least 0"),
            "relations": (self.relations >= 0, "at least 0"),
            "heads": (self.heads is None or self.heads >= 1, "at least 1"),
            "passes": (self.passes >= 1, "at least 1"),
            "steps": (self.steps is None or self.steps >= 0, "at least 0"),
            "learning_rate": (self.learning_rate is None or self.learning_rate > 0, "above 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
        }
        registry.check_ranges(self, "distill", fits)

    def steps_for(self, rows: int) -> int:
        """How many steps it takes on so many rows."""
        return self.steps if self.steps is not None else max(200, self.passes * rows // self.batch_size)

    def run(self, model: TunedModel, split: Split, *, session: Session) -> TunedModel:
        """The student of one teacher, on a PLM of its own; raises `InputError` for what cannot be taught, `Interrupted` after Ctrl-C."""
        return self.taught_by((model,), split, session=session)

    def taught_by(self, teachers: Sequence[TunedModel], split: Split, *, session: Session) -> TunedModel:
        """The student of several teachers of one task, whose probabilities are averaged; it starts from the first and looks into it."""
        first = teachers[0]
        check(teachers, split)
        layers = max(1, first.backbone.depth // 2) if self.layers is None and self.backbone is None else self.layers
        student = smaller(first, layers, self.backbone, trained=self.trained, seed=self.seed)
        if first.demonstrations is not None and student.demonstrations is None:
            session.say("Another PLM is shown no demonstrations: it learns to answer without them.")
        try:
            teaching = Teaching.of(self, teachers, student, split, session)
            teaching.learn(session)
        except BaseException:
            student.remove()
            raise
        return student


def layer_map(student: int, teacher: int) -> tuple[int, ...]:
    """Which of the teacher's layers each of the student's is held to, both counted from 0: as far up the stack (Jiao et al. 2020, section
    4.1), so that the last is held to the last.

    >>> layer_map(3, 6), layer_map(2, 5)
    ((1, 3, 5), (2, 4))
    """
    return tuple(-(-(number + 1) * teacher // student) - 1 for number in range(student))


def check(teachers: Sequence[TunedModel], split: Split, where: str = "distill") -> None:
    """Raise `InputError` where there is nothing that could be taught, or that it could be learned from."""
    first = teachers[0]
    kind = kind_of(first.task)
    if kind.offered != "task" or first.readout.pairs:
        got = first.task.kind if kind.offered != "task" else "a readout that learns from pairs of rows"
        fix = "Its answers are no distribution over labels that a student could learn; tune a smaller PLM with fit."
        raise TaskError(expected="a task and a readout whose scores can be learned", got=got, where=where, fix=fix)
    if any(one.task.labels != first.task.labels or one.task.kind != first.task.kind for one in teachers):
        raise TaskError(expected="teachers of one task", got="several", where=where, fix="Give models with the same labels.")
    if not (split.train or split.unlabeled or split.taught):
        raise DataError(expected="texts to learn from", got="none", where=where, fix="Give rows with --data or --unlabeled.")
    if split.train:
        kind.check(first.task, split.train, where)


@dataclass(frozen=True)
class Teaching:
    """What one student learns from: rows, what the teachers say of each, and the labels of the first `labeled` of them."""

    spec: Distill
    teacher: TunedModel
    student: TunedModel
    rows: tuple[Example, ...]
    said_NC: Tensor
    targets: Tensor
    projection: nn.Linear | None

    @classmethod
    def of(cls, spec: Distill, teachers: Sequence[TunedModel], student: TunedModel, split: Split, session: Session) -> Teaching:
        """Ask the teachers."""
        rows = (*split.train, *split.unlabeled, *(replace(row, shares=None) for row in split.taught))
        session.say(f"{len(rows):,} rows are answered by {'the teacher' if len(teachers) == 1 else f'{len(teachers)} teachers'}.")
        said_NC = _said(teachers, (*split.train, *split.unlabeled), split.taught)
        targets = torch.tensor(kind_of(student.task).targets(student.task, split.train)) if split.train else torch.zeros(0)
        if spec.hidden or spec.relations:
            _check_inside(spec, teachers[0], student)
        widths, projection = (student.backbone.width, teachers[0].backbone.width), None
        if spec.hidden and widths[0] != widths[1]:
            with torch.random.fork_rng():
                torch.manual_seed(derive(spec.seed, "init", "projection"))
                projection = nn.Linear(*widths, bias=False).to(student.backbone.device)
        return cls(spec, teachers[0], student, rows, said_NC.to(student.backbone.device), targets.to(student.backbone.device), projection)

    def learn(self, session: Session) -> None:
        """Say what is going to be done and for how long, and do it."""
        spec, student = self.spec, self.student
        steps = spec.steps_for(len(self.rows))
        batches, groups = self.batches(), self._groups()
        if not steps or not groups:
            return
        with student.training(), ExitStack() as watched:
            insides = [watched.enter_context(watch.inside(one.backbone)) for one in (student, self.teacher)] if self._looks_inside else []
            loss = self.loss(insides)
            drawn = batches(0)
            seconds = steps * forecast.step_seconds(student, lambda: loss(drawn), most=max(1, steps // 20))
            session.say(
                f"A student of {student.backbone.depth} layers learns {student.trained_parameters:,} weights from {len(self.rows):,} rows: "
                f"{steps} steps of {spec.batch_size}, about {seconds:.0f} s."
            )
            options = FitOptions(steps=steps, batch_size=spec.batch_size)
            fit(groups, batches, loss, steps=steps, options=options, seed=spec.seed, session=session.child("distill"))

    @property
    def _looks_inside(self) -> bool:
        return bool(self.spec.hidden or self.spec.relations)

    def _groups(self) -> list[Group]:
        parts = trainable.of_model(self.student)
        if self.projection is not None:
            parts.append(("projection.", dict(self.projection.named_parameters()), 1e-3))
        return trainable.grouped(parts, self.spec.learning_rate)

    def batches(self) -> Callable[[int], Drawn]:
        """step → batch: a pure function; where demonstrations are shown, rows have others in each epoch."""
        student, spec = self.student, self.spec
        rows = epoch_rows(student, self.rows)
        epoch = lru_cache(maxsize=2)(lambda number: mixed_epoch(rows(number), size=spec.batch_size, seed=spec.seed, number=number))
        length = len(epoch(0))

        def at(step: int) -> Drawn:
            number, place = divmod(step, length)
            template, indices = epoch(number)[place]
            encoded = rows(number)[template]
            return student.asking.collate([encoded[index] for index in indices], template), indices

        return at

    def loss(self, insides: Sequence[Inside] = ()) -> Callable[[Drawn], Tensor]:
        """What is minimised of a batch; `insides` are what goes on in student and teacher, where that is learned."""

        def loss(drawn: Drawn) -> Tensor:
            batch, indices = drawn
            scores_BC = self.student.reader.scores(self.student.output(batch), batch)
            found = self._answers(scores_BC, torch.tensor(indices, device=scores_BC.device))
            if not insides:
                return found
            with torch.no_grad():
                self.teacher.output(batch)
            return found + self._inside(insides[0], insides[1], batch.mask_BT)

        return loss

    def _answers(self, scores_BC: Tensor, rows_B: Tensor) -> Tensor:
        """What the teachers say, softly, and of labelled rows their own label."""
        each = kind_of(self.student.task).independent
        calibrator, spec = self.student.calibrator, self.spec
        bias_C = calibrator.bias.float().to(scores_BC.device)
        scores_BC = ((scores_BC if each else scores_BC.log_softmax(-1)) - bias_C) / calibrator.temperature
        said_BC, known_B = self.said_NC[rows_B], rows_B < len(self.targets)
        softly = distillation_each if each else distillation

        def soft(chosen_B: Tensor) -> Tensor:
            count = int(chosen_B.sum())
            temperature_B = torch.full((count,), spec.temperature, device=scores_BC.device)
            return softly(scores_BC[chosen_B], said_BC[chosen_B], temperature_B) * count

        total = soft(~known_B) if not bool(known_B.all()) else scores_BC.new_zeros(())
        if bool(known_B.any()):
            hard = cross_entropy(scores_BC[known_B], self.targets[rows_B[known_B]]) * int(known_B.sum())
            total = total + spec.gold * hard + (1 - spec.gold) * soft(known_B)
        return total / len(rows_B)

    def _inside(self, student: Inside, teacher: Inside, mask_BT: Tensor) -> Tensor:
        """How far what goes on inside the two is apart, weighted."""
        spec, total = self.spec, torch.zeros((), device=mask_BT.device)
        if spec.hidden:
            pairs = zip(student.states, layer_map(len(student.states), len(teacher.states)), strict=True)
            own = [
                (states if self.projection is None else self.projection(states.float()), teacher.states[layer]) for states, layer in pairs
            ]
            total = total + spec.hidden * torch.stack([states_apart(*pair, mask_BT) for pair in own]).mean()
        if spec.relations:
            heads = _heads(spec, self.student)
            apart = [relations_apart(student.last[name], teacher.last[name], mask_BT, heads=heads) for name in watch.RELATED]
            total = total + spec.relations * torch.stack(apart).sum()
        return total


def _said(teachers: Sequence[TunedModel], asked: tuple[Example, ...], taught: tuple[Example, ...]) -> Tensor:
    """said_NC, float32: the probability of each candidate, the mean of all teachers'; of rows that are soft-labelled already their own."""
    task = teachers[0].task
    own_NC = torch.tensor([[(row.shares or {}).get(label, 0.0) for label in task.labels] for row in taught]).reshape(-1, len(task.labels))
    if not asked:
        return own_NC
    if kind_of(task).independent:
        mixed_NC = torch.stack([one.probabilities(asked) for one in teachers]).mean(0)
    else:
        mixed_NC = Mix.equal(len(teachers))(torch.stack([one.log_probabilities(asked) for one in teachers]))
    return torch.cat([mixed_NC.float(), own_NC])


def _heads(spec: Distill, student: TunedModel) -> int:
    return spec.heads or int(student.backbone.model.config.num_attention_heads)


def _check_inside(spec: Distill, teacher: TunedModel, student: TunedModel) -> None:
    """Raise `SpecError` unless the two read the same tokens at the same places, and relations can be cut into so many heads."""
    same = (
        teacher.backbone.tokenizer_fingerprint == student.backbone.tokenizer_fingerprint
        and list(map(str, teacher.asked.templates)) == list(map(str, student.asked.templates))
        and not any(one.backbone.fronts.length(0) for one in (teacher, student))
    )
    if not same:
        fix = "Leave hidden and relations out; answers alone can be learned by any student."
        got = "other tokens, templates, or trained vectors in front of them"
        raise SpecError(expected="a student that reads the same tokens as its teacher", got=got, where="distill", fix=fix)
    heads = _heads(spec, student)
    sizes = [site.stop - site.start for one in (teacher, student) for name in watch.RELATED for site in one.backbone.sites(name)]
    if spec.relations and any(size % heads for size in sizes):
        got, fix = f"{heads} for widths {', '.join(map(str, sorted(set(sizes))))}", "Name another number with distill:heads."
        raise SpecError(expected="heads of relations that divide the widths", got=got, where="distill.heads", fix=fix)
