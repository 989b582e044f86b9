"""Every family of the table, held to transformers' own forward: whole, block by block, at the LM head, at its sites, with vectors in
front, and with several deltas in one batch."""

import pytest
import torch

from fewtune.backbone import tiny, turns
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES, SITES
from fewtune.backbone.load import load
from fewtune.deltas.lora import LoRA
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError

SEEN = list(FAMILIES)
LENGTHS = (9, 4, 1, 7)
ROTARY = "keys are turned by their position"
UNEVEN_KEYS = {
    # What is added to all keys then does not cancel.
    **dict.fromkeys(("gemma", "llama", "modernbert", "qwen2"), ROTARY),
    **dict.fromkeys(("gemma3_text", "qwen3"), f"{ROTARY}, after a norm"),
    "deberta-v2": "keys are multiplied with relative positions, too, which are made by the same projection",
}
WRITES = {"t5": "its words are written by a decoder"}
SEGMENTED = {"albert": 2, "bert": 2, "electra": 2}
OWN_ATTENTION = ("deberta-v2", "mpnet")


def test_every_family_is_seen_here_and_can_be_made_small():
    assert len(SEEN) == 16
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


def stack(plain):
    """transformers' own model without its LM head; of an encoder-decoder model the encoder."""
    return getattr(plain, "encoder", None) if plain.config.model_type in WRITES else plain.base_model


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SEEN)
def test_forward_equals_transformers_whole_batches_and_single_rows(family):
    backbone = made(family)
    plain, _ = tiny.model(family)
    ids_BT, mask_BT = batch(backbone)
    with torch.no_grad():
        hidden_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
        whole_BTD = stack(plain)(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        alone = [stack(plain)(input_ids=ids[:length][None]).last_hidden_state[0] for ids, length in zip(ids_BT, LENGTHS, strict=True)]
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
        expected = stack(plain)(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True).hidden_states
    assert len(walked) == len(expected) == backbone.depth + 1
    real = mask_BT.bool()
    # transformers gives the last states after the final norm.
    for mine_BTD, theirs_BTD in zip([*walked[:-1], backbone.norm(walked[-1])], expected, strict=True):
        close(mine_BTD[real], theirs_BTD[real])


def in_turns_and_at_once(backbone, monkeypatch, **more):
    """What `forward` gives for rows of unlike lengths, each length for itself, and in one pass; the states below step 1, gone on with."""
    ids_BT, mask_BT = batch(backbone)
    found = []
    for cost in (0, 10**9):
        monkeypatch.setattr(turns, "TURN", cost)
        assert len(turns.by_length(mask_BT)) == (0 if cost else len(LENGTHS))
        whole = backbone.forward(ids_BT, mask_BT, **more)
        below_BTD = backbone.below(ids_BT, mask_BT, None, start=1)
        gone_on = backbone.forward(ids_BT, mask_BT, start=1, below_BTD=below_BTD, **more)
        found.append((whole, gone_on, below_BTD))
    return mask_BT.bool(), *found


@pytest.mark.parametrize("family", SEEN)
def test_rows_of_unlike_lengths_get_in_turns_what_they_get_in_one_pass(family, monkeypatch):
    with torch.no_grad():
        real, turned, once = in_turns_and_at_once(made(family), monkeypatch)
    close(turned[2][real], once[2][real])
    for mine, theirs in zip(turned[:2], once[:2], strict=True):
        assert mine.hidden_BTD.shape == theirs.hidden_BTD.shape
        close(mine.hidden_BTD[real], theirs.hidden_BTD[real])
        close(mine.first_BD, theirs.first_BD)


@pytest.mark.parametrize("family", SEEN)
def test_in_turns_each_row_goes_through_its_own_deltas_and_gives_them_the_same_gradients(family, monkeypatch):
    backbone = made(family)
    installed = []
    for entry in (0, 2):
        with backbone.installing(entry):
            installed.append(LoRA(rank=2).install(backbone, generator=torch.Generator().manual_seed(entry)))
    for name, weight in [pair for one in installed for pair in one.weights.items()]:
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        weight.requires_grad_(True)
    weights = [weight for one in installed for weight in one.weights.values()]
    real, turned, once = in_turns_and_at_once(backbone, monkeypatch, route_B=torch.tensor([2, 0, -1, 2]))
    close(turned[0].hidden_BTD[real], once[0].hidden_BTD[real])
    aim = torch.linspace(-1, 1, turned[0].hidden_BTD.shape[-1])
    gradients = [torch.autograd.grad((one[0].hidden_BTD[real] * aim).sum(), weights) for one in (turned, once)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def with_segments(family):
    backbone = made(family)
    ids_BT, mask_BT = batch(backbone)
    return backbone, ids_BT, mask_BT, (torch.arange(ids_BT.shape[1]) > 2).long().expand_as(ids_BT)


@pytest.mark.parametrize("family", SEGMENTED)
def test_segment_numbers_reach_the_embeddings(family):
    backbone, ids_BT, mask_BT, types_BT = with_segments(family)
    plain, _ = tiny.model(family)
    real = mask_BT.bool()
    with torch.no_grad():
        expected_BTD = stack(plain)(input_ids=ids_BT, attention_mask=mask_BT, token_type_ids=types_BT).last_hidden_state
        hidden_BTD = backbone.forward(ids_BT, mask_BT, types_BT).hidden_BTD
        below_BTD = backbone.below(ids_BT, mask_BT, types_BT, start=1)
        gone_on_BTD = backbone.forward(ids_BT, mask_BT, types_BT, start=1, below_BTD=below_BTD).hidden_BTD
        without_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
    close(hidden_BTD[real], expected_BTD[real])
    close(gone_on_BTD[real], expected_BTD[real])
    assert plain.config.type_vocab_size == SEGMENTED[family]
    assert not torch.allclose(without_BTD[real], expected_BTD[real], atol=1e-2)


@pytest.mark.parametrize("family", [family for family in SEEN if family not in SEGMENTED and FAMILIES[family].objective == "masked"])
def test_segment_numbers_are_nothing_to_a_family_without(family):
    backbone, ids_BT, mask_BT, types_BT = with_segments(family)
    with torch.no_grad():
        assert torch.equal(backbone.forward(ids_BT, mask_BT, types_BT).hidden_BTD, backbone.forward(ids_BT, mask_BT).hidden_BTD)


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


@pytest.mark.parametrize("family", [family for family in SEEN if family not in WRITES])
def test_lm_logits_equal_the_whole_heads_at_chosen_rows_and_tokens(family):
    backbone = made(family)
    plain, _ = tiny.model(family)
    ids_BT, mask_BT = batch(backbone)
    rows, places, tokens = torch.arange(4), torch.tensor(LENGTHS) - 1, torch.tensor([20, 7, 7, 0])
    with torch.no_grad():
        chosen_ND = backbone.forward(ids_BT, mask_BT).hidden_BTD[rows, places]
        expected_NK = plain(input_ids=ids_BT, attention_mask=mask_BT).logits[rows, places][:, tokens]
        close(backbone.lm_logits(chosen_ND, tokens), expected_NK)


@pytest.mark.parametrize("family", WRITES)
def test_a_decoders_lm_logits_equal_the_whole_models_behind_each_beginning(family):
    backbone, tokens = made(family), torch.tensor([20, 7, 7, 0])
    plain, _ = tiny.model(family)
    ids_BT, mask_BT = batch(backbone)
    written_BFJ = torch.randint(10, len(backbone.tokenizer), (4, 2, 3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden_BTD = backbone.forward(ids_BT, mask_BT, written_BFJ=written_BFJ).hidden_BTD
        whole = [plain(input_ids=ids_BT, attention_mask=mask_BT, decoder_input_ids=written_BFJ[:, fill]).logits for fill in range(2)]
        below_BTD = backbone.below(ids_BT, mask_BT, None, start=1)
        gone_on_BTD = backbone.forward(ids_BT, mask_BT, start=1, below_BTD=below_BTD, written_BFJ=written_BFJ).hidden_BTD
    close(backbone.lm_logits(hidden_BTD, tokens), torch.cat(whole, 1)[..., tokens])
    close(gone_on_BTD, hidden_BTD)


@pytest.mark.parametrize("family", WRITES)
def test_without_its_decoder_it_says_why_it_has_no_lm_head(family):
    model, tokenizer = tiny.model(family, head=False)
    backbone = Backbone(model, tokenizer, name=f"tiny {family}")
    with pytest.raises(BackboneError, match="a language-modelling head, got tiny t5, an encoder alone.*--readout head"):
        backbone.lm_logits(torch.zeros(1, 32), torch.tensor([1]))


@pytest.mark.parametrize("family", [family for family in SEEN if FAMILIES[family].objective == "masked"])
def test_a_bias_of_the_lm_head_is_read_at_the_tokens_asked_for(family):
    backbone = made(family)
    decoder = backbone.model.get_submodule(backbone.family.decoder)
    with torch.no_grad():
        before = backbone.lm_logits(torch.zeros(1, backbone.width), torch.tensor([5, 6]))
        decoder.bias[6] += 3
        after = backbone.lm_logits(torch.zeros(1, backbone.width), torch.tensor([5, 6]))
    close(after - before, torch.tensor([[0.0, 3.0]]))


GATED = {**dict.fromkeys(("gemma", "gemma3_text", "llama", "qwen2", "qwen3", "t5"), (2, 1)), "modernbert": (1, 2)}
"""How many projections the feed-forward part begins with, and how many times as wide as the inner states each is."""


def sizes(config):
    """What each site takes and gives, and how many of it a block has, from the model's configuration alone."""
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or width // heads
    keys = head * getattr(config, "num_key_value_heads", heads)
    inner = next(value for name in ("intermediate_size", "n_inner", "hidden_dim", "d_ff") if (value := getattr(config, name, None)))
    begins, wide = GATED.get(config.model_type, (1, 1))
    return {
        "query": (width, heads * head, 1),
        "key": (width, keys, 1),
        "value": (width, keys, 1),
        "attention_out": (heads * head, width, 1),
        "ffn_in": (width, inner * wide, begins),
        "ffn_out": (inner, width, 1),
        "norms": (width, width, 4 if config.model_type == "gemma3_text" else 2),
    }


def in_every_block(backbone, count, *, none=()):
    return [block for block in range(len(backbone.blocks)) for _ in range(count - (block in none))]


@pytest.mark.parametrize("site", [site for site in SITES if site != "attention_in"])
@pytest.mark.parametrize("family", SEEN)
def test_every_site_stands_in_every_block_with_its_sizes(family, site):
    backbone = made(family)
    inputs, outputs, count = sizes(backbone.model.config)[site]
    places = backbone.sites(site)
    # ModernBERT's first block gets its states normed from the embeddings.
    none = (0,) if (family, site) == ("modernbert", "norms") else ()
    assert [place.block for place in places] == in_every_block(backbone, count, none=none)
    for place in places:
        assert (place.name, place.inputs, place.stop - place.start) == (site, inputs, outputs)
        assert 0 <= place.start < place.stop <= place.outputs
        within = f"{backbone.family.blocks}.{place.block}."
        assert within in place.path
        assert any(module is backbone.model.get_submodule(place.path) for module in backbone.blocks[place.block].modules())
    assert len({place.path for place in places}) == len(places)


@pytest.mark.parametrize("family", SEEN)
def test_attention_in_is_query_key_and_value_as_they_stand(family):
    backbone = made(family)
    apart = [place for name in ("query", "key", "value") for place in backbone.sites(name)]
    whole = backbone.sites("attention_in")
    assert {(place.block, place.path) for place in whole} == {(place.block, place.path) for place in apart}
    assert all((place.start, place.stop) == (0, place.outputs) for place in whole)
    for path in {place.path for place in whole}:
        (outputs,) = {place.outputs for place in whole if place.path == path}
        # Side by side, the parts fill it.
        assert sorted(part for place in apart if place.path == path for part in range(place.start, place.stop)) == list(range(outputs))


@pytest.mark.parametrize("family", SEEN)
def test_the_first_projection_of_a_block_is_given_its_states_and_nothing_else(family):
    backbone, given = made(family), []
    (place, *_) = [place for place in backbone.sites("attention_in") if place.block == 0]
    handle = backbone.model.get_submodule(place.path).register_forward_hook(lambda module, inputs, output: given.append(inputs[0].shape))
    ids_BT, mask_BT = batch(backbone)
    backbone.forward(ids_BT, mask_BT)
    handle.remove()
    assert given == [(*ids_BT.shape, backbone.width)] * backbone.order.count(0)


def changed_at(backbone, site, change):
    """The states behind block number 1, without and with `change` applied to what its site gives."""
    ids_BT, mask_BT = batch(backbone)
    (place,) = [place for place in backbone.sites(site) if place.block == 1]

    def hook(module, inputs, output):
        return torch.cat([output[..., : place.start], change(output[..., place.start : place.stop]), output[..., place.stop :]], -1)

    with torch.no_grad():
        before = list(backbone.layers(ids_BT, mask_BT))
        handle = backbone.model.get_submodule(place.path).register_forward_hook(hook)
        after = list(backbone.layers(ids_BT, mask_BT))
        handle.remove()
    real, step = mask_BT.bool(), backbone.order.index(1)
    assert torch.equal(before[step], after[step]), "a block below was changed"
    return before[step + 1][real], after[step + 1][real]


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
    if family not in UNEVEN_KEYS:
        close(changed_at(backbone, "key", lambda output: output + shift)[1], before)
    assert (changed_at(backbone, "value", lambda output: output + shift)[1] - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", [family for family in SEEN if family not in OWN_ATTENTION])
def test_attention_is_the_module_that_calls_transformers_interface(family):
    """What it hands over as values is what the site gives, each time that the block runs."""
    backbone, given = made(family), {}
    ids_BT, _ = batch(backbone, (5, 5))
    places = {
        f"{place.path.partition(within)[0]}{within}": place for place in backbone.sites("value") for within in [attention(place, backbone)]
    }
    handles = [
        backbone.model.get_submodule(place.path).register_forward_hook(
            lambda module, inputs, output, path=path, place=place: given.setdefault(path, []).append(output[..., place.start : place.stop])
        )
        for path, place in places.items()
    ]
    seen = backbone.key_values(ids_BT)
    for handle in handles:
        handle.remove()
    assert seen.keys() == places.keys()
    for path, notes in seen.items():
        assert len(notes) == len(given[path]) == backbone.order.count(places[path].block)
        for note, value_BTD in zip(notes, given[path], strict=True):
            assert note.query_heads == backbone.model.config.num_attention_heads
            assert note.key_BHKE.shape == note.value_BHKE.shape
            close(note.value_BHKE.transpose(1, 2).flatten(2), value_BTD)


def attention(place, backbone):
    return f"{backbone.family.blocks}.{place.block}.{backbone.family.attention}"


@pytest.mark.parametrize("family", OWN_ATTENTION)
def test_a_family_with_an_attention_of_its_own_says_so(family):
    backbone = made(family)
    with pytest.raises(BackboneError, match=f'transformers\' interface, got model type "{family}", which computes attention by itself'):
        backbone.key_values(batch(backbone)[0])


@pytest.mark.parametrize("family", SEEN)
def test_save_then_load_gives_the_same_backbone(family, tmp_path):
    expected, loaded = made(family, seed=3), load(str(tiny.save(family, tmp_path / family, seed=3)))
    assert loaded.fingerprint == expected.fingerprint != made(family, seed=4).fingerprint
    assert loaded.tokenizer_fingerprint == expected.tokenizer_fingerprint
    assert (loaded.has_lm_head, loaded.causal) == (True, FAMILIES[family].objective == "causal")
    assert (loaded.depth, loaded.width, loaded.max_length) == (3, 32, 512)
    ids_BT, mask_BT = batch(expected)
    with torch.no_grad():
        assert torch.equal(loaded.forward(ids_BT, mask_BT).hidden_BTD, expected.forward(ids_BT, mask_BT).hidden_BTD)


# Vectors in front


def drawn(backbone, length, seed):
    """Vectors as the embeddings could be."""
    width = backbone.embed(torch.tensor([[0]])).shape[-1]
    return torch.nn.Parameter(torch.randn(length, width, generator=torch.Generator().manual_seed(seed)) * 0.3)


def expected_behind(plain, vectors, ids):
    """transformers' own states of one row's tokens behind the vectors."""
    tokens_1TD = plain.get_input_embeddings()(ids[None])
    whole_1SD = torch.cat([vectors[None], tokens_1TD], 1)
    return stack(plain)(inputs_embeds=whole_1SD).last_hidden_state[0, len(vectors) :]


@pytest.mark.parametrize("family", SEEN)
def test_vectors_in_front_equal_transformers_with_embeddings_given(family):
    backbone = made(family)
    plain, _ = tiny.model(family)
    ids_BT, mask_BT = batch(backbone)
    vectors = drawn(backbone, 3, 1)
    undo = backbone.put_in_front(vectors)
    with torch.no_grad():
        output = backbone.forward(ids_BT, mask_BT)
        walked = list(backbone.layers(ids_BT, mask_BT))
        alone = [expected_behind(plain, vectors, ids[:length]) for ids, length in zip(ids_BT, LENGTHS, strict=True)]
        whole_BSD = torch.cat([vectors.expand(len(ids_BT), -1, -1), plain.get_input_embeddings()(ids_BT)], 1)
        seen_BS = torch.cat([mask_BT.new_ones(len(ids_BT), 3), mask_BT], 1)
        first_BD = stack(plain)(inputs_embeds=whole_BSD, attention_mask=seen_BS).last_hidden_state[:, 0]
    real = mask_BT.bool()
    close(output.hidden_BTD[real], torch.cat(alone))
    close(backbone.norm(walked[-1])[real], torch.cat(alone))
    close(output.first_BD, first_BD)
    undo()
    with torch.no_grad():
        assert torch.equal(backbone.forward(ids_BT, mask_BT).hidden_BTD, made(family).forward(ids_BT, mask_BT).hidden_BTD)


@pytest.mark.parametrize("family", SEEN)
def test_rows_of_a_mixed_batch_have_their_own_vectors_in_front(family):
    backbone = made(family)
    plain, _ = tiny.model(family)
    ids_BT, mask_BT = batch(backbone)
    vectors = {1: drawn(backbone, 2, 1), 2: drawn(backbone, 4, 2), -1: drawn(backbone, 0, 3)}
    for entry in (1, 2):
        with backbone.installing(entry):
            backbone.put_in_front(vectors[entry])
    route = [2, 1, 2, -1]
    with torch.no_grad():
        hidden_BTD = backbone.forward(ids_BT, mask_BT, route_B=torch.tensor(route)).hidden_BTD
        alone = [expected_behind(plain, vectors[entry], ids[:length]) for entry, ids, length in zip(route, ids_BT, LENGTHS, strict=True)]
    close(hidden_BTD[mask_BT.bool()], torch.cat(alone))


# Several deltas in one batch


def moved(delta, backbone, entry):
    """`delta` in the backbone for the rows of `entry`, with weights that training could have led to."""
    with backbone.installing(entry):
        installed = delta.install(backbone, generator=torch.Generator().manual_seed(entry))
    with torch.no_grad():
        for weight in installed.weights.values():
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(entry)) * 0.1
    return installed


PAIRS = [(LoRA(rank=2, sites=("query", "key", "ffn_in")), LoRA(rank=1, sites=("attention_in",), dora=True)), (LoRA(rank=2), Subset("all"))]


@pytest.mark.parametrize("pair", PAIRS, ids=["lora+dora", "lora+all"])
@pytest.mark.parametrize("family", SEEN)
def test_rows_of_a_mixed_batch_are_what_they_are_alone(family, pair):
    backbone = made(family)
    for entry, delta in enumerate(pair, start=1):
        moved(delta, backbone, entry)
    ids_BT, mask_BT = batch(backbone)
    real, route_B = mask_BT.bool(), torch.tensor([2, 1, -1, 2])
    with torch.no_grad():
        mixed = backbone.forward(ids_BT, mask_BT, route_B=route_B)
        walked = list(backbone.layers(ids_BT, mask_BT, route_B=route_B))
        for row, entry in enumerate(route_B.tolist()):
            own = slice(row, row + 1), torch.tensor([entry])
            alone = backbone.forward(ids_BT[own[0]], mask_BT[own[0]], route_B=own[1])
            steps = list(backbone.layers(ids_BT[own[0]], mask_BT[own[0]], route_B=own[1]))
            close(mixed.hidden_BTD[row][real[row]], alone.hidden_BTD[0][real[row]])
            close(mixed.first_BD[row], alone.first_BD[0])
            for mine_BTD, theirs_1TD in zip(walked, steps, strict=True):
                close(mine_BTD[row][real[row]], theirs_1TD[0][real[row]])
        untouched_BTD = made(family).forward(ids_BT, mask_BT).hidden_BTD
    close(mixed.hidden_BTD[2][real[2]], untouched_BTD[2][real[2]])
    for row in (0, 1, 3):
        assert (mixed.hidden_BTD[row][real[row]] - untouched_BTD[row][real[row]]).abs().max() > 1e-2
