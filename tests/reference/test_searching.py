"""What a search sees of a PLM, against transformers' own forward with its LM head, and the judging against a plain loop."""

import numpy as np
import pytest
import torch

from fewtune import job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example
from fewtune.model import TunedModel
from fewtune.prompt.search import Scores, WordSearch
from fewtune.readout.calibration import CONTENT_FREE
from fewtune.readout.cloze import Cloze
from fewtune.readout.likelihood import Likelihood
from fewtune.strategies.searching import PLMJudge
from fewtune.tasks.task import Task
from fewtune.train.fit import Session

FAMILIES = ("bert", "roberta", "llama", "gpt2")
MASKED = ("bert", "roberta")
CLOZE = Cloze()
TEXTS = ("a dull, lifeless mess.", "great fun", "was it fun? no, it was terrible!", "a joy from start to finish", "a mess", "joy")
TRAIN = tuple(Example({"text": text}, ["no", "yes"][number % 2]) for number, text in enumerate(TEXTS))


class Counting(Backbone):
    """Knows how many rows went through it."""

    rows = 0

    def forward(self, ids_BT, *arguments, **options):
        self.rows += len(ids_BT)
        return super().forward(ids_BT, *arguments, **options)


def judge_of(family, *, templates=(), train=TRAIN, session=None, backbone=None, readout=CLOZE):
    backbone = backbone or Counting(*tiny.model(family), name=family)
    task = Task(labels=("no", "yes"), templates=templates, words={"no": ("terrible",), "yes": ("great",)})
    settings = job.Settings(strategy="zeroshot", readout=readout, search=(WordSearch(),), precision="float32")
    return PLMJudge(job.recipe_of(task, backbone, settings), train, backbone, session or Session()), task, backbone


def plain_log_probabilities(family, text):
    """Over the whole vocabulary, where the word is read, for one prompt put together by hand."""
    model, tokenizer = tiny.model(family)

    def ids(part):
        return tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    before = ids(f"Review: {text}\nIt was")
    whole, place = before, len(before) - 1
    if family in MASKED:
        whole, place = [tokenizer.cls_token_id, *before, tokenizer.mask_token_id, *ids("."), tokenizer.sep_token_id], 1 + len(before)
    with torch.no_grad():
        return model(input_ids=torch.tensor([whole])).logits[0, place].double().log_softmax(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vocabularys_log_probabilities_are_those_of_a_plain_forward(family):
    template = "Review: {text}\nIt was {slot}" + ("." if family in MASKED else "")
    judge, task, backbone = judge_of(family, templates=(template,))
    words, scores = judge.vocabulary(task, without={})
    assert "great" in words and len(words) > 10 and scores.rows.shape == (len(TRAIN), len(words)) and len(scores.free) == 3
    tokens = [backbone.tokenizer.convert_tokens_to_ids(backbone.tokenizer.tokenize(f"was {word}")[-1]) for word in words]
    for row, text in zip(np.concatenate([scores.rows, scores.free]), (*TEXTS, *CONTENT_FREE), strict=True):
        np.testing.assert_allclose(row, plain_log_probabilities(family, text)[tokens].numpy(), atol=1e-4)


def test_of_several_templates_it_is_the_mean():
    texts = ("Review: {text}\nIt was {slot}", "{text} It was {slot}")
    judge, task, _ = judge_of("llama", templates=texts)
    words, both = judge.vocabulary(task, without={})
    apart = []
    for text in texts:
        one, single, _ = judge_of("llama", templates=(text,))
        assert one.vocabulary(single, without={})[0] == words
        apart.append(one.vocabulary(single, without={})[1].rows)
    np.testing.assert_allclose(both.rows, np.mean(apart, 0), atol=1e-6)


def test_words_that_are_taken_are_not_offered_again():
    judge, task, _ = judge_of("llama")
    words, _ = judge.vocabulary(task, without={"no": ("terrible",), "yes": ("great",)})
    everything, _ = judge.vocabulary(task, without={})
    assert set(everything) - set(words) == {"terrible", "great"}


def test_in_folds_nothing_is_computed_twice():
    session = Session()
    whole, task, backbone = judge_of("llama", session=session)
    whole.scores(task), whole.vocabulary(task, without={})
    rows, one = backbone.rows, whole.scores(task)
    assert rows == len(TRAIN) + len(CONTENT_FREE)
    part, _, _ = judge_of("llama", train=TRAIN[:4], session=session, backbone=backbone)
    again = part.scores(task)
    part.vocabulary(task, without={})
    assert backbone.rows == rows
    np.testing.assert_array_equal(again.rows, one.rows[:4])
    np.testing.assert_array_equal(again.free, one.free)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("readout", [CLOZE, Likelihood()], ids=str)
def test_scores_are_those_of_the_model_that_would_answer(family, readout):
    judge, task, backbone = judge_of(family, readout=readout)
    model = TunedModel.assemble(backbone, task, readout)
    scores = judge.scores(task)
    np.testing.assert_allclose(scores.rows, model.raw_scores(TRAIN).numpy(), atol=1e-4)
    np.testing.assert_allclose(scores.free, model.content_free_scores().numpy(), atol=1e-4)


def plain_loss(rows_NC, targets_N, bias_C, temperature):
    log_NC = torch.tensor(rows_NC).log_softmax(-1) - bias_C
    return torch.nn.functional.cross_entropy(log_NC / temperature, torch.tensor(targets_N), reduction="none")


def test_losses_are_those_of_rows_that_the_calibration_has_not_seen():
    """Fold by fold: with and without Zhao's bias, the better on the other rows; then the best of a fine grid of temperatures there."""
    judge, _, _ = judge_of("bert")
    random = np.random.default_rng(3)
    scores = Scores(random.normal(size=(6, 2)), random.normal(size=(3, 2)) + np.array([1.0, 0.0]))
    found = judge.judge(scores)
    bias_C = torch.tensor(scores.free).softmax(-1).mean(0).log()
    bias_C -= torch.logsumexp(bias_C, 0)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    for kept, held in judge.parts:
        kept, held = list(kept), list(held)
        targets_N = judge.targets_N
        bias = min((torch.zeros(2), bias_C), key=lambda one: plain_loss(scores.rows[kept], targets_N[kept], one, 1.0).mean().item())
        losses = [plain_loss(scores.rows[kept], targets_N[kept], bias, temperature).mean().item() for temperature in grid]
        temperature = grid[int(np.argmin(losses))]
        expected_N = plain_loss(scores.rows[held], targets_N[held], bias, temperature)
        np.testing.assert_allclose(found.losses_N[held], expected_N.numpy(), rtol=2e-3)
    assert sorted(row for _, held in judge.parts for row in held) == list(range(6))
