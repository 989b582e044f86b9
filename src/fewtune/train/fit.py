"""The only optimisation loop: weights, batches and a loss in; trained weights out. Knows no text, no model and no file but its
own checkpoint.

Everything random is a function of (seed, step), so a run that is killed and started again ends with the same bytes. Several processes may
take each step together, on batches of their own (`fewtune.train.world`).
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewtune import registry
from fewtune.data.sampling import derive
from fewtune.errors import BackboneError, Interrupted
from fewtune.train.cache import StateCache
from fewtune.train.world import ALONE, World

B = TypeVar("B")
Progress = Callable[[str, int, int, float], None]
"""Called after each step with (what is being done, steps done, steps in all, loss)."""
Spread = Callable[[Sequence[Callable[[], Tensor]], Callable[[str], None]], list[Tensor]]
"""Does pieces of a job that need nothing of one another; gives what each gives, in their order, and says how long they take."""


def in_turn(pieces: Sequence[Callable[[], Tensor]], say: Callable[[str], None]) -> list[Tensor]:
    """Do them here, one after another; after a quarter of them, or the first, it is said how long the others will take."""
    begun, found, quarter = time.perf_counter(), list[Tensor](), max(1, len(pieces) // 4)
    for number, piece in enumerate(pieces, start=1):
        found.append(piece())
        if number == quarter < len(pieces):
            seconds = time.perf_counter() - begun
            left = seconds * (len(pieces) - number) / number
            say(f"The first {number} of {len(pieces)} took {seconds:.0f} s, the others will take about {left:.0f} s.")
    return found


@dataclass(frozen=True)
class FitOptions:
    """How to optimise. `None` leaves the number of steps and the learning rate to the strategy and the deltas.

    `warmup` is the share of the steps in which the learning rate rises; after that it falls linearly to zero. `average` is the share
    of the steps, the last ones, over which the weights are averaged (Polyak & Juditsky 1992); with 0 the last weights are kept.
    A step takes the mean gradient of `accumulate` batches of `batch_size` rows.
    """

    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = 8
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.5
    accumulate: int = 1

    def __post_init__(self) -> None:
        fits = {
            "steps": (self.steps is None or self.steps >= 0, "at least 0"),
            "learning_rate": (self.learning_rate is None or self.learning_rate > 0, "above 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "warmup": (0 <= self.warmup <= 1, "from 0 to 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "clip": (self.clip > 0, "above 0"),
            "average": (0 <= self.average <= 1, "from 0 to 1"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
        }
        registry.check_ranges(self, "fit", fits)


@dataclass(frozen=True)
class Group:
    """Weights that share a learning rate."""

    weights: Mapping[str, nn.Parameter]
    learning_rate: float


@dataclass(frozen=True)
class Session:
    """Where a fit keeps its checkpoint (nowhere if `folder` is None) and whom it tells.

    `key` names the job's inputs: a checkpoint with another key is not gone on with. `label` tells several fits of a job apart.
    All of them share the `cache`, and in `shared` the weights of fits that several of them start from; `told` says that no forecast is
    wanted any more. `spread` does the pieces of a job that need nothing of one another. Of the processes of a `world` the first keeps the
    checkpoint.
    """

    folder: Path | None = None
    key: str = ""
    label: str = "fit"
    progress: Progress = lambda what, done, steps, loss: None
    say: Callable[[str], None] = lambda line: None
    every_seconds: float = 10.0
    cache: StateCache = field(default_factory=StateCache)
    shared: dict[Hashable, dict[str, Tensor]] = field(default_factory=dict)
    told: bool = False
    spread: Spread = in_turn
    world: World = ALONE

    def child(self, label: str, *, told: bool = False) -> Session:
        """The session of a fit that is a part of this one; `told` if another like it has said already how long it takes."""
        return replace(self, label=f"{self.label}.{label}", told=self.told or told)

    @property
    def checkpoint(self) -> Path | None:
        """The file of this fit's checkpoint."""
        return None if self.folder is None or not self.world.first else self.folder / f"{self.label}.safetensors"

    def beside(self, what: str) -> Path | None:
        """The file of something else that this fit keeps."""
        return None if self.folder is None else self.folder / f"{self.label}.{what}.safetensors"


