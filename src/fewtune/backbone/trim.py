"""Fewer attention heads and a narrower feed-forward part: which rows and columns of which matrices remain, smaller modules in their places,
and the way back. Knows the family's sites; no score, no delta and no training.

        query, key, value        attention_out              ffn_in         ffn_out
    x ──► rows of a head ──► its columns ──► + ──►   x ──► a row ──► a column ──►      of a unit that remains

A *unit* is what goes or stays whole: of the part `heads` a head of keys and values with the heads of queries that read it (one, unless
keys are grouped), of `ffn` a neuron.

Dimensions: U units, K units that are kept, N rows or columns, S projections in one matrix, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Bank
from fewtune.backbone.sites import Site
from fewtune.errors import BackboneError

PARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "heads": (("query", "key", "value"), "attention_out"),
    "ffn": (("ffn_in",), "ffn_out"),
}
"""The parts of a block that can be narrower: the sites that make a part's units, and the one that reads them."""
_HEAD_SIZE = ("attention_head_size", "head_dim", "key_value_proj_dim")  # transformers' names in an attention module for the size of a head,
_COUNTS = ("num_attention_heads", "num_heads", "n_heads")  # for their number,
_WIDTHS = ("all_head_size", "split_size", "inner_dim")  # and for the size of all of them

Kept = Mapping[tuple[str, int], Tensor]
"""(part, block) → the numbers kept_K of the units that remain there, in order."""


@dataclass(frozen=True)
class Cut:
    """The outputs and the inputs, by number, that remain of the linear map at `path`; None where all do."""

    path: str
    outputs_N: Tensor | None = None
    inputs_N: Tensor | None = None


def units(backbone: Backbone, part: str, block: int) -> int:
    """How many units the part has; raises `BackboneError` for a family that cannot do with fewer."""
    _check(backbone, part, block)
    _, reads = _sites(backbone, part, block)
    if part == "ffn":
        return reads.inputs
    value = _of(backbone, "value", block)[0]
    return (value.stop - value.start) // _head_size(backbone, block)


def reader(backbone: Backbone, part: str, block: int) -> tuple[str, int]:
    """(path of the module that reads the part's units, how many of its inputs are one unit's; these stand together)."""
    _, reads = _sites(backbone, part, block)
    return reads.path, reads.inputs // units(backbone, part, block)


def cuts(backbone: Backbone, part: str, block: int, kept_K: Tensor) -> list[Cut]:
    """What remains of each matrix of the part."""
    count, (makes, reads) = units(backbone, part, block), _sites(backbone, part, block)
    rows = dict[str, list[Tensor]]()
    for site in makes:  # several projections may be one matrix
        rows.setdefault(site.path, []).append(_rows(part, site, count)[:, kept_K.long()].flatten())
    columns_UN = torch.arange(reads.inputs).view(count, -1)
    return [
        *(Cut(path, outputs_N=torch.cat(found)) for path, found in rows.items()),
        Cut(reads.path, inputs_N=columns_UN[kept_K.long()].flatten()),
    ]


def _rows(part: str, site: Site, count: int) -> Tensor:
    """rows_SUN of the units in the matrix of a site; S is 2 where it is a feed-forward part's own and, behind it, its gate."""
    size = 1 if part == "ffn" else (site.stop - site.start) // count
    return torch.arange(site.start, site.stop).view(-1, count, size)


def magnitudes(backbone: Backbone, part: str, block: int) -> Tensor:
    """scores_U: the length of a unit's outgoing weights times that of its incoming ones."""
    count, (makes, reads) = units(backbone, part, block), _sites(backbone, part, block)
    out_U: Tensor = weight_OI(backbone.model.get_submodule(reads.path)).T.reshape(count, -1).norm(dim=1)
    rows = [weight_OI(backbone.model.get_submodule(site.path))[_rows(part, site, count)] for site in makes]
    in_UN = torch.cat([rows_SUNI.movedim(1, 0).reshape(count, -1) for rows_SUNI in rows], 1)
    in_U: Tensor = in_UN.norm(dim=1)
    return out_U * in_U


