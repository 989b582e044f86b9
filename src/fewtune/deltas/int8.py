"""Whole numbers of eight bits instead of weights, for the processor: the linear maps of all blocks are computed with them. Knows sites, no
architecture; how numbers are rounded is `fewtune.backbone.int8`.

    name.values   int8, one for each weight
    name.scale    what they are multiplied with, one for each output of a map, or for each row of another matrix
    name.span     the least and the greatest that comes to a map, where that was measured
    name          biases and norms, as they are

The PLM's own weights are rounded anew by whoever loads the model, and nothing is stored; all tasks on one PLM share what was made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Bank, Edit, Shelf
from fewtune.backbone.families import MAPS
from fewtune.backbone.int8 import Int8Map, Shared, restored, rounded
from fewtune.deltas.delta import Installed, check_tensors
from fewtune.deltas.subset import owners, taken
from fewtune.errors import ArtifactError, BackboneError


@dataclass(frozen=True)
class Int8:
    """The maps at `MAPS` in eight bits. `values` are the PLM's `own`, or all its weights `stored`, with what a model has learned in them:
    then other matrices, too, are stored in eight bits, and computed with as they are restored.

    Inputs have a scale for each `token`, or one for all that was `measured` on rows (`Quantised.measuring`), which is faster; until then
    they have one for each token. What other deltas add to a map stays as it is; one that has a weight of its own there is computed in full.
    """

    values: Literal["own", "stored"] = "own"
    inputs: Literal["token", "measured"] = "token"

    learning_rate: ClassVar[float] = 0.0
    unchanged_at_start: ClassVar[bool] = False

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Quantised:
        """Round the weights as they are; raises `BackboneError` where another delta has weights of its own."""
        del generator  # nothing is drawn
        bases, named = _bases(backbone), _named(backbone) if self.values == "stored" else {}
        mine = {id(base.weight) for base in bases.values()}
        if taken(backbone) & (mine | {id(weight) for weight in named.values()}):
            fix = "Take that delta out, or round it, too: `fewtune compress --by int8`."
            raise BackboneError(expected="weights of the PLM", got="another delta's in their place", where="--delta int8", fix=fix)
        shared = Shared()
        maps = {path: self._map(backbone, path, base, shared) for path, base in bases.items()}
        whole = {name: Whole(weight) for name, weight in named.items() if id(weight) not in mine}
        places = owners(backbone.model, {id(named[name]): one for name, one in whole.items()})
        edits: list[tuple[str, Edit]] = [(path, Eight(own, self)) for path, own in maps.items()]
        edits += [(path, Restored(own)) for path, own in places.items()]
        return Quantised(self, backbone, {}, edits=edits, maps={f"{path}.weight": own for path, own in maps.items()}, whole=whole)

    def _map(self, backbone: Backbone, path: str, base: Any, shared: Shared) -> Int8Map:
        """One that another entry has made of the PLM's own weights, or a new one."""
        bank = backbone.model.get_submodule(path)
        there = [edit for entry in bank.entries for edit in bank.of(entry)] if isinstance(bank, Bank) else []
        if self.values == "own":
            for edit in there:
                if isinstance(edit, Eight) and edit.delta.values == "own":
                    return edit.own if self.inputs == edit.delta.inputs == "token" else edit.own.twin()
        return Int8Map.of(surgery.outputs_first(base, base.weight), shared)


class Eight(Edit):
    """A map in eight bits that stands in for a module's product."""

    def __init__(self, own: Int8Map, delta: Int8) -> None:
        super().__init__()
        self.own, self.delta = own, delta

    def product(self) -> Int8Map:
        """The map."""
        return self.own

    def replaces(self) -> tuple[str, ...]:
        """The weight, unless it is what is rounded when the model is loaded."""
        return () if self.delta.values == "own" else ("weight",)


