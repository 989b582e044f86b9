"""A masked-LM head put on an encoder that has none, tied to its embeddings. Knows no training."""

from __future__ import annotations

import copy
from typing import Any

import torch

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import Family
from fewtune.errors import BackboneError


def settings(family: Family) -> dict[str, Any]:
    """Of a configuration whose model has an LM head that is tied to its embeddings."""
    return {**family.head_if, "tie_word_embeddings": True}


def with_head(backbone: Backbone, *, seed: int) -> tuple[Backbone, frozenset[str]]:
    """The same stack, its very weights, under a new head as transformers initialises it; and the names of the head's weights.

    Raises `BackboneError` for a family whose masked LM transformers does not have.
    """
    import transformers

    config: Any = copy.deepcopy(backbone.model.config)
    if backbone.causal or not backbone.family.heads:
        backbone.require_lm_head("--backbone", fix="Take another --backbone.")
    for setting, value in settings(backbone.family).items():
        setattr(config, setting, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForMaskedLM.from_config(config)
    stack = model.base_model
    weights = {name: weight for name, weight in backbone.stack.state_dict().items() if not name.startswith("pooler.")}
    stack.load_state_dict(weights, assign=True)
    model.tie_weights()
    new = frozenset(name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}."))
    made = Backbone(model.to(backbone.device), backbone.tokenizer, name=backbone.name, fingerprint=backbone.fingerprint)
    return made, new


def check_writes(backbone: Backbone) -> None:
    """Raise `BackboneError` unless the PLM's own LM head reads its one stack, and a masked one has a token to hide others behind."""
    backbone.require_lm_head("--backbone", fix="`fewtune pretrain` puts one on; or take another --backbone.")
    expected, got = "a tokenizer with a mask token", "one without"
    if backbone.seq2seq:
        expected, got = "an autoregressive or a masked PLM", f"{backbone.name}, whose texts are told by a decoder of its own"
    elif backbone.causal or backbone.tokenizer.mask_token_id is not None:
        return
    raise BackboneError(expected=expected, got=got, where=f'backbone "{backbone.name}"', fix="Take another --backbone.")
