"""Bottleneck adapters: a small network behind a sub-layer, or beside it. Knows site names, no architecture.

    serial     sub-layer ──► y ──► Down ► g ► Up ──► y + s · Up g(Down y)
    parallel   x ──► sub-layer ──► y ──────────────► y + s · Up g(Down x)

Houlsby et al. 2019, section 2.1 (behind attention and feed-forward, near the identity at first); Pfeiffer et al. 2021 (feed-forward
only); He et al. 2022, table 1 (parallel, scaled). A sub-layer's output is that of its last projection, before the residual.

Dimensions: D width, M width of the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Edit
from fewtune.backbone.sites import Site
from fewtune.deltas.delta import Installed, require

_ENDS = {"attention": ("attention_in", "attention_out"), "ffn": ("ffn_in", "ffn_out")}
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Adapter:
    """A bottleneck of `size` units at each of the sub-layers `at` ("attention", "ffn"), in the upper share `top` of the blocks.

    With `reduction`, the size is the backbone's width divided by it.

    `init`: "zero" (Kaiming below, zero above: the model starts unchanged), "houlsby" (truncated normal, deviation 1e-3) or "bert"
    (N(0, 0.02²)); biases start at zero. With `learned_scale`, `scale` is where a trained factor starts, one for each adapter.
    """

    size: int = 64
    reduction: int = 0
    at: tuple[str, ...] = ("ffn",)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    parallel: bool = False
    scale: float = 1.0
    learned_scale: bool = False
    init: Literal["zero", "houlsby", "bert"] = "zero"
    top: float = 1.0

    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        require(self.size >= 1, where="adapter.size", expected="at least 1", got=self.size)
        require(self.reduction >= 0, where="adapter.reduction", expected="at least 0", got=self.reduction)
        require(0 < self.top <= 1, where="adapter.top", expected="above 0 and at most 1", got=self.top)
        known = len(self.at) > 0 and set(self.at) <= _ENDS.keys()
        require(known, where="adapter.at", expected=" or ".join(_ENDS), got=self.at)

    @property
    def unchanged_at_start(self) -> bool:
        """Whether the model starts as it is without this delta."""
        return self.init == "zero"

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """An adapter at each sub-layer."""
        weights: dict[str, nn.Parameter] = {}
        edits: list[tuple[str, Edit]] = []
        for name, start, end in self._places(backbone):
            bottleneck = self._bottleneck(start.inputs, end.stop - end.start, generator).to(backbone.device)
            weights |= {f"{end.path}.{name}.{part}": weight for part, weight in bottleneck.named_parameters()}
            edits += [(start.path, bottleneck.tap), (end.path, bottleneck)] if self.parallel else [(end.path, bottleneck)]
        return Installed(self, backbone, weights, edits=edits, first_block=backbone.first_block(self.top))

    def _places(self, backbone: Backbone) -> Iterator[tuple[str, Site, Site]]:
        """(sub-layer, where its inputs are seen, where its outputs are)."""
        for name in self.at:
            starts: dict[int, Site] = {}
            for site in backbone.sites(_ENDS[name][0], top=self.top):
                starts.setdefault(site.block, site)
            for end in backbone.sites(_ENDS[name][1], top=self.top):
                yield name, starts[end.block], end

    def _bottleneck(self, inputs: int, outputs: int, generator: torch.Generator) -> Bottleneck:
        size = max(1, outputs // self.reduction) if self.reduction else self.size
        down_MD = self._drawn(size, inputs if self.parallel else outputs, generator)
        up_DM = torch.zeros(outputs, size) if self.init == "zero" else self._drawn(outputs, size, generator)
        return Bottleneck(down_MD, up_DM, self)

    def _drawn(self, rows: int, columns: int, generator: torch.Generator) -> Tensor:
        weight = torch.empty(rows, columns)
        if self.init == "houlsby":
            return nn.init.trunc_normal_(weight, std=1e-3, a=-2e-3, b=2e-3, generator=generator)
        if self.init == "bert":
            return nn.init.normal_(weight, std=0.02, generator=generator)
        return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


class Bottleneck(Edit):
    """`outputs + scale · (Up g(Down x) + …)`, x being the outputs, or the sub-layer's inputs where it stands beside it."""

    def __init__(self, down_MD: Tensor, up_DM: Tensor, spec: Adapter) -> None:
        super().__init__()
        self.down_MD, self.up_DM = nn.Parameter(down_MD), nn.Parameter(up_DM)
        self.down_M, self.up_D = nn.Parameter(torch.zeros(len(down_MD))), nn.Parameter(torch.zeros(len(up_DM)))
        self.activation = _ACTIVATIONS[spec.activation]
        self.factor = nn.Parameter(torch.tensor(spec.scale)) if spec.learned_scale else spec.scale
        # Kept out of the modules, for it is one already at the place where the sub-layer begins.
        self.seen: Mapping[str, Tap] = {"tap": Tap()} if spec.parallel else {}

    @property
    def tap(self) -> Tap:
        """What sees the sub-layer's inputs."""
        return self.seen["tap"]

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The outputs with what the bottleneck adds."""
        read = self.tap.take() if self.seen else outputs
        hidden: Tensor = self.activation(nn.functional.linear(read, self.down_MD, self.down_M))
        return outputs + self.factor * nn.functional.linear(hidden, self.up_DM, self.up_D)


class Tap(Edit):
    """Keeps what a module was given until it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Tensor] = []

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The outputs as they are."""
        self.held[:] = [inputs]
        return outputs

    def take(self) -> Tensor:
        """What was seen last."""
        return self.held.pop()
