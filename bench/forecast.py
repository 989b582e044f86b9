"""Is the forecast of a training step right? Seconds and peak memory as forecast before, and as measured while training.

Each setting has a process of its own, so that none finds memory that another has left behind.

    python bench/forecast.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from machine import RESULTS, forget_peak, heading, peak_bytes, table, write
from torch import Tensor

from fewtune import forecast
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.costs import LABELS, Step, probe
from fewtune.deltas import DELTAS
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.tasks.task import Task
from fewtune.train.fit import FitOptions, Group, Session, fit
from fewtune.train.losses import cross_entropy

BACKBONES = ("smollm2-135m", "minilm-l6")
DELTA_TEXTS = ("lora", "lora:top=0.33", "adapter", "subset:part=all")
LENGTHS = (32, 128)
NEAR = 0.25


@dataclass(frozen=True)
class Setting:
    """What is trained, and on batches of which shape."""

    backbone: str
    delta: str
    length: int
    batch_size: int


@dataclass(frozen=True)
class Found:
    """Seconds of a step and bytes that the process grew by: as forecast, and as measured. `tensors` is the forecast without what the
    C library takes beside them, `working` the part of it that comes and goes within a step."""

    setting: Setting
    seconds: float
    measured_seconds: float
    bytes: int
    measured_bytes: int
    tensors: int
    working: int

    @property
    def allocator(self) -> float:
        """Bytes taken for each byte of the tensors that come and go."""
        return (self.measured_bytes - (self.tensors - self.working)) / self.working


def measure(setting: Setting, *, steps: int, warmup: int) -> Found:
    """Forecast, then train on other batches of the same shape."""
    step = Step(setting.length, setting.batch_size)
    start = grown_before_loading()
    model = tuned(setting)
    batch = probe(model, step)
    forget_peak()
    seconds, memory = forecast.seconds(model, batch), forecast.memory(model, batch)
    forget_peak()
    taken = train(model, [probe(model, step, seed=seed) for seed in range(1, 5)], steps + warmup)
    tensors = memory.weights + memory.kept + memory.working
    found = (seconds.step, statistics.median(taken[warmup:]), memory.total, peak_bytes() - start)
    return Found(setting, *found, tensors, memory.working)


def grown_before_loading() -> int:
    """What the process holds once everything is imported and has run: Python, the libraries and their buffers."""
    for family in ("bert", "llama"):
        small, ids_BT = Backbone(*tiny.model(family), name=family), torch.ones(1, 4, dtype=torch.long)
        small.forward(ids_BT, torch.ones_like(ids_BT))
    forget_peak()
    return peak_bytes()


def tuned(setting: Setting) -> TunedModel:
    """The backbone with its readout and the delta."""
    backbone = load(setting.backbone)
    model = TunedModel.assemble(backbone, Task(labels=LABELS), Cloze() if backbone.has_lm_head else Head())
    delta = DELTAS.from_text(setting.delta).install(backbone, generator=torch.Generator().manual_seed(0))
    return replace(model, deltas=(delta,))


def train(model: TunedModel, batches: Sequence[Batch], steps: int) -> list[float]:
    """Seconds of each step of a fit, the states below the first trained block being kept as in a job."""
    below = [states(model, batch) for batch in batches]
    groups = [Group(part, 1e-4) for part in (model.deltas[0].weights, model.reader.weights) if part]
    ends: list[float] = []

    def note(what: str, done: int, steps: int, loss: float) -> None:
        ends.append(time.perf_counter())

    def loss(number: int) -> Tensor:
        scores_BC = model.batch_scores(batches[number], below[number])
        return cross_entropy(scores_BC, torch.zeros(len(scores_BC), dtype=torch.long))

    with model.training():
        begin = time.perf_counter()
        fit(groups, lambda step: step % len(batches), loss, steps=steps, options=FitOptions(), seed=0, session=Session(progress=note))
    return [end - start for start, end in itertools.pairwise([begin, *ends])]


def states(model: TunedModel, batch: Batch) -> Tensor | None:
    """What the first trained block is given."""
    if model.first_block == 0:
        return None
    with torch.no_grad():
        return model.backbone.below(batch.ids_BT, batch.mask_BT, batch.types_BT, start=model.first_block)


# The page


COLUMNS = ("PLM", "delta", "tokens", "s/step, forecast", "measured", "ratio", "MB, forecast", "measured", "ratio", "allocator")


def row_of(found: Found) -> list[str]:
    """One row of the table; both ratios are forecast over measured."""
    setting = found.setting
    return [
        setting.backbone,
        f"`{setting.delta}`",
        f"{setting.batch_size} × {setting.length}",
        f"{found.seconds:.3f}",
        f"{found.measured_seconds:.3f}",
        f"{found.seconds / found.measured_seconds:.2f}",
        f"{found.bytes / 1e6:.0f}",
        f"{found.measured_bytes / 1e6:.0f}",
        f"{found.bytes / found.measured_bytes:.2f}",
        f"{found.allocator:.2f}",
    ]


def verdict(what: str, ratios: Sequence[float]) -> str:
    """How many forecasts are as near as they should be."""
    near = sum(abs(ratio - 1) <= NEAR for ratio in ratios)
    return f"{what}: {near} of {len(ratios)} within {NEAR:.0%}; ratios from {min(ratios):.2f} to {max(ratios):.2f}."


def page(found: Sequence[Found], arguments: Sequence[str]) -> str:
    """The results file."""
    parts = [
        heading("Forecast of a training step against what was measured", "bench/forecast.py", arguments).rstrip("\n"),
        _HOW.format(allocator=forecast.ALLOCATOR),
        table(COLUMNS, [row_of(one) for one in found]),
        verdict("Seconds", [one.seconds / one.measured_seconds for one in found]),
        verdict("Memory", [one.bytes / one.measured_bytes for one in found]),
    ]
    return "\n\n".join(parts) + "\n"


_HOW = """`fewtune params` and the line before a fit take their figures from `fewtune.forecast`: the passes of a step are taken on one batch
and timed, the optimizer is timed on numbers of its own, and for the memory every tensor is followed from its making to its end. Then
`fewtune.train.fit` trains on other batches of the same shape; the median step counts. Memory is what the process grows by at its peak, from
when everything is imported (Linux: VmHWM), weights included. Float32, states below the first trained block kept. Ratios are forecast over
measured. The last column is what the C library took for each byte of the tensors that come and go; the forecast says {allocator}."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Seconds and memory of a training step: forecast against measured.")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--deltas", nargs="+", default=list(DELTA_TEXTS))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="measured steps in each setting")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a setting as JSON: what the process of its own is told
    parser.add_argument("--out", type=Path, default=RESULTS / "forecast.md")
    return parser.parse_args(arguments)


def alone(setting: Setting, arguments: Sequence[str]) -> Found:
    """Measure in a process of its own; raises `CalledProcessError` if that fails."""
    command = [sys.executable, __file__, *arguments, "--one", json.dumps(asdict(setting))]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return Found(**{**found, "setting": Setting(**found["setting"])})


def main(arguments: Sequence[str]) -> int:
    """Measure each setting, then write the table."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(asdict(measure(Setting(**json.loads(options.one)), steps=options.steps, warmup=options.warmup))))
        return 0
    found = []
    for backbone, delta, length in itertools.product(options.backbones, options.deltas, options.lengths):
        found.append(alone(Setting(backbone, delta, length, options.batch_size), arguments))
        print(" | ".join(row_of(found[-1])), flush=True)
    write(options.out, page(found, arguments))
    print(table(COLUMNS, [row_of(one) for one in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
