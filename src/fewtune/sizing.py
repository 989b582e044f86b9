"""A smaller model beside the full one: bytes, texts per second, points lost. Knows models and labelled rows; no way of making one smaller.

Dimensions: N rows, R resamples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fewtune import registry
from fewtune.backbone.bank import Bank
from fewtune.data.example import Example
from fewtune.deltas.mask import borrowed
from fewtune.evaluation import evaluate
from fewtune.model import TunedModel
from fewtune.tasks.metrics import ERRORS, Interval, Ratio, bootstrap, divide, wald_paired

BATCH = 32
ROUNDS = 3
TEXTS = 256
"""So many of the rows are timed at most, in each round."""


@dataclass(frozen=True)
class Bytes:
    """`artifact` is what lies in the folder; `needed` that and the weights of the PLM which it does not hold, but answers with; `loaded`
    all weights that answers are computed with."""

    artifact: int
    needed: int
    loaded: int


@dataclass(frozen=True)
class Measured:
    """One model by itself: the metric by which models are held against each other, and texts per second at batch 32."""

    bytes: Bytes
    texts_per_second: float
    ratio: Ratio

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return {
            "bytes": registry.to_dict(self.bytes),
            "texts_per_second": self.texts_per_second,
            "metric": self.ratio.metric,
            "value": self.ratio.value,
        }


@dataclass(frozen=True)
class Beside:
    """A smaller model beside the full one, both on the same rows in the same minutes.

    `size` is the share of the bytes needed, `speed` how many times as fast, `drop` the points of the metric that are lost, of which one
    is a hundredth of its range, with a 95 % interval over the rows.
    """

    full: Measured
    small: Measured
    size: float
    speed: float
    drop: Interval

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON: the smaller model's figures, and how they stand to the full one's."""
        return {**self.small.to_dict(), "size": self.size, "speed": self.speed, "drop": registry.to_dict(self.drop)}


def beside(full: tuple[Path, TunedModel], small: tuple[Path, TunedModel], rows: Sequence[Example]) -> Beside:
    """Measure two models, each with its folder and on a PLM of its own, on labelled rows that neither has learned from.

    They answer in turn, round by round, so that whatever else the machine does falls on both; the first round warms up.
    """
    texts, models = rows[:TEXTS], (full[1], small[1])
    rounds = [[_seconds(model, texts) for model in models] for _ in range(ROUNDS + 1)][1:]
    one, other = (
        Measured(bytes_of(folder, model), len(texts) / statistics.median(taken), evaluate(model, rows, batch_size=BATCH).ratio)
        for (folder, model), taken in zip((full, small), zip(*rounds, strict=True), strict=True)
    )
    speed = statistics.median(slow / fast for slow, fast in rounds)
    return Beside(one, other, other.bytes.needed / one.bytes.needed, speed, lost(one.ratio, other.ratio))


def _seconds(model: TunedModel, texts: Sequence[Example]) -> float:
    start = time.perf_counter()
    model.answered(texts, batch_size=BATCH)
    return time.perf_counter() - start


def lost(full: Ratio, small: Ratio, *, seed: int = 0) -> Interval:
    """Points of the metric that the smaller model loses, row by row against the full one, with an interval: where rows are right or wrong
    that of a difference of shares, else the percentile bootstrap's."""
    scale = (-100 if full.metric in ERRORS else 100) / full.most

    def points(rows_RN: NDArray[Any]) -> NDArray[Any]:
        one, other = (divide(each.over_N[rows_RN].sum(-1), each.under_N[rows_RN].sum(-1)) for each in (full, small))
        return np.asarray(scale * (one - other))

    every = np.arange(len(full.over_N))
    value = float(points(every[None])[0])
    if full.counts:
        more, fewer = (int((one.over_N > other.over_N).sum()) for one, other in ((full, small), (small, full)))
        return Interval.around(value, *(scale * end for end in wald_paired(more, fewer, len(every), confidence=0.95)))
    same = np.array_equal(full.over_N, small.over_N) and np.array_equal(full.under_N, small.under_N)
    return Interval.around(value, *((0.0, 0.0) if same else bootstrap(points, len(every), confidence=0.95, seed=seed)))


def bytes_of(folder: Path, model: TunedModel) -> Bytes:
    """What a model takes on the disk and in memory; weights that stand by only so that a delta can be taken out again do not count."""
    root = model.backbone.model
    banks = [module for module in root.modules() if isinstance(module, Bank)]
    replaced = {id(getattr(bank.base, name)) for bank in banks for edit in bank.of(0) for name in edit.replaces()}
    added = {id(tensor) for bank in banks for tensor in (*bank.held.parameters(), *bank.held.buffers())}
    every: dict[int, Tensor] = {id(tensor): tensor for tensor in (*root.parameters(), *root.buffers()) if id(tensor) not in replaced}
    added |= {id(weight) for delta in model.deltas for weight in delta.weights.values()}
    own = {id(weight): weight for delta in model.deltas for weight in delta.weights.values()}
    own |= {id(weight): weight for weight in model.reader.weights.values()}
    artifact = sum(path.stat().st_size for path in folder.iterdir())
    plm = sum(tensor.nbytes for key, tensor in every.items() if key not in added) + sum(map(borrowed, model.deltas))
    return Bytes(artifact, artifact + plm, sum(tensor.nbytes for tensor in {**every, **own}.values()))
