"""Run jobs on Ray, here or on a cluster, a processor each. Knows how to run, not what; the only file that imports ray."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from time import monotonic
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewtune.backbone.load import default_device
from fewtune.data.example import Example
from fewtune.errors import FewtuneError, Interrupted, MissingExtraError, SpecError
from fewtune.runs.grid import Job, code_version
from fewtune.runs.sent import Sent
from fewtune.runs.store import Result
from fewtune.runs.worker import Worker, one_thread
from fewtune.strategies.members import Asked
from fewtune.train.fit import Spread
from fewtune.train.world import World, joined

T = TypeVar("T")
_PART = 20_000  # rows, a multiple of what a member labels at a time: so parts are batched as the whole is
_DIED = ("WorkerCrashedError", "RayActorError", "OutOfMemoryError", "NodeDiedError", "ObjectLostError")
"""What Ray says of a worker that is no more, by itself or with its machine."""


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


@contextmanager
def spread(address: str | None = None) -> Iterator[Spread]:
    """Does the members of PET as tasks of Ray, a processor each, and all else here, with one thread everywhere: so all comes to the
    same as here with one thread. Ray is reached, or started, when the first members are there.
    """
    ray = require()
    with one_thread(), ExitStack() as stack:
        yield partial(_spread, ray, cache(lambda: stack.enter_context(_cluster(ray, address))))


def _spread(ray: Any, slots: Callable[[], int], pieces: Sequence[Callable[[], Tensor]], say: Callable[[str], None]) -> list[Tensor]:
    found = {number: piece.kept() if isinstance(piece, Asked) else piece() for number, piece in enumerate(pieces)}
    left = {number: piece for number, piece in enumerate(pieces) if found[number] is None and isinstance(piece, Asked)}
    if left:
        try:
            found |= _asked(ray, slots(), left, say)
        except KeyboardInterrupt:
            fix = "What is done is kept: type the same command again to go on."
            raise Interrupted(expected=f"{len(left)} members", got="Ctrl-C", where="--engine ray", fix=fix) from None
    return [one for number in range(len(pieces)) if (one := found[number]) is not None]


def _asked(ray: Any, slots: int, left: dict[int, Asked], say: Callable[[str], None]) -> dict[int, Tensor]:
    """What the members say, by their numbers; each part is kept as soon as it is there."""
    parts = _parts(left)
    found = {place: kept for place, part in parts.items() if (kept := part.kept()) is not None}
    session, begun, done_before = next(iter(left.values())).session, monotonic(), len(found)
    rows = f", in parts of {_PART:,} rows" if len(parts) > len(left) else ""
    say(f"{len(left)} times a member is tuned and asked{rows}, on Ray, on {slots} processors.")
    task = ray.remote(num_cpus=1, num_gpus=int(any(asked.member.backbone.device.type == "cuda" for asked in left.values())))(_member)
    stored: dict[int, Any] = {}

    def put(rows: Sequence[Example]) -> Any:
        # Many members are asked about the same rows: these travel once.
        if id(rows) not in stored:
            stored[id(rows)] = ray.put(tuple(rows))
        return stored[id(rows)]

    plms = tuple(dict.fromkeys(asked.member.backbone.name for asked in left.values()))
    running = {
        task.remote(Sent.of(part, plms), put(part.train), put(part.rows), put(part.member.pool), code_version()): place
        for place, part in parts.items()
        if place not in found
    }
    while running:
        (done,), _ = ray.wait(list(running))
        place = running.pop(done)
        found[place], lines = _result(ray, done)
        parts[place].keep(found[place])
        for line in lines:
            say(line)
        session.progress("members", len(found), len(parts), float("nan"))
        if len(found) == done_before + slots and running:
            say(f"{len(running)} more, about {(monotonic() - begun) / slots * len(running):.0f} s.")
    whole: dict[int, Tensor] = {}
    for number, asked in left.items():
        own = [found[place] for place in parts if place[0] == number]
        whole[number] = torch.cat(own)
        if len(own) > 1:
            asked.keep(whole[number])
    return whole


def _parts(left: dict[int, Asked]) -> dict[tuple[int, int], Asked]:
    """What members are asked in parts that several processes can take: by the member's number and the first row. Each process tunes the
    member for itself, to the same weights, which takes little beside so many rows."""
    cut: dict[tuple[int, int], Sequence[Example]] = {}
    found = {}
    for number, asked in left.items():
        if len(asked.rows) <= _PART:
            found[number, 0] = asked
            continue
        for start in range(0, len(asked.rows), _PART):
            rows = cut.setdefault((id(asked.rows), start), asked.rows[start : start + _PART])
            found[number, start] = replace(asked, rows=rows, session=asked.session.child(f"rows-{start}", told=start > 0))
    return found


def together(work: Callable[[World], T], workers: int, *, address: str | None = None, gpus: bool = False) -> T:
    """What `work` gives in the first of `workers` processes that train together, which is on this machine; the others are anywhere.

    Plain actors and torch's own process group: Ray Train would add its trainer, its storage and three packages to make the same group.
    Raises `SpecError` where there are not so many processors, for a group of which a part waits would wait forever.
    """
    ray = require()
    with _cluster(ray, address) as slots:
        if slots < workers:
            fix = "Ask for fewer, or give the address of a larger cluster."
            raise SpecError(expected=f"at most {slots} workers, a processor each", got=str(workers), where="--workers", fix=fix)
        here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
        process = ray.remote(num_cpus=1, num_gpus=int(gpus))(_Process)
        processes = [process.options(resources=here if rank == 0 else {}).remote(code_version()) for rank in range(workers)]
        place = ray.get(processes[0].place.remote())
        running = [one.run.remote(work, rank, workers, place) for rank, one in enumerate(processes)]
        waiting = list(running)
        try:
            while waiting:  # whoever fails first says why
                (done,), waiting = ray.wait(waiting)
                _result(ray, done)
        except KeyboardInterrupt:
            fix = "What is done is kept: type the same command again to go on."
            raise Interrupted(expected=f"{workers} workers", got="Ctrl-C", where="--engine ray", fix=fix) from None
        found: T = _result(ray, running[0])
        return found


class _Process:
    """One of several processes that train together."""

    def __init__(self, version: str) -> None:
        _check_version(version)

    def place(self) -> tuple[str, int]:
        """Where the others find this one."""
        with socket.socket() as listening:
            listening.bind(("", 0))
            port: int = listening.getsockname()[1]
        return require().util.get_node_ip_address(), port

    def run(self, work: Callable[[World], T], rank: int, size: int, place: tuple[str, int]) -> T:
        """What `work` gives in the world of these processes."""
        names = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": place[0], "MASTER_PORT": place[1], "LOCAL_RANK": 0}
        os.environ.update({name: str(value) for name, value in names.items()})
        with one_thread(), joined() as world:
            return work(world)


def stream(
    read: Callable[[], Iterator[Any]], make: Callable[[], Callable[[Any], Any]], *, device: str | None = None, address: str | None = None
) -> Iterator[Any]:
    """What functions that `make` gives, one in each actor of Ray Data, give for all that is `read`, in order.

    Reading is done on this machine. It, the actors and whoever takes the results wait for one another, so memory does not grow with what
    is read. An actor that dies is replaced, and what it had is done again.
    """
    # Ray warns of the way in which Ray Data starts its actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray, data = require(), _data()
    with _cluster(ray, address) as slots:
        here = {f"node:{ray.util.get_node_ip_address()}": 0.001}  # a resource that only this machine has
        items = data.from_items([{"from": 0}]).map_batches(_Reads(read), batch_size=None, batch_format="numpy", num_cpus=0, resources=here)
        done = items.map(
            _Actor,
            fn_constructor_args=(make, code_version()),
            compute=data.ActorPoolStrategy(size=slots),
            num_cpus=1,
            num_gpus=int((device or default_device()).startswith("cuda")),
        )
        try:
            for row in done.iter_rows():
                yield pickle.loads(row["item"])
        except Exception as error:
            if (cause := _cause(error)) is not None:
                raise cause from None
            raise


def _data() -> Any:
    """The package ray.data, which says nothing unless something fails and hands each item on as soon as it is there."""
    try:
        from ray import data
    except ImportError as error:
        fix = "Install it: pip install 'fewtune[ray]'"
        raise MissingExtraError(expected="the packages of ray[data]", got=str(error), where="--engine ray", fix=fix) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1
    return data


@dataclass(frozen=True)
class _Reads:
    """What is read, an item a row."""

    read: Callable[[], Iterator[Any]]

    def __call__(self, batch: Any) -> Iterator[dict[str, list[bytes]]]:
        for item in self.read():
            yield {"item": [pickle.dumps(item)]}


class _Actor:
    """Makes its function once."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], version: str) -> None:
        _check_version(version)
        self._does = make()

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return {"item": pickle.dumps(self._does(pickle.loads(row["item"])))}


