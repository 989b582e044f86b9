"""What goes on inside a stack while a batch runs: the states after each step, and queries, keys and values of the last block. With their
graph. Knows blocks and sites; no loss.

Dimensions: B rows, S positions of what the stack is given, D width, E width of queries, keys or values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.sites import Site

RELATED = ("query", "key", "value")


@dataclass
class Inside:
    """`states` after each step, hidden_BSD before the final norm; `last` the projections `RELATED` of the last step, each (B, S, E), all
    heads side by side and without rotated positions."""

    states: list[Tensor] = field(default_factory=list)
    last: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def inside(backbone: Backbone) -> Iterator[Inside]:
    """Within it, the latest batch that went through the whole stack is written down; its rows take no turns."""
    found, top = Inside(), backbone.order[-1]

    def begins(module: nn.Module, inputs: Any) -> None:
        if len(found.states) == backbone.depth:
            found.states = []
        found.last = {}  # a step's first call counts: DeBERTa projects its table of relative positions behind the states

    def ends(module: nn.Module, inputs: Any, output: Any) -> None:
        found.states.append(output if isinstance(output, Tensor) else output[0])

    with backbone.together(), ExitStack() as hooks:
        for block in backbone.blocks:
            hooks.callback(block.register_forward_pre_hook(begins).remove)
            hooks.callback(block.register_forward_hook(ends).remove)
        for site in (site for name in RELATED for site in backbone.sites(name) if site.block == top):
            hooks.callback(backbone.model.get_submodule(site.path).register_forward_hook(_noting(found, site)).remove)
        yield found


def _noting(found: Inside, site: Site) -> Any:
    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.last.setdefault(site.name, output[..., site.start : site.stop])

    return note
