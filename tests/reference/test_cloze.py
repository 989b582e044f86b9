"""Cloze scores against a plain transformers forward with its LM head, and contextual calibration against Zhao's formula by hand."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.model import TunedModel
from fewtune.readout.calibration import Contextual, Uncalibrated
from fewtune.readout.cloze import Cloze, averaging
from fewtune.recipe import Recipe
from fewtune.strategies.zeroshot import ZeroShot
from fewtune.tasks.task import Task
from fewtune.train.fit import Session

TEXTS = (
    "a dull, lifeless mess.",
    "great fun",
    "was it fun? no, it was a terrible mess from start to finish!",
    "[MASK] </s> <|endoftext|>",
)
LABELS = ("bad", "fine", "odd")
WORDS = {"bad": ("terrible", "dull"), "fine": ("great", "fun", "joy"), "odd": ("what",)}
FAMILIES = ("bert", "roberta", "llama", "gpt2")
MASKED = ("bert", "roberta")


def task(family):
    after = ", science." if family in MASKED else ""
    return Task.classification(LABELS, template=f"Review: {{text}}\nIt was {{slot}}{after}", words=WORDS)


def assembled(family, *, calibration=None):
    model, tokenizer = tiny.model(family)
    backbone = Backbone(model, tokenizer, name=family)
    recipe = Recipe(
        task(family), backbone=family, deltas=(), readout=Cloze(), calibration=calibration or Uncalibrated(), precision="float32"
    )
    return ZeroShot().run(recipe, Split(), backbone, session=Session())


def examples():
    return [Example({"text": text}) for text in TEXTS]


def plain_logits(family, text):
    """The logits that transformers itself gives where the word is read, for one prompt put together by hand."""
    model, tokenizer = tiny.model(family)

    def ids(part):
        return tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    before = ids(f"Review: {text}\nIt was")
    if family in MASKED:
        whole = [tokenizer.cls_token_id, *before, tokenizer.mask_token_id, *ids(", science."), tokenizer.sep_token_id]
        place = 1 + len(before)
    else:
        whole, place = before, len(before) - 1
    with torch.no_grad():
        return model(input_ids=torch.tensor([whole])).logits[0, place]


def word_id(family, word):
    """A word's first token after a space, as it stands in running text."""
    _, tokenizer = tiny.model(family)
    tokens = tokenizer.tokenize(f"was {word}")[len(tokenizer.tokenize("was")) :]
    tokens = [token for token in tokens if token != "Ġ"]  # a mere space says nothing of the word
    return tokenizer.convert_tokens_to_ids(tokens[0])


def plain_scores(family, text):
    logits = plain_logits(family, text)
    return torch.tensor([[sum(logits[word_id(family, word)].item() for word in WORDS[label]) / len(WORDS[label]) for label in LABELS]])


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_plain_forward_in_one_padded_batch(family):
    model = assembled(family)
    expected_NC = torch.cat([plain_scores(family, text) for text in TEXTS])
    rows = model.asking.rows(examples(), 0)
    assert len({len(row.ids) for row in rows}) > 1, "nothing was padded"
    with torch.no_grad():
        together_BC = model.batch_scores(model.asking.collate(rows, 0))
    torch.testing.assert_close(together_BC, expected_NC, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.raw_scores(examples(), batch_size=3), expected_NC, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_softmax_over_the_labels_of_mean_log_probabilities(family):
    probabilities_NC = assembled(family).probabilities(examples())
    for text, row in zip(TEXTS, probabilities_NC, strict=True):
        log_V = plain_logits(family, text).double().log_softmax(0)
        means = torch.stack([torch.stack([log_V[word_id(family, word)] for word in WORDS[label]]).mean() for label in LABELS])
        torch.testing.assert_close(row, means.softmax(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_contextual_calibration_by_hand(family):
    """Zhao et al. 2021, section 5: q ∝ W p with W = diag(p_cf)⁻¹, p_cf the mean over "N/A", "" and "[MASK]"."""
    nothing_C = torch.stack([plain_scores(family, text)[0].double().softmax(0) for text in ("N/A", "", "[MASK]")]).mean(0)
    probabilities_NC = assembled(family, calibration=Contextual()).probabilities(examples())
    for text, row in zip(TEXTS, probabilities_NC, strict=True):
        weighed_C = plain_scores(family, text)[0].double().softmax(0) / nothing_C
        torch.testing.assert_close(row, weighed_C / weighed_C.sum(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(probabilities_NC, assembled(family).probabilities(examples()), atol=1e-2)


def test_scores_of_several_templates_are_averaged():
    model, tokenizer = tiny.model("llama")
    backbone = Backbone(model, tokenizer, name="llama")
    texts = ("Review: {text}\nIt was {slot}", "{text} It was {slot}", "Text: {text} Label: {slot}")

    def scores(templates):
        both = Task.classification(LABELS, templates=templates, words=WORDS)
        return TunedModel.assemble(backbone, both, Cloze(), max_length=64, seed=0).raw_scores(examples())

    apart = torch.stack([scores((text,)) for text in texts])
    torch.testing.assert_close(scores(texts), apart.mean(0), atol=1e-6, rtol=1e-6)


def test_averaging_two_by_three_by_hand():
    logits_BK = torch.tensor([[1.0, 2.0, 4.0], [0.0, 6.0, -6.0]])
    assert (logits_BK @ averaging([[7, 8], [9]])).tolist() == [[1.5, 4.0], [3.0, -6.0]]
