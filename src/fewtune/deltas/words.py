"""Tokens that trained vectors start from: those of a text, or drawn ones. Knows no method."""

from __future__ import annotations

import torch

from fewtune.backbone.backbone import Backbone
from fewtune.errors import SpecError

_FREQUENT = 5000
"""Lester et al. 2021, section 3.2, draw from so many of the most frequent tokens, which stand first in most vocabularies."""


def of_text(backbone: Backbone, text: str, *, length: int, where: str) -> list[int]:
    """The tokens of `text`, repeated or cut to `length`, or as many as there are with 0; raises `SpecError` if there are none."""
    ids: list[int] = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise SpecError(expected="a text with tokens", got=repr(text), where=where, fix="Write some words.")
    length = length or len(ids)
    return (ids * (length // len(ids) + 1))[:length]


def drawn(backbone: Backbone, *, length: int, generator: torch.Generator) -> list[int]:
    """`length` tokens drawn from the frequent ones, none of them special."""
    special = set(backbone.tokenizer.all_special_ids)
    known = [token for token in range(min(_FREQUENT + len(special), len(backbone.tokenizer))) if token not in special]
    chosen = torch.randint(len(known), (length,), generator=generator)
    return [known[number] for number in chosen.tolist()]
