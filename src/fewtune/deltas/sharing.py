"""Blocks that share their matrices: those of a group of neighbours are one set, to which each block adds low-rank corrections of its own.
Knows sites, no architecture.

    block 0 ─ W + B₀A₀ ─┐                        block 2 ─ V + B₂A₂ ─┐
    block 1 ─ W + B₁A₁ ─┴─► W, stored once       block 3 ─ V + B₃A₃ ─┴─► V, stored once

One block for all layers is ALBERT's (Lan et al. 2020); with corrections for each layer, which begin as the nearest to what the blocks
were, it is that of Bae et al. 2025, "Relaxed recursive transformers".

Dimensions: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Edit
from fewtune.backbone.families import MAPS
from fewtune.deltas.delta import Installed, require
from fewtune.deltas.subset import taken
from fewtune.errors import BackboneError


@dataclass(frozen=True)
class Sharing:
    """The blocks are `groups` groups of neighbours of like size, each with one set of matrices, and corrections of rank `rank`. Biases and
    norms stay each block's own, and so does a block that is alone in its group.

    What is shared begins as the mean of the blocks' matrices: no other is as near to all of them, so the least is left to the corrections.
    What comes out at the top is nearer to what did before than with the group's first block (docs/defaults.md). It is trained, and stored,
    as the corrections are.
    """

    groups: int = 3
    rank: int = 8

    learning_rate: ClassVar[float] = 1e-4
    unchanged_at_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.groups >= 1, where="sharing.groups", expected="at least 1", got=self.groups)
        require(self.rank >= 1, where="sharing.rank", expected="at least 1", got=self.rank)

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Let blocks share matrices; raises `BackboneError` where these differ in size, or another delta has others in their place."""
        del generator  # nothing is drawn
        return self.near(backbone, {})

    def near(self, backbone: Backbone, wanted: Mapping[str, Tensor]) -> Installed:
        """As near as can be to the matrices `wanted` by name (`….weight`), or the backbone's own where there are none."""
        weights: dict[str, nn.Parameter] = {}
        edits: list[tuple[str, Edit]] = []
        for group in self.members(backbone):
            for place in _places(backbone, group):
                paths = [f"{backbone.blocks_path}.{block}.{place}" for block in group]
                shared, modules = self._shared(backbone, paths, wanted), [_module(backbone, path) for path in paths]
                weights[f"{paths[0]}.shared"] = shared
                for path, module in zip(paths, modules, strict=True):
                    near = wanted.get(f"{path}.weight", _weight(module))
                    edit = Corrected(shared, near, self.rank, transposed=not isinstance(module, nn.Linear))
                    weights |= {f"{path}.sharing_A": edit.A_RI, f"{path}.sharing_B": edit.B_OR}
                    edits.append((path, edit))
        return Installed(self, backbone, weights, edits=edits)

    def members(self, backbone: Backbone) -> list[list[int]]:
        """The numbers of the blocks of each group that has more than one; raises `BackboneError` if there is none such."""
        count = len(backbone.blocks)
        if self.groups >= count:
            got, fix = str(self.groups), "Change the value; or take a PLM of which not all layers are one block already."
            raise BackboneError(
                expected=f"fewer groups than {backbone.name} has blocks, which are {count}", got=got, where="sharing.groups", fix=fix
            )
        return self.members_of(count)

    def members_of(self, count: int) -> list[list[int]]:
        """The same of so many blocks; none where there are no more blocks than groups."""
        groups = [[block for block in range(count) if block * self.groups // count == group] for group in range(self.groups)]
        return [group for group in groups if len(group) > 1]

    def _shared(self, backbone: Backbone, paths: Sequence[str], wanted: Mapping[str, Tensor]) -> nn.Parameter:
        """The mean of the matrices that are wanted at these modules."""
        own = [_weight(_module(backbone, path)) for path in paths]
        fix = "Share the blocks of a whole model, before other deltas have their matrices."
        if {weight.shape for weight in own} != {own[0].shape}:
            raise BackboneError(expected="blocks of one size", got="matrices of several", where=paths[-1], fix=fix)
        if {id(weight) for weight in own} & taken(backbone):
            raise BackboneError(expected="matrices of the backbone", got="another delta's in their place", where=paths[0], fix=fix)
        near = [wanted.get(f"{path}.weight", weight).detach() for path, weight in zip(paths, own, strict=True)]
        return nn.Parameter(torch.stack(near).mean(0))


class Corrected(Edit):
    """A shared matrix in the place of a module's own, and B A beside it, which begins as near to `wanted` as its rank lets it."""

    def __init__(self, shared: nn.Parameter, wanted: Tensor, rank: int, *, transposed: bool) -> None:
        super().__init__()
        self._shared = [shared]  # in a list, for several modules have it
        self.transposed = transposed  # GPT-2's Conv1D
        difference = (wanted - shared).detach()
        B_OR, A_RI = nearest(difference.T if transposed else difference, rank)
        self.A_RI, self.B_OR = nn.Parameter(A_RI), nn.Parameter(B_OR)

    def instead(self) -> Mapping[str, Tensor]:
        """What is shared."""
        return {"weight": self._shared[0]}

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The outputs with the correction."""
        return outputs + nn.functional.linear(nn.functional.linear(inputs, self.A_RI), self.B_OR)

    def merged(self, base: nn.Module) -> Mapping[str, Tensor]:
        """What is shared with the correction in it."""
        del base
        with torch.no_grad():
            change_OI = self.B_OR @ self.A_RI
            return {"weight": self._shared[0] + (change_OI.T if self.transposed else change_OI)}


def nearest(matrix_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(B_OR, A_RI) whose product is the nearest to the matrix of all of that rank (Eckart & Young 1936).

    >>> B_OR, A_RI = nearest(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1)
    >>> (B_OR @ A_RI).abs().tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    wide = matrix_OI.double()
    tall = len(wide) > wide.shape[1]
    small = wide.T if tall else wide
    # The singular vectors of the shorter side: its products are a small matrix, whatever the longer side is.
    side_NR = torch.linalg.eigh(small @ small.T).eigenvectors.flip(1)[:, :rank]
    B_OR, A_RI = (wide @ side_NR, side_NR.T) if tall else (side_NR, side_NR.T @ wide)
    missing = rank - B_OR.shape[1]
    B_OR, A_RI = nn.functional.pad(B_OR, (0, missing)), nn.functional.pad(A_RI, (0, 0, 0, missing))
    return B_OR.to(matrix_OI.dtype).contiguous(), A_RI.to(matrix_OI.dtype).contiguous()


def _places(backbone: Backbone, group: Sequence[int]) -> list[str]:
    """Paths within a block of the modules whose matrices are shared, the same in all blocks of the group."""
    found = {block: dict[str, None]() for block in group}
    for name in MAPS:
        for site in backbone.sites(name):
            if site.block in found:
                found[site.block][site.path.removeprefix(f"{backbone.blocks_path}.{site.block}.")] = None
    return list(found[group[0]])


def _module(backbone: Backbone, path: str) -> nn.Module:
    module: nn.Module = backbone.model.get_submodule(path)
    return surgery.unwrapped(module)


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight
