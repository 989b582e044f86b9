"""The table of model families: where each keeps its sites, blocks and LM head. Data only; knows no delta and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

SITES = ("query", "key", "value", "attention_in", "attention_out", "ffn_in", "ffn_out", "norms")
"""Names for the places that every block of every family has. `attention_in` are the projections of query, key and value as they
stand, which is one for all three in some families; the first of them is given the block's states and nothing else."""
MAPS: tuple[Literal["attention_in", "attention_out", "ffn_in", "ffn_out"], ...] = ("attention_in", "attention_out", "ffn_in", "ffn_out")
"""The sites of every linear map of a block; what is fused stands there as it is."""


@dataclass(frozen=True)
class Place:
    """A submodule of a block; `part` of `parts` names a slice of its outputs where several projections are fused."""

    module: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """One architecture. Paths of `blocks`, `embeddings` and `final_norm` start at the stack (without the LM head), those of
    `sites` at a block, those of `stack`, `writer`, `transform` and `decoder` at the whole model. A place that a model does not have
    (T5 with and without a gate) or that has no weight there is left out.

    The `stack` is transformers' base model where nothing is said. Where `writer` names a second stack, it reads an answer's beginning
    and the first one's states, and the LM head reads it (seq2seq).

    `transform` is what the LM head does before its last projection `decoder`: module paths, or `act:NAME` for an activation.
    `heads` are the endings of the names of transformers' classes that have this LM head, as long as the configuration says what
    `head_if` does; of others the stack alone is loaded, as the class `without_head`.
    `attention` is the module of a block that computes attention through transformers' interface, or None where it has its own.
    `shared`: one block may stand for several steps of the stack. `outputs`: how many values a block gives as a tuple, 0 where
    it gives its states alone. `carries`: the argument of a block that takes the second value of the block before.
    `counts_from_padding`: positions do not start at 0. `unrouted`: endings of the paths of modules that are given, or read for,
    something else than a row for each of the batch, so that a delta there cannot tell the rows apart.
    `head_bias` is the position of the attention's argument that has a value for each head. `rigid` says why a part of a block ("heads")
    cannot be made narrower.
    `lacks` says why something is not to be had ("lm_head"); `limits` gives a number in the configuration beyond which models are
    refused, and why.
    """

    objective: Literal["masked", "causal", "seq2seq"]
    blocks: str
    embeddings: str
    final_norm: str | None
    sites: Mapping[str, tuple[Place, ...]]
    transform: tuple[str, ...]
    decoder: str
    heads: tuple[str, ...] = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForPreTraining")
    head_if: Mapping[str, object] = field(default_factory=dict)
    without_head: str = "AutoModel"
    stack: str = ""
    writer: str = ""
    attention: str | None = None
    shared: bool = False
    outputs: int = 0
    carries: int | None = None
    counts_from_padding: bool = False
    unrouted: tuple[str, ...] = ()
    head_bias: int | None = None
    rigid: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, str]] = field(default_factory=dict)


def _places(modules: str) -> tuple[Place, ...]:
    return tuple(map(Place, modules.split()))


def _sites(attention_in: str, attention_out: str, *, ffn_in: str, ffn_out: str, norms: str) -> dict[str, tuple[Place, ...]]:
    """`attention_in` are the modules of query, key and value, or the one whose outputs are all three in this order."""
    projections = _places(attention_in)
    three = projections if len(projections) == 3 else tuple(Place(attention_in, part, 3) for part in range(3))
    named = {"attention_out": attention_out, "ffn_in": ffn_in, "ffn_out": ffn_out, "norms": norms}
    return {
        **{name: (place,) for name, place in zip(("query", "key", "value"), three, strict=True)},
        "attention_in": projections,
        **{name: _places(modules) for name, modules in named.items()},
    }


_BERT = Family(
    objective="masked",
    blocks="encoder.layer",
    embeddings="embeddings",
    final_norm=None,
    sites=_sites(
        "attention.self.query attention.self.key attention.self.value",
        "attention.output.dense",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        norms="attention.output.LayerNorm output.LayerNorm",
    ),
    transform=("cls.predictions.transform",),
    decoder="cls.predictions.decoder",
    attention="attention.self",
)

_ROBERTA = replace(
    _BERT, transform=("lm_head.dense", "act:gelu", "lm_head.layer_norm"), decoder="lm_head.decoder", counts_from_padding=True
)

# A discriminator, "ElectraForPreTraining", tells which tokens were replaced and fills no slot.
_ELECTRA = replace(_BERT, transform=("generator_predictions",), decoder="generator_lm_head", heads=("ForMaskedLM",))

_DISTILBERT = replace(
    _BERT,
    blocks="transformer.layer",
    sites=_sites(
        "attention.q_lin attention.k_lin attention.v_lin",
        "attention.out_lin",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
        norms="sa_layer_norm output_layer_norm",
    ),
    transform=("vocab_transform", "activation", "vocab_layer_norm"),
    decoder="vocab_projector",
    attention="attention",
)

