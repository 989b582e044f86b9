"""Runs jobs, whichever ran before: a backbone is loaded, tuned, measured and given back as it was. Knows no file and no grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.errors import InputError
from fewtune.evaluation import evaluate
from fewtune.job import tune
from fewtune.plm import load
from fewtune.runs.grid import Job
from fewtune.runs.store import Result
from fewtune.train.fit import Session


class Worker:
    """One process' hand: it keeps the backbones that were asked for last."""

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._say = say
        self._kept: dict[str, Backbone] = {}
        self._shared: dict[str, dict[Hashable, dict[str, Tensor]]] = {}

    def backbones(self, names: Sequence[str], *, device: str | None = None) -> list[Backbone]:
        """The PLMs called so, in their order; raises `BackboneError` as `load` does."""
        # Others go before the next one comes, so that memory holds no more than one job needs.
        self._kept = {name: kept for name, kept in self._kept.items() if name in names}
        for name in names:
            if name not in self._kept:
                self._kept[name] = load(name, device=device, say=self._say)
        return [self._kept[name] for name in names]

    def drop(self) -> None:
        """Keep no backbone."""
        self._kept.clear()

    def shared(self, key: str) -> dict[Hashable, dict[str, Tensor]]:
        """`Session.shared` of the job `key`, as far as this process has done pieces of it; that of others goes."""
        self._shared = {key: self._shared.get(key, {})}
        return self._shared[key]

    def run(self, job: Job) -> Result:
        """Tune and measure; what is wrong with the job's own input is its result.

        One thread, for sums depend on how many there are, and a job must come to the same on every engine.
        """
        backbones, start = self.backbones(job.settings.judged), time.perf_counter()
        named = Result(job.key, job.data, job.method, job.shots, job.seed)
        try:
            with one_thread():
                done = _measured(job, backbones, named)
        except InputError as error:
            self.drop()  # who knows what was left in it
            done = replace(named, failed=str(error))
        return replace(done, seconds=time.perf_counter() - start)


def _measured(job: Job, backbones: Sequence[Backbone], named: Result) -> Result:
    # Tuning is not shown the rows that measure.
    first, *beside = backbones
    model = tune(job.task, replace(job.split, test=()), first, job.settings, session=Session(told=True), beside=beside)
    try:
        found = evaluate(model, job.split.test)
    finally:
        model.remove()
    return replace(named.having(found.ratio), metrics=found.measures.metrics, trained_parameters=model.trained_parameters)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
