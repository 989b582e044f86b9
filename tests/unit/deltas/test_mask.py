"""A mask in a backbone: what is 0, what is stored, what is refused, and that nothing of it stays."""

import pytest
import torch
from safetensors.torch import load, save

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.deltas import DELTAS
from fewtune.deltas.lora import LoRA
from fewtune.deltas.mask import Mask
from fewtune.deltas.subset import Subset
from fewtune.errors import ArtifactError, BackboneError, SpecError
from fewtune.train import masks

FIRST = "bert.encoder.layer.0.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def backbone():
    return Backbone(*tiny.model("bert"), name="bert")


def install(backbone, **options):
    return Mask(**options).install(backbone, generator=torch.Generator())


def weight(backbone, name):
    """What the model computes with."""
    path, _, kind = name.rpartition(".")
    return getattr(backbone.model.get_submodule(path), kind).detach()


def test_the_smallest_of_each_matrix_are_zero_and_the_others_as_they_were(backbone):
    own = weight(backbone, FIRST).clone()
    installed = install(backbone, share=0.75)
    keep = masks.largest(own.abs(), 0.75)
    assert torch.equal(weight(backbone, FIRST), own * keep)
    state = installed.state_dict()
    assert torch.equal(masks.unpacked(state[f"{FIRST}.keep"], own.shape), keep)
    assert torch.equal(state[f"{FIRST}.values"], own[keep])
    installed.remove()
    assert torch.equal(weight(backbone, FIRST), own)


def test_a_saved_mask_comes_back_to_the_bit_whatever_it_is(backbone):
    first = install(backbone, share=0.5, sites=("attention_in", "words"))
    state = first.state_dict()
    drawn = torch.Generator().manual_seed(7)
    for name in [name.removesuffix(".keep") for name in state if name.endswith(".keep")]:
        shape = weight(backbone, name).shape
        keep = torch.rand(shape, generator=drawn) < 0.3  # not as many as before
        state |= {f"{name}.keep": masks.packed(keep), f"{name}.values": torch.randn(int(keep.sum()), generator=drawn)}
    first.remove()
    second = install(backbone, share=0.5, sites=("attention_in", "words"))
    with torch.no_grad():
        before = weight(backbone, FIRST).clone()
        second.load_state_dict(load(save(state)))
        keep = masks.unpacked(state[f"{FIRST}.keep"], before.shape)
        assert torch.equal(weight(backbone, FIRST)[keep], state[f"{FIRST}.values"])
        assert not weight(backbone, FIRST)[~keep].any()
    again = second.state_dict()
    assert again.keys() == state.keys() and all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert second.trained_parameters == sum(tensor.numel() for name, tensor in state.items() if not name.endswith(".keep"))


def test_of_own_values_only_bits_are_stored(backbone):
    own = weight(backbone, WORDS).clone()
    installed = install(backbone, share=0.5, sites=("words",), values="own")
    state = installed.state_dict()
    assert list(state) == [f"{WORDS}.keep"] and state[f"{WORDS}.keep"].dtype == torch.uint8
    assert state[f"{WORDS}.keep"].numel() == -(-own.numel() // 8)
    assert installed.trained_parameters == 0
    other = torch.rand(own.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    installed.load_state_dict({f"{WORDS}.keep": masks.packed(other)})
    with torch.inference_mode():
        assert torch.equal(weight(backbone, WORDS), own * other)
    # What was put together for answers may stand where something else is trained.
    LoRA(rank=1).install(backbone, generator=torch.Generator().manual_seed(0))
    ids_BT = torch.tensor([[5, 6, 7]])
    backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD.sum().backward()


def test_what_is_put_together_is_kept_until_something_changes(backbone):
    installed = install(backbone)
    with torch.no_grad():
        first = backbone.model.get_submodule(FIRST.removesuffix(".weight")).weight
        assert backbone.model.get_submodule(FIRST.removesuffix(".weight")).weight is first
        installed.weights[f"{FIRST}.values"].mul_(2)
        assert torch.equal(weight(backbone, FIRST), first * 2)


def test_other_tensors_than_its_own_are_refused_and_nothing_is_taken(backbone):
    installed = install(backbone, sites=("ffn_out",))
    state = installed.state_dict()
    name = next(one.removesuffix(".keep") for one in state if one.endswith(".keep"))
    fewer = masks.packed(torch.zeros(weight(backbone, name).shape, dtype=torch.bool))
    with pytest.raises(ArtifactError, match=r"values\" of shape \(0,\), got shape"):
        installed.load_state_dict({**state, f"{name}.keep": fewer})
    with pytest.raises(ArtifactError, match="expected a mask of bits, got torch.float32"):
        installed.load_state_dict({**state, f"{name}.keep": state[f"{name}.keep"].float()})
    again = installed.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_the_rest_can_be_trained_beside_it(backbone):
    """`subset` takes what the mask has left, and each has its own once more when both are loaded."""
    mask, rest = install(backbone, sites=("attention_in", "attention_out", "ffn_in", "ffn_out", "words")), Subset("all")
    rest = rest.install(backbone, generator=torch.Generator())
    own = dict(backbone.model.named_parameters())
    held = {name for name in mask.state_dict() if not name.endswith((".keep", ".values"))} | {
        name.removesuffix(".keep") for name in mask.state_dict() if name.endswith(".keep")
    }
    assert not held & rest.weights.keys()
    bare = {name for name, _ in Backbone(*tiny.model("bert"), name="bert").model.named_parameters()}
    assert held | rest.weights.keys() == bare and own


def test_weights_of_another_delta_are_not_pruned(backbone):
    Subset("all").install(backbone, generator=torch.Generator())
    with pytest.raises(BackboneError, match="expected weights of the backbone, got another delta's in their place"):
        install(backbone)


def test_it_is_written_as_others_are():
    text = "mask:share=0.3,sites=ffn_in+words,values=own"
    assert DELTAS.to_text(DELTAS.from_text(text)) == text
    assert DELTAS.from_text("mask") == Mask()
    for wrong in ("mask:share=1", "mask:share=-0.1", "mask:sites=querry", "mask:values=half"):
        with pytest.raises(SpecError):
            DELTAS.from_text(wrong)
