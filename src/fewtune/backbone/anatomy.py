"""What a PLM is made of: its family, its blocks in their order, its sizes and the places that deltas change. Computes nothing.

Dimensions: D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fewtune import registry
from fewtune.backbone import seq2seq
from fewtune.backbone.families import FAMILIES, SITES, Family
from fewtune.backbone.sites import Site, sizes, weighted
from fewtune.errors import BackboneError

_BY_LENGTH = ("dynamic", "longrope")  # transformers' names for positions that are scaled by the length of the row


class Anatomy:
    """A model of transformers with names for its places; `name` is what the user calls it."""

    def __init__(self, model: Any, *, name: str) -> None:
        self.name, self.model = name, model
        self.family = family_of(model.config, name)
        self.stack: nn.Module = model.get_submodule(self.family.stack) if self.family.stack else model.base_model
        # Counted before any delta adds its own; tied weights count once.
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    @property
    def causal(self) -> bool:
        """Whether the model reads from left to right."""
        return self.family.objective == "causal"

    @property
    def has_lm_head(self) -> bool:
        """Whether the model has a language-modelling head of its own."""
        return hasattr(self.model, self.family.writer) if self.family.writer else self.stack is not self.model

    @property
    def seq2seq(self) -> bool:
        """Whether a decoder of its own writes what is predicted; the encoder alone is one more PLM without an LM head."""
        return bool(self.family.writer) and self.has_lm_head

    @property
    def start(self) -> int:
        """The token that the decoder's answers start from."""
        return seq2seq.start(self.model)

    @property
    def blocks(self) -> nn.ModuleList:
        """The stack's blocks, from the bottom."""
        blocks = self.stack.get_submodule(self.family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def order(self) -> tuple[int, ...]:
        """The number of the block that each step of the stack runs; one block may stand for several steps (ALBERT)."""
        distinct = len(self.blocks)
        steps = int(self.model.config.num_hidden_layers) if self.family.shared else distinct
        return tuple(step * distinct // steps for step in range(steps))

    @property
    def depth(self) -> int:
        """The number of steps of the stack; each runs a block."""
        return len(self.order)

    @property
    def width(self) -> int:
        """The size D of a hidden state."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        weight: Tensor = next(iter(self.model.parameters()))
        return weight.device

    @property
    def max_length(self) -> int:
        """The most tokens that the model takes."""
        config = self.model.config
        positions = int(getattr(config, "max_position_embeddings", 0) or 512)
        return positions - self.first_position

    @property
    def first_position(self) -> int:
        """The number of the first token's position: RoBERTa and its kin count from the padding index on."""
        return int(self.model.config.pad_token_id) + 1 if self.family.counts_from_padding else 0

    @property
    def vocabulary(self) -> int:
        """How many tokens the LM head scores."""
        return len(self.model.get_submodule(self.family.decoder).weight)

    @property
    def scales_by_length(self) -> bool:
        """Whether positions depend on how long the longest row is."""
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        return str(rope.get("rope_type", "default")) in _BY_LENGTH

    def sites(self, name: str, *, top: float = 1.0) -> tuple[Site, ...]:
        """Every place called `name`, from the bottom, in the upper share `top` of the blocks."""
        if name not in self.family.sites:
            raise BackboneError(expected="the name of a site", got=f'"{name}"', where="sites", fix=registry.nearest(name, SITES))
        return tuple(site for block in self.upper(top) for site in self._sites(name, block))

    def upper(self, top: float) -> tuple[int, ...]:
        """The numbers of the blocks that the upper share `top` of the steps runs; at least one."""
        first = self.depth - max(1, round(self.depth * top))
        return tuple(sorted(set(self.order[first:])))

    def first_block(self, top: float) -> int:
        """The lowest step that runs a block of the upper share `top`."""
        return self.order.index(self.upper(top)[0])

    def _sites(self, name: str, block: int) -> Iterator[Site]:
        for place in self.family.sites[name]:
            module = weighted(self.blocks[block], place.module)
            if module is None:
                continue
            inputs, outputs = sizes(module)
            size = outputs // place.parts
            path = f"{self.blocks_path}.{block}.{place.module}"
            yield Site(name, block, path, place.part * size, (place.part + 1) * size, inputs, outputs)

    @cached_property
    def blocks_path(self) -> str:
        """Where the blocks stand in the whole model; each is called by its number below."""
        if self.family.stack:
            return f"{self.family.stack}.{self.family.blocks}"
        return f"{self.model.base_model_prefix}.{self.family.blocks}" if self.has_lm_head else self.family.blocks

    def require_lm_head(self, where: str = "--readout", *, fix: str = "Use --readout head, or another --backbone.") -> None:
        """Raise `BackboneError` if the model cannot say which token belongs somewhere."""
        if not self.has_lm_head:
            raise BackboneError(
                expected="a PLM with a language-modelling head",
                got=f"{self.name}, {self.family.lacks.get('lm_head', 'an encoder without one')}",
                where=where,
                fix=fix,
            )


def family_of(config: Any, name: str) -> Family:
    """The row of the table for a model of this configuration; raises `BackboneError` for one that is not in it or out of its limits."""
    if config.model_type not in FAMILIES:
        raise _unsupported(config.model_type, name)
    family = FAMILIES[config.model_type]
    for setting, (most, reason) in family.limits.items():
        value = getattr(config, setting, None)
        if (value or 0) > most:
            raise BackboneError(
                expected=f"a model of type {config.model_type} with {setting} of at most {most}",
                got=f"{value}: {reason}",
                where=f'backbone "{name}"',
                fix="Take another --backbone.",
            )
    return family


def _unsupported(model_type: str, name: str) -> BackboneError:
    return BackboneError(
        expected="a PLM of a family in the table",
        got=f'model type "{model_type}"',
        where=f'backbone "{name}"',
        fix=f"Families: {', '.join(FAMILIES)}.",
    )
