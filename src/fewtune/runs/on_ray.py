"""Run jobs on Ray, here or on a cluster, a processor each. Knows how to run, not what; the only file that imports ray."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from fewtune.errors import FewtuneError, MissingExtraError
from fewtune.runs.grid import Job, code_version
from fewtune.runs.store import Result
from fewtune.runs.worker import Worker


def require() -> Any:
    """The package ray; raises `MissingExtraError` where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers stand back for everything else by default: on a busy machine they would hardly run at all.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError:
        fix = "Install it: pip install 'fewtune[ray]'"
        raise MissingExtraError(expected="the package ray", got="none", where="--engine ray", fix=fix) from None
    return ray


def run(jobs: Sequence[Job], keep: Callable[[Result], None], go_on: Callable[[], bool], *, address: str | None = None) -> None:
    """Give each job's result to `keep` as soon as it is there; no job starts once `go_on` says no.

    Without an `address` a Ray of this machine is started, and ended. Raises `FewtuneError` for a cluster that cannot be reached.
    """
    ray = require()
    with _cluster(ray, address) as slots:
        task = ray.remote(num_cpus=1)(_there)
        waiting, running = deque(jobs), set[Any]()
        while True:
            while waiting and len(running) < slots and go_on():
                running.add(task.remote(waiting.popleft(), code_version()))
            if not running:
                return
            done, rest = ray.wait(list(running))
            running = set(rest)
            for reference in done:
                keep(_result(ray, reference))


@cache
def _worker() -> Worker:
    """The worker of this process, which Ray uses for one task after another."""
    return Worker()


def _there(job: Job, version: str) -> Result:
    if code_version() != version:
        fix = "Install the same versions on every machine of the cluster."
        raise FewtuneError(expected=f"the code {version}", got=code_version(), where="Ray's worker", fix=fix)
    return _worker().run(job)


def _result(ray: Any, reference: Any) -> Result:
    try:
        result: Result = ray.get(reference)
        return result
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FewtuneError):
            raise error.cause from None
        raise


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[int]:
    """A connection, for as long as it is needed; the number of processors."""
    try:
        if address:
            _reach(address)
        ray.init(address=address or "local", include_dashboard=None if address else False, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        got = str(error).strip().split("\n")[0]
        where = f"--ray-address {address}" if address else "--engine ray"
        raise FewtuneError(expected="a Ray that answers", got=got, where=where, fix="Check that it runs, and where.") from error
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise `OSError` where nobody listens at `host:port` or `ray://host:port`; Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
