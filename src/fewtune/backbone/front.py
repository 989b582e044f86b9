"""Trained vectors in front of the tokens: how they are packed into a batch and taken out of its states again. Knows no family.

Dimensions: B rows, T tokens, P vectors in front, S = P + T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.bank import Routing


@dataclass(frozen=True)
class Packed:
    """What the stack is given: ids, or vectors where some stand in front. `ahead_B` says how many do, row by row; `least` the fewest."""

    ids_BT: Tensor
    mask_BT: Tensor
    types_BT: Tensor | None
    vectors_BTD: Tensor | None = None
    ahead_B: Tensor | None = None
    least: int = 0

    def unpack(self, hidden_BSD: Tensor) -> Tensor:
        """The states hidden_BTD of the tokens alone."""
        if self.ahead_B is None:
            return hidden_BSD
        tokens = self.ids_BT.shape[1]
        if hidden_BSD.shape[1] == tokens + self.least:  # alike in every row
            return hidden_BSD[:, self.least :]
        rows_B1 = torch.arange(len(hidden_BSD), device=hidden_BSD.device)[:, None]
        return hidden_BSD[rows_B1, self.ahead_B[:, None] + torch.arange(tokens, device=hidden_BSD.device)]


class Fronts:
    """Which vectors each entry puts in front; several of one entry stand one behind the other."""

    def __init__(self) -> None:
        self.held: list[tuple[int, nn.Parameter]] = []

    def put(self, vectors: nn.Parameter, *, entry: int) -> surgery.Undo:
        """Add `vectors` (P, D) for the rows of `entry`, behind those that it has already."""
        item = (entry, vectors)
        self.held.append(item)

        def undo() -> None:
            self.held = [held for held in self.held if held is not item]

        return undo

    def length(self, entry: int) -> int:
        """How many vectors `entry` puts in front."""
        return sum(len(vectors) for owner, vectors in self.held if owner == entry)

    def pack(
        self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, *, routing: Routing, embed: Callable[[Tensor], Tensor]
    ) -> Packed:
        """The batch with each row's vectors in front of its tokens; the padding stays on the right."""
        fronts = {entry: vectors for entry in routing.rows if (vectors := [held for owner, held in self.held if owner == entry])}
        if not fronts:
            return Packed(ids_BT, mask_BT, types_BT)
        tokens_BTD = embed(ids_BT)
        entry, vectors = next(iter(fronts.items()))
        if routing.rows[entry] is None:
            return _alike(ids_BT, mask_BT, types_BT, torch.cat(list(vectors)), tokens_BTD)
        rows: list[Sequence[Tensor]] = [()] * len(ids_BT)
        for entry, vectors in fronts.items():
            chosen = routing.rows[entry]
            for row in range(len(ids_BT)) if chosen is None else chosen.tolist():
                rows[row] = vectors
        ahead = [sum(map(len, vectors)) for vectors in rows]
        ahead_B = torch.tensor(ahead, device=ids_BT.device)
        vectors_BSD = _stacked([torch.cat([*vectors, own]) for vectors, own in zip(rows, tokens_BTD, strict=True)])
        positions_S = torch.arange(vectors_BSD.shape[1], device=ids_BT.device)
        mask_BS = (positions_S < (ahead_B + mask_BT.sum(1))[:, None]).to(mask_BT.dtype)
        types_BS = None if types_BT is None else _shifted(types_BT, ahead_B, size=len(positions_S))
        return Packed(ids_BT, mask_BS, types_BS, vectors_BSD, ahead_B, min(ahead))


def _alike(ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, vectors_PD: Tensor, tokens_BTD: Tensor) -> Packed:
    """The batch with the same vectors in front of every row."""
    rows, size = len(ids_BT), len(vectors_PD)
    vectors_BSD = torch.cat([vectors_PD.expand(rows, -1, -1), tokens_BTD], 1)
    mask_BS = nn.functional.pad(mask_BT, (size, 0), value=1)
    types_BS = None if types_BT is None else nn.functional.pad(types_BT, (size, 0))
    return Packed(ids_BT, mask_BS, types_BS, vectors_BSD, torch.full((rows,), size, device=ids_BT.device), size)


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _shifted(types_BT: Tensor, ahead_B: Tensor, *, size: int) -> Tensor:
    """Segment numbers moved behind what stands in front, which is of segment 0."""
    types_BS = types_BT.new_zeros(len(types_BT), size)
    columns_BT = ahead_B[:, None] + torch.arange(types_BT.shape[1], device=types_BT.device)
    return types_BS.scatter(1, columns_BT, types_BT)
