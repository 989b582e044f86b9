"""Multi-task prompted training: many tasks in many templates make one PLM better at tasks that it has never seen (Sanh et al. 2022).

Knows lessons, deltas and readouts; no file, and not what is held out.

Dimensions: B rows, N all rows, C candidates, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Literal

import numpy as np
from torch import Tensor

from fewtune import forecast, registry
from fewtune.backbone.backbone import Backbone
from fewtune.collection import Lesson
from fewtune.data.example import Split
from fewtune.data.sampling import derive, rates, turns
from fewtune.deltas.delta import Installed
from fewtune.errors import TaskError
from fewtune.held_out import Array
from fewtune.model import DEFAULT_LENGTH, TunedModel
from fewtune.precision import Wanted, settle_precision
from fewtune.prompt.batch import Batch, bucketed_order
from fewtune.readout.calibration import Calibration, Uncalibrated
from fewtune.readout.likelihood import Likelihood
from fewtune.readout.readout import Readout
from fewtune.strategies import trainable
from fewtune.strategies.zeroshot import calibrate, targets
from fewtune.tasks import kind_of
from fewtune.train.fit import FitOptions, Session, fit
from fewtune.train.losses import cross_entropy, negative_log_likelihood

STEPS = 300


@dataclass(frozen=True)
class MultiTask:
    """How tasks are mixed and what a step minimises.

    A task is drawn in proportion to min(its rows, `cap`)^(1 / `temperature`), then some of its rows, then one of its templates. `loss` is
    that of choosing among a row's candidates (`choice`), that of a language model on the right answer (`language`, T0's), or their
    sum, two of the three losses of T-Few (Liu et al. 2022, section 3.2).
    """

    loss: Literal["choice", "language", "both"] = "language"
    cap: int = 1000
    temperature: float = 1.0

    def __post_init__(self) -> None:
        registry.check_ranges(self, "multitask", {"cap": (self.cap >= 1, "at least 1"), "temperature": (self.temperature > 0, "above 0")})

    def of(self, scores_BC: Tensor, targets_B: Tensor) -> Tensor:
        """The loss of log-probabilities of the candidates."""
        if self.loss == "choice":
            return cross_entropy(scores_BC, targets_B)
        if self.loss == "language":
            return negative_log_likelihood(scores_BC, targets_B)
        return cross_entropy(scores_BC, targets_B) + negative_log_likelihood(scores_BC, targets_B)


READOUT = Likelihood(per="token")
"""How answers are read, in training and in tests: log-probabilities, of words of any number of tokens."""


@dataclass(frozen=True)
class _Drawn:
    """Rows of one task in one template, as one batch."""

    model: TunedModel
    batch: Batch
    targets_B: Tensor


def train(
    lessons: Sequence[Lesson],
    installed: Sequence[Installed],
    how: MultiTask,
    *,
    options: FitOptions,
    readout: Readout = READOUT,
    max_length: int = DEFAULT_LENGTH,
    seed: int,
    session: Session,
) -> list[float]:
    """Train the `installed` deltas on a mixture of the lessons; gives the loss of each step. A batch is of one task and one template.

    Raises `TaskError` for a loss of language with a readout that gives no log-probabilities, and what `fit` raises.
    """
    if how.loss != "choice" and not isinstance(readout, Likelihood):
        fix = "Use --readout likelihood, or --loss choice."
        raise TaskError(expected="a readout of likelihoods", got="another", where=f"--loss {how.loss}", fix=fix)
    steps = STEPS if options.steps is None else options.steps
    mixture = _Mixture(lessons, installed, how, options, readout, max_length, seed, steps * options.accumulate * session.world.size)
    trained = sum(delta.trained_parameters for delta in installed)
    if steps and not session.told:
        session.say(
            f"Training {trained:,} weights on {len(lessons)} tasks in {sum(map(len, mixture.prompts))} templates: {steps} steps of "
            f"{options.accumulate * session.world.size} × {options.batch_size} rows, about {mixture.seconds(steps):.0f} s."
        )
    groups = trainable.grouped(trainable.of_deltas(installed), options.learning_rate)
    with mixture.any_model.training():
        return fit(groups, mixture.at, mixture.loss, steps=steps, options=options, seed=seed, session=session)


class _Mixture:
    """Number of a batch → batch: a pure function."""

    def __init__(
        self,
        lessons: Sequence[Lesson],
        installed: Sequence[Installed],
        how: MultiTask,
        options: FitOptions,
        readout: Readout,
        max_length: int,
        seed: int,
        batches: int,
    ) -> None:
        self.lessons, self.how, self.options, self.seed = lessons, how, options, seed
        self.prompts = [list(_prompts(lesson, installed, readout, max_length)) for lesson in lessons]
        self.targets = [targets(prompts[0][0], lesson.rows) for prompts, lesson in zip(self.prompts, lessons, strict=True)]
        self.lengths = [[sum(map(len, row.fields.values())) for row in lesson.rows] for lesson in lessons]
        self.turns = turns(rates([len(one.rows) for one in lessons], cap=how.cap, temperature=how.temperature), batches, seed=seed)
        self.epoch = lru_cache(maxsize=2 * len(lessons))(self._epoch)

    @property
    def any_model(self) -> TunedModel:
        """One of the models, which all have the same deltas."""
        return self.prompts[0][0][0]

    def _epoch(self, place: int, number: int) -> list[list[int]]:
        seed = derive(self.seed, "order", self.lessons[place].name, number)
        return bucketed_order(self.lengths[place], size=self.options.batch_size, seed=seed)

    def at(self, number: int) -> _Drawn:
        """The batch of that number, rows of like length of one task."""
        place, before = self.turns[number]
        length = len(self.epoch(place, 0))  # as many in every epoch
        indices = self.epoch(place, before // length)[before % length]
        prompts = self.prompts[place]
        model, template = prompts[derive(self.seed, "template", number) % len(prompts)]
        rows = model.asking.rows([self.lessons[place].rows[index] for index in indices], template)
        return _Drawn(model, model.asking.collate(rows, template), self.targets[place][indices].to(model.backbone.device))

    def loss(self, drawn: _Drawn) -> Tensor:
        """What is minimised of it."""
        return self.how.of(drawn.model.batch_scores(drawn.batch), drawn.targets_B)

    def seconds(self, steps: int) -> float:
        """What so many steps will take: each of their batches as long as the first few."""
        few = [self.at(number) for number in range(min(4, len(self.turns)))]
        one = sum(forecast.step_seconds(drawn.model, partial(self.loss, drawn), most=1) for drawn in few) / len(few)
        return one * steps * self.options.accumulate


def _prompts(lesson: Lesson, installed: Sequence[Installed], readout: Readout, max_length: int) -> Iterator[tuple[TunedModel, int]]:
    """The models that ask the lesson, each with the number of one of its templates."""
    for wording in lesson.wordings:
        model = TunedModel.assemble(installed[0].backbone, wording, readout, deltas=tuple(installed), max_length=max_length)
        for template in range(len(model.asked.templates)):
            yield model, template


def right_answers(
    lesson: Lesson,
    backbone: Backbone,
    *,
    readout: Readout = READOUT,
    calibration: Calibration | None = None,
    max_length: int = DEFAULT_LENGTH,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda rows: None,
) -> Array:
    """Which rows are answered right in each of the task's templates, right_PN: the likeliest candidate, uncalibrated unless told otherwise,
    as in T0 (rank classification)."""
    found = []
    for prompt in lesson.prompts():
        model = TunedModel.assemble(backbone, prompt, readout, max_length=max_length)
        model = model.calibrated(calibrate(model, calibration or Uncalibrated(), Split(), otherwise=Uncalibrated()))
        probabilities_NC = model.probabilities(lesson.rows, batch_size=batch_size).numpy()
        found.append(kind_of(prompt).ratio(prompt, lesson.rows, probabilities_NC).over_N > 0)
        progress(len(lesson.rows))
    return np.stack(found)


def settled(lessons: Sequence[Lesson], backbone: Backbone, wanted: Wanted) -> None:
    """Settle the precision by looking at the first rows of the first task."""
    model = TunedModel.assemble(backbone, lessons[0].task, READOUT)
    settle_precision(model, wanted, Split(train=tuple(islice(lessons[0].rows, 16))))
