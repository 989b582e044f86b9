"""A narrower model that starts from what a tuned one has learned: which of its numbers belong to the heads and neurons that remain. Knows
weights by name and shape; scores nothing and trains nothing.

Dimensions: K units that are kept, N rows or columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtune.backbone import surgery, trim
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.sites import sizes
from fewtune.backbone.trim import Kept
from fewtune.deltas.delta import Delta, Installed, load_strictly, remove_all
from fewtune.deltas.lora import LoRA
from fewtune.deltas.narrow import Narrow, Narrowed
from fewtune.deltas.shallow import Shallow
from fewtune.errors import ArtifactError, SpecError
from fewtune.model import TunedModel
from fewtune.readout.calibration import Calibrator

_Saved = tuple[Delta, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Plan:
    """What stands on a PLM to make the narrower model: fewer layers where the whole one has these, fewer units, its deltas for these.

    Everything is taken from the model beforehand, which may be on that very PLM until then.
    """

    model: TunedModel
    narrow: Narrow
    kept: Kept
    below: tuple[_Saved, ...]
    above: tuple[_Saved, ...]
    matrices: Mapping[str, Tensor]
    places: tuple[_Place, ...]

    @classmethod
    def of(cls, model: TunedModel, kept: Kept, narrow: Narrow) -> Plan:
        """Of the units that the model has those `kept` remain, the shares of them that `narrow` says.

        Raises `SpecError` for deltas that know their matrices as a whole.
        """
        _check(model, {part for part, _ in kept})
        saved = [(one.delta, one.state_dict()) for one in model.deltas]
        before = next((one for one in model.deltas if isinstance(one, Narrowed)), None)
        every = kept if before is None else {**before.kept, **kept, **_of_all(before.kept, kept)}
        return cls(
            model,
            narrow if before is None else _spec(before, every, model.backbone, trained=narrow.trained or bool(before.weights)),
            every,
            below=tuple(one for one in saved if isinstance(one[0], Shallow)),
            above=tuple(one for one in saved if not isinstance(one[0], Shallow | Narrow)),
            matrices={} if before is None else {name: weight.detach().clone() for name, weight in before.weights.items()},
            places=tuple(_places(model.backbone, kept)),
        )

    def on(self, learner: Backbone) -> TunedModel:
        """The narrower model, whose answers are the whole one's with the other units masked; raises `SpecError` for deltas that cannot be
        handed on."""
        installed: list[Installed] = []
        try:
            installed += [_installed(one, learner) for one, _ in self.below]
            narrowed = self.narrow.keeping(learner, self.kept)
            installed.append(narrowed)
            own = narrowed.state_dict()
            trained = {name: tensor for _, state in (*self.above, (self.narrow, self.matrices)) for name, tensor in state.items()}
            narrowed.load_state_dict({name: self._cut(name, trained.get(name, tensor), tensor) for name, tensor in own.items()})
            for delta, state in self.above:
                installed.append(_installed(delta, learner))
                self._start(installed[-1], {name: tensor for name, tensor in state.items() if name not in own})
        except ArtifactError as error:
            remove_all(installed)
            fix = "Make a model narrower before it is pruned (narrow:trained=deltas), or distil it into fewer layers."
            got = "one that is whole only, or another for each weight"
            raise SpecError(expected="deltas of which a part suits narrower blocks", got=got, where="narrow", fix=fix) from error
        except BaseException:
            remove_all(installed)
            raise
        return answering(self.model, learner, tuple(installed))

    def _start(self, installed: Installed, state: Mapping[str, Tensor]) -> None:
        like = installed.state_dict()
        installed.load_state_dict({name: self._cut(name, tensor, like.get(name, tensor)) for name, tensor in state.items()}, "the model")

    def _cut(self, name: str, tensor: Tensor, like: Tensor) -> Tensor:
        """What remains of a tensor that the model calls so, where it is to be of another shape."""
        place = next((one for one in self.places if name.startswith(f"{one.path}.")), None)
        if place is None or tensor.dim() != like.dim():
            return tensor
        for dimension, (size, wanted) in enumerate(zip(tensor.shape, like.shape, strict=True)):
            if size != wanted:
                tensor = tensor.index_select(dimension, place.numbers(size, wanted).to(tensor.device))
        return tensor


@dataclass(frozen=True)
class _Place:
    """A module of a part of a block: of `whole` units those `kept`; of its `size` outputs or inputs the numbers `remaining_N`."""

    path: str
    kept_K: Tensor
    whole: int
    size: int = 0
    remaining_N: Tensor | None = None

    def numbers(self, size: int, wanted: int) -> Tensor:
        """Which of `size` numbers remain: of the module's own those that do there, of as many of each unit those of the units; of others
        as many as there are, which then fit nowhere."""
        if self.remaining_N is not None and (size, wanted) == (self.size, len(self.remaining_N)):
            return self.remaining_N
        if size % self.whole:
            return torch.arange(size)
        return torch.arange(size).view(self.whole, -1)[self.kept_K.long()].flatten()


def _check(model: TunedModel, parts: Iterable[str]) -> None:
    read = {trim.PARTS[part][1] for part in parts}
    for one in model.deltas:
        if isinstance(one.delta, LoRA) and one.delta.dora and read & set(one.delta.sites):
            got = f"DoRA at {' and '.join(sorted(read & set(one.delta.sites)))}, whose directions have the lengths of whole rows"
            fix = "Tune with LoRA, or distil the model into fewer layers."
            raise SpecError(expected="deltas of which a part suits narrower blocks", got=got, where="narrow", fix=fix)


def _places(backbone: Backbone, kept: Kept) -> list[_Place]:
    """The modules that lose something, the attention's own paths, which prefixes have, behind those within them."""
    found: list[_Place] = []
    for (part, block), kept_K in kept.items():
        whole = trim.units(backbone, part, block)
        for cut in trim.cuts(backbone, part, block, kept_K):
            inputs, outputs = sizes(surgery.unwrapped(backbone.model.get_submodule(cut.path)))
            remaining_N, size = (cut.outputs_N, outputs) if cut.outputs_N is not None else (cut.inputs_N, inputs)
            found.append(_Place(cut.path, kept_K, whole, size, remaining_N))
        if part == "heads":
            found.append(_Place(trim.attention_path(backbone, block), kept_K, whole))
    return found