def weight_OI(module: nn.Module) -> Tensor:
    """The weight of a linear map, outputs first, in single precision."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return surgery.outputs_first(module, weight).detach().float()


def put(backbone: Backbone, kept: Kept) -> tuple[dict[str, nn.Parameter], list[surgery.Undo]]:
    """Put smaller modules, with copies of what remains, in the places of the whole ones: (their parameters by path and name, the way back).

    Raises `BackboneError` for a part that cannot be narrower, and where another delta has a matrix already.
    """
    planned = [(part, block, kept_K, cuts(backbone, part, block, kept_K)) for (part, block), kept_K in kept.items()]
    for cut in (cut for _, _, _, found in planned for cut in found):
        if isinstance(backbone.model.get_submodule(cut.path), Bank):
            fix = "Make the model narrower first; other deltas stand on what remains."
            raise BackboneError(expected="a matrix that no delta changes", got="one that another delta has", where=cut.path, fix=fix)
    weights, undo = dict[str, nn.Parameter](), list[surgery.Undo]()
    for part, block, kept_K, found in planned:
        if part == "heads":
            undo += _count(backbone, block, kept_K)
        for cut in found:
            small = _small(backbone.model.get_submodule(cut.path), cut)
            undo.append(surgery.replace(backbone.model, cut.path, small))
            weights |= {f"{cut.path}.{name}": weight for name, weight in small.named_parameters()}
    return weights, undo


def _small(module: nn.Module, cut: Cut) -> nn.Module:
    """Another linear map of the same kind, of the outputs and inputs that remain."""
    small = surgery.shallow_copy(module)
    linear = isinstance(module, nn.Linear)
    for name, weight in module.named_parameters():
        small._parameters[name] = nn.Parameter(_taken(weight, cut, transposed=not linear), requires_grad=False)
    outputs, inputs = weight_OI(small).shape
    for name, size in zip(("out_features", "in_features") if linear else ("nf", "nx"), (outputs, inputs), strict=True):
        setattr(small, name, size)
    return small


def _taken(weight: Tensor, cut: Cut, *, transposed: bool) -> Tensor:
    for dimension, numbers_N in enumerate((cut.outputs_N, cut.inputs_N)):
        if numbers_N is not None and dimension < weight.dim():
            weight = weight.index_select(1 - dimension if transposed and weight.dim() > 1 else dimension, numbers_N.to(weight.device))
    return weight.detach().clone()


def _count(backbone: Backbone, block: int, kept_K: Tensor) -> Iterator[surgery.Undo]:
    """Tell the attention how many heads remain, and give it what belongs to these of what is given for each head."""
    module: Any = _attention(backbone, block)
    whole = units(backbone, "heads", block)
    for name in (*_COUNTS, *_WIDTHS):
        if name in vars(module):
            yield surgery.assign(module, name, vars(module)[name] * len(kept_K) // whole)
    place = backbone.family.head_bias
    if place is not None:

        def own(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            bias = given[place]
            return given if bias is None else (*given[:place], bias[:, kept_K.long().to(bias.device)], *given[place + 1 :])

        yield module.register_forward_pre_hook(own).remove


def _sites(backbone: Backbone, part: str, block: int) -> tuple[Sequence[Site], Site]:
    makes, reads = PARTS[part]
    return [site for name in makes for site in _of(backbone, name, block)], _of(backbone, reads, block)[0]


def _of(backbone: Backbone, name: str, block: int) -> list[Site]:
    return [site for site in backbone.sites(name) if site.block == block]


def attention_path(backbone: Backbone, block: int) -> str:
    """The module that computes attention, which holds the projection of queries."""
    return _of(backbone, "query", block)[0].path.rpartition(".")[0]


def _attention(backbone: Backbone, block: int) -> nn.Module:
    module: nn.Module = backbone.model.get_submodule(attention_path(backbone, block))
    return module


def _head_size(backbone: Backbone, block: int) -> int:
    module = _attention(backbone, block)
    return next(int(vars(module)[name]) for name in _HEAD_SIZE if name in vars(module))


def _check(backbone: Backbone, part: str, block: int) -> None:
    """Raise `BackboneError` where units of the part are known elsewhere, too."""
    reason = backbone.family.rigid.get(part)
    if reason is None and part == "heads":
        known = {site.path for name in ("query", "key", "value", "attention_out") for site in _of(backbone, name, block)}
        others = [name for name, module in _attention(backbone, block).named_children() if isinstance(module, nn.Linear)]
        odd = [name for name in others if f"{attention_path(backbone, block)}.{name}" not in known]
        reason = f"another projection of its heads, {odd[0]}" if odd else None
    if reason is not None:
        raise BackboneError(
            expected=f"a family that can do with fewer {part}"
            if part == "heads"
            else "a family with a feed-forward part that can be narrower",
            got=f'model type "{backbone.model.config.model_type}": {reason}',
            where=f'backbone "{backbone.name}"',
            fix="Narrow the feed-forward part alone (heads=1), or take another --backbone.",
        )
