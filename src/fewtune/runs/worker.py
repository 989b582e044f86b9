"""Runs jobs, whichever ran before: a backbone is loaded, tuned, measured and given back as it was. Knows no file and no grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.errors import InputError
from fewtune.evaluation import evaluate
from fewtune.job import tune
from fewtune.runs.grid import Job
from fewtune.runs.store import Result
from fewtune.train.fit import Session


class Worker:
    """One process' hand: it keeps the backbone that was asked for last."""

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._say = say
        self._kept: dict[str, Backbone] = {}

    def backbone(self, name: str) -> Backbone:
        """The PLM called `name`; raises `BackboneError` as `load` does."""
        if name not in self._kept:
            self.drop()  # before the next one comes, so that memory holds one
            self._kept[name] = load(name, say=self._say)
        return self._kept[name]

    def drop(self) -> None:
        """Keep no backbone."""
        self._kept.clear()

    def run(self, job: Job) -> Result:
        """Tune and measure; what is wrong with the job's own input is its result.

        One thread, for sums depend on how many there are, and a job must come to the same on every engine.
        """
        backbone, start = self.backbone(job.settings.backbone), time.perf_counter()
        named = Result(job.key, job.data, job.method, job.shots, job.seed)
        try:
            with _one_thread():
                done = _measured(job, backbone, named)
        except InputError as error:
            self.drop()  # who knows what was left in it
            done = replace(named, failed=str(error))
        return replace(done, seconds=time.perf_counter() - start)


def _measured(job: Job, backbone: Backbone, named: Result) -> Result:
    # Tuning is not shown the rows that measure.
    model = tune(job.task, replace(job.split, test=()), backbone, job.settings, session=Session(told=True))
    try:
        found = evaluate(model, job.split.test)
    finally:
        model.remove()
    right = "".join("01"[one] for one in found.right)
    return replace(named, metrics=found.measures.metrics, right=right, trained_parameters=model.trained_parameters)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