def _spec(before: Narrowed, kept: Kept, backbone: Backbone, *, trained: bool) -> Narrow:
    """The delta of a model that was narrower before: the shares of all of the PLM's units that remain."""
    shares = {"heads": 1.0, "ffn": 1.0}
    for part in {part for part, _ in kept}:
        whole = sum(before.whole.get(key) or trim.units(backbone, *key) for key in kept if key[0] == part)
        # Below all of them, however few went: the numbers of those that remain are what is saved.
        shares[part] = min(sum(len(own_K) for key, own_K in kept.items() if key[0] == part), whole - 0.25) / whole
    return Narrow(**shares, trained=trained)


def _of_all(before: Kept, kept: Kept) -> dict[tuple[str, int], Tensor]:
    """The numbers that units have among all of the PLM's, of units that are numbered among those that remained before."""
    return {key: before[key][kept_K.long()] for key, kept_K in kept.items() if key in before}


def _installed(delta: Delta, learner: Backbone) -> Installed:
    return delta.install(learner, generator=torch.Generator().manual_seed(0))


def answering(model: TunedModel, learner: Backbone, deltas: tuple[Installed, ...]) -> TunedModel:
    """The model with these deltas in the place of its own; its exits, which learned other states, stay behind."""
    learner.precision = model.backbone.precision
    reader = model.readout.install(learner, candidates=len(model.task.labels), generator=torch.Generator().manual_seed(0))
    load_strictly(reader.weights, {name: weight.detach() for name, weight in model.reader.weights.items()}, "the model's readout")
    # What is taken off is what the PLM without deltas answers, which would be a narrower one.
    calibrator = Calibrator.identity(len(model.task.labels)) if model.calibrator.premise else model.calibrator
    return replace(model, backbone=learner, reader=reader, deltas=deltas, calibrator=calibrator, exits=None)
