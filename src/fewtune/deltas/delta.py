"""The contract of a delta: anything small that changes a backbone and can be undone and saved. Knows no architecture, no task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Bank, Edit
from fewtune.backbone.surgery import Undo
from fewtune.errors import ArtifactError, BackboneError, SpecError


class Delta(Protocol):
    """A frozen dataclass of hyper-parameters with one verb."""

    @property
    def learning_rate(self) -> float:
        """What the literature uses for it."""
        ...

    @property
    def unchanged_at_start(self) -> bool:
        """Whether the model answers, before any training, as it does without this delta."""
        ...

    def install(self, backbone: Backbone, *, generator: torch.Generator) -> Installed:
        """Put new weights into `backbone`, drawn from `generator`; raises `BackboneError` if it cannot carry them."""
        ...


@dataclass
class Installed:
    """New weights in a backbone, and the way back.

    `weights` maps stable names to the parameters that are trained. `edits` are the changes at modules, by path; `undo` is what
    else was done, run in reverse order by `remove`. `train_mode` holds the modules whose dropout is on while training; no
    block below `first_block` was changed. `stored` gives what is saved where that is not `weights` (a prefix's keys and values,
    not the network that makes them), and `restore` takes it back.
    """

    delta: Delta
    backbone: Backbone
    weights: Mapping[str, nn.Parameter]
    edits: Sequence[tuple[str, Edit]] = ()
    undo: Sequence[Undo] = ()
    train_mode: Sequence[nn.Module] = field(default_factory=tuple)
    first_block: int = 0
    stored: Callable[[], dict[str, Tensor]] | None = None
    restore: Callable[[Mapping[str, Tensor], str], None] | None = None

    def __post_init__(self) -> None:
        self.undo = (*self.undo, *(self.backbone.edit(path, edit) for path, edit in self.edits))

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(weight.numel() for weight in self.weights.values())

    @property
    def stored_parameters(self) -> int:
        """How many numbers a saved delta holds."""
        return sum(tensor.numel() for tensor in self.state_dict().values())

    def remove(self) -> None:
        """Leave the backbone as it was before, to the bit."""
        for step in reversed(self.undo):
            step()
        self.undo = ()

    def merge(self) -> Undo:
        """Write what has been learned into the frozen weights, so that it costs nothing more; undo puts the very weights back.

        Computed in float32. Raises `BackboneError` for a delta that is not a change of weights, or that others share a place with, unless
        each has parameters of its own there; then the others stay.
        """
        if not self.edits:
            raise self._unmergeable("merge")
        merged: dict[str, nn.Module] = {}
        for path, edits in self._by_path().items():
            bank = self._own_bank(path, edits)
            merged[path] = bank.base
            for edit in edits:
                merged[path] = self._with(merged[path], edit, path)
            merged[path] = bank.without(edits, merged[path])
        undo = [surgery.replace(self.backbone.model, path, module) for path, module in merged.items()]

        def unmerge() -> None:
            for step in reversed(undo):
                step()

        return unmerge

    def _by_path(self) -> dict[str, list[Edit]]:
        found: dict[str, list[Edit]] = {}
        for path, edit in self.edits:
            found.setdefault(path, []).append(edit)
        return found

    def _own_bank(self, path: str, edits: Sequence[Edit]) -> Bank:
        bank = self.backbone.model.get_submodule(path)
        if not isinstance(bank, Bank):
            raise BackboneError(expected="a delta that is not merged yet", got="one that is", where=path, fix="Unmerge it first.")
        if not bank.apart(edits):
            fix = "Merge where one delta is alone; unmerged ones give the same answers."
            raise BackboneError(expected="no other delta at the place", got="several", where=path, fix=fix)
        return bank

    def _with(self, module: nn.Module, edit: Edit, path: str) -> nn.Module:
        """A copy of `module` that does by itself what it does with `edit`, and shares the rest."""
        merged = edit.merged(module)
        if merged is None:
            raise self._unmergeable(path)
        copied = surgery.shallow_copy(module)
        for name, tensor in merged.items():
            copied._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        return copied

    def _unmergeable(self, where: str) -> BackboneError:
        fix = "Leave it as it is."
        return BackboneError(expected="a delta that is a change of weights", got=type(self.delta).__name__, where=where, fix=fix)

    def state_dict(self) -> dict[str, Tensor]:
        """What has been learned, by name."""
        if self.stored is not None:
            return self.stored()
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], where: str = "delta") -> None:
        """Take weights that `state_dict` gave; a missing, extra or mismatched one is refused."""
        if self.restore is not None:
            self.restore(state, where)
        else:
            load_strictly(self.weights, state, where)


Begin = Callable[[Installed], None]
"""What puts into a delta, as soon as it is installed, what it is to begin with."""


def install_all(backbone: Backbone, deltas: Iterable[tuple[Delta, int, Begin]]) -> tuple[Installed, ...]:
    """Install each delta (delta, seed, beginning): all of them, or none where one is refused.

    Each has begun before the next is there, which may stand on what it puts in the backbone's place.
    """
    installed: list[Installed] = []
    try:
        for delta, seed, begin in deltas:
            installed.append(delta.install(backbone, generator=torch.Generator().manual_seed(seed)))
            begin(installed[-1])
    except BaseException:
        remove_all(installed)
        raise
    return tuple(installed)


def saved(state: Mapping[str, Tensor], where: str) -> Begin:
    """A delta's beginning: weights that `state_dict` gave, and where they come from."""
    return lambda installed: installed.load_state_dict(state, where)


def install_saved(backbone: Backbone, learned: Iterable[tuple[Delta, Mapping[str, Tensor], str]]) -> tuple[Installed, ...]:
    """Install each delta with its saved weights (delta, weights, where they come from): all of them, or none where one is refused."""
    return install_all(backbone, ((delta, 0, saved(state, where)) for delta, state, where in learned))


def remove_all(installed: Sequence[Installed]) -> None:
    """Take deltas out, the last one first."""
    for delta in reversed(installed):
        delta.remove()


def require(holds: bool, *, where: str, expected: str, got: object) -> None:
    """Raise `SpecError` for a hyper-parameter out of range."""
    if not holds:
        raise SpecError(expected=expected, got=repr(got), where=where, fix="Change the value.")


def load_strictly(weights: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into `weights`; raises `ArtifactError` unless names and shapes are the same."""
    check_tensors({name: weight.shape for name, weight in weights.items()}, state, where)
    for name, weight in weights.items():
        with torch.no_grad():
            weight.copy_(state[name])


def check_tensors(shapes: Mapping[str, torch.Size], state: Mapping[str, Tensor], where: str) -> None:
    """Raise `ArtifactError` unless `state` has tensors of these names and shapes, and no others."""
    odd = sorted(shapes.keys() ^ state.keys())
    if odd:
        missing = odd[0] in shapes
        raise ArtifactError(
            expected=f'the tensor "{odd[0]}"' if missing else "only tensors of this artifact",
            got="none" if missing else f'"{odd[0]}"',
            where=where,
            fix="The file does not belong to this manifest; copy the whole folder again.",
        )
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise ArtifactError(
                expected=f'"{name}" of shape {tuple(shape)}',
                got=f"shape {tuple(state[name].shape)}",
                where=where,
                fix="The file does not belong to this manifest; copy the whole folder again.",
            )
