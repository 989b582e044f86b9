"""Train a named part of the backbone itself: everything, the biases (BitFit), the norms, the last blocks, or nothing.

Knows no architecture beyond parameter names' endings and the backbone's own blocks and sites.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.delta import Installed
from fewtune.errors import BackboneError, SpecError

Part = Literal["all", "biases", "norms", "last", "none"]


@dataclass(frozen=True)
class Subset:
    """The weights of `part` are trained; `blocks` says how many of the last blocks `last` means.

    `all` is standard fine-tuning, `biases` is BitFit (Ben Zaken et al. 2022), `none` leaves only the readout to train.
    """

    part: Part = "all"
    blocks: int = 1

    learning_rate: ClassVar[float] = 5e-5

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise SpecError(expected="at least 1", got=repr(self.blocks), where="subset.blocks", fix="Change the value.")

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Put trainable copies in the place of the weights, so that the frozen ones stay untouched for others and for undo."""
        del generator  # nothing is drawn: training starts at the pre-trained values
        chosen = dict(self._choose(backbone))
        if not chosen and self.part != "none":
            raise BackboneError(
                expected=f"{self.part} to train",
                got=f"none in {backbone.name} that no other delta trains",
                where="--delta subset",
                fix="Choose another part: all, norms, last.",
            )
        weights: dict[str, nn.Parameter] = {}
        undo: list[surgery.Undo] = []
        for name, parameter in chosen.items():
            weights[name] = nn.Parameter(parameter.detach().clone())
            undo.append(surgery.replace_parameter(backbone.model, parameter, weights[name]))
        return Installed(self, weights, undo, train_mode=self._train_mode(backbone), first_block=self._first_block(backbone))

    def _choose(self, backbone: Backbone) -> Iterable[tuple[str, nn.Parameter]]:
        """The backbone itself is frozen: what takes gradients already is an earlier delta's, which goes on training it."""
        wanted = self._wanted(backbone)
        named = backbone.model.named_parameters()
        return ((name, parameter) for name, parameter in named if id(parameter) in wanted and not parameter.requires_grad)

    def _wanted(self, backbone: Backbone) -> set[int]:
        named = list(backbone.model.named_parameters())
        if self.part == "all":
            chosen = [parameter for _, parameter in named]
        elif self.part == "biases":
            chosen = [parameter for name, parameter in named if name.endswith(".bias")]
        elif self.part == "norms":
            chosen = [parameter for module in _norms(backbone) for parameter in module.parameters()]
        elif self.part == "last":
            chosen = [parameter for block in self._last(backbone) for parameter in block.parameters()]
        else:
            chosen = []
        return {id(parameter) for parameter in chosen}

    def _last(self, backbone: Backbone) -> list[nn.Module]:
        if self.blocks > backbone.depth:
            raise BackboneError(
                expected=f"at most {backbone.depth} blocks", got=str(self.blocks), where="subset.blocks", fix="Change the value."
            )
        return list(backbone.blocks)[-self.blocks :]

    def _first_block(self, backbone: Backbone) -> int:
        return {"none": backbone.depth, "last": backbone.depth - self.blocks}.get(self.part, 0)

    def _train_mode(self, backbone: Backbone) -> list[nn.Module]:
        """Dropout belongs to fine-tuning whole blocks; beside a few trained vectors it would only change the frozen rest."""
        if self.part == "all":
            return [backbone.stack]
        return self._last(backbone) if self.part == "last" else []


def _norms(backbone: Backbone) -> list[nn.Module]:
    norms = [backbone.model.get_submodule(site.path) for site in backbone.sites("norms")]
    final = backbone.family.final_norm
    return [*norms, backbone.stack.get_submodule(final)] if final else norms
