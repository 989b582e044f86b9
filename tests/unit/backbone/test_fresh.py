"""New models and tokenizers: the same for the same texts, and what BERT and Llama are."""

import subprocess
import sys

import pytest
import torch

from fewtune.backbone import fresh, headed, tiny
from fewtune.backbone.backbone import Backbone
from fewtune.errors import BackboneError, SpecError

TEXTS = [*tiny.TEXT, "Unbelievable, naïve ünïts! they believed; the world is a stage"] * 3


@pytest.fixture(scope="module")
def tokenizers():
    return {objective: fresh.learn_tokenizer(objective, lambda: TEXTS, vocabulary=350) for objective in ("mlm", "clm")}


def test_masked_models_get_wordpiece(tokenizers):
    tokenizer = tokenizers["mlm"]
    ids = tokenizer("They believed: unworldly")["input_ids"]
    assert (
        tokenizer.convert_ids_to_tokens(ids)[0] == "[CLS]"
        and tokenizer.decode(ids, skip_special_tokens=True) == "they believed : unworldly"
    )
    assert tokenizer.unk_token_id not in ids and tokenizer.mask_token == "[MASK]"
    assert len(tokenizer) <= 350


def test_autoregressive_models_get_bytes_and_an_end(tokenizers):
    tokenizer = tokenizers["clm"]
    text = "naïve ☃\n never seen"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|endoftext|>" and len(tokenizer) <= 350


def test_rare_letters_leave_room_for_words():
    chinese = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))  # each once
    texts = [*TEXTS, chinese]
    tokenizer = fresh.learn_tokenizer("mlm", lambda: texts, vocabulary=400)
    plain = fresh.learn_tokenizer("mlm", lambda: TEXTS, vocabulary=400)
    pieces = tokenizer.get_vocab()
    assert len(pieces) <= 400
    words = [piece for piece in plain.get_vocab() if len(piece.removeprefix("##")) > 1 and not piece.startswith("[")]
    assert len(words) > 100 and sum(word in pieces for word in words) > 0.8 * len(words)
    assert not [piece for piece in pieces if piece.startswith("##") and piece[2:] in chinese]  # which stand alone
    assert set("abcdefghijklmnopqrstuvw") < set(pieces)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_another_process_learns_the_same_pieces(tokenizers, objective):
    script = (
        "from fewtune.backbone import fresh\n"
        f"print(sorted(fresh.learn_tokenizer({objective!r}, lambda: {TEXTS!r}, vocabulary=350).get_vocab().items()))"
    )
    found = {subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert found == {f"{sorted(tokenizers[objective].get_vocab().items())}\n"}


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_a_new_model_is_a_function_of_its_seed(tokenizers, objective):
    made = [fresh.make(objective, "tiny", tokenizers[objective], length=600, seed=seed) for seed in (1, 1, 2)]
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert made[0].has_lm_head and made[0].causal == (objective == "clm")
    assert (made[0].depth, made[0].width, made[0].max_length) == (2, 128, 600)
    assert made[0].model.config.model_type == {"mlm": "bert", "clm": "llama"}[objective]


@pytest.mark.parametrize(("size", "narrow"), [("tiny", 64), ("mini", 128), ("small", 128)])
def test_a_shared_model_has_one_block_and_factorised_embeddings(tokenizers, size, narrow):
    tokenizer, shape = tokenizers["mlm"], fresh.SIZES[size]
    made = fresh.make("mlm", size, tokenizer, length=16, seed=1, shared=True)
    V, E, P, D, inner = len(tokenizer), narrow, 512, shape.width, 4 * shape.width
    embeddings = (V + P + 2) * E + 2 * E + (E * D + D)  # tokens, positions, segments; a norm; up to the states
    block = 4 * (D * D + D) + 2 * D + (D * inner + inner) + (inner * D + D) + 2 * D
    head = (D * E + E) + 2 * E + V  # the last projection is the embeddings' own
    assert made.parameters == embeddings + block + head
    assert (made.model.config.model_type, made.depth, len(made.blocks)) == ("albert", shape.blocks, 1)
    plain = fresh.make("mlm", size, tokenizer, length=16, seed=1)
    of_blocks = [sum(weight.numel() for weight in one.blocks.parameters()) for one in (made, plain)]
    assert of_blocks == [block, shape.blocks * block] and plain.depth == made.depth


def test_a_size_nobody_knows_is_refused(tokenizers):
    with pytest.raises(SpecError, match="Known: tiny, mini, small"):
        fresh.make("mlm", "huge", tokenizers["mlm"], length=8, seed=0)


@pytest.mark.parametrize("family", ["bert", "mpnet", "deberta-v2", "distilbert"])
def test_a_head_is_put_on_the_very_stack_and_is_tied_to_its_embeddings(family):
    model, tokenizer = tiny.model(family)
    bare = Backbone(model.base_model, tokenizer, name=family)
    assert not bare.has_lm_head
    ids_BT = torch.tensor([tokenizer("great fun")["input_ids"]])
    before = bare.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD
    made, new = headed.with_head(bare, seed=3)
    again, _ = headed.with_head(bare, seed=3)
    assert made.has_lm_head and torch.equal(made.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD, before)
    assert made.model.get_submodule(made.family.decoder).weight is made.model.get_input_embeddings().weight
    own = dict(made.model.named_parameters())
    assert new and not any(name.startswith(f"{made.model.base_model_prefix}.") for name in new)
    assert sum(own[name].numel() for name in new) + bare.parameters == made.parameters
    assert all(torch.equal(own[name], dict(again.model.named_parameters())[name]) for name in new)
    logits = made.lm_logits(before[0], None)
    expected = made.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_family_without_masked_head_and_a_tokenizer_without_mask_are_refused():
    model, tokenizer = tiny.model("llama")
    with pytest.raises(BackboneError, match="language-modelling head"):
        headed.with_head(Backbone(model.base_model, tokenizer, name="llama"), seed=0)
    model, tokenizer = tiny.model("bert")
    tokenizer.mask_token = None
    with pytest.raises(BackboneError, match="mask token"):
        headed.check_writes(Backbone(model, tokenizer, name="bert"))
