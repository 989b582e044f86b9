"""Prefix tuning: trained keys and values in front of the tokens' own in the attention of every block. Knows no architecture.

Li & Liang 2021, section 4.2: the prefix is P positions that every token sees and that see nothing; section 4.3: while training,
keys and values may come out of a network, Up tanh(Down E), which is thrown away afterwards. Section 7.4: they start as what the
frozen model makes of real words. Without the network: Liu et al. 2022 (P-tuning v2), section 3.2. Zhang et al. 2023
(LLaMA-Adapter), section 3.2: a gate that starts at zero, so that the model starts unchanged.

Dimensions: P positions, D width of the backbone, M units of the network, H heads of keys and values, E size of a head, O = 2 H E.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fewtune.backbone.attention import KeyValues, Seen, Stored
from fewtune.backbone.backbone import Backbone
from fewtune.deltas import words
from fewtune.deltas.delta import Installed, load_strictly, require
from fewtune.errors import BackboneError


@dataclass(frozen=True)
class Prefix:
    """`length` keys and values in front, in the upper share `top` of the blocks.

    They start as the backbone's own for the tokens of `text`, repeated or cut to `length` (0 takes as many as the text has), or for
    tokens drawn from the vocabulary. With `hidden`, a network of so many units makes them while training; it starts where they
    would, and only keys and values are saved, from where a loaded prefix is trained on without the network. With `zero`, a gate for
    each block and head opens from zero: out = without + tanh(gate) · (with − without); PEFT's form has no place for it.

    Where all blocks have the prefix and no gate, the tokens' positions come after it, as they come after a cache in transformers
    (so also in PEFT); a causal model with a text then starts as if the text stood in front. With `top` below 1 or `zero` the
    positions stay, for the blocks below, or all of them, are to see what they saw. Every token sees the prefix, past any window.
    """

    length: int = 20
    hidden: int = 0
    text: str = ""
    zero: bool = False
    top: float = 1.0

    def __post_init__(self) -> None:
        holds = self.length >= 1 or (self.length == 0 and bool(self.text))
        require(holds, where="prefix.length", expected="at least 1, or a text", got=self.length)
        require(self.hidden >= 0, where="prefix.hidden", expected="at least 0", got=self.hidden)
        require(0 < self.top <= 1, where="prefix.top", expected="above 0 and at most 1", got=self.top)

    @property
    def learning_rate(self) -> float:
        """1e-2 for keys and values themselves, 1e-3 for a network, whose small steps move all of them.

        P-tuning v2 has 5e-3 and Li & Liang 5e-5, for many times the steps that few labels need. In 60 steps on 8 questions of each
        kind (TREC, MiniLM, P = 10, one seed) 1e-3, 5e-3 and 1e-2 led to 34, 42 and 46 % directly; 1e-3 and 5e-3 to 55 and 22 %
        through 256 units.
        """
        return 1e-3 if self.hidden else 1e-2

    @property
    def unchanged_at_start(self) -> bool:
        """Whether the model starts as it is without this delta."""
        return self.zero

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Put keys and values in front; raises `BackboneError` for a family with an attention of its own, or with too few positions.

        The weights are `….prefix_key` and `….prefix_value` (H, P, E) for each attention module, and `….prefix_gate` (its query heads).
        """
        starts = self._starts(backbone, generator)
        trunk = _Trunk(self._length_of(starts), backbone.width, self.hidden, generator).to(backbone.device) if self.hidden else None
        prefixes = {path: self._key_values(start, trunk) for path, start in starts.items()}
        weights = _weights(prefixes, trunk)
        first = backbone.first_block(self.top)
        shift = self._length_of(starts) if first == 0 and not self.zero else 0
        undo = backbone.put_in_attention(prefixes, shift=shift)
        stored = partial(_stored, prefixes) if trunk else None
        restore = partial(_restore, prefixes, weights) if trunk else None
        return Installed(self, backbone, weights, undo=(undo,), first_block=first, stored=stored, restore=restore)

    def _starts(self, backbone: Backbone, generator: torch.Generator) -> dict[str, Seen]:
        if self.text:
            ids = words.of_text(backbone, self.text, length=self.length, where="prefix.text")
        else:
            ids = words.drawn(backbone, length=self.length, generator=generator)
        if len(ids) >= backbone.room:
            expected = f"a prefix of less than the {backbone.room} positions that are left"
            raise BackboneError(expected=expected, got=f"{len(ids)}", where="prefix.length", fix="Take a shorter one.")
        seen = backbone.key_values(torch.tensor([ids], device=backbone.device), top=self.top)
        return {path: _mean(notes) for path, notes in seen.items()}

    @staticmethod
    def _length_of(starts: Mapping[str, Seen]) -> int:
        return next(iter(starts.values())).key_BHKE.shape[2]

    def _key_values(self, start: Seen, trunk: _Trunk | None) -> KeyValues:
        key_HPE, value_HPE = start.key_BHKE[0].float().clone(), start.value_BHKE[0].float().clone()
        source = Stored(key_HPE, value_HPE) if trunk is None else _Made(trunk, key_HPE, value_HPE)
        return KeyValues(source, torch.zeros(start.query_heads, device=key_HPE.device) if self.zero else None)


