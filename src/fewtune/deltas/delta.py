"""The contract of a delta: anything small that changes a backbone and can be undone and saved. Knows no architecture, no task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.surgery import Undo
from fewtune.errors import ArtifactError


class Delta(Protocol):
    """A frozen dataclass of hyper-parameters with one verb; `learning_rate` is what the literature uses for it."""

    learning_rate: ClassVar[float]

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Put new weights into `backbone`, drawn from `generator`; raises `BackboneError` if it cannot carry them."""
        ...


@dataclass
class Installed:
    """New weights in a backbone, and the way back.

    `weights` maps stable names to the parameters that are trained and saved; `train_mode` holds the modules whose dropout is on
    while training; `undo` is run in reverse order by `remove`; no block below `first_block` was changed.
    """

    delta: Delta
    weights: Mapping[str, nn.Parameter]
    undo: Sequence[Undo] = ()
    train_mode: Sequence[nn.Module] = field(default_factory=tuple)
    first_block: int = 0

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(weight.numel() for weight in self.weights.values())

    def remove(self) -> None:
        """Leave the backbone as it was before, to the bit."""
        for step in reversed(self.undo):
            step()
        self.undo = ()

    def state_dict(self) -> dict[str, Tensor]:
        """What has been learned, by name."""
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], where: str = "delta") -> None:
        """Take weights that `state_dict` gave; a missing, extra or mismatched one is refused."""
        load_strictly(self.weights, state, where)


def load_strictly(weights: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into `weights`; raises `ArtifactError` unless names and shapes are the same."""
    odd = sorted(weights.keys() ^ state.keys())
    if odd:
        missing = odd[0] in weights
        raise ArtifactError(
            expected=f'the tensor "{odd[0]}"' if missing else "only tensors of this artifact",
            got="none" if missing else f'"{odd[0]}"',
            where=where,
            fix="The file does not belong to this manifest; copy the whole folder again.",
        )
    for name, weight in weights.items():
        if weight.shape != state[name].shape:
            raise ArtifactError(
                expected=f'"{name}" of shape {tuple(weight.shape)}',
                got=f"shape {tuple(state[name].shape)}",
                where=where,
                fix="The file does not belong to this manifest; copy the whole folder again.",
            )
        with torch.no_grad():
            weight.copy_(state[name])
