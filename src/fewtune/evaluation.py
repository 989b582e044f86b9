"""A model on labelled examples: its kind's metrics with intervals, the confusion of labels, seconds, and who left early. Knows no files.

Dimensions: N examples, C candidates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtune import early, registry
from fewtune.data.example import Example
from fewtune.exits.promise import thresholds
from fewtune.model import Tally, TunedModel
from fewtune.routes import Routes
from fewtune.tasks import kind_of
from fewtune.tasks.metrics import Interval, Measures, Ratio, bootstrap, wilson

SHOWN = 20
POINTS = 12


@dataclass(frozen=True)
class Point:
    """What another threshold would give: the mean layer at which rows leave, the metric, and how many agree with the full model."""

    threshold: float
    mean_layer: float
    value: float
    agreement: float


@dataclass(frozen=True)
class Early:
    """After which layers rows left (layer, share of the rows), which went to the end (row, text), and how speed and `metric` go
    together."""

    depth: int
    shares: tuple[tuple[int, float], ...]
    late: tuple[tuple[int, str], ...]
    metric: str
    curve: tuple[Point, ...]

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON; of the late rows the first ones only, with their number."""
        return {
            "depth": self.depth,
            "layers": [{"layer": layer, "share": share} for layer, share in self.shares],
            "late_rows": len(self.late),
            "late": [{"row": row, "text": text} for row, text in self.late[:SHOWN]],
            "metric": self.metric,
            "curve": [registry.to_dict(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Evaluation:
    """What was measured; `seconds` is the time that predicting took, `shortened` how many rows had a field cut to fit.

    `ratio` says what each row, in order, adds to the metric by which methods are held against each other. `exits` says who left early
    where the model has exits that are on, `routes` how well each of several models side by side does alone.
    """

    measures: Measures
    seconds: float
    shortened: int
    ratio: Ratio
    exits: Early | None = None
    routes: tuple[Route, ...] = ()

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON: metrics, per-class table, confusion matrix (rows: true label), number of rows."""
        data = {**registry.to_dict(self.measures), "shortened": self.shortened}
        data |= {} if self.exits is None else {"exits": self.exits.to_dict()}
        return data | ({"routes": [route.to_dict() for route in self.routes]} if self.routes else {})


@dataclass(frozen=True)
class Route:
    """How well one of several models side by side does alone."""

    backbone: str
    method: str
    alone: Evaluation

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return {"backbone": self.backbone, "method": self.method, **self.alone.to_dict()}


def evaluate(model: TunedModel | Routes, examples: Sequence[Example], *, batch_size: int = 32) -> Evaluation:
    """Measure `model` on labelled examples; raises `DataError` for examples that do not fit its task."""
    if isinstance(model, Routes):
        return _side_by_side(model, examples, batch_size)
    kind = kind_of(model.task)
    kind.check(model.task, examples, "evaluate")
    tally, start = Tally(), time.perf_counter()
    examples, scores_NC, layers_N = model.answered(examples, batch_size=batch_size, tally=tally)
    probabilities_NC = model.likely(scores_NC).numpy()
    seconds = time.perf_counter() - start
    measures = kind.measure(model.task, examples, probabilities_NC)
    ratio = kind.ratio(model.task, examples, probabilities_NC)
    if model.exits is None or not model.exits.on:
        return Evaluation(measures, seconds, tally.shortened, ratio)
    metrics, left = _early(model, examples, scores_NC, layers_N, batch_size)
    return Evaluation(replace(measures, metrics={**measures.metrics, **metrics}), seconds, tally.shortened, ratio, left)


def _side_by_side(routes: Routes, examples: Sequence[Example], batch_size: int) -> Evaluation:
    """What the routes answer together, and what each answers alone; no route reads the examples twice. `seconds` are those of all."""
    task, kind = routes.task, kind_of(routes.task)
    kind.check(task, examples, "evaluate")
    tally, start = Tally(), time.perf_counter()
    each = routes.each(examples, batch_size=batch_size, tally=tally)
    likely = [routes.likely(routes.mixed(each)).numpy(), *(log_NC.exp().numpy() for log_NC in each)]
    seconds = time.perf_counter() - start
    together, *alone = (
        Evaluation(kind.measure(task, examples, one), seconds, tally.shortened, kind.ratio(task, examples, one)) for one in likely
    )
    named = zip(routes.models, alone, strict=True)
    return replace(together, routes=tuple(Route(model.backbone.name, model.about["method"], own) for model, own in named))


def _early(
    model: TunedModel, examples: Sequence[Example], scores_NC: Tensor, layers_N: Tensor, batch_size: int
) -> tuple[dict[str, Interval], Early]:
    """Whether rows agree with the full model and where they left; every layer is computed once more for that."""
    exits = model.exits
    assert exits is not None
    found = early.ways(model, exits, early.seen(model, examples, exits.layers, batch_size=batch_size))
    agree_N, kind = early.agree(model, exits, scores_NC, found.full_NC), kind_of(model.task)
    share = float(agree_N.double().mean())
    layers = layers_N.double().numpy()
    ends = bootstrap(lambda rows_RN: layers[rows_RN].mean(1), len(layers), confidence=0.95, seed=0)
    metrics = {
        "agreement": Interval.around(share, *wilson(int(agree_N.sum()), len(agree_N), confidence=0.95)),
        "mean_layer": Interval.around(float(layers.mean()), *ends),
    }

    def point(threshold: float) -> Point:
        other_NC, left_N = found.at(threshold)
        ratio = kind.ratio(model.task, examples, model.likely(other_NC).numpy())
        agreement = float(early.agree(model, exits, other_NC, found.full_NC).double().mean())
        return Point(threshold, float(left_N.double().mean()), ratio.value, agreement)

    tried = thresholds(found.sure_NL)
    curve = tuple(point(tried[round(number)]) for number in torch.linspace(0, len(tried) - 1, min(POINTS, len(tried))).tolist())
    late = (layers_N == found.depth).nonzero()[:, 0].tolist()
    texts = tuple((row, " / ".join(examples[row].fields[name] for name in model.task.fields)) for row in late)
    shares = tuple((layer, float((layers_N == layer).double().mean())) for layer in (*exits.layers, found.depth))
    return metrics, Early(found.depth, shares, texts, kind.estimated, curve)
