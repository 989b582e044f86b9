"""Matrices that lose weights step after step while what remains is trained, and what of them is kept in the end. Knows weights and scores;
no texts, no loop and no schedule.

    start ──► Thin: weight, score, keep ──► … ──► Mask: bits and values
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone
from fewtune.deltas.delta import Installed
from fewtune.deltas.mask import Mask, edits, stored
from fewtune.train import masks


class Thin(nn.Module):
    """One matrix: all its weights, what has been learned of each as a score (of movement), and which remain now."""

    keep: Tensor

    def __init__(self, start: Tensor, *, scored: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.detach().clone())
        size = start.detach().abs()
        self.score = None if scored is None else nn.Parameter(scored * size / size.mean().clamp(min=1e-12))
        self.register_buffer("keep", torch.ones_like(start, dtype=torch.bool))

    def dense(self) -> Tensor:
        """What remains, 0 elsewhere; scores learn where a gradient is to flow."""
        if self.score is not None and torch.is_grad_enabled():
            return masks.straight_through(self.weight, self.score, self.keep)
        return self.weight * self.keep

    def remaining(self) -> Tensor:
        """The values of what remains, in order."""
        return self.weight.detach()[self.keep]

    @property
    def rank(self) -> Tensor:
        """What decides who goes first."""
        return self.weight.detach().abs() if self.score is None else self.score.detach()


@dataclass(frozen=True)
class Thinning:
    """Matrices of one backbone at the sites of `mask`, by name, and the biases beside them; `installed` until `settled`."""

    mask: Mask
    matrices: Mapping[str, Thin]
    biases: Mapping[str, nn.Parameter]
    installed: Installed

    @classmethod
    def of(cls, mask: Mask, backbone: Backbone, start: Mapping[str, Tensor], *, scored: float | None) -> Thinning:
        """All of them whole, with the values of `start`; if they are `scored`, the scores are at first so many times |W| / mean |W|."""
        own, own_biases = mask.weights(backbone), mask.biases(backbone)
        matrices = {name: Thin(start[name], scored=scored) for name in own}
        biases = {name: nn.Parameter(start[name].detach().clone()) for name in own_biases}
        weights = {name: one.weight for name, one in matrices.items()} | biases
        scores = {f"{name}.score": one.score for name, one in matrices.items() if one.score is not None}
        into = edits(backbone, own | own_biases, {**matrices, **biases})
        installed = Installed(mask, backbone, weights | scores, edits=into, train_mode=[backbone.model])
        return cls(mask, matrices, biases, installed)

    @property
    def scores(self) -> list[Tensor]:
        """Those of all matrices."""
        return [one.score for one in self.matrices.values() if one.score is not None]

    def keep_largest(self, share: float, *, together: bool) -> None:
        """Let the `share` go that ranks lowest: of each matrix, or of all `together`."""
        ranks = {name: one.rank for name, one in self.matrices.items()}
        self._keep(masks.largest_of_all(ranks, share) if together else {name: masks.largest(rank, share) for name, rank in ranks.items()})

    def keep_above(self, threshold: float) -> None:
        """Let those go whose score is not above the threshold."""
        self._keep({name: masks.above(one.rank, threshold) for name, one in self.matrices.items()})

    def _keep(self, keeps: Mapping[str, Tensor]) -> None:
        for name, keep in keeps.items():
            self.matrices[name].keep.copy_(keep)

    @torch.no_grad()
    def forget(self) -> None:
        """Set what is out to 0, so that it stays out by magnitude."""
        for one in self.matrices.values():
            one.weight.mul_(one.keep)

    @torch.no_grad()
    def start_from(self, start: Mapping[str, Tensor]) -> None:
        """Give every weight the value of `start`; who remains is as before."""
        for name, weight in self.installed.weights.items():
            if name in start:
                weight.copy_(start[name])

    @property
    def gone(self) -> float:
        """The share of weights that is out."""
        sizes = [one.keep.numel() for one in self.matrices.values()]
        return 1 - sum(int(one.keep.sum()) for one in self.matrices.values()) / sum(sizes)

    def settled(self) -> Installed:
        """A `Mask` of what remains, in the place of all this."""
        state, backbone = stored(self.matrices, self.biases), self.installed.backbone
        mask = Mask(min(round(self.gone, 4), 0.9999), self.mask.sites, "trained")
        self.installed.remove()
        made = mask.install(backbone, generator=torch.Generator())
        made.load_state_dict(state)
        return made
