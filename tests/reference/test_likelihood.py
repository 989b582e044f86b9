"""Likelihoods of whole label words against a plain loop, one word and one token at a time, through transformers' own forward."""

from dataclasses import replace

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.data.example import Example
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.model import TunedModel
from fewtune.readout.cloze import Cloze
from fewtune.readout.likelihood import Likelihood
from fewtune.tasks.task import Task

WITH_HEAD = [family for family in FAMILIES if FAMILIES[family].objective != "seq2seq"]  # see test_seq2seq.py
CAUSAL = [family for family in WITH_HEAD if FAMILIES[family].objective == "causal"]
TEXTS = ("a dull, lifeless mess.", "great fun", "was it fun? no, it was a terrible mess from start to finish!")
LABELS = ("bad", "worse", "odd", "fine")
WORDS = {"bad": ("dull",), "worse": ("dull mess", "very dull mess"), "odd": ("what a mess",), "fine": ("great", "great fun")}


def assembled(family, readout, *, words=WORDS):
    model, tokenizer = tiny.model(family)
    backbone = Backbone(model, tokenizer, name=family)
    task = Task.classification(LABELS, template="Review: {text}\nIt was {slot}", words=words)
    return TunedModel.assemble(backbone, task, readout)


def examples():
    return [Example({"text": text}) for text in TEXTS]


def log_probability(model, row, word, logits_of):
    """log p(word | prompt): tokens one after another; behind the prompt, or over as many masks as the word has tokens."""
    total, mask = 0.0, model.backbone.tokenizer.mask_token_id
    for at, token in enumerate(word):
        if model.backbone.causal:
            ids, place = (*row.ids, *word[:at]), len(row.ids) + at - 1
        else:
            filled = (*word[:at], *[mask] * (len(word) - at))
            ids, place = (*row.ids[: row.slot], *filled, *row.ids[row.slot + 1 :]), row.slot + at
        with torch.no_grad():
            total += logits_of(torch.tensor([ids]), place).log_softmax(-1)[token].item()
    return total


def by_hand(model, logits_of, length=lambda text, word: 1):
    texts = [model.task.words[label] for label in LABELS]

    def score(row, said, words):
        each = [log_probability(model, row, word, logits_of) / length(text, word) for text, word in zip(said, words, strict=True)]
        return sum(each) / len(each)

    rows = model.asking.rows(examples(), 0)
    return torch.tensor([[score(row, *pair) for pair in zip(texts, model.asked.words[0].ids, strict=True)] for row in rows])


def plain(model):
    return lambda ids_BT, place: model.backbone.model(input_ids=ids_BT).logits[0, place]


@pytest.mark.parametrize("family", WITH_HEAD)
def test_equal_to_one_word_and_one_token_at_a_time(family):
    model = assembled(family, Likelihood())
    assert max(len(word) for words in model.asked.words[0].ids for word in words) > 2
    torch.testing.assert_close(model.raw_scores(examples()), by_hand(model, plain(model)), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize(("per", "length"), [("token", lambda text, word: len(word)), ("byte", lambda text, word: len(text.encode()))])
def test_divided_by_the_words_length(family, per, length):
    model = assembled(family, Likelihood(per=per), words={**WORDS, "odd": ("qué mess",)} if family == "llama" else WORDS)
    torch.testing.assert_close(model.raw_scores(examples()), by_hand(model, plain(model), length), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("deltas", [(LoRA(),), (Prefix(length=3),), (SoftPrompt(length=3),), (Prefix(length=2), SoftPrompt(length=2))])
def test_a_tree_behind_the_prompt_is_what_each_branch_would_be_with_any_delta(family, deltas):
    model = assembled(family, Likelihood())
    installed = tuple(delta.install(model.backbone, generator=torch.Generator().manual_seed(1)) for delta in deltas)
    model = replace(model, deltas=installed)
    try:
        with torch.no_grad():
            for delta in installed:
                for weight in delta.weights.values():
                    weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))

        def logits_of(ids_BT, place):
            hidden_BTD = model.backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD
            return model.backbone.lm_logits(hidden_BTD[0, place], None)

        torch.testing.assert_close(model.raw_scores(examples()), by_hand(model, logits_of), atol=2e-5, rtol=1e-5)
    finally:
        model.remove()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_words_of_one_token_give_what_the_cloze_gives(family):
    words = {"bad": ("dull",), "worse": ("terrible",), "odd": ("mess",), "fine": ("great", "positive")}
    found, known = (assembled(family, readout, words=words) for readout in (Likelihood(), Cloze()))
    assert found.asked.words[0].ids == tuple(tuple((token,) for token in tokens) for tokens in known.asked.words[0].ids)
    probabilities = [model.raw_scores(examples()).softmax(-1) for model in (found, known)]
    torch.testing.assert_close(*probabilities, atol=1e-6, rtol=0)


def test_labels_that_begin_alike_are_told_apart():
    scores_NC = assembled("llama", Likelihood()).raw_scores(examples())
    assert len({round(score, 4) for score in scores_NC[0].tolist()}) == len(LABELS)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_any_batch_size_gives_the_same(family):
    model = assembled(family, Likelihood())
    one, many = (model.raw_scores(examples(), batch_size=size) for size in (1, 32))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-6)
