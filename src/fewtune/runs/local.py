"""Run jobs here, one after another. Knows how to run, not what."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fewtune.runs.grid import Job
from fewtune.runs.store import Result
from fewtune.runs.worker import Worker


def run(jobs: Sequence[Job], keep: Callable[[Result], None], go_on: Callable[[], bool], *, worker: Worker) -> None:
    """Give each job's result to `keep` as soon as it is there; no job starts once `go_on` says no."""
    for job in jobs:
        if not go_on():
            return
        keep(worker.run(job))