def _cause(error: BaseException | None) -> FewtuneError | None:
    """The error of fewtune that Ray has wrapped, perhaps several times."""
    while error is not None and not isinstance(error, FewtuneError):
        error = getattr(error, "cause", None) or error.__cause__
    return error


@cache
def _worker() -> Worker:
    """The worker of this process, which Ray uses for one task after another."""
    return Worker()


def _there(job: Job, version: str) -> Result:
    _check_version(version)
    return _worker().run(job)


def _member(
    sent: Sent, train: tuple[Example, ...], rows: tuple[Example, ...], pool: tuple[Example, ...], version: str
) -> tuple[Tensor, tuple[str, ...]]:
    _check_version(version)
    return sent.answers(_worker(), train, rows, pool)


def _check_version(version: str) -> None:
    if code_version() != version:
        fix = "Install the same versions on every machine of the cluster."
        raise FewtuneError(expected=f"the code {version}", got=code_version(), where="Ray's worker", fix=fix)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FewtuneError):
            raise error.cause from None
        raise
    except tuple(getattr(ray.exceptions, name) for name in _DIED):
        fix = "What is done is kept. See whether memory is enough, and type the same command again."
        raise FewtuneError(expected="a worker that lives", got="one that died several times", where="--engine ray", fix=fix) from None


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
