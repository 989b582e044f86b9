"""The times of fewtune's loop and of a peer's, step by step in turn, on one setting. Knows no table and no command."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from floor import multiply, operations
from sides import SIZE, Alike, Setting, side_of

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example

TOLERANCE = 1e-4
Kind = Literal["clock", "processor"]


@dataclass
class Watch:
    """What each step of a side took: (seconds by the clock, seconds of the processor)."""

    per_round: int
    times: list[tuple[float, float]] = field(default_factory=list)
    begun: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        """A step begins."""
        self.begun = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """It is done."""
        self.times.append((time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it, a step is done."""
        self.begin()
        yield
        self.end()

    def rounds(self, kind: Kind) -> list[float]:
        """Seconds of each round but the first, which is warm-up."""
        each = [times[kind == "processor"] for times in self.times]
        return [sum(each[start : start + self.per_round]) for start in range(self.per_round, len(each), self.per_round)]

    def speed(self) -> float:
        """Steps a second by the clock, in the median round."""
        return self.per_round / statistics.median(self.rounds("clock"))


@dataclass
class Duel:
    """What both sides took on one setting; `trained` are their trained parameters."""

    setting: Setting
    own: Watch
    peer: Watch
    floor: Watch
    trained: tuple[int, int] = (0, 0)
    difference: float | None = None
    operations: int = 0

    def ratios(self, kind: Kind) -> list[float]:
        """How many times as long the peer took, round by round."""
        return [peer / own for own, peer in zip(self.own.rounds(kind), self.peer.rounds(kind), strict=True)]

    def floor_shares(self) -> list[float]:
        """The floor's share of the time that each side took, in the median round."""
        floor = self.floor.rounds("processor")
        sides = (self.own.rounds("processor"), self.peer.rounds("processor"))
        return [statistics.median(least / took for least, took in zip(floor, side, strict=True)) for side in sides]

    def share(self) -> float:
        """The share of a core that both sides had; 1 on a machine without other work."""
        times = [*self.own.times, *self.peer.times]
        return sum(processor for _, processor in times) / sum(clock for clock, _ in times)

    def rate(self) -> float:
        """Operations of the bare products, in thousand millions a second of the processor."""
        return self.operations / sum(seconds for _, seconds in self.floor.times) / 1e9


def duel(setting: Setting, folder: str, backbone: Backbone, train: tuple[Example, ...], *, rounds: int) -> Duel:
    """Both sides in turn, after a round of warm-up; raises `SystemExit` where they are not alike though they should be."""
    side, (own, peer, floor) = side_of(setting, folder, backbone, train), (Watch(-(-len(train) // SIZE)) for _ in range(3))
    side.meet()
    found = Duel(setting, own, peer, floor)
    if isinstance(side, Alike):
        found.difference = side.difference()

    def turn(what: str, done: int, steps: int, loss: float) -> None:
        own.end()
        with peer.running():
            side.peer.step(side.inputs(done - 1))
        if isinstance(side, Alike):
            pairs = side.products(done - 1)
            with floor.running():
                multiply(pairs)
            found.operations += operations(pairs)
        own.begin()

    own.begin()
    side.fit((rounds + 1) * own.per_round, turn)
    found.trained = side.trained, side.peer.trained_parameters
    _check(found)
    return found


def _check(found: Duel) -> None:
    if found.difference is None:
        return
    if found.trained[0] != found.trained[1]:
        raise SystemExit(f"{found.setting}: {found.trained[0]} trained against {found.trained[1]}")
    if found.difference > TOLERANCE:
        raise SystemExit(f"{found.setting}: the losses of the first batch differ by {found.difference:.1e}")


def alone(setting: Setting, folder: str, backbone: Backbone, train: tuple[Example, ...], *, own: bool) -> Callable[[], None]:
    """What trains one side: fewtune for two passes over the rows, the peer for one. Hold no `backbone` any more when you call it."""
    side, steps = side_of(setting, folder, backbone, train), -(-len(train) // SIZE)
    if own:
        return lambda: side.fit(2 * steps, lambda *told: None)
    side.let_go()
    side.meet()

    def turns() -> None:
        for step in range(steps):
            side.peer.step(side.inputs(step))

    return turns
