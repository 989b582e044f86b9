"""`fewtune compare` as a straight line: job file → grid → what is left of it → an engine → the store → the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fewtune.errors import Interrupted
from fewtune.runs import engines, local, on_ray
from fewtune.runs.grid import Job, plan
from fewtune.runs.jobfile import JobFile
from fewtune.runs.store import Result, Store
from fewtune.runs.table import Comparison, table
from fewtune.runs.worker import Worker

Engine = Callable[[Sequence[Job], Callable[[Result], None], Callable[[], bool]], None]


def compare(
    path: Path,
    *,
    engine: engines.Name = "local",
    ray_address: str | None = None,
    limit_seconds: float | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, jobs: None,
) -> Comparison:
    """Run what the job file asks for and is not kept yet; the table of all that is done.

    After Ctrl-C, or once `limit_seconds` are over and the jobs under way done, some jobs are left (`Comparison.check` says so). Raises
    `InputError` for a job file, data or a PLM that cannot be used, before anything runs.
    """
    engines.check(engine, ray_address)
    start, file, worker = time.monotonic(), JobFile.load(path), Worker(say)
    grid, store = plan(file, worker.backbones, say), Store(file.out)
    done = store.load().keys() & {job.key for job in grid.jobs}
    left = [job for job in grid.jobs if job.key not in done]
    say(f"{len(grid.jobs)} jobs: {len(done)} finished already, {len(left)} to run; results are kept in {file.out}.")
    if engine == "ray":
        worker.drop()  # those of Ray have backbones of their own

    def keep(result: Result) -> None:
        store.append(result)
        done.add(result.key)
        progress(len(done), len(grid.jobs))

    run: Engine = partial(on_ray.run, address=ray_address) if engine == "ray" else partial(local.run, worker=worker)
    progress(len(done), len(grid.jobs))
    try:
        if left:
            run(left, keep, lambda: limit_seconds is None or time.monotonic() - start < limit_seconds)
    except (KeyboardInterrupt, Interrupted):
        say("Stopped.")
    return table(grid, store.load(), file.out)
