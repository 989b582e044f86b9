"""Every family of the table, held to transformers' own forward: whole, block by block, at the LM head, and at its sites."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone, load
from fewtune.backbone.families import FAMILIES, SITES

SEEN = list(FAMILIES)
LENGTHS = (9, 4, 1, 7)
ROTARY = {"llama"}  # keys are turned by their position, so what is added to all of them does not cancel


def test_every_family_is_seen_here_and_can_be_made_small():
    assert len(SEEN) == 4
    assert set(tiny.FAMILIES) == set(SEEN)


def made(family, **shape):
    model, tokenizer = tiny.model(family, **shape)
    return Backbone(model, tokenizer, name=f"tiny {family}")


def batch(backbone, lengths=LENGTHS, *, seed=0):
    """Random ids_BT with the mask_BT of rows of these lengths; what stands in the padding is as random as the rest."""
    generator = torch.Generator().manual_seed(seed)
    # The first ids are special ones, and RoBERTa counts positions by its padding id.
    ids_BT = torch.randint(10, len(backbone.tokenizer), (len(lengths), max(lengths)), generator=generator)
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    if backbone.tokenizer.pad_token_id is not None:
        ids_BT[mask_BT == 0] = backbone.tokenizer.pad_token_id
    return ids_BT, mask_BT


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SEEN)
def test_forward_equals_transformers_whole_batches_and_single_rows(family):
    backbone = made(family)
    plain, _ = tiny.model(family)
    ids_BT, mask_BT = batch(backbone)
    with torch.no_grad():
        hidden_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
        whole_BTD = plain.base_model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        alone = [plain.base_model(input_ids=ids[:length][None]).last_hidden_state[0] for ids, length in zip(ids_BT, LENGTHS, strict=True)]
    assert hidden_BTD.dtype == torch.float32
    real = mask_BT.bool()
    close(hidden_BTD[real], whole_BTD[real])
    close(hidden_BTD[real], torch.cat(alone))


@pytest.mark.parametrize("family", SEEN)
def test_the_walk_equals_transformers_block_by_block(family):
    backbone = made(family)
    plain, _ = tiny.model(family)
    ids_BT, mask_BT = batch(backbone)
    with torch.no_grad():
        walked = list(backbone.layers(ids_BT, mask_BT))
        expected = plain.base_model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True).hidden_states
    assert len(walked) == len(expected) == backbone.depth + 1
    real = mask_BT.bool()
    # transformers gives the last states after the final norm.
    for mine_BTD, theirs_BTD in zip([*walked[:-1], backbone.norm(walked[-1])], expected, strict=True):
        close(mine_BTD[real], theirs_BTD[real])


def test_segment_numbers_reach_the_embeddings():
    backbone = made("bert")
    plain, _ = tiny.model("bert")
    ids_BT, mask_BT = batch(backbone)
    types_BT = (torch.arange(ids_BT.shape[1]) > 2).long().expand_as(ids_BT)
    with torch.no_grad():
        expected_BTD = plain.base_model(input_ids=ids_BT, attention_mask=mask_BT, token_type_ids=types_BT).last_hidden_state
        hidden_BTD = backbone.forward(ids_BT, mask_BT, types_BT).hidden_BTD
        below_BTD = backbone.below(ids_BT, mask_BT, types_BT, start=1)
        gone_on_BTD = backbone.forward(ids_BT, mask_BT, types_BT, start=1, below_BTD=below_BTD).hidden_BTD
        without_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
    close(hidden_BTD, expected_BTD)
    close(gone_on_BTD, expected_BTD)
    assert not torch.allclose(without_BTD, expected_BTD, atol=1e-2)


@pytest.mark.parametrize("family", SEEN)
def test_going_on_from_the_states_below_any_block_gives_the_whole(family):
    backbone = made(family)
    ids_BT, mask_BT = batch(backbone)
    with torch.no_grad():
        whole_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
        for start in range(backbone.depth + 1):
            below_BTD = backbone.below(ids_BT, mask_BT, None, start=start)
            # The padding of kept states is zeros, whatever the model had made of it.
            below_BTD = below_BTD * mask_BT[:, :, None]
            close(backbone.forward(ids_BT, mask_BT, start=start, below_BTD=below_BTD).hidden_BTD[mask_BT.bool()], whole_BTD[mask_BT.bool()])


@pytest.mark.parametrize("family", SEEN)
def test_lm_logits_equal_the_whole_heads_at_chosen_rows_and_tokens(family):
    backbone = made(family)
    plain, _ = tiny.model(family)
    ids_BT, mask_BT = batch(backbone)
    rows, places, tokens = torch.arange(4), torch.tensor(LENGTHS) - 1, torch.tensor([20, 7, 7, 0])
    with torch.no_grad():
        chosen_ND = backbone.forward(ids_BT, mask_BT).hidden_BTD[rows, places]
        expected_NK = plain(input_ids=ids_BT, attention_mask=mask_BT).logits[rows, places][:, tokens]
        close(backbone.lm_logits(chosen_ND, tokens), expected_NK)


def test_a_bias_of_the_lm_head_is_read_at_the_tokens_asked_for():
    for family in ("bert", "roberta"):
        backbone = made(family)
        decoder = backbone.model.get_submodule(backbone.family.decoder)
        with torch.no_grad():
            before = backbone.lm_logits(torch.zeros(1, backbone.width), torch.tensor([5, 6]))
            decoder.bias[6] += 3
            after = backbone.lm_logits(torch.zeros(1, backbone.width), torch.tensor([5, 6]))
        close(after - before, torch.tensor([[0.0, 3.0]]))


def sizes(config):
    """What each site takes and gives, and how many of it a block has, from the model's configuration alone."""
    width, heads = config.hidden_size, config.num_attention_heads
    keys = width // heads * getattr(config, "num_key_value_heads", heads)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    gated = 2 if config.model_type == "llama" else 1
    return {
        "query": (width, width, 1),
        "key": (width, keys, 1),
        "value": (width, keys, 1),
        "attention_out": (width, width, 1),
        "ffn_in": (width, inner, gated),
        "ffn_out": (inner, width, 1),
        "norms": (width, width, 2),
    }


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", SEEN)
def test_every_site_stands_in_every_block_with_its_sizes(family, site):
    backbone = made(family)
    inputs, outputs, count = sizes(backbone.model.config)[site]
    places = backbone.sites(site)
    assert [place.block for place in places] == [block for block in range(backbone.depth) for _ in range(count)]
    for place in places:
        assert (place.name, place.inputs, place.stop - place.start) == (site, inputs, outputs)
        assert 0 <= place.start < place.stop <= place.outputs
        within = f"{backbone.family.blocks}.{place.block}."
        assert within in place.path
        assert any(module is backbone.model.get_submodule(place.path) for module in backbone.blocks[place.block].modules())
    assert len({place.path for place in places}) == len(places)


