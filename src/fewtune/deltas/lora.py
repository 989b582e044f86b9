"""LoRA: a low-rank update beside a frozen linear map, as it is or with its directions' lengths apart (DoRA). Knows site names,
no architecture.

    x ──► W (frozen) ────────────► + ──► y
    └──► dropout ► A ► B ► scale ──┘          y = W x + scale · B A x,   scale = α / r, or α / √r (rsLoRA)

Hu et al. 2021, section 4.1: A is random, B is zero, so that the model starts unchanged. Kalajdzievski 2023, theorem 3.2: the root.
Liu et al. 2024, equation 5 (DoRA): y = m · (W + scale · B A) x / ‖W + scale · B A‖, the norm of each output's weights taken as
a constant where gradients are taken (section 4.3).

Dimensions: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Edit
from fewtune.backbone.sites import Site
from fewtune.deltas.delta import Installed, require


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of `sites` in the upper share `top` of the blocks.

    `ranks` gives each site a rank of its own, in the order of `sites`. `init` draws A as loralib and PEFT do ("kaiming": uniform,
    a = √5) or as the paper says ("gaussian", of deviation 1/r).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    sites: tuple[str, ...] = ("query", "value")
    top: float = 1.0
    ranks: tuple[int, ...] = ()
    rslora: bool = False
    dora: bool = False
    init: Literal["kaiming", "gaussian"] = "kaiming"

    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        require(self.rank >= 1 and all(rank >= 1 for rank in self.ranks), where="lora.rank", expected="at least 1", got=self.rank)
        require(0 <= self.dropout < 1, where="lora.dropout", expected="at least 0 and below 1", got=self.dropout)
        require(0 < self.top <= 1, where="lora.top", expected="above 0 and at most 1", got=self.top)
        require(len(self.sites) > 0, where="lora.sites", expected="at least one site", got=self.sites)
        each = len(self.ranks) in (0, len(self.sites))
        require(each, where="lora.ranks", expected=f"one rank for each of {len(self.sites)} sites", got=self.ranks)

    @property
    def unchanged_at_start(self) -> bool:
        """Whether the model starts as it is without this delta."""
        return True

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """An update at each site; raises `BackboneError` for a site that the family does not have."""
        edits = [(site, self._edit(backbone, site, rank, generator)) for site, rank in self.places(backbone)]
        weights = {f"{site.path}.{site.name}.{name}": weight for site, edit in edits for name, weight in edit.weights.items()}
        return Installed(
            self,
            backbone,
            weights,
            edits=[(site.path, edit) for site, edit in edits],
            train_mode=[edit.dropout for _, edit in edits],
            first_block=backbone.first_block(self.top),
        )

    def places(self, backbone: Backbone) -> list[tuple[Site, int]]:
        """Every place of an update, with its rank."""
        ranks = self.ranks or (self.rank,) * len(self.sites)
        return [(site, rank) for name, rank in zip(self.sites, ranks, strict=True) for site in backbone.sites(name, top=self.top)]

    def _edit(self, backbone: Backbone, site: Site, rank: int, generator: torch.Generator) -> LowRank:
        A_RI = self._drawn(rank, site.inputs, generator).to(backbone.device)
        B_OR = torch.zeros(site.stop - site.start, rank, device=backbone.device)
        scale = self.alpha / (math.sqrt(rank) if self.rslora else rank)
        base = surgery.unwrapped(backbone.model.get_submodule(site.path))
        return (Directed if self.dora else LowRank)(base, site, A_RI, B_OR, scale, self.dropout)

    def _drawn(self, rank: int, inputs: int, generator: torch.Generator) -> Tensor:
        if self.init == "gaussian":
            return torch.randn(rank, inputs, generator=generator) / rank
        return (torch.rand(rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)


class LowRank(Edit):
    """Adds `scale · B A x` to a linear map's outputs from `site.start` to `site.stop`."""

    def __init__(self, base: nn.Module, site: Site, A_RI: Tensor, B_OR: Tensor, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.rows = scale, slice(site.start, site.stop)
        self.transposed = not isinstance(base, nn.Linear)  # GPT-2's Conv1D
        self.A_RI, self.B_OR = nn.Parameter(A_RI), nn.Parameter(B_OR)
        self.dropout = nn.Dropout(dropout).eval()
        self.padding = (site.start, site.outputs - site.stop)

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""
        return {"lora_A": self.A_RI, "lora_B": self.B_OR}

    def low(self, inputs: Tensor) -> Tensor:
        """`scale · B A x`."""
        return nn.functional.linear(nn.functional.linear(self.dropout(inputs), self.A_RI), self.B_OR) * self.scale

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The outputs with the update."""
        update = self.low(inputs)
        return outputs + (nn.functional.pad(update, self.padding) if any(self.padding) else update)

    def change_OI(self) -> Tensor:
        """The change of the weight, `scale · B A`."""
        return self.scale * _wide(self.B_OR) @ _wide(self.A_RI)

    def weight_OI(self, base: nn.Module) -> Tensor:
        """The frozen weight of the site's outputs."""
        weight: Tensor = base.weight  # type: ignore[assignment]
        return _wide((weight.detach().T if self.transposed else weight.detach())[self.rows])

    def merged(self, base: nn.Module) -> Mapping[str, Tensor]:
        """The weight with the update in it."""
        with torch.no_grad():
            return {"weight": self._placed(base, self.weight_OI(base) + self.change_OI())}

    def _placed(self, base: nn.Module, changed_OI: Tensor) -> Tensor:
        weight: Tensor = base.weight.detach().clone()  # type: ignore[operator]
        (weight.T if self.transposed else weight)[self.rows] = changed_OI.to(weight.dtype)
        return weight


class Directed(LowRank):
    """DoRA: the direction of each output's weights is updated by a low rank, its length by a number of its own."""

    def __init__(self, base: nn.Module, site: Site, A_RI: Tensor, B_OR: Tensor, scale: float, dropout: float) -> None:
        super().__init__(base, site, A_RI, B_OR, scale, dropout)
        self.frozen_OI = self.weight_OI(base)
        bias: Tensor | None = getattr(base, "bias", None)
        self.bias_O = None if bias is None else bias.detach()[self.rows]
        self.magnitude_O = nn.Parameter(self.frozen_OI.norm(dim=1))

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""
        return {**super().weights, "magnitude": self.magnitude_O}

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The outputs with new directions and lengths; the bias stays as it is."""
        factor_O = self._factor_O().to(outputs.dtype)
        mine = outputs[..., self.rows]
        straight = mine if self.bias_O is None else mine - self.bias_O
        low = self.low(inputs)
        if self.dropout.training and self.dropout.p:  # the frozen part sees the same dropped inputs, as in the reference
            straight = nn.functional.linear(self.dropout(inputs), self.frozen_OI)
        changed = factor_O * (straight + low)
        changed = changed if self.bias_O is None else changed + self.bias_O
        if not any(self.padding):
            return changed
        return torch.cat([outputs[..., : self.rows.start], changed, outputs[..., self.rows.stop :]], -1)

    def _factor_O(self) -> Tensor:
        length_O = (self.frozen_OI + self.change_OI()).norm(dim=1).detach()
        factor_O: Tensor = self.magnitude_O / length_O
        return factor_O

    def merged(self, base: nn.Module) -> Mapping[str, Tensor]:
        """The weight with new directions and lengths."""
        with torch.no_grad():
            changed_OI = self._factor_O()[:, None] * (self.weight_OI(base) + self.change_OI())
            return {"weight": self._placed(base, changed_OI)}


def _wide(tensor: Tensor) -> Tensor:
    """At least single precision, so that a small update of a weight in half precision is not lost on the way."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
