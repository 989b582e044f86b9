"""A stack of which some steps remain: which ones are left, what of the model counts them, and the way back. Knows blocks and the
model's configuration; no delta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.errors import BackboneError

_COUNTED = "layer_idx"  # transformers' name for a block's place among keys and values that are kept
_KINDS = "layer_types"  # for what each block sees,
_GROUPS = "num_hidden_groups"  # and for how many blocks there are that several steps share


def spread(count: int, depth: int) -> tuple[int, ...]:
    """`count` of `depth` steps, evenly from the first to the last, both of them included: those of DistilBERT (Sanh et al. 2019), six of
    BERT's twelve. One alone is the first.

    >>> spread(6, 12), spread(3, 6), spread(1, 6)
    ((0, 2, 4, 7, 9, 11), (0, 2, 5), (0,))
    """
    return tuple(round(number * (depth - 1) / max(1, count - 1)) for number in range(count))


def keep(backbone: Backbone, steps: Sequence[int]) -> surgery.Undo:
    """Leave `steps` of the stack only, by their numbers from the bottom, and the blocks that these run; undo puts everything back.

    Raises `BackboneError` where they are not steps of it in order, where the lowest one holds something that all need, or where a family
    with blocks that several steps share would run others.
    """
    _check(backbone, steps)
    config: Any = backbone.stack.config
    kept = [backbone.blocks[block] for block in remaining(backbone, steps)]
    undo = [surgery.assign(config, "num_hidden_layers", len(steps))]
    kinds = getattr(config, _KINDS, None)
    if kinds is not None:
        undo.append(surgery.assign(config, _KINDS, [kinds[step] for step in steps]))
    undo.append(surgery.replace(backbone.stack, backbone.family.blocks, nn.ModuleList(kept)))
    if backbone.family.shared:
        undo.append(surgery.assign(config, _GROUPS, len(kept)))
    for number, block in enumerate(kept):
        undo += [surgery.assign(module, _COUNTED, number) for module in block.modules() if _COUNTED in vars(module)]

    def back() -> None:
        for one in reversed(undo):
            one()

    return back


def remaining(backbone: Backbone, steps: Sequence[int]) -> tuple[int, ...]:
    """The numbers of the blocks that some of the stack's steps run."""
    return tuple(sorted({backbone.order[step] for step in steps}))


def _check(backbone: Backbone, steps: Sequence[int]) -> None:
    family = backbone.family
    check_order(steps, backbone.depth, _where(backbone))
    if family.carries is not None and steps[0] != 0:
        raise _refused("step 0 among them, whose relative positions all others use", steps, _where(backbone), "Keep step 0.")
    run = tuple(number * len(backbone.blocks) // len(steps) for number in range(len(steps)))
    if family.shared and run != tuple(backbone.order[step] for step in steps):
        reason = "steps whose blocks are those that a stack of so many steps runs"
        raise _refused(reason, steps, _where(backbone), "Keep as many steps of each group of blocks, or take a PLM with one.")


def check_order(steps: Sequence[int], depth: int, where: str) -> None:
    """Raise `BackboneError` unless these are some of so many steps, from the bottom."""
    if not steps or list(steps) != sorted(set(steps)) or not 0 <= steps[0] <= steps[-1] < depth:
        raise _refused(f"some of the steps 0 to {depth - 1}, from the bottom", steps, where, "Change --delta shallow or distill:layers.")


def _where(backbone: Backbone) -> str:
    return f"fewer layers of {backbone.name}"


def _refused(expected: str, steps: Sequence[int], where: str, fix: str) -> BackboneError:
    return BackboneError(expected=expected, got=", ".join(map(str, steps)) or "none", where=where, fix=fix)
