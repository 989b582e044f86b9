"""Batches whose rows cannot share a pass, or had better not: which rows run together, and how what they give is put back in order.
Knows no family.

Dimensions: B rows of a batch, N rows of one turn, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewtune.backbone.bank import Bank
from fewtune.backbone.tree import Parents

TURN = 64
"""What a turn of its own costs, in tokens; padding up to that is cheaper (bench/results/turns.md)."""


@dataclass(frozen=True)
class Inputs:
    """What `Backbone.forward` is given, row by row."""

    ids_BT: Tensor
    mask_BT: Tensor
    types_BT: Tensor | None = None
    below_BTD: Tensor | None = None
    route_B: Tensor | None = None
    trees: Sequence[Parents] = ()
    written_BFJ: Tensor | None = None

    def rows(self, rows_N: Tensor) -> Inputs:
        """These rows alone, as wide as the longest of them."""
        mask_NT = self.mask_BT[rows_N]
        width = max(1, int(mask_NT.sum(1).max()))
        types_NT, below_NTD = rows(self.types_BT, rows_N), rows(self.below_BTD, rows_N)
        return Inputs(
            self.ids_BT[rows_N, :width],
            mask_NT[:, :width],
            None if types_NT is None else types_NT[:, :width],
            None if below_NTD is None else below_NTD[:, :width],
            rows(self.route_B, rows_N),
            [self.trees[row] for row in rows_N.tolist()] if len(self.trees) > 1 else self.trees,
            rows(self.written_BFJ, rows_N),
        )


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


def by_length(mask_BT: Tensor) -> list[Tensor]:
    """The rows_N of turns of like length, on a processor, where less padding is worth more than `TURN` each; else nothing.

    Nothing on an accelerator either, which computes padding beside the rest.
    """
    if mask_BT.device.type != "cpu" or len(mask_BT) < 2:
        return []
    length_B = mask_BT.sum(1)
    if mask_BT.numel() - int(length_B.sum()) <= TURN:
        return []
    tops = _cuts(sorted(Counter(length_B.tolist()).items()))
    if len(tops) < 2:
        return []
    turn_B = torch.bucketize(length_B, torch.tensor(tops))
    return [(turn_B == turn).nonzero()[:, 0] for turn in range(len(tops))]


def _cuts(counted: Sequence[tuple[int, int]]) -> list[int]:
    """The longest row of each turn, of (length, rows) from the shortest, so that tokens and turns cost the least."""
    best: list[tuple[int, list[int]]] = [(0, [])]
    for end, (length, _) in enumerate(counted, start=1):
        found: list[tuple[int, list[int]]] = []
        held = 0
        for start in reversed(range(end)):
            held += counted[start][1]
            found.append((best[start][0] + held * length + TURN, [*best[start][1], length]))
        best.append(min(found, key=lambda one: one[0]))
    return best[-1][1]


def rows(tensor: Tensor | None, rows_N: Tensor) -> Tensor | None:
    """These rows of a tensor, if there is one."""
    return None if tensor is None else tensor[rows_N]


def in_order(parts: Sequence[Tensor], turns: Sequence[Tensor], *, width: int | None = None) -> Tensor:
    """What was computed turn after turn, each row where it stood in the batch; with zeros behind it up to `width`, if given."""
    if width is not None:
        parts = [nn.functional.pad(part_NTD, (0, 0, 0, width - part_NTD.shape[1])) for part_NTD in parts]
    return torch.cat(list(parts))[torch.cat(list(turns)).argsort()]