@dataclass
class _State:
    optimizer: torch.optim.AdamW
    weights: dict[str, nn.Parameter]
    losses: list[float] = field(default_factory=list)
    means: dict[str, Tensor] = field(default_factory=dict)


def fit(
    groups: Sequence[Group],
    batches: Callable[[int], B],
    loss: Callable[[B], Tensor],
    *,
    steps: int,
    options: FitOptions,
    seed: int,
    session: Session | None = None,
) -> list[float]:
    """Minimise `loss` over the batches of steps 0 … `steps` - 1 with AdamW; gives the loss of each step.

    `batches` must be a pure function of the batch's number, which is that of the step unless a step takes several. Several processes take
    turns at the batches, so that a step of two is that of one process which accumulates two.

    Raises `Interrupted` after Ctrl-C, with what is done kept, and `BackboneError` when the loss is no longer finite.
    """
    session = session or Session()
    state = _start(groups, options, seed)
    done = _resume(state, session, steps)
    saved = time.monotonic()
    with _interruptible() as stopped:
        for step in range(done, steps):
            state.losses.append(_step(state, batches, loss, step, steps=steps, options=options, seed=seed, world=session.world))
            _average(state, step, first=steps - round(steps * options.average))
            session.progress(session.label, step + 1, steps, state.losses[-1])
            if session.world.any(stopped.is_set()):
                _save(state, session)
                raise _interrupted(session, step + 1, steps)
            if session.checkpoint and (step + 1 == steps or time.monotonic() - saved > session.every_seconds):
                _save(state, session)
                saved = time.monotonic()
    for name, mean in state.means.items():
        with torch.no_grad():
            state.weights[name].copy_(mean)
    return state.losses


