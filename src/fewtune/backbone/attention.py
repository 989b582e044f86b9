"""Keys and values in front of the tokens' own, trained ones or those of tokens that came before, inside the attention function that
a model looks up by name. Knows no method and no family.

    tokens' keys and values ──► [ prefix │ tokens ] ──┐
    mask, position bias     ──► [  0/1   │  own   ] ──┴─► transformers' sdpa ──► out

A prefix with gates is mixed in: out = without + tanh(gate) · (with − without), one gate for each head of the queries.

Dimensions: B rows, Q queries, K keys, P positions of a prefix, H heads of keys and values, G heads of queries, E size of a head,
S positions of what the stack is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.bank import Routing, Shelf

NAME = "fewtune_prefix"
"""Under which transformers finds the function while a prefix is installed."""
_HELD, _SEEN = "fewtune_prefixes", "fewtune_seen"


class Stored(nn.Module):
    """Keys and values that are parameters themselves."""

    def __init__(self, key_HPE: Tensor, value_HPE: Tensor) -> None:
        super().__init__()
        self.key_HPE, self.value_HPE = nn.Parameter(key_HPE), nn.Parameter(value_HPE)

    def forward(self) -> tuple[Tensor, Tensor]:
        """(keys, values), each (H, P, E)."""
        return self.key_HPE, self.value_HPE


class Given(nn.Module):
    """Keys and values of tokens that were computed already; nothing learns from them."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def forward(self) -> tuple[Tensor, Tensor]:
        """(keys, values) of the only row, each (H, P, E)."""
        return self.seen.key_BHKE[0], self.seen.value_BHKE[0]


class KeyValues(nn.Module):
    """A prefix of one attention module: `source` gives its keys_HPE and values_HPE; `gate_G` is None where it has none."""

    def __init__(self, source: nn.Module, gate_G: Tensor | None = None) -> None:
        super().__init__()
        self.source: nn.Module = source
        self.gate_G = None if gate_G is None else nn.Parameter(gate_G)


_Group = tuple[Tensor | None, list[KeyValues]]
"""Rows of one entry (None: all rows) and what stands in front of their keys and values."""


@dataclass(frozen=True)
class Seen:
    """What one attention module made of some tokens: `key_BHKE`, `value_BHKE`, and how many heads its queries have."""

    key_BHKE: Tensor
    value_BHKE: Tensor
    query_heads: int


