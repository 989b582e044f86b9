"""How likely a text is behind a label's word, against a plain loop, one word and one token at a time, through transformers' own forward."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone, Output
from fewtune.backbone.families import FAMILIES
from fewtune.data.example import Example
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.model import TunedModel
from fewtune.prompt.batch import collate_filled
from fewtune.prompt.encode import Row
from fewtune.prompt.spelling import Filling
from fewtune.readout import channel
from fewtune.readout.channel import Channel
from fewtune.tasks.task import Task

CAUSAL = [family for family in FAMILIES if FAMILIES[family].objective == "causal"]
TEXTS = ("a dull, lifeless mess.", "great fun", "was it fun? no, it was a terrible mess from start to finish!", "joy")
LABELS = ("bad", "odd", "fine")
WORDS = {"bad": ("dull", "very dull mess"), "odd": ("what a mess",), "fine": ("great",)}


def assembled(family, readout=None, **task):
    model, tokenizer = tiny.model(family)
    backbone = Backbone(model, tokenizer, name=family)
    task = Task.classification(LABELS, label_name="sentiment", words=WORDS, **task)
    return TunedModel.assemble(backbone, task, readout or Channel())


def examples(texts=TEXTS):
    return [Example({"text": text}) for text in texts]


def log_probability(model, word, text, logits_of):
    """log p(text | word) and the number of the text's tokens, by tokenising what a person would write."""
    tokenizer = model.backbone.tokenizer
    own = tokenizer(f" {text}")["input_ids"]
    ids = tokenizer(f"Sentiment: {word}\nText: {text}")["input_ids"]
    assert ids[-len(own) :] == own
    with torch.no_grad():
        logits_TV = logits_of(torch.tensor([ids]))
    places = range(len(ids) - len(own), len(ids))
    return sum(logits_TV[place - 1].log_softmax(-1)[ids[place]].item() for place in places), len(own)


def by_hand(model, logits_of, length=lambda text, tokens: 1):
    def score(text, label):
        found = [log_probability(model, word, text, logits_of) for word in WORDS[label]]
        return sum(log / length(text, tokens) for log, tokens in found) / len(found)

    return torch.tensor([[score(text, label) for label in LABELS] for text in TEXTS])


def plain(model):
    return lambda ids_BT: model.backbone.model(input_ids=ids_BT).logits[0]


@pytest.mark.parametrize("family", CAUSAL)
def test_equal_to_one_word_and_one_token_at_a_time(family):
    model = assembled(family)
    torch.testing.assert_close(model.raw_scores(examples()), by_hand(model, plain(model)), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(("per", "length"), [("token", lambda text, tokens: tokens), ("word", lambda text, tokens: len(text.split()))])
def test_divided_by_the_texts_length(per, length):
    model = assembled("llama", Channel(per=per))
    torch.testing.assert_close(model.raw_scores(examples()), by_hand(model, plain(model), length), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("deltas", [(LoRA(),), (Prefix(length=3),), (SoftPrompt(length=3),), (Prefix(length=2), SoftPrompt(length=2))])
def test_equal_with_any_delta(family, deltas):
    model = assembled(family)
    installed = tuple(delta.install(model.backbone, generator=torch.Generator().manual_seed(1)) for delta in deltas)
    model = replace(model, deltas=installed)
    bare = model.raw_scores(examples())
    try:
        with torch.no_grad():
            for delta in installed:
                for weight in delta.weights.values():
                    weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))

        def logits_of(ids_BT):
            return model.backbone.lm_logits(model.backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD[0], None)

        found = model.raw_scores(examples())
        torch.testing.assert_close(found, by_hand(model, logits_of), atol=2e-5, rtol=1e-5)
        assert not torch.allclose(found, bare, atol=1e-2)
    finally:
        model.remove()


def test_states_that_are_kept_below_the_first_trained_block_give_the_same():
    model = assembled("llama")
    model = replace(model, deltas=(LoRA(top=1 / 3).install(model.backbone, generator=torch.Generator().manual_seed(1)),))
    try:
        rows = model.asking.rows(examples(), 0)
        batch = model.asking.collate(rows, 0)
        assert model.first_block > 0 and sum(len(model.asking.given(row, 0)) for row in rows) == len(batch.ids_BT)
        kept_BTD = model.below(batch)
        assert [ids for row in rows for ids, _ in model.asking.given(row, 0)] == [
            tuple(ids[: sum(mask)]) for ids, mask in zip(batch.ids_BT.tolist(), batch.mask_BT.tolist(), strict=True)
        ]
        torch.testing.assert_close(model.batch_scores(batch, kept_BTD), model.batch_scores(batch), atol=1e-5, rtol=1e-6)
    finally:
        model.remove()


