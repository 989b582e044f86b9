"""Rows → batches: which rows come together, and how they are padded. Knows no tokenizer, no model and no label.

Dimensions: B rows, T tokens, F fills, J tokens of a fill, N places.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewtune.prompt.encode import Row
from fewtune.prompt.spelling import Filling, Spelling
from fewtune.prompt.verbalizer import Word

_CHUNK = 8  # training batches are formed inside chunks of so many batches, so that lengths are alike and order stays random


@dataclass(frozen=True)
class Batch:
    """Rows of one template, padded on the right; `words` are the token ids of each candidate's words.

    Where words of several tokens are read, `spellings` say how, each row's own or one for all rows; ids and masks have a row for each of
    its fills, prompt after prompt, and `places_N` are the states that are read, row after row, ids being laid flat. Where words are put in
    and the texts are read, `filling` says which, rows stand there in the same way, `own_BT` is true at the tokens of the texts, and
    `said_B` is the number of words in these.
    Where a decoder writes, `written_BFJ` are the answer's beginnings, and slot and places are those of its states. `answers` are each
    row's own in free text, read from the slot on.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    types_BT: Tensor | None
    slot_B: Tensor
    words: tuple[tuple[int, ...], ...] | None = None
    spellings: tuple[Spelling, ...] = ()
    places_N: Tensor | None = None
    filling: Filling | None = None
    own_BT: Tensor | None = None
    said_B: Tensor | None = None
    written_BFJ: Tensor | None = None
    answers: tuple[Word, ...] = ()

    def __len__(self) -> int:
        return len(self.slot_B)

    @property
    def fills(self) -> list[int]:
        """How many rows of ids each row has: one, or as many as there are fills of its slot."""
        if self.spellings and self.written_BFJ is None:
            return [len(spelling.fills) for spelling in self.spellings] * (len(self) // len(self.spellings))
        return [len(self.ids_BT) // len(self)] * len(self)

    @property
    def trees(self) -> tuple[tuple[int, ...], ...]:
        """How the last tokens of every row go on from one another, if they do; see `fewtune.backbone.tree`."""
        trees = tuple(spelling.parents for spelling in self.spellings)
        return trees if any(trees) else ()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS if getattr(self, name) is not None}
        return replace(self, **moved)


_TENSORS = ("ids_BT", "mask_BT", "types_BT", "slot_B", "places_N", "own_BT", "said_B", "written_BFJ")


def collate(rows: Sequence[Row], *, pad: int, words: tuple[tuple[int, ...], ...] | None = None) -> Batch:
    """Pad rows on the right into one batch."""
    ids_BT, mask_BT, types_BT = _padded([(row.ids, row.types) for row in rows], pad)
    return Batch(ids_BT, mask_BT, types_BT, torch.tensor([row.slot for row in rows]), words)


def collate_spelled(rows: Sequence[Row], spellings: tuple[Spelling, ...], *, pad: int, mask: int | None) -> Batch:
    """Pad each row's fills on the right into one batch; `spellings` are one for each row or one for all, `mask` is None for
    autoregressive models."""
    each = list(zip(rows, _for_each(rows, spellings), strict=True))
    ids_BT, mask_BT, types_BT = _padded([fill for row, own in each for fill in own.put(row.ids, row.types, row.slot, mask)], pad)
    first = itertools.accumulate((len(own.fills) for _, own in each), initial=0)
    width = ids_BT.shape[1]
    places = [
        (start + fill) * width + row.slot + steps for start, (row, own) in zip(first, each, strict=False) for fill, steps in own.places
    ]
    slot_B = torch.tensor([row.slot for row in rows])
    return Batch(ids_BT, mask_BT, types_BT, slot_B, spellings=spellings, places_N=torch.tensor(places))


def collate_written(
    rows: Sequence[Row],
    *,
    pad: int,
    start: int,
    sentinel: int | None,
    words: tuple[tuple[int, ...], ...] | None = None,
    spellings: tuple[Spelling, ...] = (),
) -> Batch:
    """Pad rows on the right into one batch, with what a decoder is given: `start`, the sentinel where the slot is one, and the beginning of
    each fill of the spelling, if there is one, for all rows or for each; those of a row that has fewer than others are empty."""
    ids_BT, mask_BT, types_BT = _padded([(row.ids, row.types) for row in rows], pad)
    slot = rows[0].slot  # of one template
    begin = (start,) if sentinel is None or not slot else (start, sentinel)
    each = _for_each(rows, spellings)
    listed = [own.fills for own in each] or [((),)] * len(rows)
    most, longest = max(map(len, listed)), max(len(fill) for fills in listed for fill in fills)
    padded = [[*fills, *[()] * (most - len(fills))] for fills in listed]
    written_BFJ = torch.tensor([[[*begin, *fill, *[pad] * (longest - len(fill))] for fill in fills] for fills in padded])
    slot_B, length = torch.full((len(rows),), slot), len(begin) + longest
    places = [(row * most + fill) * length + slot + steps for row, own in enumerate(each) for fill, steps in own.places]
    places_N = torch.tensor(places) if each else None
    return Batch(ids_BT, mask_BT, types_BT, slot_B, words, spellings=spellings, places_N=places_N, written_BFJ=written_BFJ)


def _for_each(rows: Sequence[Row], spellings: tuple[Spelling, ...]) -> tuple[Spelling, ...]:
    """The spelling of each row, where one may stand for all."""
    return spellings * len(rows) if len(spellings) == 1 else spellings


def collate_answered(rows: Sequence[Row], *, pad: int, begin: Sequence[int] = ()) -> Batch:
    """Pad rows on the right into one batch, each with its answer: behind the prompt, or behind `begin`, where a decoder begins so. The last
    token of an answer is read and not put in."""
    answers, slot_B = tuple(row.answer for row in rows), torch.tensor([row.slot for row in rows])
    if not begin:
        whole = [(row.ids + row.answer[:-1], row.types + row.types[-1:] * (len(row.answer) - 1)) for row in rows]
        return Batch(*_padded(whole, pad), slot_B, answers=answers)
    written = [(*begin, *answer[:-1]) for answer in answers]
    written_BFJ = _padded([(ids, (0,) * len(ids)) for ids in written], pad)[0][:, None]
    return Batch(*_padded([(row.ids, row.types) for row in rows], pad), slot_B, written_BFJ=written_BFJ, answers=answers)


def collate_filled(rows: Sequence[Row], filling: Filling, *, pad: int) -> Batch:
    """Pad each row with each fill in its slot on the right into one batch."""
    ids_BT, mask_BT, types_BT = _padded([fill for row in rows for fill in filling.put(row.ids, row.types, row.slot)], pad)
    own_BT = torch.zeros_like(mask_BT, dtype=torch.bool)
    for number, (row, fill) in enumerate(itertools.product(rows, filling.fills)):
        own_BT[number, [place + len(fill) for place in row.own]] = True
    slot_B, said_B = torch.tensor([row.slot for row in rows]), torch.tensor([row.said for row in rows])
    return Batch(ids_BT, mask_BT, types_BT, slot_B, filling=filling, own_BT=own_BT, said_B=said_B)


def _padded(rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], pad: int) -> tuple[Tensor, Tensor, Tensor | None]:
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), width), pad)
    mask_BT, types_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    for number, (ids, types) in enumerate(rows):
        ids_BT[number, : len(ids)] = torch.tensor(ids)
        mask_BT[number, : len(ids)] = 1
        types_BT[number, : len(ids)] = torch.tensor(types)
    return ids_BT, mask_BT, types_BT if bool(types_BT.any()) else None


