"""Tokens behind a text that go on from one another like the branches of a tree, so that one pass reads every branch: who sees whom,
and at which position each stands. Knows masks and positions only.

    text of n tokens ─┬─ a ── b        parents of (a, b, c): (-1, 0, -1)
                      └─ c             positions: n, n + 1, n

Every row has a tree of its own, or all have the same.

Dimensions: B rows, R trees (B, or 1 for all rows), S positions of what the stack is given, K tokens of the largest tree, each tree's in the
order in which they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

EVERYTHING, WINDOW = "full_attention", "sliding_attention"
"""transformers' names for blocks that see everything before them, and for those that see the last tokens only."""
Parents = Sequence[int]
"""A tree: for each of its tokens the number of the one that it goes on from, -1 for the text."""


def inputs(mask_BS: Tensor, trees: Sequence[Parents], plain_BS: Tensor | None, *, window: int | None) -> dict[str, Any]:
    """Masks and positions, as a stack takes them, of rows that end in a tree; masks by the kind of block where some have a window."""
    seen_B1SS, positions_BS = seen(mask_BS, trees), positions(mask_BS, trees, plain_BS)
    mask: Any = seen_B1SS if window is None else {EVERYTHING: seen_B1SS, WINDOW: seen_B1SS & near(positions_BS, window)}
    return {"attention_mask": mask, "position_ids": positions_BS}


def depths(parents: Parents) -> list[int]:
    """How many steps each token of the tree is behind the text: 1 for those that follow it.

    >>> depths((-1, 0, -1))
    [1, 2, 1]
    """
    found: list[int] = []
    for parent in parents:
        found.append(1 if parent < 0 else found[parent] + 1)
    return found


def positions(mask_BS: Tensor, trees: Sequence[Parents], plain_BS: Tensor | None) -> Tensor:
    """positions_BS where the last real tokens of each row are its tree; `plain_BS` are those of a plain text, 0 to S - 1 if None."""
    if plain_BS is None:
        plain_BS = torch.arange(mask_BS.shape[1], device=mask_BS.device).expand(mask_BS.shape)
    sizes_R1, node_BS = _nodes(mask_BS, trees)
    steps_RK = torch.zeros(len(trees), max(1, *map(len, trees)), dtype=torch.long)
    for row, parents in enumerate(trees):
        steps_RK[row, : len(parents)] = torch.tensor(depths(parents), dtype=torch.long)
    steps_BS = steps_RK.to(mask_BS.device).expand(len(mask_BS), -1).gather(1, node_BS.clamp(min=0))
    text_B1 = mask_BS.long().sum(1, keepdim=True) - sizes_R1
    end_B1 = plain_BS.gather(1, (text_B1 - 1).clamp(min=0)) - (text_B1 == 0).long()  # without a text the tree begins where one would
    return torch.where(node_BS < 0, plain_BS, end_B1 + steps_BS)


def seen(mask_BS: Tensor, trees: Sequence[Parents]) -> Tensor:
    """seen_B1SS, true where the query (first S) sees the key: what comes before it, but of the tree only what it goes on from."""
    _, node_BS = _nodes(mask_BS, trees)
    lines_RKK = torch.stack([_lines(parents, max(1, *map(len, trees))) for parents in trees]).to(mask_BS.device)
    row_B11 = torch.arange(len(mask_BS), device=mask_BS.device)[:, None, None] % len(trees)
    place_BS = node_BS.clamp(min=0)
    line_BSS = lines_RKK[row_B11, place_BS[:, :, None], place_BS[:, None, :]]
    aside_BSS = (node_BS >= 0)[:, :, None] & (node_BS >= 0)[:, None, :] & ~line_BSS
    past_SS = torch.ones(mask_BS.shape[1], mask_BS.shape[1], dtype=torch.bool, device=mask_BS.device).tril()
    return (past_SS & mask_BS.bool()[:, None, :] & ~aside_BSS)[:, None]


def _lines(parents: Parents, size: int) -> Tensor:
    """lines_KK, true where the token (first K) is the other or goes on from it."""
    line_KK = torch.eye(size, dtype=torch.bool)
    for number, parent in enumerate(parents):
        if parent >= 0:
            line_KK[number] |= line_KK[parent]
    return line_KK


def near(positions_BS: Tensor, window: int) -> Tensor:
    """near_B1SS, true where the key (last S) stands less than `window` positions before the query."""
    return (positions_BS[:, :, None] - positions_BS[:, None, :] < window)[:, None]


def _nodes(mask_BS: Tensor, trees: Sequence[Parents]) -> tuple[Tensor, Tensor]:
    """(sizes_R1 of the trees, which token of the tree stands at each position; -1 at the text, and at the padding)."""
    sizes_R1 = torch.tensor([[len(parents)] for parents in trees], device=mask_BS.device)
    ends_B1 = mask_BS.long().sum(1, keepdim=True)
    node_BS = torch.arange(mask_BS.shape[1], device=mask_BS.device) - (ends_B1 - sizes_R1)
    return sizes_R1, torch.where((node_BS >= 0) & (node_BS < sizes_R1), node_BS, -1)
