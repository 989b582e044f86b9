"""The classifiers that Hugging Face's sequence-classification models have on top ↔ `Head`. Knows their names and shapes by family;
no delta and no folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewtune.backbone import pooler
from fewtune.backbone.backbone import Backbone
from fewtune.errors import ArtifactError
from fewtune.readout.head import Head, Layer, Pool

State = dict[str, Tensor]


@dataclass(frozen=True)
class Classifier:
    """How a family classifies: `pool` and `layer` as in `Head`; `dense` and `out` are its modules, {stack} being the stack's name."""

    pool: Pool
    layer: Layer
    out: str
    dense: str = ""
    bias: bool = True


_TANH = Classifier("front", "tanh", "classifier.out_proj", "classifier.dense")
_SCORE = Classifier("last", "none", "score", bias=False)

CLASSIFIERS: Mapping[str, Classifier] = {
    "albert": Classifier("front", "pooler", "classifier", "{stack}.pooler"),
    "bert": Classifier("front", "pooler", "classifier", "{stack}.pooler.dense"),
    "camembert": _TANH,
    "deberta-v2": Classifier("front", "gelu", "classifier", "pooler.dense"),
    "distilbert": Classifier("front", "relu", "classifier", "pre_classifier"),
    "electra": Classifier("front", "gelu", "classifier.out_proj", "classifier.dense"),
    "mpnet": _TANH,
    "roberta": _TANH,
    "xlm-roberta": _TANH,
}
"""transformers' `model_type` → its classifier. Autoregressive families share one: a map of the last token's state."""


def read(tensors: Mapping[str, Tensor], backbone: Backbone, *, where: str) -> tuple[Head, State]:
    """The head whose weights `tensors` are, by the names of a sequence-classification model; (spec, weights).

    Raises `ArtifactError` for tensors of anything else, and where a layer that was used is nowhere to be had.
    """
    kind = _classifier(backbone, where)
    dense = _dense(kind, backbone)
    names = {f"{kind.out}.weight": "head.weight", f"{dense}.weight": "dense.weight", f"{dense}.bias": "dense.bias"}
    if kind.bias:
        names[f"{kind.out}.bias"] = "head.bias"
    for name in sorted(tensors.keys() - names.keys()):
        fix = "Other modules of the base model that were trained cannot be had here."
        raise ArtifactError(expected="a classifier beside the adapter", got=name, where=where, fix=fix)
    state = {names[name]: tensor.float() for name, tensor in tensors.items()}
    layer, added = _before(kind, backbone, state, where)
    _require(state, ["head.weight", *(["head.bias"] if kind.bias else [])], {ours: theirs for theirs, ours in names.items()}, where)
    return Head(pool=kind.pool, layer=layer, bias=kind.bias), {**state, **added}


def _classifier(backbone: Backbone, where: str) -> Classifier:
    model_type = backbone.model.config.model_type
    kind = CLASSIFIERS.get(model_type) or (_SCORE if backbone.causal else None)
    if kind is None:
        fix = f"Families: {', '.join(CLASSIFIERS)} and the autoregressive ones."
        raise ArtifactError(expected="a family whose classifier fewtune knows", got=f'"{model_type}"', where=where, fix=fix)
    return kind


def _dense(kind: Classifier, backbone: Backbone) -> str:
    return kind.dense.format(stack=backbone.model.base_model_prefix)


def _before(kind: Classifier, backbone: Backbone, state: Mapping[str, Tensor], where: str) -> tuple[Layer, State]:
    """(the layer between pooling and the last map, its weights if they are not in `state`)."""
    if kind.layer == "none" or "dense.weight" in state:
        if kind.layer != "none" and "dense.bias" not in state:
            raise _missing(_dense(kind, backbone) + ".bias", where, "Copy the whole folder again.")
        return ("tanh" if kind.layer == "pooler" else kind.layer), {}
    if kind.layer != "pooler":
        fix = "It was drawn at random and not saved with the adapter: train it with that module in modules_to_save."
        raise _missing(_dense(kind, backbone), where, fix)
    if pooler.of(backbone) is not None:
        return "pooler", {}
    stored = pooler.stored(backbone.name)
    if stored is None:
        fix = "The classifier reads through it, and the PLM's files have none; give the --backbone that the adapter was trained on."
        raise _missing("the PLM's pooler", where, fix)
    # The language model leaves it out; the head keeps a copy.
    assert isinstance(stored.bias, Tensor)
    return "tanh", {"dense.weight": stored.weight.detach().float(), "dense.bias": stored.bias.detach().float()}


def _require(state: Mapping[str, Tensor], wanted: list[str], theirs: Mapping[str, str], where: str) -> None:
    for name in wanted:
        if name not in state:
            raise _missing(theirs[name], where, "Copy the whole folder again.")


def _missing(what: str, where: str, fix: str) -> ArtifactError:
    return ArtifactError(expected=what, got="none", where=where, fix=fix)


def write(head: Head, weights: Mapping[str, Tensor], backbone: Backbone, *, in_front: bool) -> tuple[State, tuple[str, ...]]:
    """The head by the names of a sequence-classification model, and the modules of that model that are saved whole.

    `in_front`: whether trained vectors stand in front of the tokens. Raises `ArtifactError` for a head that the family's
    classifier cannot be.
    """
    where = "export"
    kind = _classifier(backbone, where)
    pools = {kind.pool, *(["auto"] if kind.pool == "last" else []), *(["first"] if kind.pool == "front" and not in_front else [])}
    layers = {kind.layer, *(["tanh"] if kind.layer == "pooler" else [])}
    for what, value, fits in (("pool", head.pool, pools), ("layer", head.layer, layers), ("bias", head.bias, {kind.bias})):
        if value not in fits:
            wanted = f"head:pool={kind.pool},layer={kind.layer},bias={str(kind.bias).lower()}"
            fix = f"Train with --readout {wanted}."
            expected = f"the classifier of {backbone.model.config.model_type} models, {wanted}"
            raise ArtifactError(expected=expected, got=f"{what}={str(value).lower()}", where=where, fix=fix)
    theirs = {"head": kind.out, "dense": _dense(kind, backbone)}
    state = {f"{theirs[name.partition('.')[0]]}.{name.partition('.')[2]}": weight.detach() for name, weight in weights.items()}
    if kind.layer == "pooler" and (head.layer == "pooler" or _same_pooler(weights, backbone)):
        state = {name: weight for name, weight in state.items() if name.startswith(f"{kind.out}.")}
    saved_pooler = any("pooler" in name for name in state)
    return state, ("classifier", "pooler", "score") if saved_pooler else ("classifier", "score")


def _same_pooler(weights: Mapping[str, Tensor], backbone: Backbone) -> bool:
    """Whether the head's dense layer is the PLM's own pooler to the bit, which every copy of the PLM has already."""
    known = pooler.of(backbone) or pooler.stored(backbone.name)
    return known is not None and all(
        torch.equal(weights[f"dense.{name}"].cpu(), weight.float().cpu()) for name, weight in known.named_parameters()
    )
