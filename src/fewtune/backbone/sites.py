"""A place in a stack: which module, which of its outputs, and how large. Knows modules; no family and no delta."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fewtune.backbone import surgery


@dataclass(frozen=True)
class Site:
    """A place in block number `block`: the module at `path`, or the outputs `start` to `stop` of it."""

    name: str
    block: int
    path: str
    start: int
    stop: int
    inputs: int
    outputs: int


def weighted(block: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, if there is one and it has a weight."""
    try:
        module = surgery.unwrapped(block.get_submodule(path))
    except AttributeError:
        return None
    return module if isinstance(getattr(module, "weight", None), Tensor) else None


def sizes(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear map; GPT-2's Conv1D keeps its weight transposed, a norm has one size."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.dim() == 1:
        return weight.shape[0], weight.shape[0]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return weight.shape[0], weight.shape[1]
