"""Candidates of each row's own against a plain loop, one candidate and one token at a time, through transformers' own forward."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.data.example import Example
from fewtune.deltas.lora import LoRA
from fewtune.model import TunedModel
from fewtune.prompt.tokens import plain_ids
from fewtune.readout import likelihood
from fewtune.readout.calibration import Calibrator
from fewtune.readout.likelihood import Likelihood
from fewtune.tasks.task import Task
from fewtune.train.losses import cross_entropy

WITH_HEAD = list(FAMILIES)
TASK = Task.choice(template="Review: {question}\nIt was {slot}")
ROWS = (
    Example({"question": "a dull, lifeless mess."}, "great fun", candidates=("dull", "very dull mess", "great fun")),
    Example({"question": "was it fun? no, it was a terrible mess from start to finish!"}, "no", candidates=("no", "great")),
    Example({"question": "joy"}, "joy", candidates=("a mess", "a dull mess", "joy", "fun and joy from start to finish")),
)


def assembled(family, readout=Likelihood(), task=TASK):  # noqa: B008 - a frozen value
    model, tokenizer = tiny.model(family)
    return TunedModel.assemble(Backbone(model, tokenizer, name=family), task, readout)


def log_probability(model, ids, slot, word):
    """log p(candidate | prompt): tokens one after another; behind the prompt, or over as many masks as it has tokens."""
    total, mask = 0.0, model.backbone.tokenizer.mask_token_id
    for at, token in enumerate(word):
        if model.backbone.seq2seq:
            total += written(model.backbone, ids, word[:at]).log_softmax(-1)[token].item()
            continue
        if model.backbone.causal:
            given_ids, place = (*ids, *word[:at]), len(ids) + at - 1
        else:
            given_ids, place = (*ids[:slot], *word[:at], *[mask] * (len(word) - at), *ids[slot + 1 :]), slot + at
        with torch.no_grad():
            logits_BTV = model.backbone.model(input_ids=torch.tensor([given_ids])).logits
        total += logits_BTV[0, place].log_softmax(-1)[token].item()
    return total


def written(backbone, ids, begun):
    """What the decoder would write next, logits_V."""
    with torch.no_grad():
        decoded = torch.tensor([[backbone.start, *begun]])
        return backbone.model(input_ids=torch.tensor([ids]), decoder_input_ids=decoded).logits[0, -1]


def word_of(model, candidate):
    """The candidate's tokens as in running text; a decoder begins with them."""
    tokenizer = model.backbone.tokenizer
    if model.backbone.seq2seq:
        return tokenizer(candidate, add_special_tokens=False)["input_ids"]
    whole, before = plain_ids(tokenizer, f"= {candidate}"), plain_ids(tokenizer, "=")
    assert whole[: len(before)] == before
    return whole[len(before) :]


def by_hand(model, rows, length=lambda text, word: 1):
    """Scores of each row's candidates, -inf behind them."""
    found = torch.full((len(rows), max(len(row.candidates) for row in rows)), float("-inf"))
    for number, example in enumerate(rows):
        row = model.asking.rows([example], 0)[0]
        for place, candidate in enumerate(example.candidates):
            word = word_of(model, candidate)
            found[number, place] = log_probability(model, row.ids, row.slot, word) / length(candidate, word)
    return found