def _mean(notes: list[Seen]) -> Seen:
    """The start of a block that runs several times (ALBERT): the mean of what it makes of the tokens."""
    keys = torch.stack([note.key_BHKE for note in notes]).mean(0)
    values = torch.stack([note.value_BHKE for note in notes]).mean(0)
    return Seen(keys, values, notes[0].query_heads)


class _Trunk(nn.Module):
    """The network's lower part, the same for all blocks: tanh(Down E), drawn as torch draws embeddings and linear maps."""

    def __init__(self, length: int, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.embedding_PD = nn.Parameter(torch.randn(length, width, generator=generator))
        self.down_MD = nn.Parameter((torch.rand(hidden, width, generator=generator) * 2 - 1) * bound)
        self.down_M = nn.Parameter((torch.rand(hidden, generator=generator) * 2 - 1) * bound)

    def forward(self) -> Tensor:
        """What every block's own last map is given, hidden_PM."""
        return nn.functional.linear(self.embedding_PD, self.down_MD, self.down_M).tanh()


class _Made(nn.Module):
    """A block's share of the network's last map. It starts as the least-squares map to the given keys and values, which gives
    them exactly where the network has no fewer units than there are positions."""

    def __init__(self, trunk: _Trunk, key_HPE: Tensor, value_HPE: Tensor) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = len(key_HPE)
        start_PO = torch.stack([key_HPE, value_HPE]).permute(2, 0, 1, 3).flatten(1)
        with torch.no_grad():
            up_OM = (torch.linalg.pinv(trunk().double()) @ start_PO.double()).T.to(start_PO.dtype).contiguous()
        self.up_OM, self.up_O = nn.Parameter(up_OM), nn.Parameter(torch.zeros_like(start_PO[0]))

    def forward(self) -> tuple[Tensor, Tensor]:
        """(keys, values), each (H, P, E)."""
        made_PO = nn.functional.linear(self.trunk(), self.up_OM, self.up_O)
        key_HPE, value_HPE = made_PO.view(len(made_PO), 2, self.heads, -1).permute(1, 2, 0, 3)
        return key_HPE, value_HPE


def _weights(prefixes: Mapping[str, KeyValues], trunk: _Trunk | None) -> dict[str, nn.Parameter]:
    weights = {f"prefix_network.{name}": weight for name, weight in trunk.named_parameters()} if trunk else {}
    for path, prefix in prefixes.items():
        if isinstance(prefix.source, Stored):
            weights |= {f"{path}.prefix_key": prefix.source.key_HPE, f"{path}.prefix_value": prefix.source.value_HPE}
        elif isinstance(prefix.source, _Made):
            weights |= {f"{path}.prefix_up_OM": prefix.source.up_OM, f"{path}.prefix_up_O": prefix.source.up_O}
        if prefix.gate_G is not None:
            weights[f"{path}.prefix_gate"] = prefix.gate_G
    return weights


def _stored(prefixes: Mapping[str, KeyValues]) -> dict[str, Tensor]:
    """Keys, values and gates, whatever makes them."""
    return {name: weight.detach().clone() for name, weight in _weights(_plain(prefixes), None).items()}


def _plain(prefixes: Mapping[str, KeyValues]) -> dict[str, KeyValues]:
    """Copies whose keys and values are parameters themselves."""
    copies: dict[str, KeyValues] = {}
    for path, prefix in prefixes.items():
        key_HPE, value_HPE = prefix.source()
        gate_G = None if prefix.gate_G is None else prefix.gate_G.detach().clone()
        copies[path] = KeyValues(Stored(key_HPE.detach().clone(), value_HPE.detach().clone()), gate_G)
    return copies


def _restore(prefixes: Mapping[str, KeyValues], weights: dict[str, nn.Parameter], state: Mapping[str, Tensor], where: str) -> None:
    """Take saved keys and values in place of the network, which was not saved."""
    plain = _plain(prefixes)
    load_strictly(_weights(plain, None), state, where)
    for path, prefix in prefixes.items():
        prefix.source, prefix.gate_G = plain[path].source, plain[path].gate_G
    weights.clear()
    weights.update(_weights(prefixes, None))
