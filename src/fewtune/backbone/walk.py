"""Block by block: what a model's own forward hands to each block, and a block run with other states. Knows the family's row only.

Dimensions: B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.families import Family


@dataclass(frozen=True)
class Call:
    """What the model's own forward hands to block number `block`."""

    block: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class _Recorder(nn.Module):
    """Stands in for a block: writes down its arguments and hands the hidden states on."""

    def __init__(self, calls: list[Call], number: int, block: nn.Module, outputs: int) -> None:
        super().__init__()
        self.calls, self.number, self.outputs = calls, number, outputs
        self.stands_for = (block,)  # in a tuple, that it is no child

    def __getattr__(self, name: str) -> Any:
        """What a stack asks a block of itself (ModernBERT: of which kind its attention is) is the block's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.stands_for[0], name)

    def forward(self, hidden_BTD: Tensor, *arguments: Any, **options: Any) -> Any:
        self.calls.append(Call(self.number, (hidden_BTD, *arguments), options))
        return hidden_BTD if self.outputs == 0 else (hidden_BTD, *[None] * (self.outputs - 1))


def record(stack: nn.Module, family: Family, inputs: Mapping[str, Any]) -> list[Call]:
    """Run `stack` with its blocks left out; what each of its steps would have been given."""
    calls: list[Call] = []
    blocks = stack.get_submodule(family.blocks)
    recorders = nn.ModuleList([_Recorder(calls, number, block, family.outputs) for number, block in enumerate(blocks.children())])
    undo = surgery.replace(stack, family.blocks, recorders)
    try:
        stack(**inputs)
    finally:
        undo()
    return calls


def run(blocks: nn.ModuleList, family: Family, call: Call, hidden_BTD: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(the block's states, what it hands to the next block beside them); `before` is what the block before it handed on."""
    arguments = [hidden_BTD, *call.arguments[1:]]
    if family.carries is not None and before is not None:
        arguments[family.carries] = before
    output = blocks[call.block](*arguments, **call.options)
    if isinstance(output, Tensor):
        return output, None
    return output[0], output[1] if family.carries is not None else None


def carried(blocks: nn.ModuleList, family: Family, calls: list[Call]) -> Tensor | None:
    """What the first block hands on beside its states (T5's position bias, which depends on the length alone)."""
    return None if family.carries is None else run(blocks, family, calls[0], calls[0].arguments[0], None)[1]