@pytest.mark.parametrize("family", WITH_HEAD)
def test_equal_to_one_candidate_and_one_token_at_a_time(family):
    model = assembled(family)
    assert any(len(word_of(model, candidate)) > 2 for row in ROWS for candidate in row.candidates)
    torch.testing.assert_close(model.raw_scores(ROWS), by_hand(model, ROWS), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
@pytest.mark.parametrize(("per", "length"), [("token", lambda text, word: len(word)), ("byte", lambda text, word: len(text.encode()))])
def test_divided_by_the_candidates_length(family, per, length):
    model = assembled(family, Likelihood(per=per))
    torch.testing.assert_close(model.raw_scores(ROWS), by_hand(model, ROWS, length), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_what_candidates_get_without_the_question_is_taken_off_each(family):
    model = assembled(family).calibrated(Calibrator((), premise=True))
    empty = [replace(row, fields={"question": ""}) for row in ROWS]
    known = (by_hand(model, ROWS).double() - by_hand(model, empty).double().nan_to_num(neginf=0.0)).softmax(-1)
    torch.testing.assert_close(model.probabilities(ROWS), known, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_without_the_question_the_plm_is_read_as_it_was_before_any_delta(family):
    model = assembled(family)
    before, scores = model.premise(ROWS), model.raw_scores(ROWS)
    delta = LoRA().install(model.backbone, generator=torch.Generator().manual_seed(1))
    tuned = replace(model, deltas=(delta,))
    try:
        with torch.no_grad():
            for weight in delta.weights.values():
                weight += 0.5
        assert torch.equal(tuned.premise(ROWS), before) and not torch.allclose(tuned.raw_scores(ROWS), scores)
    finally:
        tuned.remove()


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_row_alone_is_answered_as_in_a_batch(family, size):
    model = assembled(family)
    whole, parts = model.raw_scores(ROWS), model.raw_scores(ROWS, batch_size=size)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-6)
    for number, row in enumerate(ROWS):
        alone = model.raw_scores([row])
        assert alone.shape == (1, len(row.candidates))
        torch.testing.assert_close(alone[0], whole[number, : len(row.candidates)], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_what_is_kept_below_the_first_trained_block_gives_the_same_scores(family):
    model = assembled(family)
    delta = LoRA(top=1 / 2).install(model.backbone, generator=torch.Generator().manual_seed(1))
    model = replace(model, deltas=(delta,))
    try:
        batch = model.asking.collate(model.asking.rows(ROWS, 0), 0)
        with torch.no_grad():
            assert model.first_block > 0 or family == "t5"
            torch.testing.assert_close(model.batch_scores(batch, model.below(batch)), model.batch_scores(batch), atol=1e-6, rtol=0)
    finally:
        model.remove()


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_the_loss_of_a_batch_is_the_mean_of_each_rows_over_its_own_candidates(family):
    model = assembled(family)
    delta = LoRA().install(model.backbone, generator=torch.Generator().manual_seed(1))
    model, targets = replace(model, deltas=(delta,)), torch.tensor([2, 0, 3])
    try:
        batch = model.asking.collate(model.asking.rows(ROWS, 0), 0)
        loss = model.reader.loss(model.output(batch), batch, targets, torch.zeros(()))
        alone = [model.raw_scores([row])[0].log_softmax(-1)[target] for row, target in zip(ROWS, targets, strict=True)]
        torch.testing.assert_close(loss, -torch.stack(alone).mean(), atol=1e-5, rtol=0)
        gradients = torch.autograd.grad(loss, list(delta.weights.values()))
        assert all(bool(gradient.isfinite().all()) for gradient in gradients) and any(bool(gradient.any()) for gradient in gradients)
    finally:
        model.remove()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_few_logits_at_a_time_give_the_same_scores_and_gradients(family, monkeypatch):
    model = assembled(family)
    delta = LoRA().install(model.backbone, generator=torch.Generator().manual_seed(1))
    model, batch = replace(model, deltas=(delta,)), model.asking.collate(model.asking.rows(ROWS, 0), 0)

    def found():
        scores_BC = model.batch_scores(batch)
        weights = list(delta.weights.values())
        return scores_BC, *torch.autograd.grad(cross_entropy(scores_BC, torch.tensor([2, 0, 3])), weights)

    try:
        whole = found()
        monkeypatch.setattr(likelihood, "AT_ONCE", 3 * model.backbone.vocabulary)
        for parts, known in zip(found(), whole, strict=True):
            torch.testing.assert_close(parts, known, atol=1e-6, rtol=1e-5)
    finally:
        model.remove()


@cache
def scored(family):
    return assembled(family, Likelihood(per="token"))


TEXTS = ("dull", "great fun", "a mess", "joy and fun", "a dull mess", "no")


@settings(max_examples=15)
@given(st.sampled_from(["llama", "bert"]), st.permutations(TEXTS), st.integers(2, len(TEXTS)))
def test_the_order_of_candidates_changes_no_probability(family, order, count):
    chosen = sorted(order[:count], key=TEXTS.index)
    rows = [Example({"question": "was it fun?"}, candidates=tuple(one)) for one in (chosen, [*order[:count]])]
    first, second = scored(family).predict(rows)
    assert first.probabilities == pytest.approx(second.probabilities, abs=1e-6) and first.label == second.label
    assert sum(second.probabilities.values()) == pytest.approx(1) and second.probabilities[second.label] == second.probability