class Prefixes:
    """The prefixes of one model, and the switch of its attention function, which is on while there are any."""

    def __init__(self, model: Any, routing: Routing) -> None:
        self.model, self.routing = model, routing
        self.users, self.before = 0, ""
        self.shifts: list[tuple[int, int]] = []

    def put(self, prefixes: Mapping[str, KeyValues], *, entry: int, shift: int) -> surgery.Undo:
        """Add a prefix at each path, behind those that are there; the tokens of `entry` move `shift` positions on."""
        steps = [self._hang(path, prefix, entry) for path, prefix in prefixes.items()]
        item = (entry, shift)
        self.shifts.append(item)
        self._on()

        def undo() -> None:
            for step in reversed(steps):
                step()
            self.shifts = [held for held in self.shifts if held is not item]
            self._off()

        return undo

    def _hang(self, path: str, prefix: KeyValues, entry: int) -> surgery.Undo:
        module = self.model.get_submodule(path)
        if not hasattr(module, _HELD):
            setattr(module, _HELD, Shelf(self.routing))
        held: Shelf[KeyValues] = getattr(module, _HELD)
        take_out = held.add(prefix, entry=entry)

        def undo() -> None:
            take_out()
            if not held.entries:
                delattr(module, _HELD)

        return undo

    def _on(self) -> None:
        if self.users == 0:
            from transformers import AttentionInterface, AttentionMaskInterface
            from transformers.masking_utils import sdpa_mask

            AttentionInterface.register(NAME, attend)
            AttentionMaskInterface.register(NAME, sdpa_mask)
            self.before = self.model.config._attn_implementation
            self.model.set_attn_implementation(NAME)
        self.users += 1

    def _off(self) -> None:
        self.users -= 1
        if self.users == 0:
            self.model.set_attn_implementation(self.before)

    def shift(self, entry: int) -> int:
        """How many positions the tokens of `entry` are moved on."""
        return sum(shift for owner, shift in self.shifts if owner == entry)

    def positions(self, mask_BS: Tensor, *, first: int) -> Tensor | None:
        """Where each row's tokens stand, `first` being where they begin without a prefix; None where no row is moved.

        Padding stands where the row's last token does, for beside a longer row it could lie where the model has no position.
        """
        shifts = {entry: self.shift(entry) for entry in self.routing.rows}
        if not any(shifts.values()):
            return None
        ahead_B = mask_BS.new_zeros(mask_BS.shape[0], dtype=torch.long)
        for entry, rows in self.routing.rows.items():
            ahead_B[slice(None) if rows is None else rows] = shifts[entry]
        last_B1 = (mask_BS.long().sum(1, keepdim=True) - 1).clamp(min=0)
        return first + ahead_B[:, None] + torch.arange(mask_BS.shape[1], device=mask_BS.device).minimum(last_B1)

    @contextmanager
    def seeing(self, paths: Sequence[str]) -> Iterator[dict[str, list[Seen]]]:
        """Within it, the attention modules at `paths` write down what they make of the tokens, once for each time they run."""
        seen: dict[str, list[Seen]] = {path: [] for path in paths}
        self._on()
        for path, notes in seen.items():
            setattr(self.model.get_submodule(path), _SEEN, notes)
        try:
            yield seen
        finally:
            for path in paths:
                delattr(self.model.get_submodule(path), _SEEN)
            self._off()


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function as transformers wants it: (B, heads, positions, E) each, out (B, Q, G, E).

    The mask may be boolean (true: seen), added to the scores, or None (causal if the module is); it is widened by the prefix,
    which every query sees. `position_bias` (T5) is zero there.
    """
    seen: list[Seen] | None = getattr(module, _SEEN, None)
    if seen is not None:
        seen.append(Seen(key.detach(), value.detach(), query.shape[1]))
    held: Shelf[KeyValues] | None = getattr(module, _HELD, None)
    call = _Call(module, query, key, value, attention_mask, options)
    groups = held.groups() if held is not None else []
    plain = [(rows, [prefix for prefix in prefixes if prefix.gate_G is None]) for rows, prefixes in groups]
    gated = [[prefix for prefix in prefixes if prefix.gate_G is not None] for _, prefixes in groups]
    without_BQGE = out_BQGE = call.run(plain)
    for number in range(max(map(len, gated), default=0)):
        added = [own[number : number + 1] for own in gated]
        with_BQGE = call.run([(rows, [*others, *more]) for (rows, others), more in zip(plain, added, strict=True)])
        gates_BG = _gates([(rows, more) for (rows, _), more in zip(groups, added, strict=True)], query)
        out_BQGE = out_BQGE + gates_BG[:, None, :, None] * (with_BQGE - without_BQGE)
    return out_BQGE, None


def _gates(groups: Sequence[_Group], query_BGQE: Tensor) -> Tensor:
    """tanh(gate) for each row, 0 for rows without one; gates_BG, B = 1 where it is the same for all."""
    gates_BG = query_BGQE.new_zeros(query_BGQE.shape[:2])
    for rows, prefixes in groups:
        for gate in (prefix.gate_G for prefix in prefixes if prefix.gate_G is not None):
            opened_1G = gate.tanh().to(query_BGQE.dtype)[None]
            if rows is None:
                return opened_1G
            gates_BG = gates_BG.index_copy(0, rows, opened_1G.expand(len(rows), -1))
    return gates_BG


@dataclass(frozen=True)
class _Front:
    """What stands in front: `there_BP` is false where a row's prefix is shorter than the longest; None where all is there."""

    key_BHPE: Tensor
    value_BHPE: Tensor
    there_BP: Tensor | None

    @property
    def length(self) -> int:
        return self.key_BHPE.shape[2]


