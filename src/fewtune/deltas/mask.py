"""Pruned weights as a delta: which weights of some places remain, and their values where these were trained. Knows sites; not how the
choice was made.

    name.keep     a bit for each weight, true where it remains
    name.values   those that remain, in order, if they were trained; else they are the backbone's own
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Edit
from fewtune.backbone.families import MAPS
from fewtune.deltas.delta import Installed, check_tensors, require
from fewtune.deltas.subset import owners, taken
from fewtune.errors import ArtifactError, BackboneError
from fewtune.train import masks

Place = Literal["attention_in", "attention_out", "ffn_in", "ffn_out", "words"]
BLOCKS: tuple[Place, ...] = MAPS
"""Every linear map of a block; what is fused is pruned as it stands."""


@dataclass(frozen=True)
class Mask:
    """Of the weights at `sites` the `share` is out: 0, and not stored. In each matrix the smallest, until another choice is loaded.

    `words` are the embeddings of the vocabulary, and whatever is tied to them. What remains is `trained`, beside the maps' biases; or it
    is the backbone's `own`, so that bits are all that is stored.
    """

    share: float = 0.5
    sites: tuple[Place, ...] = BLOCKS
    values: Literal["trained", "own"] = "trained"

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, where="mask.share", expected="at least 0 and below 1", got=self.share)
        require(bool(self.sites), where="mask.sites", expected="at least one site", got=self.sites)

    @property
    def learning_rate(self) -> float:
        """That of fine-tuning."""
        return 5e-5 if self.values == "trained" else 0.0

    @property
    def unchanged_at_start(self) -> bool:
        """Whether the model starts as it is without this delta."""
        return self.share == 0

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Prune by magnitude; raises `BackboneError` where another delta has weights of its own."""
        del generator  # nothing is drawn
        found, trained = self.weights(backbone), self.values == "trained"
        pruned = {name: Pruned(own, masks.largest(own.abs(), self.share), trained=trained) for name, own in found.items()}
        biases = {name: nn.Parameter(bias.detach().clone()) for name, bias in self.biases(backbone).items()} if trained else {}
        return Installed(
            self,
            backbone,
            {f"{name}.values": one.values for name, one in pruned.items() if one.values is not None} | biases,
            edits=edits(backbone, found | self.biases(backbone), {**pruned, **biases}),
            train_mode=[backbone.model] if trained else [],
            stored=lambda: stored(pruned, biases),
            restore=lambda state, where: _restore(pruned, biases, state, where),
        )

    def weights(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """The matrices at the sites, by name; each once, however often it is used."""
        return self._own(backbone, "weight")

    def biases(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """The biases of the maps at the sites, by name."""
        return self._own(backbone, "bias")

    def _own(self, backbone: Backbone, kind: str) -> dict[str, nn.Parameter]:
        wanted = {id(getattr(module, kind, None)) for module in self._modules(backbone)}
        if wanted & taken(backbone):
            got, fix = "another delta's in their place", "Choose other sites, or take that delta out."
            raise BackboneError(expected="weights of the backbone", got=got, where="--delta mask", fix=fix)
        return {surgery.plain_name(name): weight for name, weight in backbone.model.named_parameters() if id(weight) in wanted}

    def _modules(self, backbone: Backbone) -> Iterator[nn.Module]:
        for name in self.sites:
            if name == "words":
                yield surgery.unwrapped(backbone.model.get_input_embeddings())
            else:
                yield from (surgery.unwrapped(backbone.model.get_submodule(site.path)) for site in backbone.sites(name))


class Sparse(Protocol):
    """A matrix of which some weights are 0."""

    keep: Tensor

    def dense(self) -> Tensor:
        """The whole matrix."""
        ...

    def remaining(self) -> Tensor | None:
        """The values of those that are not 0 by the mask, in order; None where they are the backbone's own."""
        ...


class Pruned(nn.Module):
    """`own` with what is not kept set to 0. Put together again only when it was changed, except where a gradient is to flow."""

    keep: Tensor

    def __init__(self, own: nn.Parameter, keep: Tensor, *, trained: bool) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.values = nn.Parameter(own.detach()[keep].clone()) if trained else None
        self._own = [own]  # in a list, for it is no parameter of this module
        self._made: tuple[Any, Tensor] | None = None

    def dense(self) -> Tensor:
        """The whole matrix; it carries a graph where its values are trained."""
        if torch.compiler.is_compiling() or (self.values is not None and torch.is_grad_enabled()):
            return self._computed()  # what is traced has no memory that could be compared
        state = [(tensor.data_ptr(), tensor._version) for tensor in (self.keep, *self._source())]
        if self._made is None or self._made[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._made = state, self._computed()
        return self._made[1]

    def _computed(self) -> Tensor:
        return self._own[0] * self.keep if self.values is None else self._scattered(self.values)

    def remaining(self) -> Tensor | None:
        """What is stored of it beside the mask."""
        return self.values

    def _source(self) -> list[Tensor]:
        return self._own if self.values is None else [self.values]  # type: ignore[return-value]

    def _scattered(self, values_K: Tensor) -> Tensor:
        return torch.zeros(self.keep.shape, dtype=values_K.dtype, device=values_K.device).masked_scatter(self.keep, values_K)

    def load(self, keep: Tensor, values_K: Tensor | None) -> None:
        """Take another mask and other values."""
        self.keep.copy_(keep)
        if self.values is not None and values_K is not None:
            self.values.data = values_K.to(self.values.device, self.values.dtype).clone()


class Instead(Edit):
    """Matrices of which some weights are 0, and trained biases, that stand in for a module's own."""

    def __init__(self, sparse: Mapping[str, Sparse], whole: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.sparse = nn.ModuleDict(sparse)  # type: ignore[arg-type]
        self.whole = nn.ParameterDict(whole)

    def instead(self) -> Mapping[str, Tensor]:
        """Each matrix as a whole."""
        return {**{name: one.dense() for name, one in self.sparse.items()}, **dict(self.whole.items())}  # type: ignore[operator]

    def merged(self, base: nn.Module) -> Mapping[str, Tensor]:
        """The same, without a graph."""
        del base
        with torch.no_grad():
            return {name: tensor.detach().clone() for name, tensor in self.instead().items()}


def edits(backbone: Backbone, own: Mapping[str, nn.Parameter], new: Mapping[str, Sparse | nn.Parameter]) -> list[tuple[str, Instead]]:
    """Wherever a module computes with one of the backbone's `own` parameters: what is `new` under its name stands in for it."""
    number = {id(weight): new[name] for name, weight in own.items() if name in new}
    found = []
    for path, names in owners(backbone.model, number).items():
        whole = {name: one for name, one in names.items() if isinstance(one, nn.Parameter)}
        found.append((path, Instead({name: one for name, one in names.items() if not isinstance(one, nn.Parameter)}, whole)))
    return found


def stored(sparse: Mapping[str, Sparse], biases: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What a saved mask holds."""
    kept = {f"{name}.keep": masks.packed(one.keep) for name, one in sparse.items()}
    values = {f"{name}.values": values_K.detach().clone() for name, one in sparse.items() if (values_K := one.remaining()) is not None}
    return {**kept, **values, **{name: bias.detach().clone() for name, bias in biases.items()}}


def gone(installed: Installed) -> int:
    """How many weights an installed mask has out; a matrix that is used in several places counts once."""
    return sum(int((~one.keep).sum()) for one in _matrices(installed))


def borrowed(installed: Installed) -> int:
    """The bytes of those weights of the PLM that an installed mask leaves, and does not store."""
    return sum(int(one.keep.sum()) * one.dense().element_size() for one in _matrices(installed) if one.values is None)


def _matrices(installed: Installed) -> list[Pruned]:
    held = [one for _, edit in installed.edits if isinstance(edit, Instead) for one in edit.sparse.values()]
    return [one for one in {id(one): one for one in held}.values() if isinstance(one, Pruned)]


def _restore(pruned: Mapping[str, Pruned], biases: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], where: str) -> None:
    """Take what `stored` gave: all of it, or nothing where a tensor is missing, extra or of another size than its mask says."""
    shapes = {name: bias.shape for name, bias in biases.items()}
    for name, one in pruned.items():
        shapes[f"{name}.keep"] = torch.Size([-(-one.keep.numel() // 8)])
        if one.values is not None:
            shapes[f"{name}.values"] = one.values.shape
    held = {name: _mask(state.get(f"{name}.keep"), one.keep.shape, where) for name, one in pruned.items()}
    shapes |= {
        f"{name}.values": torch.Size([int(keep.sum())]) for name, keep in held.items() if keep is not None and f"{name}.values" in shapes
    }
    check_tensors(shapes, state, where)
    for name, one in pruned.items():
        keep = held[name]
        assert keep is not None
        one.load(keep, state.get(f"{name}.values"))
    for name, bias in biases.items():
        with torch.no_grad():
            bias.copy_(state[name])


def _mask(bits: Tensor | None, shape: torch.Size, where: str) -> Tensor | None:
    """The mask that these bits are, or None where there are none, or not as many; raises `ArtifactError` for other numbers."""
    if bits is None or bits.shape != (-(-shape.numel() // 8),):
        return None
    if bits.dtype != torch.uint8:
        fix = "The file does not belong to this manifest; copy the whole folder again."
        raise ArtifactError(expected="a mask of bits", got=str(bits.dtype), where=where, fix=fix)
    return masks.unpacked(bits, shape)
