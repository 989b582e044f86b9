"""Batches whose rows cannot share a pass: which rows run together, and how what they give is put back in order. Knows no family.

Dimensions: B rows of a batch, N rows of one entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtune.backbone.bank import Bank


def of(stack: nn.Module, unrouted: tuple[str, ...], route_B: Tensor | None) -> list[Tensor]:
    """The rows_N of each entry, if one of several has a delta where rows cannot be told apart; else nothing.

    Such modules have paths that end in one of `unrouted`.
    """
    entries: list[int] = [] if route_B is None or not unrouted else sorted(set(route_B.tolist()))
    if route_B is None or len(entries) < 2:
        return []
    banks = [module for path, module in stack.named_modules() if path.endswith(unrouted) and isinstance(module, Bank)]
    if not any(set(bank.entries) & set(entries) for bank in banks):
        return []
    return [(route_B == entry).nonzero()[:, 0] for entry in entries]


def rows(tensor: Tensor | None, rows_N: Tensor) -> Tensor | None:
    """These rows of a tensor, if there is one."""
    return None if tensor is None else tensor[rows_N]


def in_order(parts: Sequence[Tensor], turns: Sequence[Tensor]) -> Tensor:
    """What was computed turn after turn, each row where it stood in the batch."""
    return torch.cat(list(parts))[torch.cat(list(turns)).argsort()]
