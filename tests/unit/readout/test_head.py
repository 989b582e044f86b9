"""What a head computes, against the formula written out: pooling, the layer before the last map, its bias."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import BackboneError
from fewtune.prompt.batch import Batch
from fewtune.readout import READOUTS
from fewtune.readout.head import Head

MASK_BT = torch.tensor([[1, 1, 1], [1, 1, 0]])
HIDDEN_BTD = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
FRONT_BD = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
POOLED = {
    "first": HIDDEN_BTD[:, 0],
    "front": FRONT_BD,
    "last": torch.stack([HIDDEN_BTD[0, 2], HIDDEN_BTD[1, 1]]),
    "mean": torch.stack([HIDDEN_BTD[0].mean(0), HIDDEN_BTD[1, :2].mean(0)]),
}
ACTIVATIONS = {"tanh": torch.tanh, "relu": lambda x: x.clamp(min=0), "gelu": lambda x: x / 2 * (1 + torch.erf(x / 2**0.5))}


def backbone_of(family):
    model, tokenizer = tiny.model(family)
    return Backbone(model, tokenizer, name=family)


def scores(reader, output):
    batch = Batch(torch.zeros_like(MASK_BT), MASK_BT, None, torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        return reader.scores(output, batch)


def reader_of(head, backbone):
    generator = torch.Generator().manual_seed(2)
    reader = head.install(backbone, candidates=3, generator=generator)
    with torch.no_grad():
        for weight in reader.weights.values():
            weight += torch.randn(weight.shape, generator=generator)
    return reader


@pytest.mark.parametrize("pool", POOLED)
@pytest.mark.parametrize("layer", ["none", *ACTIVATIONS])
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_is_its_formula(pool, layer, bias):
    reader = reader_of(Head(pool=pool, layer=layer, bias=bias), backbone_of("roberta"))
    own = reader.weights
    state_BD = POOLED[pool]
    if layer != "none":
        state_BD = ACTIVATIONS[layer](state_BD @ own["dense.weight"].T + own["dense.bias"])
    wanted_BC = state_BD @ own["head.weight"].T + (own["head.bias"] if bias else 0)
    torch.testing.assert_close(scores(reader, Output(HIDDEN_BTD, FRONT_BD)), wanted_BC.detach(), atol=1e-5, rtol=1e-5)
    assert ("head.bias" in own, "dense.weight" in own) == (bias, layer != "none")


def test_the_front_is_the_first_token_where_nothing_stands_before_it():
    reader = reader_of(Head(pool="front"), backbone_of("roberta"))
    first = reader_of(Head(pool="first"), backbone_of("roberta"))
    assert torch.equal(scores(reader, Output(HIDDEN_BTD)), scores(first, Output(HIDDEN_BTD)))


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_the_backbones_own_pooler_is_read_and_not_learned(family):
    from transformers import AutoModel

    model, tokenizer = tiny.model(family)
    backbone = Backbone(AutoModel.from_config(model.config).eval(), tokenizer, name=family)
    reader = reader_of(Head(pool="front", layer="pooler"), backbone)
    assert set(reader.weights) == {"head.weight", "head.bias"}
    ids_BT = torch.randint(10, 100, (2, 3), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        output = backbone.forward(ids_BT, MASK_BT)
        theirs_BD = backbone.model(input_ids=ids_BT, attention_mask=MASK_BT).pooler_output
        wanted_BC = theirs_BD @ reader.weights["head.weight"].T + reader.weights["head.bias"]
    torch.testing.assert_close(scores(reader, output), wanted_BC, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_without_a_pooler_there_is_none_to_read(family):
    with pytest.raises(BackboneError, match="expected a PLM with a pooler"):
        Head(layer="pooler").install(backbone_of(family), candidates=2, generator=torch.Generator())


def test_what_is_new_does_not_shift_what_was_drawn_before():
    plain, deep = (
        Head(layer=layer).install(backbone_of("roberta"), candidates=2, generator=torch.Generator().manual_seed(0))
        for layer in ("none", "tanh")
    )
    assert torch.equal(plain.weights["head.weight"], deep.weights["head.weight"])


def test_an_older_manifests_head_is_the_plain_one():
    assert READOUTS.from_dict({"name": "head", "pool": "first", "dropout": 0.1}) == Head(pool="first")
