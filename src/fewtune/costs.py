"""What a method costs on a backbone before anything is tuned: numbers trained and stored, bytes for one task and for a hundred, and
the forecast of a step. Knows the job's defaults and the artifact's files; reads no data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtune import artifact, forecast, registry
from fewtune.backbone.backbone import Backbone, Precision
from fewtune.data.example import Example, Split
from fewtune.deltas import DELTAS
from fewtune.deltas.delta import Delta, Installed, remove_all
from fewtune.errors import InputError, SpecError
from fewtune.forecast import Memory, Seconds
from fewtune.model import TunedModel
from fewtune.precision import Wanted, settle_precision
from fewtune.prompt.batch import Batch
from fewtune.prompt.encode import Row
from fewtune.readout import READOUTS
from fewtune.readout.readout import Readout
from fewtune.settings import DEFAULT_DELTAS, Settings, recipe_of
from fewtune.tasks.task import Task

Deltas = tuple[Delta, ...]
TASKS = 100
LABELS = ("negative", "positive")
_USUAL = ("subset:part=all", "subset:part=biases", "lora", "adapter", "ia3", "prefix", "soft-prompt")


@dataclass(frozen=True)
class Step:
    """The shape of a training step: tokens in each row, rows in a batch."""

    length: int = 64
    batch_size: int = 8


@dataclass(frozen=True)
class Cost:
    """What one method costs, a stack of deltas as flags name it; `task_bytes` are the artifact's tensors on disk, readout included."""

    delta: str
    trained_parameters: int
    stored_parameters: int
    task_bytes: int
    seconds: Seconds
    memory: Memory


@dataclass(frozen=True)
class Refused:
    """A method that the backbone cannot carry, and why."""

    delta: str
    reason: str


@dataclass(frozen=True)
class Costs:
    """Methods side by side on one backbone; `copy_bytes` is a float32 copy of it on disk."""

    backbone: str
    backbone_parameters: int
    copy_bytes: int
    readout: Readout
    step: Step
    precision: Precision
    methods: tuple[Cost | Refused, ...]

    @property
    def hundred_copies(self) -> int:
        """A copy of the backbone for each of a hundred tasks."""
        return TASKS * self.copy_bytes

    def hundred_tasks(self, cost: Cost) -> int:
        """One backbone and a hundred artifacts beside it."""
        return self.copy_bytes + TASKS * cost.task_bytes

    def share(self, cost: Cost) -> float:
        """How many numbers are trained for each one that the backbone has."""
        return cost.trained_parameters / self.backbone_parameters

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return {
            "backbone": self.backbone,
            "backbone_parameters": self.backbone_parameters,
            "bytes": {"backbone": self.copy_bytes, "hundred_copies": self.hundred_copies},
            "readout": READOUTS.name_of(self.readout),
            **registry.to_dict(self.step),
            "precision": self.precision,
            "methods": [self._method(method) for method in self.methods],
        }

    def _method(self, method: Cost | Refused) -> dict[str, registry.Plain]:
        if isinstance(method, Refused):
            return {"delta": method.delta, "refused": method.reason}
        return {
            "delta": method.delta,
            "trained_parameters": method.trained_parameters,
            "share": self.share(method),
            "stored_parameters": method.stored_parameters,
            "bytes": {
                "task": method.task_bytes,
                "hundred_tasks": self.hundred_tasks(method),
                "hundred_copies": self.hundred_copies,
                "step": method.memory.total,
            },
            "seconds": registry.to_dict(method.seconds),
        }


