"""Likelihoods of texts against transformers' own models, token by token; long texts in windows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.errors import BackboneError
from fewtune.perplexity import Likelihood, likelihoods, windows
from fewtune.prompt.tokens import plain_ids, specials

TEXTS = ("great fun and a joy from start to finish!", "", "it was terrible [MASK]", "a")


def backbone(family, **settings):
    return Backbone(*tiny.model(family, **settings), name=family)


@torch.no_grad()
def exactly(plain, ids, begin):
    """log p of each token, from the logits of the whole row."""
    if not ids:
        return 0.0
    logs_TV = plain.model(input_ids=torch.tensor([[*begin, *ids]])).logits[0].log_softmax(-1)
    return sum(logs_TV[len(begin) + place - 1, token].item() for place, token in enumerate(ids))


@torch.no_grad()
def hiding_each(plain, ids):
    around, total = specials(plain.tokenizer, causal=False), 0.0
    for place, token in enumerate(ids):
        row = [*around.prefix, *ids, *around.suffix]
        row[len(around.prefix) + place] = plain.tokenizer.mask_token_id
        logits_TV = plain.model(input_ids=torch.tensor([row])).logits[0]
        total += logits_TV[len(around.prefix) + place].log_softmax(-1)[token].item()
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_autoregressive_models_the_sum_of_all_tokens_behind_what_texts_start_with(family):
    plm = backbone(family)
    found = list(likelihoods(plm, TEXTS))
    for text, one in zip(TEXTS, found, strict=True):
        ids = plain_ids(plm.tokenizer, text)
        assert one.tokens == len(ids) and one.bytes == len(text.encode())
        assert one.log_probability == pytest.approx(exactly(plm, ids, [plm.tokenizer.eos_token_id]), abs=1e-3)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_of_masked_models_each_token_in_the_light_of_all_others(family):
    plm = backbone(family)
    for size in (1, 3, 32):
        for text, one in zip(TEXTS, likelihoods(plm, TEXTS, batch_size=size), strict=True):
            assert one.log_probability == pytest.approx(hiding_each(plm, plain_ids(plm.tokenizer, text)), abs=1e-3)


def test_perplexity_and_bits():
    one = Likelihood(4, 16, -8 * math.log(2))
    assert one.perplexity == pytest.approx(4) and one.bits_per_byte == pytest.approx(0.5)
    assert Likelihood(0, 0, 0.0).perplexity is None and Likelihood(0, 0, 0.0).bits_per_byte is None


@given(st.integers(0, 200), st.integers(1, 40))
def test_windows_tell_every_token_once_with_half_a_window_before(count, most):
    cut = windows(count, most)
    assert [place for _, told, end in cut for place in range(told, end)] == list(range(count))
    assert all(0 <= first <= told and end - first <= most for first, told, end in cut)
    assert all(told - first >= most // 2 for first, told, _ in cut[1:])


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_text_that_is_longer_than_the_model_takes(family, monkeypatch):
    plm = backbone(family)
    monkeypatch.setattr(type(plm), "max_length", property(lambda self: 12))
    ids = plain_ids(plm.tokenizer, TEXTS[0] * 3)
    (one,) = likelihoods(plm, [TEXTS[0] * 3])
    assert one.tokens == len(ids) > 12
    if family == "llama":
        parts = windows(len(ids), 11)
        start = [plm.tokenizer.eos_token_id]
        expected = sum(exactly(plm, ids[first:end], start) - exactly(plm, ids[first:told], start) for first, told, end in parts)
        assert one.log_probability == pytest.approx(expected, abs=1e-3)


def test_what_cannot_tell_is_refused():
    model, tokenizer = tiny.model("bert")
    with pytest.raises(BackboneError, match="language-modelling head"):
        next(likelihoods(Backbone(model.base_model, tokenizer, name="bare"), ["a"]))
    with pytest.raises(BackboneError, match="a masked PLM, got t5"):
        next(likelihoods(backbone("t5"), ["a"]))
