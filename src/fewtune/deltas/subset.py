"""Train a named part of the backbone itself: everything, the biases (BitFit), the norms, the last blocks, or nothing.

Knows no architecture beyond parameter names' endings and the backbone's own blocks and sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Bank, Edit
from fewtune.deltas.delta import Installed, require
from fewtune.errors import BackboneError

T = TypeVar("T")
Part = Literal["all", "biases", "norms", "last", "none"]


@dataclass(frozen=True)
class Subset:
    """The weights of `part` are trained; `blocks` says how many of the last blocks `last` means.

    `all` is standard fine-tuning, `biases` is BitFit (Ben Zaken et al. 2022), `none` leaves only the readout to train.
    """

    part: Part = "all"
    blocks: int = 1

    def __post_init__(self) -> None:
        require(self.blocks >= 1, where="subset.blocks", expected="at least 1", got=self.blocks)

    @property
    def learning_rate(self) -> float:
        """A few vectors bear, and need, larger steps than whole matrices (Ben Zaken et al. 2022: 1e-3 against 1e-5)."""
        return 1e-3 if self.part in ("biases", "norms") else 5e-5

    @property
    def unchanged_at_start(self) -> bool:
        """Whether the model starts as it is without this delta."""
        return True

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Let trainable copies stand in for the weights, so that the frozen ones stay untouched for others and for undo."""
        del generator  # nothing is drawn: training starts at the pre-trained values
        chosen = dict(self._choose(backbone))
        if not chosen and self.part != "none":
            raise BackboneError(
                expected=f"{self.part} to train",
                got=f"none in {backbone.name} that no other delta trains",
                where="--delta subset",
                fix="Choose another part: all, norms, last.",
            )
        weights = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in chosen.items()}
        mine = {id(chosen[name]): weight for name, weight in weights.items()}
        return Installed(
            self,
            backbone,
            weights,
            edits=[(path, Own(held)) for path, held in owners(backbone.model, mine).items()],
            train_mode=self._train_mode(backbone),
            first_block=self._first_block(backbone),
        )

    def _choose(self, backbone: Backbone) -> Iterable[tuple[str, nn.Parameter]]:
        """Frozen weights only: what an earlier delta trains, or lets its own stand in for, it goes on training."""
        free = self._wanted(backbone) - taken(backbone)
        for name, parameter in backbone.model.named_parameters():
            if id(parameter) in free and not parameter.requires_grad:
                yield surgery.plain_name(name), parameter

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
        if self.blocks > len(backbone.blocks):
            raise BackboneError(
                expected=f"at most {len(backbone.blocks)} blocks", got=str(self.blocks), where="subset.blocks", fix="Change the value."
            )
        return list(backbone.blocks)[-self.blocks :]

    def _first_block(self, backbone: Backbone) -> int:
        last = backbone.order.index(len(backbone.blocks) - self.blocks)
        return {"none": backbone.depth, "last": last}.get(self.part, 0)

    def _train_mode(self, backbone: Backbone) -> list[nn.Module]:
        """Dropout belongs to fine-tuning whole blocks; beside a few trained vectors it would only change the frozen rest."""
        if self.part == "all":
            return [backbone.model]
        return self._last(backbone) if self.part == "last" else []


class Own(Edit):
    """Parameters that stand in for a module's own."""

    def __init__(self, held: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterDict(held)

    def instead(self) -> Mapping[str, Tensor]:
        """The copies."""
        return dict(self.held.items())

    def merged(self, base: nn.Module) -> Mapping[str, Tensor]:
        """The copies as they are."""
        del base
        return {name: weight.detach() for name, weight in self.held.items()}


def taken(backbone: Backbone) -> set[int]:
    """The weights for which the current entry has others already."""
    banks = [module for module in backbone.model.modules() if isinstance(module, Bank)]
    return {id(bank.base.get_parameter(name)) for bank in banks for edit in bank.of(backbone.entry) for name in edit.replaces()}


def owners(root: nn.Module, mine: Mapping[int, T]) -> dict[str, dict[str, T]]:
    """Path of each module that computes with one of the parameters (by `id`) → its names for what is `mine` of them; tied weights have
    several.

    An LM head's own name for the bias of its projection is left out, for nothing is computed there.
    """
    found: dict[str, dict[str, T]] = {}
    for path, module in root.named_modules():
        base = surgery.unwrapped(module)
        if any(True for _ in base.children()) or path.endswith(".base"):
            continue
        held = {name: mine[id(parameter)] for name, parameter in base.named_parameters() if id(parameter) in mine}
        if held:
            found[path] = held
    return found


def _norms(backbone: Backbone) -> list[nn.Module]:
    norms = [backbone.model.get_submodule(site.path) for site in backbone.sites("norms")]
    final = backbone.family.final_norm
    return [*norms, backbone.stack.get_submodule(final)] if final else norms
