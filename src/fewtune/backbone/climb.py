"""A batch on its way up the stack, of which rows may leave between two blocks. Knows what is handed to blocks; no family and no exit.

Dimensions: B rows that are still there, N rows to keep, T tokens, S positions (tokens and what stands in front), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewtune.backbone.front import Packed
from fewtune.backbone.walk import Call

Record = Callable[[Packed, Tensor | None], list[Call]]
"""What the model's own forward would hand to each step for these rows."""
Run = Callable[[Call, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor | None]]
"""(the step, its states, what the one before handed on, the rows' entries) → (states, what is handed on)."""


class Climb:
    """States after `step` steps of the stack, of the rows that have not left.

    What a block is given is kept for the rows that stay: each of its arguments that has a row for each of the batch. Which these are is
    seen by comparing shapes with those for a batch of one row more, so no family needs to say it.
    """

    def __init__(self, packed: Packed, route_B: Tensor | None, *, record: Record, run: Run) -> None:
        self.packed, self.route_B, self._record, self._run = packed, route_B, record, run
        self._calls = record(packed, route_B)
        self._wider: list[Call] = []
        self._hidden_BSD: Tensor = self._calls[0].arguments[0]
        self._carried: Tensor | None = None
        self.step = 0

    def __len__(self) -> int:
        return len(self._hidden_BSD)

    @property
    def hidden_BTD(self) -> Tensor:
        """The tokens' states, before the final norm."""
        return self.packed.unpack(self._hidden_BSD)

    @property
    def first_BD(self) -> Tensor:
        """The states of the very first position, before the final norm."""
        return self._hidden_BSD[:, 0]

    def up(self) -> None:
        """Run the next step of the stack."""
        self._hidden_BSD, self._carried = self._run(self._calls[self.step], self._hidden_BSD, self._carried, self.route_B)
        self.step += 1

    def keep(self, rows_N: Tensor) -> None:
        """Let all rows leave but these, by their numbers among those that are still there."""
        if not self._wider:
            more_B = torch.arange(len(self) + 1, device=rows_N.device).clamp(max=len(self) - 1)
            self._wider = self._record(self.packed.rows(more_B), None if self.route_B is None else self.route_B[more_B])
        kept = _Kept(rows_N)
        # Steps that are behind are never run again.
        self._calls[self.step :] = [
            replace(call, arguments=kept.of(call.arguments, wider.arguments), options=kept.of(call.options, wider.options))
            for call, wider in zip(self._calls[self.step :], self._wider[self.step :], strict=True)
        ]
        if self._carried is not None and len(self._carried) == len(self):
            self._carried = self._carried[rows_N]
        self.packed = self.packed.rows(rows_N)
        self.route_B = None if self.route_B is None else self.route_B[rows_N]
        self._hidden_BSD = self._hidden_BSD[rows_N]


class _Kept:
    """The rows that stay, of whatever a block is given; what several blocks are given is taken once."""

    def __init__(self, rows_N: Tensor) -> None:
        self.rows_N = rows_N
        self.taken: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any, wider: Any) -> Any:
        """`value` with these rows; `wider` is the same for a batch of more rows."""
        if isinstance(value, Tensor):
            return self._tensor(value, wider)
        if isinstance(value, Mapping):
            return {name: self.of(item, wider[name]) for name, item in value.items()}
        if isinstance(value, tuple | list) and isinstance(wider, Sequence):
            return type(value)(self.of(item, other) for item, other in zip(value, wider, strict=True))
        return value

    def _tensor(self, value: Tensor, wider: Tensor) -> Tensor:
        if value.ndim == 0 or len(value) == len(wider):
            return value
        if id(value) not in self.taken:
            self.taken[id(value)] = (value, value[self.rows_N])  # held, so that its id is nobody else's meanwhile
        taken: Tensor = self.taken[id(value)][1]
        return taken
