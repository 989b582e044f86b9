"""The table of model families: where each keeps its sites, blocks and LM head. Data only; knows no delta and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SITES = ("query", "key", "value", "attention_in", "attention_out", "ffn_in", "ffn_out", "norms")
"""Names for the places that every block of every family has. `attention_in` are the projections of query, key and value as they
stand, which is one for all three in some families."""


@dataclass(frozen=True)
class Place:
    """A submodule of a block; `part` of `parts` names a slice of its outputs where several projections are fused."""

    module: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """One architecture. Paths of `blocks`, `embeddings` and `final_norm` start at the stack (without the LM head), those of
    `sites` at a block, those of `transform` and `decoder` at the whole model.

    `transform` is what the LM head does before its last projection `decoder`: module paths, or `act:NAME` for an activation.
    `attention` is the module of a block that computes attention through transformers' interface, or None where it has its own.
    `shared`: one block may stand for several steps of the stack. `outputs`: how many values a block gives. `carries`: the
    argument of a block that takes the second value of the block before. `counts_from_padding`: positions do not start at 0.
    """

    objective: Literal["masked", "causal"]
    blocks: str
    embeddings: str
    final_norm: str | None
    sites: Mapping[str, tuple[Place, ...]]
    transform: tuple[str, ...]
    decoder: str
    attention: str | None = None
    shared: bool = False
    outputs: int = 1
    carries: int | None = None
    counts_from_padding: bool = False


def _places(sites: Mapping[str, str]) -> dict[str, tuple[Place, ...]]:
    return {name: tuple(Place(module) for module in modules.split()) for name, modules in sites.items()}


_BERT_SITES = _places(
    {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_in": "attention.self.query attention.self.key attention.self.value",
        "attention_out": "attention.output.dense",
        "ffn_in": "intermediate.dense",
        "ffn_out": "output.dense",
        "norms": "attention.output.LayerNorm output.LayerNorm",
    }
)

_LLAMA_SITES = _places(
    {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention_in": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "attention_out": "self_attn.o_proj",
        "ffn_in": "mlp.gate_proj mlp.up_proj",
        "ffn_out": "mlp.down_proj",
        "norms": "input_layernorm post_attention_layernorm",
    }
)

_GPT2_SITES = {
    **_places(
        {"attention_in": "attn.c_attn", "attention_out": "attn.c_proj", "ffn_in": "mlp.c_fc", "ffn_out": "mlp.c_proj", "norms": "ln_1 ln_2"}
    ),
    "query": (Place("attn.c_attn", 0, 3),),
    "key": (Place("attn.c_attn", 1, 3),),
    "value": (Place("attn.c_attn", 2, 3),),
}

FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        objective="masked",
        blocks="encoder.layer",
        embeddings="embeddings",
        final_norm=None,
        sites=_BERT_SITES,
        transform=("cls.predictions.transform",),
        decoder="cls.predictions.decoder",
    ),
    "roberta": Family(
        objective="masked",
        blocks="encoder.layer",
        embeddings="embeddings",
        final_norm=None,
        sites=_BERT_SITES,
        transform=("lm_head.dense", "act:gelu", "lm_head.layer_norm"),
        decoder="lm_head.decoder",
        counts_from_padding=True,
    ),
    "llama": Family(
        objective="causal",
        blocks="layers",
        embeddings="embed_tokens",
        final_norm="norm",
        sites=_LLAMA_SITES,
        transform=(),
        decoder="lm_head",
    ),
    "gpt2": Family(
        objective="causal",
        blocks="h",
        embeddings="wte",
        final_norm="ln_f",
        sites=_GPT2_SITES,
        transform=(),
        decoder="lm_head",
    ),
}
"""transformers' `model_type` → family."""