class Whole(nn.Module):
    """A weight that is stored in eight bits if it is a matrix, and computed with in full."""

    weight: Tensor

    def __init__(self, own: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", own.detach())
        self.load(_packed(own))

    def load(self, stored: Mapping[str, Tensor]) -> None:
        """Take what is stored."""
        self.stored = {end: tensor.to(self.weight.device) for end, tensor in stored.items()}
        self.weight = self.stored[""] if "" in self.stored else restored(self.stored[".values"], self.stored[".scale"])


class Restored(Edit):
    """What is restored stands in for a module's own parameters."""

    def __init__(self, held: Mapping[str, Whole]) -> None:
        super().__init__()
        self.held = nn.ModuleDict(held)

    def instead(self) -> Mapping[str, Tensor]:
        """The weights in full."""
        return {name: one.weight for name, one in self.held.items()}  # type: ignore[misc]


@dataclass
class Quantised(Installed):
    """Maps in eight bits, by the names of the weights that they are, and, where these are stored, all other weights."""

    maps: Mapping[str, Int8Map] = field(default_factory=dict)
    whole: Mapping[str, Whole] = field(default_factory=dict)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Whatever the backbone is given meanwhile makes one scale for all inputs of each map; nobody else's maps may be among these."""
        with ExitStack() as stack:
            for own in self.maps.values():
                stack.enter_context(own.measuring())
            yield
        self.delta = replace(self._spec, inputs="measured")

    def state_dict(self) -> dict[str, Tensor]:
        """What is stored; of the PLM's own only what was measured."""
        spans = {f"{name}.span": torch.tensor(own.span or (0.0, 0.0)) for name, own in self.maps.items() if self._spec.inputs == "measured"}
        if self._spec.values == "own":
            return spans
        maps = {f"{name}{end}": tensor for name, own in self.maps.items() for end, tensor in _parts(own).items()}
        return spans | maps | {f"{name}{end}": tensor for name, one in self.whole.items() for end, tensor in one.stored.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], where: str = "delta") -> None:
        """Take what `state_dict` gave; raises `ArtifactError` for other tensors."""
        there = self.state_dict()
        check_tensors({name: tensor.shape for name, tensor in there.items()}, state, where)
        for name, tensor in there.items():
            if state[name].dtype != tensor.dtype:
                fix = "The file does not belong to this manifest; copy the whole folder again."
                raise ArtifactError(expected=f'"{name}" of {tensor.dtype}', got=str(state[name].dtype), where=where, fix=fix)
        for name, own in self.maps.items():
            if self._spec.values == "stored":
                own.load(state[f"{name}.values"], state[f"{name}.scale"])
            if self._spec.inputs == "measured":
                low, high = state[f"{name}.span"].tolist()
                own.span = (low, high) if low < high else None
        for name, one in self.whole.items():
            one.load({end: state[f"{name}{end}"] for end in one.stored})

    @property
    def _spec(self) -> Int8:
        assert isinstance(self.delta, Int8)
        return self.delta


def stored(backbone: Backbone) -> dict[str, Tensor]:
    """What `Int8("stored")` holds of the weights that rows of the current entry go through now, other deltas' included."""
    weights, bases = dict[str, Tensor](_named(backbone)), _bases(backbone)
    for path, module in backbone.model.named_modules():
        for edit in module.of(backbone.entry) if isinstance(module, Bank) else ():
            weights |= {name: weight for key, weight in edit.instead().items() if (name := f"{path}.{key}") in weights}
    weights |= {name: surgery.outputs_first(base, weights[name]) for path, base in bases.items() for name in [f"{path}.weight"]}
    return {f"{name}{end}": tensor for name, weight in weights.items() for end, tensor in _packed(weight).items()}


def _packed(weight: Tensor) -> dict[str, Tensor]:
    if weight.dim() != 2:
        return {"": weight.detach().clone()}
    values_OI, scale_O = rounded(weight)
    return {".values": values_OI, ".scale": scale_O}


def _parts(own: Int8Map) -> dict[str, Tensor]:
    return {".values": own.values_OI.clone(), ".scale": own.scale_O.clone()}


def _bases(backbone: Backbone) -> dict[str, Any]:
    """The linear maps of all blocks, by path, as they are under other deltas."""
    paths = [site.path for name in MAPS for site in backbone.sites(name)]
    return {path: surgery.unwrapped(backbone.model.get_submodule(path)) for path in paths}


def _named(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The PLM's own weights, by name."""
    shelves = [module for module in backbone.model.modules() if isinstance(module, Shelf)]
    others = {id(weight) for shelf in shelves for weight in shelf.held.parameters()}
    return {surgery.plain_name(name): weight for name, weight in backbone.model.named_parameters() if id(weight) not in others}
