"""Narrower blocks: fewer attention heads and fewer neurons in the feed-forward part, with matrices that are that much smaller. Knows which
units are kept and what was trained of them; no architecture.

Dimensions: U units, K units that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtune.backbone import trim
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.trim import Kept
from fewtune.deltas.delta import Installed, load_strictly, require
from fewtune.errors import ArtifactError, FewtuneError


@dataclass(frozen=True)
class Narrow:
    """Of all blocks' heads the share `heads` remains, of all neurons of their feed-forward parts the share `ffn`; at least one in each.

    `trained`: what remains is trained, and stored; else only the numbers of the units are, and other deltas may stand on them. Which units
    remain is decided by the lengths of their weights unless `keeping` is told.
    """

    heads: float = 0.5
    ffn: float = 0.5
    trained: bool = True

    learning_rate: ClassVar[float] = 1e-4
    unchanged_at_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            require(0 < share <= 1, where=f"narrow.{name}", expected="above 0 and at most 1", got=share)
        require(bool(self.parts), where="narrow.ffn", expected="below 1, or heads below 1", got=self.ffn)

    @property
    def shares(self) -> Mapping[str, float]:
        """The share of each part that remains."""
        return {"heads": self.heads, "ffn": self.ffn}

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of which something goes."""
        return tuple(part for part, share in self.shares.items() if share < 1)

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Narrowed:
        """Keep the units with the greatest weights; raises `BackboneError` for a family that cannot be narrower."""
        del generator  # nothing is drawn
        scores = {(part, block): trim.magnitudes(backbone, part, block) for part in self.parts for block in range(len(backbone.blocks))}
        return self.keeping(backbone, chosen(scores, self.shares))

    def keeping(self, backbone: Backbone, kept: Kept) -> Narrowed:
        """Keep these units."""
        out = backbone.claim("a model with narrower layers")
        try:
            whole = {(part, block): trim.units(backbone, part, block) for part, block in kept}
            narrowed = Narrowed(self, backbone, {}, undo=[out], whole=whole)
            narrowed.keep(kept)
        except FewtuneError:
            out()
            raise
        return narrowed


@dataclass
class Narrowed(Installed):
    """Smaller matrices in a backbone: of the units that a part of a block had as a `whole`, those `kept`, by their numbers."""

    whole: Mapping[tuple[str, int], int] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)

    def keep(self, kept: Kept) -> None:
        """Put matrices of these units in the places of the whole ones."""
        for step in reversed(self.undo[1:]):
            step()
        weights, undo = trim.put(self.backbone, kept)
        trained = isinstance(self.delta, Narrow) and self.delta.trained
        for weight in weights.values():
            weight.requires_grad_(trained)
        self.weights, self.kept, self.undo = weights if trained else {}, dict(kept), (self.undo[0], *undo)

    def state_dict(self) -> dict[str, Tensor]:
        """The numbers of the units, and the matrices if they are trained."""
        return {**self._named(), **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor], where: str = "delta") -> None:
        """Take units and matrices that `state_dict` gave; raises `ArtifactError` for others, and leaves what was there."""
        kept = {key: state.get(self._name(*key), own_K) for key, own_K in self.kept.items()}
        for key, kept_K in kept.items():
            _check(self._name(*key), kept_K, self.whole[key], where)
        before = self.kept, super().state_dict()
        self.keep(kept)
        numbers = {name: nn.Parameter(kept_K, requires_grad=False) for name, kept_K in self._named().items()}
        try:
            load_strictly({**numbers, **self.weights}, state, where)
        except ArtifactError:
            self.keep(before[0])
            load_strictly(self.weights, before[1], where)
            raise

    def _name(self, part: str, block: int) -> str:
        return f"{self.backbone.blocks_path}.{block}.{part}"

    def _named(self) -> dict[str, Tensor]:
        return {self._name(*key): kept_K.clone() for key, kept_K in self.kept.items()}


def chosen(scores: Mapping[tuple[str, int], Tensor], shares: Mapping[str, float]) -> dict[tuple[str, int], Tensor]:
    """Which units remain: of each part the share of all blocks' units that score highest, the best of each block among them.

    `scores` are those of each part and block, scores_U; they are divided by the length of the block's (Molchanov et al. 2017, section 2.2,
    as Michel et al. 2019 do), so that a block counts as much as another. Of equals the lower one remains.

    >>> found = chosen({("ffn", 0): torch.tensor([4.0, 3.0, 0.0, 0.0]), ("ffn", 1): torch.tensor([0.1, 0.0, 0.0, 0.0])}, {"ffn": 0.375})
    >>> [kept_K.tolist() for kept_K in found.values()]
    [[0, 1], [0]]
    """
    found: dict[tuple[str, int], Tensor] = {}
    for part, share in shares.items():
        own = {key: scores_U.double() / scores_U.double().norm().clamp(min=1e-300) for key, scores_U in scores.items() if key[0] == part}
        if not own:
            continue
        first = {key: int(scores_U.argmax()) for key, scores_U in own.items()}
        ranked = sorted(
            (unit != first[key], -score, *key[1:], unit) for key, scores_U in own.items() for unit, score in enumerate(scores_U.tolist())
        )
        most = max(len(own), round(share * len(ranked)))
        for key in own:
            found[key] = torch.tensor(sorted(unit for _, _, block, unit in ranked[:most] if block == key[1]), dtype=torch.int32)
    return found


def _check(name: str, kept_K: Tensor, whole: int, where: str) -> None:
    """Raise `ArtifactError` unless these are numbers of units, in order."""
    numbers = kept_K.tolist() if kept_K.dim() == 1 and kept_K.dtype == torch.int32 else []
    if not numbers or numbers != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < whole:
        raise ArtifactError(
            expected=f'"{name}" with numbers of units from 0 to {whole - 1}, in order, of shape (units)',
            got=f"shape {tuple(kept_K.shape)}, {numbers[:3]} …",
            where=where,
            fix="The file does not belong to this manifest; copy the whole folder again.",
        )
