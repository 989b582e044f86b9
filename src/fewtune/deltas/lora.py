"""LoRA: a low-rank update beside a frozen linear map. Knows site names, no architecture.

    x ──► W (frozen) ────────────► + ──► y
    └──► dropout ► A ► B ► α/r ────┘          y = W x + (α / r) B A x

Hu et al. 2021, section 4.1: A is random, B is zero, so that the model starts unchanged.

Dimensions: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone, Site
from fewtune.deltas.delta import Installed
from fewtune.errors import SpecError


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of `sites` in the upper share `top` of the blocks, scaled by `alpha` / `rank`."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    sites: tuple[str, ...] = ("query", "value")
    top: float = 1.0

    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        _in_range(self.rank >= 1, "rank", "at least 1", self.rank)
        _in_range(0 <= self.dropout < 1, "dropout", "at least 0 and below 1", self.dropout)
        _in_range(0 < self.top <= 1, "top", "above 0 and at most 1", self.top)
        _in_range(len(self.sites) > 0, "sites", "at least one site", self.sites)

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Wrap each site; A is drawn as PEFT and loralib draw it (Kaiming uniform, a = √5), B is zero."""
        weights: dict[str, nn.Parameter] = {}
        undo: list[surgery.Undo] = []
        dropouts: list[nn.Module] = []
        for site in (site for name in self.sites for site in backbone.sites(name, top=self.top)):
            layer = self._layer(backbone, site, generator)
            undo.append(surgery.replace(backbone.model, site.path, layer))
            weights[f"{site.path}.{site.name}.lora_A"] = layer.A_RI
            weights[f"{site.path}.{site.name}.lora_B"] = layer.B_OR
            dropouts.append(layer.dropout)
        return Installed(self, weights, undo, train_mode=dropouts, first_block=backbone.first_block(self.top))

    def _layer(self, backbone: Backbone, site: Site, generator: torch.Generator) -> LowRank:
        bound = 1 / math.sqrt(site.inputs)
        A_RI = (torch.rand(self.rank, site.inputs, generator=generator) * 2 - 1) * bound
        B_OR = torch.zeros(site.stop - site.start, self.rank)
        base = backbone.model.get_submodule(site.path)
        return LowRank(base, site, A_RI.to(backbone.device), B_OR.to(backbone.device), self.alpha / self.rank, self.dropout)


class LowRank(nn.Module):
    """A linear map with a low-rank update of its outputs from `site.start` to `site.stop`."""

    def __init__(self, base: nn.Module, site: Site, A_RI: Tensor, B_OR: Tensor, scale: float, dropout: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.A_RI, self.B_OR = nn.Parameter(A_RI), nn.Parameter(B_OR)
        self.dropout = nn.Dropout(dropout).eval()
        self.padding = (site.start, site.outputs - site.stop)

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs` (…, I) → (…, O)."""
        low = nn.functional.linear(self.dropout(inputs), self.A_RI)
        update = nn.functional.linear(low, self.B_OR) * self.scale
        if any(self.padding):
            update = nn.functional.pad(update, self.padding)
        outputs: Tensor = self.base(inputs) + update
        return outputs


def _in_range(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise SpecError(expected=expected, got=repr(got), where=f"lora.{name}", fix="Change the value.")
