"""Replace a submodule, a parameter or an attribute and find the way back exactly. Knows no architecture and no delta."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

Undo = Callable[[], None]
"""Puts back the very object that was there before, so nothing is recomputed and every bit is as it was."""


def replace(root: nn.Module, path: str, module: nn.Module) -> Undo:
    """Put `module` at `path`; raises `AttributeError` if there is nothing at that path."""
    parent_path, _, name = path.rpartition(".")
    parent = root.get_submodule(parent_path)
    before = root.get_submodule(path)
    setattr(parent, name, module)
    return lambda: setattr(parent, name, before)


def assign(owner: object, name: str, value: object) -> Undo:
    """Let `owner`, a module or a configuration, have another `value` under a name that it has."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def wrap(root: nn.Module, path: str, wrapper: Callable[[nn.Module], nn.Module]) -> Undo:
    """Replace the module at `path` by what `wrapper` makes of it."""
    return replace(root, path, wrapper(root.get_submodule(path)))


def unwrapped(module: nn.Module) -> nn.Module:
    """The backbone's own module under any wrappers, each of which keeps what it wraps as `base`."""
    while isinstance(getattr(module, "base", None), nn.Module):
        module = module.get_submodule("base")
    return module


def plain_name(name: str) -> str:
    """What a parameter is called when nothing is wrapped around its module."""
    return name.replace(".base.", ".")


def outputs_first(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight_OI of a linear map, of which GPT-2's Conv1D keeps weight_IO."""
    return weight if isinstance(unwrapped(module), nn.Linear) else weight.T


def replace_parameter(root: nn.Module, parameter: nn.Parameter, new: nn.Parameter) -> Undo:
    """Put `new` wherever `parameter` stands, so that tied weights stay tied."""
    places = [(module, name) for module in root.modules() for name, held in module._parameters.items() if held is parameter]

    def put(value: nn.Parameter) -> None:
        for module, name in places:
            module._parameters[name] = value

    put(new)
    return lambda: put(parameter)


def freeze(root: nn.Module) -> Undo:
    """Let no parameter of `root` take a gradient; undo gives each its own setting back."""
    before = [(parameter, parameter.requires_grad) for parameter in root.parameters()]
    root.requires_grad_(False)

    def undo() -> None:
        for parameter, setting in before:
            parameter.requires_grad_(setting)

    return undo


def shallow_copy(module: nn.Module) -> nn.Module:
    """Another module of the same kind that shares every parameter, buffer and child with `module`."""
    copied = copy.copy(module)
    for kind in ("_parameters", "_buffers", "_modules"):
        setattr(copied, kind, dict(getattr(module, kind)))
    return copied
