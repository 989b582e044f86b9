"""What the harness asks: texts become tokens, and answers come in the order of the questions."""

import itertools

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.errors import BackboneError, SpecError
from fewtune.harness.answers import Answers
from fewtune.harness.model import Model

PAIRS = [
    ("great fun:", " good"),
    ("a dull mess:", " terrible mess"),
    ("great fun:", " terrible"),
    ("great fun: ", "good"),  # the space goes with the word
    ("", "a dull mess"),
    ("great fun:", " good"),
]


@pytest.fixture(scope="module")
def backbone():
    model, tokenizer = tiny.model("llama")
    return Backbone(model, tokenizer, name="llama")


def logs(backbone, ids):
    """Of each token but the first, given those before it."""
    with torch.no_grad():
        logits_TV = backbone.model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return logits_TV.log_softmax(-1)[range(len(ids) - 1), ids[1:]].tolist(), logits_TV.argmax(-1).tolist()


def first(tokenizer):
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def test_loglikelihood_is_that_of_the_continuation_in_the_whole_text(backbone):
    tokenizer = backbone.tokenizer
    for (context, continuation), (total, greedy) in zip(PAIRS, Answers(backbone).loglikelihood(PAIRS), strict=True):
        whole = tokenizer(context + continuation)["input_ids"]
        before = tokenizer(context.rstrip())["input_ids"] if context else []
        ids = whole if before else [first(tokenizer), *whole]
        start = max(1, len(before))
        each, likeliest = logs(backbone, ids)
        assert total == pytest.approx(sum(each[start - 1 :]), abs=1e-5)
        assert greedy == (likeliest[start - 1 :] == ids[start:])


def test_what_is_too_long_loses_its_beginning(backbone):
    answers = Answers(backbone, max_length=6)
    long, short = "great fun and joy and a dull mess and great fun:", " good mess"
    ids = backbone.tokenizer(long + short)["input_ids"]
    each, _ = logs(backbone, ids[-7:])
    said = len(ids) - len(backbone.tokenizer(long)["input_ids"])
    assert answers.loglikelihood([(long, short)])[0][0] == pytest.approx(sum(each[-said:]), abs=1e-5)
    with pytest.raises(BackboneError, match="at most 6 tokens"):
        answers.loglikelihood([("a", long)])


def test_rolling_predicts_each_token_once_and_reaches_back_as_far_as_it_can(backbone):
    text = "great fun and joy and a dull mess"
    ids = list(backbone.tokenizer(text)["input_ids"])
    whole, _ = logs(backbone, [first(backbone.tokenizer), *ids])
    windowed = Answers(backbone, max_length=len(ids) - 2)
    assert Answers(backbone).rolling([text, ""]) == pytest.approx([sum(whole), 0.0], abs=1e-5)
    behind, _ = logs(backbone, [*ids[1:-2], *ids[-2:]])
    assert windowed.rolling([text]) == pytest.approx([sum(whole[:-2]) + sum(behind[-2:])], abs=1e-5)


def test_generation_stops_before_a_stop(backbone):
    answers = Answers(backbone)
    (text,) = answers.until([("great fun", (), 12)])
    stop = text[3:5]
    assert len(text) > 5
    asked = [("great fun", (stop,), 12), ("a dull mess", (), 3), ("great fun", (), 12)]
    found = answers.until(asked)
    assert found[0] == text[: text.find(stop)] and found[2] == text
    with pytest.raises(BackboneError, match="fewer than"):
        answers.until([("a", (), answers.room)])


class Question:
    def __init__(self, *args):
        self.args = args


def test_the_harness_model_passes_questions_on(tmp_path, backbone):
    model = Model(backbone=str(tiny.save("llama", tmp_path / "plm")))
    assert model.loglikelihood([Question(*pair) for pair in PAIRS]) == Answers(backbone).loglikelihood(PAIRS)
    assert model.loglikelihood_rolling([Question("great fun")]) == Answers(backbone).rolling(["great fun"])
    written = model.generate_until([Question("great fun", {"until": "\n", "max_gen_toks": 4, "do_sample": False})])
    assert written == Answers(backbone).until([("great fun", ("\n",), 4)])
    with pytest.raises(SpecError, match="sampling"):
        model.generate_until([Question("great fun", {"do_sample": True})])
    for options in ({}, {"model": "model", "backbone": "plm"}):
        with pytest.raises(SpecError, match="model_args"):
            Model(**options)


def test_order_does_not_matter(backbone):
    answers = Answers(backbone)
    known = dict(zip(PAIRS, answers.loglikelihood(PAIRS), strict=True))
    for order in itertools.islice(itertools.permutations(PAIRS), 0, 720, 240):
        for pair, (total, _) in zip(order, answers.loglikelihood(list(order)), strict=True):
            assert total == pytest.approx(known[pair][0], abs=1e-5)
