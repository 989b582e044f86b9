"""One PLM: what it says of itself, its precision, its fingerprints, and what loading refuses."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, ElectraForPreTraining, T5Config, T5ForConditionalGeneration

from fewtune.backbone import fingerprints, tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.backbone.load import default_device, load
from fewtune.errors import BackboneError


def made(family="bert", **shape):
    model, tokenizer = tiny.model(family, **shape)
    return Backbone(model, tokenizer, name=f"tiny {family}")


def ids(known=120):
    ids_BT = torch.randint(10, known, (2, 5), generator=torch.Generator().manual_seed(0))
    return ids_BT, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


# What it says of itself


def test_is_frozen_and_in_evaluation_mode():
    model, tokenizer = tiny.model("bert")
    model.train()
    backbone = Backbone(model, tokenizer, name="b")
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    assert not backbone.forward(*ids()).hidden_BTD.requires_grad


CAUSAL = ("gemma", "gemma3_text", "gpt2", "llama", "qwen2", "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes(family):
    backbone = made(family, blocks=5, width=16)
    assert (backbone.depth, backbone.width, backbone.causal, backbone.max_length) == (5, 16, family in CAUSAL, 512)
    assert backbone.parameters == sum(weight.numel() for weight in set(backbone.model.parameters()))
    assert backbone.device == torch.device("cpu") and backbone.has_lm_head and backbone.seq2seq == (family == "t5")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_text_it_takes_is_taken(family):
    backbone = made(family, blocks=1, width=16)
    ids_BT = torch.full((1, backbone.max_length), 20)
    with torch.no_grad():
        assert backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD.shape == (1, backbone.max_length, 16)


@pytest.mark.parametrize(("top", "first"), [(1.0, 0), (2 / 3, 2), (0.5, 3), (1 / 3, 4), (0.1, 5), (1e-9, 5)])
def test_the_upper_share_of_the_blocks_is_at_least_one(top, first):
    backbone = made(blocks=6)
    assert backbone.first_block(top) == first
    assert sorted({site.block for site in backbone.sites("query", top=top)}) == list(range(first, 6))


@pytest.mark.parametrize(("steps", "order"), [(3, (0, 0, 1)), (4, (0, 0, 1, 1)), (2, (0, 1))])
def test_a_block_that_stands_for_several_steps_is_walked_as_often(steps, order):
    backbone, ran = made("albert", blocks=steps), []
    for number, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        states = list(backbone.layers(*ids(100)))
    assert (backbone.depth, len(states)) == (steps, steps + 1)
    assert backbone.order == order == tuple(ran)
    # The upper third has the second block alone, and begins with the first step that runs it.
    assert (backbone.upper(1 / 3), backbone.first_block(1 / 3)) == ((1,), order.index(1))


def test_an_unknown_site_is_refused_with_the_nearest():
    with pytest.raises(BackboneError, match='expected the name of a site, got "ffn-in". Did you mean "ffn_in"'):
        made().sites("ffn-in")


def test_the_walk_leaves_the_model_as_it_was():
    backbone = made()
    before = dict(backbone.model.named_modules())
    list(backbone.layers(*ids()))
    with pytest.raises(IndexError):
        list(backbone.layers(torch.full((1, 3), 10_000), torch.ones(1, 3)))  # the embeddings fail with the blocks taken out
    after = dict(backbone.model.named_modules())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_the_walk_computes_no_more_blocks_than_are_asked_for():
    backbone, ran = made(blocks=4), []
    for number, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        below_BTD = backbone.below(*ids(), None, start=2)
        assert ran == [0, 1]
        ran.clear()
        backbone.forward(*ids(), start=2, below_BTD=below_BTD)
    assert ran == [2, 3]


# Precision


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near_float32_and_given_as_float32(family):
    backbone = made(family)
    with torch.no_grad():
        exact_BTD = backbone.forward(*ids(100)).hidden_BTD
        with backbone.as_precision("bfloat16"):
            rough_BTD = backbone.forward(*ids(100)).hidden_BTD
            walked_BTD = backbone.forward(*ids(100), start=1, below_BTD=backbone.below(*ids(100), None, start=1)).hidden_BTD
            if backbone.has_lm_head:
                assert backbone.lm_logits(rough_BTD[:, 0], torch.arange(5)).dtype == torch.float32
        again_BTD = backbone.forward(*ids(100)).hidden_BTD
    assert rough_BTD.dtype == walked_BTD.dtype == torch.float32
    assert not torch.equal(rough_BTD, exact_BTD) and torch.nn.functional.cosine_similarity(rough_BTD, exact_BTD, dim=-1).min() > 0.98
    assert torch.equal(walked_BTD[0], rough_BTD[0])
    assert torch.equal(again_BTD, exact_BTD)


def test_the_precision_comes_back_after_an_error():
    backbone = made()
    with pytest.raises(RuntimeError), backbone.as_precision("bfloat16"):
        raise RuntimeError
    assert backbone.precision == "float32"


# Fingerprints


def test_one_bit_makes_another_fingerprint():
    backbone = made()
    assert backbone.fingerprint == made().fingerprint == fingerprints.model(backbone.model)
    weight = next(iter(backbone.model.parameters()))
    with torch.no_grad():
        weight.view(-1)[5].view(torch.int32).bitwise_xor_(1)
    assert fingerprints.model(backbone.model) != backbone.fingerprint
    with torch.no_grad():
        weight.view(-1)[5].view(torch.int32).bitwise_xor_(1)
    assert fingerprints.model(backbone.model) == backbone.fingerprint


def test_names_shapes_and_types_count():
    def fingerprint(**tensors):
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return fingerprints.model(module)

    ones = torch.zeros(2, 3)
    assert fingerprint(a=ones) == fingerprint(a=ones.clone())
    others = [fingerprint(b=ones), fingerprint(a=torch.zeros(3, 2)), fingerprint(a=torch.zeros(2, 3, dtype=torch.int32))]
    assert len({fingerprint(a=ones), *others}) == 4
    one, two = torch.ones(2), torch.zeros(2)
    assert fingerprint(a=one, b=two) == fingerprint(b=two, a=one) != fingerprint(a=two, b=one)


def test_settings_of_the_last_call_are_no_part_of_the_tokenizers_fingerprint():
    model, tokenizer = tiny.model("bert")
    before = Backbone(model, tokenizer, name="b").tokenizer_fingerprint
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert Backbone(model, tokenizer, name="b").tokenizer_fingerprint == before
    tokenizer.add_tokens(["fewtune"])
    assert Backbone(model, tokenizer, name="b").tokenizer_fingerprint != before


# Loading


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_disk_is_float32_in_memory_and_has_its_own_fingerprint(tmp_path, dtype):
    model, tokenizer = tiny.model("llama")
    model.to(dtype).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load(str(tmp_path))
    assert {weight.dtype for weight in backbone.model.parameters()} == {torch.float32}
    assert backbone.fingerprint == fingerprints.model(model) != made("llama").fingerprint
    assert (backbone.name, backbone.device.type) == (str(tmp_path), default_device())


def encoder_folder(folder, *, pooler=True):
    """A sentence encoder: no LM head."""
    model, tokenizer = tiny.model("bert")
    encoder = AutoModel.from_config(model.config, add_pooling_layer=True)
    encoder.load_state_dict(model.base_model.state_dict(), strict=False)
    encoder.config.architectures = ["BertModel"]
    state = {name: tensor for name, tensor in encoder.state_dict().items() if pooler or not name.startswith("pooler.")}
    encoder.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pooler", [True, False])
def test_an_encoder_without_an_lm_head_walks_but_fills_no_slot(tmp_path, pooler):
    backbone, whole = load(encoder_folder(tmp_path, pooler=pooler)), made()
    assert not backbone.has_lm_head
    with torch.no_grad():
        assert torch.equal(backbone.forward(*ids()).hidden_BTD, whole.forward(*ids()).hidden_BTD)
        assert all(torch.equal(one, other) for one, other in zip(backbone.layers(*ids()), whole.layers(*ids()), strict=True))
    for site in backbone.sites("query"):
        assert backbone.model.get_submodule(site.path) is backbone.blocks[site.block].attention.self.query
    with pytest.raises(BackboneError, match="expected a PLM with a language-modelling head, got .*Use --readout head"):
        backbone.lm_logits(torch.zeros(1, 32), torch.tensor([1]))


def refused(name, match):
    with pytest.raises(BackboneError, match=match) as caught:
        load(str(name))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    refused(tmp_path, "a folder without config.json")
    (tmp_path / "config.json").write_text("{ not json")
    refused(tmp_path, "not a valid JSON file")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "model_type")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [("num_hidden_layers", "x", "num_hidden_layers"), ("num_attention_heads", 7, "not a multiple"), ("dtype", "blub", "blub")],
)
def test_a_config_that_makes_no_model_is_refused(tmp_path, field, value, match):
    tiny.save("bert", tmp_path)
    reconfigure(tmp_path, field, value)
    refused(tmp_path, match)


def test_an_encoder_of_t5_alone_has_no_lm_head(tmp_path):
    tiny.save("t5", tmp_path, head=False)
    backbone, whole = load(str(tmp_path)), made("t5")
    assert (backbone.has_lm_head, backbone.seq2seq, whole.has_lm_head, whole.seq2seq) == (False, False, True, True)
    assert not any("decoder" in name for name, _ in backbone.model.named_parameters())
    backbone.model.load_state_dict(whole.model.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(backbone.forward(*ids()).hidden_BTD, whole.forward(*ids()).hidden_BTD)


def test_t5_is_loaded_with_its_decoder(tmp_path):
    _, tokenizer = tiny.model("t5")
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    whole = T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load(str(tmp_path))
    ids_BT, mask_BT = torch.full((2, 5), 20), torch.ones(2, 5)
    with torch.no_grad():
        expected_BTD = whole.get_encoder()(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        torch.testing.assert_close(backbone.forward(ids_BT, mask_BT).hidden_BTD, expected_BTD, atol=1e-5, rtol=1e-5)
    assert backbone.has_lm_head and backbone.seq2seq and backbone.start == 0
    # The first T5 has no gate.
    assert [site.path for site in backbone.sites("ffn_in")] == [f"encoder.block.{block}.layer.1.DenseReluDense.wi" for block in range(2)]
    assert {(site.inputs, site.outputs) for site in backbone.sites("ffn_in")} == {(16, 32)}
    assert {(site.inputs, site.outputs) for site in backbone.sites("query")} == {(16, 8)}


def test_a_discriminator_is_an_encoder_without_an_lm_head(tmp_path):
    model, tokenizer = tiny.model("electra")
    whole = ElectraForPreTraining(model.config).eval()
    whole.config.architectures = ["ElectraForPreTraining"]
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load(str(tmp_path))
    assert not backbone.has_lm_head
    with torch.no_grad():
        assert torch.equal(backbone.forward(*ids()).hidden_BTD, whole.electra(*ids()).last_hidden_state)


def test_of_debertas_other_lm_head_the_stack_alone_is_loaded(tmp_path):
    tiny.save("deberta-v2", tmp_path)
    reconfigure(tmp_path, "legacy", False)
    backbone = load(str(tmp_path))
    assert not backbone.has_lm_head
    with torch.no_grad():
        assert torch.equal(backbone.forward(*ids(100)).hidden_BTD, made("deberta-v2").forward(*ids(100)).hidden_BTD)


@pytest.mark.parametrize("family", ["albert", "bert", "mpnet", "roberta", "xlm-roberta"])
def test_a_pooler_that_was_never_trained_is_left_out(tmp_path, family):
    model, tokenizer = tiny.model(family)
    AutoModel.from_config(model.config).save_pretrained(tmp_path, state_dict=model.base_model.state_dict())
    reconfigure(tmp_path, "architectures", ["SomeModel"])
    tokenizer.save_pretrained(tmp_path)
    backbone, again = load(str(tmp_path)), load(str(tmp_path))
    assert backbone.fingerprint == again.fingerprint
    assert backbone.stack.pooler is None
    with torch.no_grad():
        assert torch.equal(backbone.forward(*ids(100)).hidden_BTD, made(family).forward(*ids(100)).hidden_BTD)


@pytest.mark.parametrize(
    ("family", "setting", "value", "match"),
    [
        ("albert", "inner_group_num", 2, "inner_group_num of at most 1, got 2: groups of several layers"),
        ("deberta-v2", "conv_kernel_size", 3, "conv_kernel_size of at most 0, got 3: a convolution beside the first block"),
        ("gemma", "use_bidirectional_attention", True, "got True: a decoder that was made to read both ways"),
        ("gemma3_text", "final_logit_softcapping", 30.0, "got 30.0: logits that are capped"),
    ],
)
def test_what_a_family_does_not_hold_for_is_refused_with_the_reason(tmp_path, family, setting, value, match):
    tiny.save(family, tmp_path)
    reconfigure(tmp_path, setting, value)
    refused(tmp_path, match)
    model, tokenizer = tiny.model(family)
    setattr(model.config, setting, value)
    with pytest.raises(BackboneError, match=match):
        Backbone(model, tokenizer, name="b")


@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, family):
    tiny.save(family, tmp_path)
    for file in tmp_path.glob("token*"):
        file.unlink()
    refused(tmp_path, "tokenizer")


@pytest.mark.parametrize("text", ["{ no", "{}"])
def test_a_damaged_tokenizer_is_refused(tmp_path, text):
    tiny.save("bert", tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    refused(tmp_path, "expected a PLM")


def test_a_family_that_is_not_in_the_table_is_refused(tmp_path):
    AutoConfig.for_model("bart").save_pretrained(tmp_path)
    refused(tmp_path, 'expected a PLM of a family in the table, got model type "bart". Families: albert, bert, deberta-v2, ')
    model, tokenizer = tiny.model("bert")
    model.config.model_type = "bart"
    with pytest.raises(BackboneError, match='got model type "bart"'):
        Backbone(model, tokenizer, name="b")


def test_no_weights_is_refused(tmp_path):
    tiny.save("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "model.safetensors")


def reconfigure(folder, field, value):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))


def rewrite(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def test_a_missing_weight_is_refused_by_name(tmp_path):
    tiny.save("llama", tmp_path)
    rewrite(tmp_path, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    refused(tmp_path, r"expected weights for the whole model, got none that fit for model\.layers\.1\.mlp\.up_proj\.weight")


def test_a_weight_of_another_shape_is_refused(tmp_path):
    tiny.save("gpt2", tmp_path)
    reconfigure(tmp_path, "n_embd", 16)
    refused(tmp_path, r"expected weights for the whole model, got none that fit for transformer\.h\.0\.attn\.c_attn\.bias")


def test_damaged_weights_are_refused(tmp_path):
    tiny.save("bert", tmp_path)
    path = tmp_path / "model.safetensors"
    for size in (1000, 0):
        path.write_bytes(path.read_bytes()[:size])
        refused(tmp_path, "got SafetensorError")


def test_an_unknown_name_is_refused_without_a_hub():
    refused("no-such-plm", 'backbone "no-such-plm": expected .* backbones list')


def test_loading_is_silent(tmp_path, capfd):
    folder = tiny.save("bert", tmp_path)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(str(folder))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_weights_of_more_blocks_than_the_configuration_names_are_refused(family, tmp_path):
    folder = tiny.save(family, tmp_path / "plm")
    config = json.loads((folder / "config.json").read_text())
    key = "n_layer" if family == "gpt2" else "num_hidden_layers"
    (folder / "config.json").write_text(json.dumps({**config, key: 2, "layer_types": None}))
    with pytest.raises(BackboneError, match="a config.json that names every block, got none for .*2"):
        load(str(folder))


def test_buffers_that_older_versions_stored_in_blocks_are_let_through(tmp_path):
    folder = tiny.save("llama", tmp_path / "plm")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.layers.0.self_attn.masked_bias": torch.ones(1)}
    save_file({**tensors, **old}, path, metadata={"format": "pt"})
    assert load(str(folder)).depth == len([name for name in tensors if name.endswith("input_layernorm.weight")])