def test_by_hand_with_a_head_that_knows_one_token():
    model = assembled("llama")
    weight, size = model.backbone.model.lm_head.weight, model.backbone.vocabulary
    with torch.no_grad():
        weight.zero_()
        weight[7, 0] = math.log(size - 1)  # in the state e0 the token 7 has as much probability as all others together
    row = Row((5, 6, 7, 9), (0,) * 4, 1, own=(2, 3), said=1)
    batch = collate_filled([row], Filling((((3,),), ((1, 2), (4,)))), pad=0)
    assert batch.ids_BT.tolist() == [[5, 3, 6, 7, 9, 0], [5, 1, 2, 6, 7, 9], [5, 4, 6, 7, 9, 0]]
    hidden_BTD = torch.zeros(3, 6, model.backbone.width)
    hidden_BTD[1, 3, 0] = hidden_BTD[2, 3, 0] = 1.0  # before 7 behind the word (1, 2); before 9 behind the word (4,)
    flat, sure, other = math.log(1 / size), math.log(1 / 2), math.log(1 / 2 / (size - 1))
    first, second, third = 2 * flat, sure + flat, flat + other
    for per, length in (("text", 1), ("token", 2), ("word", 1)):
        reader = channel.ChannelReader(Channel(per=per), model.backbone)
        expected_BC = torch.tensor([[first, (second + third) / 2]]) / length
        torch.testing.assert_close(reader.scores(Output(hidden_BTD), batch), expected_BC)


def test_over_all_texts_of_a_token_the_probabilities_add_up_to_one():
    model = assembled("llama")
    rows = [Row((5, 6, token), (0,) * 3, 1, own=(2,), said=1) for token in range(model.backbone.vocabulary)]
    with torch.no_grad():
        scores_BC = model.batch_scores(collate_filled(rows, Filling((((3, 8),), ((1,),))), pad=0))
    torch.testing.assert_close(scores_BC.exp().sum(0), torch.ones(2), atol=1e-5, rtol=0)


def test_in_parts_of_few_logits_scores_and_gradients_are_the_same(monkeypatch):
    model = assembled("llama")
    batch = model.asking.collate(model.asking.rows(examples(), 0), 0)
    states_BTD = model.output(batch).hidden_BTD

    def found():
        leaf_BTD = states_BTD.clone().requires_grad_()
        scores_BC = model.reader.scores(Output(leaf_BTD), batch)
        scores_BC[:, 0].sum().backward()
        return scores_BC.detach(), leaf_BTD.grad

    whole = found()
    monkeypatch.setattr(channel, "AT_ONCE", 5 * model.backbone.vocabulary)
    for one, other in zip(whole, found(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


TEXT = st.lists(st.sampled_from(["good", "a", "dull", "Joy!", "é", "日本", "mess.", "<|endoftext|>"]), min_size=1, max_size=30).map(
    " ".join
)
MODEL = assembled("gpt2")


@settings(max_examples=25)
@given(texts=st.lists(TEXT, min_size=1, max_size=7), size=st.integers(1, 40), order=st.randoms(use_true_random=False))
def test_any_batch_size_and_order_give_the_same(texts, size, order):
    places = list(range(len(texts)))
    order.shuffle(places)
    one = MODEL.raw_scores(examples(texts), batch_size=1)
    many = MODEL.raw_scores(examples([texts[place] for place in places]), batch_size=size)
    torch.testing.assert_close(many, one[places], atol=2e-4, rtol=1e-5)


def test_a_text_too_long_is_cut_alike_for_all_labels():
    model = replace(assembled("gpt2"), max_length=24)
    (row,) = model.asking.rows(examples(["dull joy " * 40]), 0)
    longest = max(len(word) for words in model.asked.words[0].ids for word in words)
    batch = model.asking.collate([row], 0)
    assert row.shortened and batch.ids_BT.shape[1] == len(row.ids) + longest <= 24
    read = [ids[own].tolist() for ids, own in zip(batch.ids_BT, batch.own_BT, strict=True)]
    assert len(read) == 4 and all(one == read[0] and one for one in read)


def test_templates_and_words_are_averaged():
    first, second, both = (
        assembled("llama", templates=texts).raw_scores(examples())
        for texts in (["{slot}: {text}"], ["A {slot} one.\n{text}"], ["{slot}: {text}", "A {slot} one.\n{text}"])
    )
    torch.testing.assert_close(both, (first + second) / 2)
    assert not torch.allclose(first, second, atol=0.1)