def changed_at(backbone, site, change):
    """How far the states move, as one number, when `change` is applied to what the site of the middle block gives."""
    ids_BT, mask_BT = batch(backbone)
    (place,) = [place for place in backbone.sites(site) if place.block == 1]

    def hook(module, inputs, output):
        return torch.cat([output[..., : place.start], change(output[..., place.start : place.stop]), output[..., place.stop :]], -1)

    with torch.no_grad():
        before = list(backbone.layers(ids_BT, mask_BT))
        handle = backbone.model.get_submodule(place.path).register_forward_hook(hook)
        after = list(backbone.layers(ids_BT, mask_BT))
        handle.remove()
    real = mask_BT.bool()
    assert torch.equal(before[1], after[1]), "a block below was changed"
    return before[2][real], after[2][real]


@pytest.mark.parametrize("family", SEEN)
def test_query_key_and_value_are_what_they_are_called(family):
    backbone = made(family)
    shift = torch.randn(sizes(backbone.model.config)["value"][1], generator=torch.Generator().manual_seed(1))
    _, without_query = changed_at(backbone, "query", torch.zeros_like)
    before, without_key = changed_at(backbone, "key", torch.zeros_like)
    _, without_value = changed_at(backbone, "value", torch.zeros_like)
    # Scores are products of query and key: without either, every token is looked at alike.
    close(without_query, without_key)
    for other in (before, without_query):
        assert (without_value - other).abs().max() > 1e-2
    assert (before - without_key).abs().max() > 1e-2
    # One vector added to all keys moves all of a query's scores by the same, which softmax takes out again; not so for values.
    if family not in ROTARY:
        close(changed_at(backbone, "key", lambda output: output + shift)[1], before)
    assert (changed_at(backbone, "value", lambda output: output + shift)[1] - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", SEEN)
def test_save_then_load_gives_the_same_backbone(family, tmp_path):
    expected, loaded = made(family, seed=3), load(str(tiny.save(family, tmp_path / family, seed=3)))
    assert loaded.fingerprint == expected.fingerprint != made(family, seed=4).fingerprint
    assert loaded.tokenizer_fingerprint == expected.tokenizer_fingerprint
    assert (loaded.has_lm_head, loaded.causal, loaded.depth, loaded.width) == (True, expected.causal, 3, 32)
    ids_BT, mask_BT = batch(expected)
    with torch.no_grad():
        assert torch.equal(loaded.forward(ids_BT, mask_BT).hidden_BTD, expected.forward(ids_BT, mask_BT).hidden_BTD)
