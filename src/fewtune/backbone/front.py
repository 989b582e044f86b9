"""Trained vectors in front of the tokens: how they are packed into a batch and taken out of its states again. Knows no family.

Dimensions: B rows, T tokens, P vectors in front, S = P + T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.bank import Routing
from fewtune.backbone.tree import Parents


@dataclass(frozen=True)
class Packed:
    """What the stack is given: ids, or vectors where some stand in front: `ahead` of them in every row, or `ahead_B`, row by row.

    With `trees`, one for each row or one for all, the last tokens of each row are a tree's.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    types_BT: Tensor | None
    vectors_BTD: Tensor | None = None
    ahead: int = 0
    ahead_B: Tensor | None = None
    trees: tuple[Parents, ...] = ()

    def unpack(self, hidden_BSD: Tensor) -> Tensor:
        """The states hidden_BTD of the tokens alone."""
        if self.ahead_B is None:
            return hidden_BSD[:, self.ahead :] if self.ahead else hidden_BSD
        places_T = torch.arange(self.ids_BT.shape[1], device=hidden_BSD.device)
        rows_B1 = torch.arange(len(hidden_BSD), device=hidden_BSD.device)[:, None]
        return hidden_BSD[rows_B1, self.ahead_B[:, None] + places_T]

    def rows(self, rows_N: Tensor) -> Packed:
        """These rows alone, as wide as they are."""
        held = ("ids_BT", "mask_BT", "types_BT", "vectors_BTD", "ahead_B")
        return replace(self, **{name: getattr(self, name)[rows_N] for name in held if getattr(self, name) is not None})


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

    def of(self, entry: int) -> list[Tensor]:
        """The vectors of `entry`, in their order."""
        return [vectors for owner, vectors in self.held if owner == entry]

    def length(self, entry: int) -> int:
        """How many vectors `entry` puts in front."""
        return sum(map(len, self.of(entry)))

    def pack(
        self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, *, routing: Routing, embed: Callable[[Tensor], Tensor]
    ) -> Packed:
        """The batch with each row's vectors in front of its tokens; the padding stays on the right."""
        groups = [(rows, own) for entry, rows in routing.rows.items() if (own := self.of(entry))]
        if not groups:
            return Packed(ids_BT, mask_BT, types_BT)
        tokens_BTD = embed(ids_BT)
        if groups[0][0] is None:
            return _alike(ids_BT, mask_BT, types_BT, torch.cat(groups[0][1]), tokens_BTD)
        fronts: list[Sequence[Tensor]] = [()] * len(ids_BT)
        for rows_N, own in groups:
            for row in [] if rows_N is None else rows_N.tolist():
                fronts[row] = own
        ahead_B = torch.tensor([sum(map(len, front)) for front in fronts], device=ids_BT.device)
        rows = [torch.cat([*front, tokens_TD]) for front, tokens_TD in zip(fronts, tokens_BTD, strict=True)]
        vectors_BSD = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        positions_S = torch.arange(vectors_BSD.shape[1], device=ids_BT.device)
        mask_BS = (positions_S < (ahead_B + mask_BT.sum(1))[:, None]).to(mask_BT.dtype)
        types_BS = None if types_BT is None else _shifted(types_BT, ahead_B, size=len(positions_S))
        return Packed(ids_BT, mask_BS, types_BS, vectors_BSD, ahead_B=ahead_B)


def _alike(ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, vectors_PD: Tensor, tokens_BTD: Tensor) -> Packed:
    """The batch with the same vectors in front of every row."""
    size = len(vectors_PD)
    vectors_BSD = torch.cat([vectors_PD.expand(len(ids_BT), -1, -1), tokens_BTD], 1)
    mask_BS = nn.functional.pad(mask_BT, (size, 0), value=1)
    types_BS = None if types_BT is None else nn.functional.pad(types_BT, (size, 0))
    return Packed(ids_BT, mask_BS, types_BS, vectors_BSD, ahead=size)


def _shifted(types_BT: Tensor, ahead_B: Tensor, *, size: int) -> Tensor:
    """Segment numbers moved behind what stands in front, which is of segment 0."""
    types_BS = types_BT.new_zeros(len(types_BT), size)
    columns_BT = ahead_B[:, None] + torch.arange(types_BT.shape[1], device=types_BT.device)
    return types_BS.scatter(1, columns_BT, types_BT)
