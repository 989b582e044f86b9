"""Sentence embeddings: the mean of the last states at unit length, whatever the batch."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.readout import sentences
from fewtune.readout.sentences import Sentences

TEXTS = ["great fun", "a dull, lifeless mess from start to finish", "", "joy"]


@pytest.mark.parametrize("family", ["bert", "mpnet", "llama", "t5"])
def test_equals_one_text_after_another_by_the_formula(family):
    backbone = Backbone(*tiny.model(family), name=family)
    found = Sentences(backbone)(TEXTS)
    assert found.shape == (len(TEXTS), backbone.width) and found.dtype == torch.float32
    for text, embedding_D in zip(TEXTS, found, strict=True):
        ids = backbone.tokenizer(text or "\n" if backbone.causal else text)["input_ids"]
        with torch.no_grad():
            states_TD = backbone.stack(input_ids=torch.tensor([ids])).last_hidden_state[0]
        mean_D = states_TD.mean(0)
        torch.testing.assert_close(embedding_D, mean_D / mean_D.norm(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))


def test_a_long_text_is_cut():
    backbone = Backbone(*tiny.model("bert"), name="bert")
    embed = Sentences(backbone)
    torch.testing.assert_close(embed(["joy " * 254]), embed(["joy " * 400]))
    assert (embed(["joy " * 253 + "dull"]) - embed(["joy " * 254])).abs().max() > 1e-4


def test_one_encoder_is_loaded_once_and_only_when_a_text_comes(tmp_path):
    folder = str(tiny.save("bert", tmp_path / "bert"))
    embed = sentences.lazily(str(tmp_path / "nowhere"))
    first, again = sentences.lazily(folder), sentences.lazily(folder)
    assert torch.equal(first(TEXTS), again(TEXTS)) and sentences.loaded(folder) is sentences.loaded(folder)
    with pytest.raises(Exception, match="nowhere"):
        embed(TEXTS)
    sentences.loaded.cache_clear()


@pytest.mark.slow
def test_the_usual_encoder_finds_what_means_the_same():
    embed = sentences.lazily("minilm-l6")
    texts = ["The film was wonderful.", "I loved this movie.", "Interest rates rose again.", "The bank raised its rates."]
    cosine = embed(texts) @ embed(texts).T
    assert cosine[0, 1] > cosine[0, 2:].max() and cosine[2, 3] > cosine[2, :2].max()
