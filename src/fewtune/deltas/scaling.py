"""(IA)³: what goes into or out of a few projections is rescaled, unit by unit, by trained factors. Knows site names only.

Liu et al. 2022, section 3.3: keys, values and the feed-forward block's inner activations, which are the inputs of its last
projection. Factors start at one, so that the model starts unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Edit
from fewtune.backbone.sites import Site
from fewtune.deltas.delta import Installed, require


@dataclass(frozen=True)
class IA3:
    """Factors on the outputs of the sites `outputs` and the inputs of the sites `inputs`, in the upper share `top` of the blocks."""

    outputs: tuple[str, ...] = ("key", "value")
    inputs: tuple[str, ...] = ("ffn_out",)
    top: float = 1.0

    learning_rate: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        require(0 < self.top <= 1, where="ia3.top", expected="above 0 and at most 1", got=self.top)
        require(bool(self.outputs + self.inputs), where="ia3.outputs", expected="at least one site", got=self.outputs)

    @property
    def unchanged_at_start(self) -> bool:
        """Whether the model starts as it is without this delta."""
        return True

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Ones at each site; nothing is drawn."""
        del generator
        edits = list(self._edits(backbone))
        weights = {f"{site.path}.{site.name}.ia3": edit.factor for site, edit in edits}
        return Installed(
            self, backbone, weights, edits=[(site.path, edit) for site, edit in edits], first_block=backbone.first_block(self.top)
        )

    def _edits(self, backbone: Backbone) -> Iterator[tuple[Site, OutputScale | InputScale]]:
        for name in self.outputs:
            yield from ((site, OutputScale(site, backbone.device)) for site in backbone.sites(name, top=self.top))
        for name in self.inputs:
            yield from ((site, InputScale(site, backbone.device)) for site in backbone.sites(name, top=self.top))


class OutputScale(Edit):
    """Rescales a linear map's outputs from `site.start` to `site.stop`."""

    def __init__(self, site: Site, device: torch.device) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(site.stop - site.start, device=device))
        self.padding = (site.start, site.outputs - site.stop)

    def _factors(self) -> Tensor:
        return nn.functional.pad(self.factor, self.padding, value=1.0) if any(self.padding) else self.factor

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The outputs rescaled."""
        return outputs * self._factors()

    def merged(self, base: nn.Module) -> Mapping[str, Tensor]:
        """Weight and bias rescaled."""
        with torch.no_grad():
            factors = self._factors()
            columns = factors[:, None] if isinstance(base, nn.Linear) else factors
            return {name: weight * (columns if weight.dim() > 1 else factors) for name, weight in base.named_parameters()}


class InputScale(Edit):
    """Rescales what a linear map is given."""

    def __init__(self, site: Site, device: torch.device) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(site.inputs, device=device))

    def before(self, inputs: Tensor) -> Tensor:
        """The inputs rescaled."""
        return inputs * self.factor

    def merged(self, base: nn.Module) -> Mapping[str, Tensor]:
        """The weight rescaled by its inputs."""
        with torch.no_grad():
            weight: Tensor = base.weight  # type: ignore[assignment]
            return {"weight": weight * (self.factor if isinstance(base, nn.Linear) else self.factor[:, None])}