def fit_once(decided_by: Hashable, groups: Sequence[Group], fitted: Callable[[Session], object], *, session: Session) -> None:
    """What `fitted` makes of the weights, given a session of its own; the weights of an earlier one where that was `decided_by` the same.

    `decided_by` has the same `repr` in every process: its checkpoint is called by that, so that a job that goes on finds it again.
    """
    weights = {name: weight for group in groups for name, weight in group.weights.items()}
    if decided_by not in session.shared:
        own = replace(session, label=f"{session.label}-{hashlib.sha256(repr(decided_by).encode()).hexdigest()[:8]}")
        fitted(own)
        session.shared[decided_by] = {name: weight.detach().clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        with torch.no_grad():
            weight.copy_(session.shared[decided_by][name])


def _start(groups: Sequence[Group], options: FitOptions, seed: int) -> _State:
    weights = {name: weight for group in groups for name, weight in group.weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    parts = [{"params": list(group.weights.values()), "lr": group.learning_rate, "peak": group.learning_rate} for group in groups]
    # One pass over all weights instead of a dozen per tensor: several times faster, on the processor too.
    return _State(torch.optim.AdamW(parts, weight_decay=options.weight_decay, fused=True), weights)


def _step(
    state: _State,
    batches: Callable[[int], B],
    loss: Callable[[B], Tensor],
    step: int,
    *,
    steps: int,
    options: FitOptions,
    seed: int,
    world: World,
) -> float:
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * schedule(step, steps=steps, warmup=options.warmup)
    turns = range(step * options.accumulate, (step + 1) * options.accumulate)
    numbers = (turn * world.size + world.rank for turn in turns)
    value = torch.stack([_gradients(batches, loss, number, options.accumulate, seed) for number in numbers]).sum()
    _agree(state, value, world)
    if not bool(value.isfinite()):
        raise BackboneError(
            expected="a finite loss",
            got=str(value.item()),
            where=f"step {step + 1}",
            fix="Lower --learning-rate or use --precision float32.",
        )
    torch.nn.utils.clip_grad_norm_(state.weights.values(), options.clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return float(value.item())


def _gradients(batches: Callable[[int], B], loss: Callable[[B], Tensor], number: int, accumulate: int, seed: int) -> Tensor:
    """Add the gradients of batch `number`, one of `accumulate` in a step; its part of the step's loss."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "dropout", number))
        part = loss(batches(number)) / accumulate
        part.backward()  # type: ignore[no-untyped-call]
    return part.detach().cpu()


def _agree(state: _State, value: Tensor, world: World) -> None:
    """Give all processes the mean of their gradients, and of their losses."""
    if world.size == 1:
        return
    for weight in state.weights.values():
        if weight.grad is None:  # another process' batch may have reached it
            weight.grad = torch.zeros_like(weight)
    world.average([weight.grad for weight in state.weights.values() if weight.grad is not None])
    world.average([value])


@torch.no_grad()
def _average(state: _State, step: int, *, first: int) -> None:
    """Take the weights after `step` into the mean of those since step `first`."""
    if step < first:
        return
    for name, weight in state.weights.items():
        if step == first:
            state.means[name] = weight.detach().clone()
        else:
            state.means[name].lerp_(weight.detach(), 1 / (step - first + 1))


def schedule(step: int, *, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at `step`: a linear rise over the first `warmup` of the steps, then a linear fall.

    >>> [round(schedule(step, steps=4, warmup=0.5), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising)


def _resume(state: _State, session: Session, steps: int) -> int:
    """Take over what an earlier run of the same job has done; the number of its steps."""
    about, tensors = session.world.told(read_whole(session.checkpoint, session))
    done = int(about.get("steps_done", 0))
    if about.get("key") != session.key or not 0 < done <= steps:
        return 0
    for name, weight in state.weights.items():
        with torch.no_grad():
            weight.copy_(tensors[f"weight/{name}"])
        if f"step/{name}" in tensors:
            moments = {kind: tensors[f"{kind}/{name}"].to(weight.device) for kind in ("exp_avg", "exp_avg_sq")}
            state.optimizer.state[weight] = {"step": tensors[f"step/{name}"], **moments}
    state.means = {name: tensors[f"mean/{name}"].to(weight.device) for name, weight in state.weights.items() if f"mean/{name}" in tensors}
    state.losses = tensors["losses"].tolist()
    session.say(f"Going on with {session.label} after step {done} of {steps}.")
    return done


def read_whole(path: Path | None, session: Session) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a file of `write_whole` says of itself, and its tensors; nothing where there is none; one that cannot be read is said."""
    if path is None or not path.exists():
        return {}, {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError):
        session.say(f"The file {path} cannot be read; starting {session.label} anew.")
        return {}, {}


def _save(state: _State, session: Session) -> None:
    path = session.checkpoint
    if path is None:
        return
    tensors = {"losses": torch.tensor(state.losses, dtype=torch.float64)}
    for name, weight in state.weights.items():
        tensors[f"weight/{name}"] = weight.detach().contiguous()
        for kind, moment in state.optimizer.state.get(weight, {}).items():  # nothing yet for a weight that no loss has reached
            tensors[f"{kind}/{name}"] = moment.contiguous()
        if name in state.means:
            tensors[f"mean/{name}"] = state.means[name].contiguous()
    write_whole(path, tensors, {"key": session.key, "steps_done": str(len(state.losses))})


def write_whole(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors to a file that is there whole or not at all, and on the disk when this returns; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(dict(tensors), temporary, metadata=metadata)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that a step is never cut in two; a second Ctrl-C stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(session: Session, done: int, steps: int) -> Interrupted:
    kept = session.checkpoint is not None
    return Interrupted(
        expected=f"{steps} steps",
        got=f"Ctrl-C after {done}",
        where=session.label,
        fix="What is done is kept: type the same command again to go on." if kept else "Nothing was to be kept (no --out).",
    )
