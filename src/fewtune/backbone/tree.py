"""Tokens behind a text that go on from one another like the branches of a tree, so that one pass reads every branch: who sees whom,
and at which position each stands. Knows masks and positions only.

    text of n tokens ─┬─ a ── b        parents of (a, b, c): (-1, 0, -1)
                      └─ c             positions: n, n + 1, n

Dimensions: B rows, S positions of what the stack is given, K tokens of the tree, in the order in which they are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def depths(parents: Sequence[int]) -> list[int]:
    """How many steps each token of the tree is behind the text: 1 for those that follow it.

    >>> depths((-1, 0, -1))
    [1, 2, 1]
    """
    found: list[int] = []
    for parent in parents:
        found.append(1 if parent < 0 else found[parent] + 1)
    return found


def positions(mask_BS: Tensor, parents: Sequence[int], plain_BS: Tensor | None) -> Tensor:
    """positions_BS where the last K real tokens of each row are the tree; `plain_BS` are those of a plain text, 0 to S - 1 if None."""
    if plain_BS is None:
        plain_BS = torch.arange(mask_BS.shape[1], device=mask_BS.device).expand(mask_BS.shape)
    node_BS = _nodes(mask_BS, len(parents))
    steps_K = torch.tensor(depths(parents), device=mask_BS.device)
    end_B1 = plain_BS.gather(1, mask_BS.long().sum(1, keepdim=True) - len(parents) - 1)
    return torch.where(node_BS < 0, plain_BS, end_B1 + steps_K[node_BS.clamp(min=0)])


def seen(mask_BS: Tensor, parents: Sequence[int]) -> Tensor:
    """seen_B1SS, true where the query (first S) sees the key: what comes before it, but of the tree only what it goes on from."""
    size = len(parents)
    line_KK = torch.eye(size, dtype=torch.bool, device=mask_BS.device)
    for number, parent in enumerate(parents):
        if parent >= 0:
            line_KK[number] |= line_KK[parent]
    node_BS = _nodes(mask_BS, size)
    place_BS = node_BS.clamp(min=0)
    aside_BSS = (node_BS >= 0)[:, :, None] & (node_BS >= 0)[:, None, :] & ~line_KK[place_BS[:, :, None], place_BS[:, None, :]]
    past_SS = torch.ones(mask_BS.shape[1], mask_BS.shape[1], dtype=torch.bool, device=mask_BS.device).tril()
    return (past_SS & mask_BS.bool()[:, None, :] & ~aside_BSS)[:, None]


def near(positions_BS: Tensor, window: int) -> Tensor:
    """near_B1SS, true where the key (last S) stands less than `window` positions before the query."""
    return (positions_BS[:, :, None] - positions_BS[:, None, :] < window)[:, None]


def _nodes(mask_BS: Tensor, size: int) -> Tensor:
    """Which token of the tree stands at each position; -1 at the text, and at the padding."""
    ends_B1 = mask_BS.long().sum(1, keepdim=True)
    node_BS = torch.arange(mask_BS.shape[1], device=mask_BS.device) - (ends_B1 - size)
    return torch.where((node_BS >= 0) & (node_BS < size), node_BS, -1)