_ALBERT = replace(
    _BERT,
    blocks="encoder.albert_layer_groups",
    sites=_sites(
        "albert_layers.0.attention.query albert_layers.0.attention.key albert_layers.0.attention.value",
        "albert_layers.0.attention.dense",
        ffn_in="albert_layers.0.ffn",
        ffn_out="albert_layers.0.ffn_output",
        norms="albert_layers.0.attention.LayerNorm albert_layers.0.full_layer_layer_norm",
    ),
    transform=("predictions.dense", "predictions.activation", "predictions.LayerNorm"),
    decoder="predictions.decoder",
    attention="albert_layers.0.attention",
    shared=True,
    limits={"inner_group_num": (1, "groups of several layers, of which sites would show the first only")},
)

_MPNET = replace(
    _ROBERTA,
    sites=_sites(
        "attention.attn.q attention.attn.k attention.attn.v",
        "attention.attn.o",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        norms="attention.LayerNorm output.LayerNorm",
    ),
    attention=None,
    outputs=1,
    unrouted=("relative_attention_bias",),
    head_bias=2,
)

_DEBERTA = replace(
    _BERT,
    sites={
        **_sites(
            "attention.self.query_proj attention.self.key_proj attention.self.value_proj",
            "attention.output.dense",
            ffn_in="intermediate.dense",
            ffn_out="output.dense",
            norms="attention.output.LayerNorm output.LayerNorm",
        ),
        # Queries and keys are made of the table of relative positions, too.
        "attention_in": _places("attention.self.value_proj attention.self.query_proj attention.self.key_proj"),
    },
    # The other LM head, which DeBERTa was trained with, has no projection of its own: it is handed the embeddings.
    head_if={"legacy": True},
    attention=None,
    outputs=2,
    unrouted=("query_proj", "key_proj", "encoder.rel_embeddings", "encoder.LayerNorm"),
    limits={"conv_kernel_size": (0, "a convolution beside the first block, which a walk from block to block would miss")},
)

_MODERNBERT = Family(
    objective="masked",
    blocks="layers",
    embeddings="embeddings",
    final_norm="final_norm",
    sites=_sites("attn.Wqkv", "attn.Wo", ffn_in="mlp.Wi", ffn_out="mlp.Wo", norms="attn_norm mlp_norm"),
    transform=("head",),
    decoder="decoder",
    attention="attn",
)

_LLAMA = Family(
    objective="causal",
    blocks="layers",
    embeddings="embed_tokens",
    final_norm="norm",
    sites=_sites(
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "self_attn.o_proj",
        ffn_in="mlp.gate_proj mlp.up_proj",
        ffn_out="mlp.down_proj",
        norms="input_layernorm post_attention_layernorm",
    ),
    transform=(),
    decoder="lm_head",
    attention="self_attn",
)

_GEMMA = replace(_LLAMA, limits={"use_bidirectional_attention": (0, "a decoder that was made to read both ways")})

_GEMMA3 = replace(
    _GEMMA,
    sites={
        **_LLAMA.sites,
        "norms": _places("input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm"),
    },
    limits={**_GEMMA.limits, "final_logit_softcapping": (0, "logits that are capped behind the last projection")},
)

_GPT2 = Family(
    objective="causal",
    blocks="h",
    embeddings="wte",
    final_norm="ln_f",
    sites=_sites("attn.c_attn", "attn.c_proj", ffn_in="mlp.c_fc", ffn_out="mlp.c_proj", norms="ln_1 ln_2"),
    transform=(),
    decoder="lm_head",
    attention="attn",
)

_T5 = Family(
    objective="seq2seq",
    stack="encoder",
    writer="decoder",
    blocks="block",
    embeddings="embed_tokens",
    final_norm="final_layer_norm",
    sites=_sites(
        "layer.0.SelfAttention.q layer.0.SelfAttention.k layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o",
        ffn_in="layer.1.DenseReluDense.wi layer.1.DenseReluDense.wi_0 layer.1.DenseReluDense.wi_1",
        ffn_out="layer.1.DenseReluDense.wo",
        norms="layer.0.layer_norm layer.1.layer_norm",
    ),
    transform=(),
    decoder="lm_head",
    heads=("ForConditionalGeneration",),
    without_head="AutoModelForTextEncoding",
    attention="layer.0.SelfAttention",
    outputs=3,
    carries=2,
    # The model reads the type of this projection's weight before it calls it.
    unrouted=("relative_attention_bias", "DenseReluDense.wo"),
    rigid={"heads": "blocks that hand each other one table of relative positions, with a column for each head"},
    lacks={"lm_head": "an encoder alone, for its words are written by a decoder"},
)

FAMILIES: Mapping[str, Family] = {
    "albert": _ALBERT,
    "bert": _BERT,
    "deberta-v2": _DEBERTA,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "gemma": _GEMMA,
    "gemma3_text": _GEMMA3,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _ROBERTA,
    "t5": _T5,
    "xlm-roberta": _ROBERTA,
}
"""transformers' `model_type` → family."""