def buckets(lengths: Sequence[int], *, size: int) -> list[list[int]]:
    """Indices in batches of `size`, the shortest first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def bucketed_order(lengths: Sequence[int], *, size: int, seed: int) -> list[list[int]]:
    """One epoch for training: every index once, rows of like length together, batches in random order."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(lengths)).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), size * _CHUNK):
        chunk = sorted(shuffled[start : start + size * _CHUNK], key=lengths.__getitem__)
        batches += [chunk[begin : begin + size] for begin in range(0, len(chunk), size)]
    return [batches[index] for index in random.permutation(len(batches))]


def balanced_order(targets: Sequence[int], *, size: int, seed: int) -> list[list[int]]:
    """One epoch for training on pairs: two rows of a target after two of another, dealt into batches of up to `size`.

    Targets take turns in an order drawn anew each round; the rows of a rare one come again until the most frequent one's are through,
    but never twice in a batch.
    """
    random = np.random.default_rng(seed)
    members = {target: [row for row, other in enumerate(targets) if other == target] for target in sorted(set(targets))}
    shuffled = {target: [rows[place] for place in random.permutation(len(rows))] for target, rows in members.items()}
    dealt: list[int] = []
    for start in range(0, max(map(len, members.values())), 2):
        for place in random.permutation(len(shuffled)):
            rows = shuffled[sorted(shuffled)[place]]
            dealt += [rows[(start + turn) % len(rows)] for turn in range(2)]
    return [list(dict.fromkeys(dealt[start : start + size])) for start in range(0, len(dealt), size)]
