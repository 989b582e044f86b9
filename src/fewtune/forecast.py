"""What a training step will take, in seconds and in bytes, before any is taken: measured on one batch, and no trace is left. Knows
a model and a batch; no text, no table of processors and nothing of how the loop goes.

Dimensions: B rows, T tokens, D width, C candidates.
"""

from __future__ import annotations

import itertools
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch

ALLOCATOR = 1.7
"""How much memory the C library takes for tensors that come and go, for each byte of them; bench/results/forecast.md measures it."""

_ENOUGH = 1.0  # seconds of measuring after which a slow step is not taken again
_MOST = 5
_SAMPLE = 2**23  # numbers on which the optimizer is timed; more than caches hold


@dataclass(frozen=True)
class Seconds:
    """`step` is one training step; `states` is the pass that fills the cache with the batch's rows, once, before the first step."""

    step: float
    states: float


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step: all `weights`; what is `kept` from step to step, two moments and the mean of each trained weight;
    what is `working` within the step, activations, gradients and temporaries."""

    weights: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        """What the process grows by, from before the backbone is loaded."""
        return self.weights + self.kept + round(ALLOCATOR * self.working)


def seconds(model: TunedModel, batch: Batch, *, cached: bool = True, most: int = _MOST) -> Seconds:
    """Take the step's passes on `batch`, forward and backward, and time them; then the optimizer, on numbers of its own.

    With `cached`, the states below the first trained block come from the cache, as from the second epoch on. Each pass is timed
    `most` times at the most, so that a short fit is not outlasted by its forecast.
    """
    weights = trained(model)
    if not weights:
        return Seconds(0.0, 0.0)
    with _traceless(model):
        states = _timed(lambda: _below(model, batch), model.backbone.device, most) if cached and model.first_block else 0.0
        below_BTD = _below(model, batch) if cached else None
        return Seconds(_timed(lambda: _gradients(model, batch, below_BTD), model.backbone.device, most) + _update_seconds(weights), states)


def step_seconds(model: TunedModel, loss: Callable[[], Tensor], *, most: int = _MOST) -> float:
    """Take the passes of a step that minimises what `loss` gives, forward and backward, and time them; then the optimizer."""
    with _traceless(model):
        return seconds_of(trained(model), loss, most=most)


def seconds_of(weights: Sequence[nn.Parameter], loss: Callable[[], Tensor], *, most: int = _MOST) -> float:
    """`step_seconds` for weights that no tuned model holds."""
    passes = _timed(lambda: torch.autograd.grad(loss(), weights, allow_unused=True), weights[0].device, most)
    return passes + _update_seconds(weights)


def memory(model: TunedModel, batch: Batch, *, cached: bool = True) -> Memory:
    """Take the step's passes on `batch` and follow every tensor from its making to its end."""
    weights = trained(model)
    held = _storage_bytes(_all_weights(model))
    if not weights:
        return Memory(held, 0, 0)
    gradients = sum(weight.nbytes for weight in weights)
    with _traceless(model):
        below_BTD = _below(model, batch) if cached else None
        passes = _peak(lambda: _gradients(model, batch, None if below_BTD is None else below_BTD.clone()))
    update = gradients + round(_update_temporaries() * max(weight.nbytes for weight in weights))
    return Memory(held, 3 * gradients, max(passes, update))


def trained(model: TunedModel) -> list[nn.Parameter]:
    """The weights that a fit of `model` would change."""
    own = model.reader.weights.values() if model.readout.learning_rate else ()
    return [*itertools.chain(*(delta.weights.values() for delta in model.deltas)), *own]


@contextmanager
def _traceless(model: TunedModel) -> Iterator[None]:
    """Dropout as in training, and the random numbers' state as it was before."""
    with torch.random.fork_rng(), model.training():
        yield


def _gradients(model: TunedModel, batch: Batch, below_BTD: Tensor | None) -> Sequence[Tensor | None]:
    """The gradients of a loss, handed over instead of being left in the weights."""
    targets_B = torch.arange(len(batch), device=model.backbone.device) % (len(model.task.labels) or 1)
    loss = model.reader.loss(model.output(batch, below_BTD), batch, targets_B, torch.zeros((), device=targets_B.device))
    return torch.autograd.grad(loss, trained(model), allow_unused=True)


def _below(model: TunedModel, batch: Batch) -> Tensor | None:
    if model.first_block == 0:
        return None
    with torch.no_grad():
        return model.below(batch)


def _timed(run: Callable[[], object], device: torch.device, most: int) -> float:
    """The median of a few runs; the one before them pays for buffers and is not counted."""
    taken: list[float] = []
    while len(taken) < 1 + most and sum(taken[1:]) < _ENOUGH:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def _update_seconds(weights: Sequence[nn.Parameter]) -> float:
    """Clipping, AdamW and averaging of as many numbers; a sample of them where they are many, for the time goes into moving them."""
    sizes, room = [], _SAMPLE
    for weight in weights:
        sizes.append(min(weight.numel(), room))
        room -= sizes[-1]
    update = _update([size for size in sizes if size], weights[0].device)
    update()
    start = time.perf_counter()
    update()
    return (time.perf_counter() - start) * sum(weight.numel() for weight in weights) / sum(sizes)


def _update(sizes: Sequence[int], device: torch.device) -> Callable[[], None]:
    weights = [nn.Parameter(torch.zeros(size, device=device)) for size in sizes]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer, means = torch.optim.AdamW(weights, fused=True), [weight.detach().clone() for weight in weights]

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        for mean, weight in zip(means, weights, strict=True):
            mean.lerp_(weight.detach(), 0.5)

    return update


def _update_temporaries() -> float:
    """What AdamW needs beside weight, gradient and moments while it changes a weight, in sizes of that weight."""
    size = 4096
    update = _update([size], torch.device("cpu"))
    update()
    return _peak(update) / (4 * size)


def _all_weights(model: TunedModel) -> Iterator[Tensor]:
    yield from model.backbone.model.parameters()
    yield from model.backbone.model.buffers()
    yield from trained(model)


def _storage_bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of memory behind the tensors, each counted once."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def _peak(run: Callable[[], object]) -> int:
    """The most bytes that tensors made within `run` held at a time."""
    following = _Following()
    with following:
        made = run()
    del made
    return following.peak


class _Following(TorchDispatchMode):
    """Counts the memory of every tensor that is made within it, until the last one that uses the memory is gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(made):
            # What stands on memory that was given is a view, perhaps of a weight.
            if storage._cdata not in given and storage._cdata not in self.known:
                self._follow(storage, storage._cdata, storage.nbytes())
        return made

    def _follow(self, storage: torch.UntypedStorage, key: int, size: int) -> None:
        def gone(reference: object) -> None:
            del self.known[key]
            self.now -= size

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
