"""Several models of one task side by side: PLMs and readouts that answer together. Knows models and numbers; no files, no flags.

    each route's scores ──► its own calibrator ──► log-probabilities ──► one mix of the routes ──► one calibrator over all

Dimensions: N examples, C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fewtune.data.example import Example, Prediction
from fewtune.model import WINDOW, Tally, TunedModel, windows
from fewtune.readout.calibration import CONTENT_FREE, Calibrator
from fewtune.readout.mixing import Mix
from fewtune.registry import Plain
from fewtune.tasks.task import Task


@dataclass(frozen=True)
class Routes:
    """Models whose answers are one, by their `mix`.

    It answers, is saved and is taken out as a `TunedModel` is. Rows that are shortened are counted for the first route.
    """

    models: tuple[TunedModel, ...]
    mix: Mix
    calibrator: Calibrator
    about: Mapping[str, Plain] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Sequence[TunedModel], mix: Mix | None = None) -> Routes:
        """Those that are given, with nothing calibrated over them.

        Without a `mix` it is the mean of log-probabilities, which is the normalised product of what the routes find probable (Hinton 2002:
        a product of experts).
        """
        names = [f"{model.backbone.name} ({model.about['method']})" for model in models]
        mix = mix or Mix.equal(len(models), logits=True)
        return cls(tuple(models), mix, Calibrator.identity(len(models[0].task.labels)), {"method": " and ".join(names)})

    @property
    def task(self) -> Task:
        """What is asked; that of the first route."""
        return self.models[0].task

    @property
    def max_length(self) -> int:
        """How many tokens the first route reads at most."""
        return self.models[0].max_length

    @property
    def trained_parameters(self) -> int:
        """How many numbers were trained, in all routes."""
        return sum(model.trained_parameters for model in self.models)

    @property
    def backbone_parameters(self) -> int:
        """How many numbers their PLMs have, each counted once."""
        return sum({id(model.backbone): model.backbone_parameters for model in self.models}.values())

    def remove(self) -> None:
        """Take the deltas of all routes out, so that their PLMs are as they were before, to the bit."""
        for model in reversed(self.models):
            model.remove()

    def each(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> list[Tensor]:
        """The calibrated log-probabilities_NC of each route, float64."""
        tallies = (tally, *itertools.repeat(None, len(self.models) - 1))
        return [
            model.calibrator(model.scores(examples, batch_size=batch_size, tally=own)).log_softmax(-1)
            for model, own in zip(self.models, tallies, strict=True)
        ]

    def raw_scores(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> Tensor:
        """scores_NC before the calibrator over all: the logarithms of what the routes together find probable, float64."""
        return self.mixed(self.each(examples, batch_size=batch_size, tally=tally))

    def mixed(self, each: Sequence[Tensor]) -> Tensor:
        """scores_NC of what `each` gives."""
        return self.mix.log(torch.stack(list(each)))

    def content_free_scores(self) -> Tensor:
        """The same of inputs that say nothing."""
        return self.raw_scores([Example(dict.fromkeys(self.task.fields, text)) for text in CONTENT_FREE])

    def probabilities(self, examples: Sequence[Example], *, batch_size: int = 32, tally: Tally | None = None) -> Tensor:
        """Calibrated probabilities_NC, float64."""
        return self.likely(self.raw_scores(examples, batch_size=batch_size, tally=tally))

    def likely(self, scores_NC: Tensor) -> Tensor:
        """Calibrated probabilities_NC of scores before the calibrator over all."""
        return self.calibrator(scores_NC).softmax(-1)

    def predict(self, texts: Iterable[object], *, batch_size: int = 32) -> list[Prediction]:
        """An answer for each text, in the forms that `TunedModel.predict` takes."""
        return list(self.stream(self.examples(texts), batch_size=batch_size))

    def examples(self, texts: Iterable[object]) -> Iterator[Example]:
        """See `TunedModel.examples`."""
        return self.models[0].examples(texts)

    def stream(
        self, examples: Iterable[Example], *, batch_size: int = 32, window: int = WINDOW, tally: Tally | None = None
    ) -> Iterator[Prediction]:
        """Answers in the order of the examples, `window` of which are held at a time."""
        for chunk in windows(examples, window):
            yield from self.answers(chunk, self.raw_scores(chunk, batch_size=batch_size, tally=tally))

    def answers(self, examples: Sequence[Example], scores_NC: Tensor) -> list[Prediction]:
        """What scores answer to the examples before the calibrator over all."""
        return self.models[0].calibrated(self.calibrator).answers(examples, scores_NC)

    def settled(self, task: Task) -> Routes:
        """The same routes of a task that has settled what it left open."""
        return replace(self, models=tuple(replace(model, task=task) for model in self.models))

    def calibrated(self, calibrator: Calibrator) -> Routes:
        """The same routes with another calibrator over all."""
        return replace(self, calibrator=calibrator)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the artifact; see `fewtune.artifact.save`."""
        from fewtune import artifact

        return artifact.save(self, folder, overwrite=overwrite)