@dataclass(frozen=True)
class _Call:
    """One call of an attention function."""

    module: nn.Module
    query_BGQE: Tensor
    key_BHKE: Tensor
    value_BHKE: Tensor
    mask: Tensor | None
    options: Mapping[str, Any]

    def run(self, groups: Sequence[_Group]) -> Tensor:
        """The output with these prefixes in front; without any it is transformers' own to the bit."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        front = self._front([group for group in groups if group[1]])
        key, value, mask, options = self.key_BHKE, self.value_BHKE, self.mask, dict(self.options)
        if front is not None:
            key, value = torch.cat([front.key_BHPE, key], 2), torch.cat([front.value_BHPE, value], 2)
            mask = self._widened(front)
            if options.get("position_bias") is not None:
                options["position_bias"] = nn.functional.pad(options["position_bias"], (front.length, 0))
        out: Tensor = sdpa_attention_forward(self.module, self.query_BGQE, key, value, mask, **options)[0]
        return out

    def _front(self, groups: Sequence[_Group]) -> _Front | None:
        if not groups:
            return None
        made = [(rows, *_joined(prefixes)) for rows, prefixes in groups]
        (rows, key_HPE, value_HPE), size = made[0], self.key_BHKE.shape[0]
        if rows is None:
            key_BHPE, value_BHPE = (states.expand(size, *states.shape) for states in (key_HPE, value_HPE))
            return _Front(key_BHPE.to(self.key_BHKE.dtype), value_BHPE.to(self.value_BHKE.dtype), None)
        longest = max(key_HPE.shape[1] for _, key_HPE, _ in made)
        there_BP = torch.zeros(size, longest, dtype=torch.bool, device=key_HPE.device)
        for rows, key_HPE, _ in made:
            there_BP[rows, : key_HPE.shape[1]] = True
        keys = _placed([(rows, key_HPE) for rows, key_HPE, _ in made], longest, self.key_BHKE)
        values = _placed([(rows, value_HPE) for rows, _, value_HPE in made], longest, self.value_BHKE)
        return _Front(keys, values, there_BP)

    def _widened(self, front: _Front) -> Tensor | None:
        """The mask with the prefix in front; None where every query sees everything."""
        mask = self._explicit(needed=front.there_BP is not None)
        if mask is None:
            return None
        there = front.there_BP if front.there_BP is not None else mask.new_ones(1, front.length, dtype=torch.bool)
        if mask.dtype != torch.bool:
            there = mask.new_zeros(there.shape).masked_fill(~there, torch.finfo(mask.dtype).min)
        rows = max(len(mask), len(there))
        ahead = there[:, None, None].expand(rows, mask.shape[1], mask.shape[2], -1)
        return torch.cat([ahead, mask.expand(rows, -1, -1, -1)], -1)

    def _explicit(self, *, needed: bool) -> Tensor | None:
        """The mask that transformers' function goes by: the one given, or, where none is, the causal one if the module is causal."""
        queries, keys = self.query_BGQE.shape[2], self.key_BHKE.shape[2]
        said = self.options.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if said is None else said
        if self.mask is not None:
            return self.mask
        everything = torch.ones(queries, keys, dtype=torch.bool, device=self.query_BGQE.device)[None, None]
        if causal and queries > 1:
            return everything.tril()
        return everything if needed else None


def _joined(prefixes: Sequence[KeyValues]) -> tuple[Tensor, Tensor]:
    """Several prefixes one behind the other; (keys_HPE, values_HPE)."""
    states: list[tuple[Tensor, Tensor]] = [prefix.source() for prefix in prefixes]
    return torch.cat([key for key, _ in states], 1), torch.cat([value for _, value in states], 1)


def _placed(made: Sequence[tuple[Tensor | None, Tensor]], longest: int, like_BHKE: Tensor) -> Tensor:
    """Each entry's states_HPE at its rows, padded to `longest`."""
    size, heads, _, width = like_BHKE.shape
    placed = like_BHKE.new_zeros(size, heads, longest, width)
    for rows, states_HPE in made:
        assert rows is not None
        padded = nn.functional.pad(states_HPE, (0, 0, 0, longest - states_HPE.shape[1])).to(like_BHKE.dtype)
        placed = placed.index_copy(0, rows, padded.expand(len(rows), -1, -1, -1))
    return placed