def compare(
    backbone: Backbone,
    wanted: Mapping[str, Deltas] | None = None,
    *,
    readout: Readout | None = None,
    labels: Sequence[str] = LABELS,
    step: Step | None = None,
    precision: Wanted = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Costs:
    """What each stack of deltas in `wanted` costs, by the name it goes by; without any, the usual methods, of which some may be refused.

    Raises `SpecError` for a step that is too long for the backbone, `BackboneError` where it cannot carry what is asked for.
    """
    step, task = step or Step(), Task(labels=tuple(labels))
    readout = recipe_of(task, backbone, Settings(readout=readout)).readout
    bare, copy_bytes = TunedModel.assemble(backbone, task, readout), file_bytes(dict(backbone.model.named_parameters()))
    texts = _texts(bare, probe(bare, step))
    methods: list[Cost | Refused] = []
    with backbone.as_precision(backbone.precision):
        settle_precision(bare, precision, Split(unlabeled=texts))
        for name, deltas in (wanted or usual()).items():
            say(f"Measuring {name}.")
            try:
                methods.append(cost(bare, deltas, step, name=name))
            except InputError as error:
                if wanted:
                    raise
                methods.append(Refused(name, str(error)))
        return Costs(backbone.name, backbone.parameters, copy_bytes, readout, step, backbone.precision, tuple(methods))


def _texts(model: TunedModel, batch: Batch) -> tuple[Example, ...]:
    decoded = model.backbone.tokenizer.batch_decode(batch.ids_BT.tolist(), skip_special_tokens=True)
    return tuple(Example(dict.fromkeys(model.task.fields, text)) for text in decoded)


def usual() -> dict[str, Deltas]:
    """The methods that are set side by side when none is named: fine-tuning, the job's default, then one of each kind."""
    first, *rest = [text for text in _USUAL if text.partition(":")[0] in DELTAS.members]
    default = " + ".join(map(DELTAS.to_text, DEFAULT_DELTAS))
    return {first: (DELTAS.from_text(first),), default: DEFAULT_DELTAS, **{text: (DELTAS.from_text(text),) for text in rest}}


def cost(bare: TunedModel, deltas: Deltas, step: Step, *, name: str) -> Cost:
    """Install the deltas beside the readout of `bare`, count, measure, and take them out again."""
    installed: list[Installed] = []
    try:
        for delta in deltas:
            installed.append(delta.install(bare.backbone, generator=torch.Generator().manual_seed(0)))
        model = replace(bare, deltas=tuple(installed))
        batch, states = probe(model, step), artifact.tensors(model).values()
        return Cost(
            name,
            model.trained_parameters,
            sum(tensor.numel() for state in states for tensor in state.values()),
            sum(map(file_bytes, states)),
            forecast.seconds(model, batch),
            forecast.memory(model, batch),
        )
    finally:
        remove_all(installed)


def probe(model: TunedModel, step: Step, *, seed: int = 0) -> Batch:
    """A batch of that shape, of random tokens; raises `SpecError` for rows that the backbone has no room for."""
    backbone = model.backbone
    if not 1 <= step.length <= backbone.room:
        got, fix = str(step.length), "Give another --length."
        raise SpecError(expected=f"1 to {backbone.room} tokens", got=got, where=f"a step on {backbone.name}", fix=fix)
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(len(backbone.tokenizer), (step.batch_size, step.length), generator=generator)
    return model.asking.collate([_row(model, ids) for ids in ids_BT.tolist()], 0)


def _row(model: TunedModel, ids: list[int]) -> Row:
    """A row of these tokens; where texts are read behind words, a word and as many tokens as there is room for."""
    if model.asking.fillings:
        ids = ids[: max(1, len(ids) - model.asking.fillings[0].room)]
        return Row(tuple(ids), (0,) * len(ids), 0, own=tuple(range(len(ids))), said=len(ids))
    return Row(tuple(ids), (0,) * len(ids), len(ids) - 1)


def file_bytes(state: Mapping[str, Tensor]) -> int:
    """The size of a safetensors file with these tensors, without writing it: eight bytes, a header of text, the numbers.

    >>> file_bytes({"weight": torch.zeros(2, 3)})
    96
    """
    if not state:
        return 0
    header, start = {}, 0
    for name, tensor in sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0])):
        stop = start + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // 8) * 8 + start


_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
