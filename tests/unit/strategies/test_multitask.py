"""Multi-task training: the draws are the mixture's, the losses are those of the readout, and tasks never seen get better for it."""

from collections import Counter

import pytest
import torch

from fewtune import plm
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.collection import Lesson
from fewtune.data.example import Example
from fewtune.deltas.delta import remove_all
from fewtune.deltas.subset import Subset
from fewtune.errors import SpecError, TaskError
from fewtune.readout.cloze import Cloze
from fewtune.strategies.multitask import READOUT, MultiTask, _Mixture, right_answers, train
from fewtune.tasks.task import Task
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great fun", "a joy", "good", "great world"), ("a dull mess", "terrible", "bad", "lifeless")


def lesson(name, words, *templates, rows=((GOOD, BAD))):
    task = Task(
        ("bad", "good"), templates=templates, words={label: (word,) for label, word in zip(("bad", "good"), words, strict=True)}, name=name
    )
    given = [Example({"text": text}, label) for label, texts in zip(("good", "bad"), rows, strict=True) for text in texts]
    return Lesson(name, (task,), tuple(given))


LESSONS = (
    lesson("mood", ("terrible", "great"), "{text} It was {slot}", "Review: {text}\nSentiment: {slot}"),
    lesson("letters", ("A", "B"), "{text} (A) or (B)? {slot}", rows=(GOOD[:2], BAD[:2])),
)


@pytest.fixture(params=["llama", "bert", "t5"])
def backbone(request):
    return Backbone(*tiny.model(request.param), name=request.param)


@pytest.fixture
def installed(backbone):
    return plm.install(backbone, [Subset("norms")], seed=0)


def mixture(installed, batches, how=None, lessons=LESSONS):
    return _Mixture(lessons, installed, how or MultiTask(), FitOptions(batch_size=2), READOUT, 64, 3, batches)


def test_batches_are_a_function_of_their_number_and_tasks_come_by_their_size(installed):
    drawn = mixture(installed, 300)
    counts = Counter(drawn.lessons[place].name for place, _ in drawn.turns)
    assert counts["mood"] / 300 == pytest.approx(2 / 3, abs=0.08)
    again = mixture(installed, 400)
    for number in (0, 7, 299):
        assert torch.equal(drawn.at(number).batch.ids_BT, again.at(number).batch.ids_BT)
        assert torch.equal(drawn.at(number).targets_B, again.at(number).targets_B)
    capped = mixture(installed, 300, MultiTask(cap=4))
    assert Counter(place for place, _ in capped.turns)[0] / 300 == pytest.approx(0.5, abs=0.08)


def test_an_epoch_of_a_task_has_each_row_once_and_its_templates_come_in_turn(installed):
    drawn = mixture(installed, 40, lessons=LESSONS[:1])
    rows = [index for number in range(4) for index in drawn.epoch(0, 0)[number]]
    assert sorted(rows) == list(range(8))
    assert len({drawn.at(number).batch.ids_BT.shape[1] for number in range(20)}) > 1


def test_the_losses_are_those_of_the_candidates_and_of_the_right_one(installed):
    drawn = mixture(installed, 1).at(0)
    log_BC = drawn.model.batch_scores(drawn.batch)
    rows = torch.arange(len(log_BC))
    choice = -(log_BC.softmax(1)[rows, drawn.targets_B]).log().mean()
    language = -log_BC[rows, drawn.targets_B].mean()
    assert MultiTask("choice").of(log_BC, drawn.targets_B).item() == pytest.approx(choice.item(), abs=1e-5)
    assert MultiTask("language").of(log_BC, drawn.targets_B).item() == pytest.approx(language.item(), abs=1e-5)
    assert MultiTask("both").of(log_BC, drawn.targets_B).item() == pytest.approx((choice + language).item(), abs=1e-5)


def test_rows_with_candidates_of_their_own_are_trained_on_beside_others(installed):
    task = Task((), templates=("{text} It was {slot}",), kind="choice:label=0", name="own")
    given = tuple(
        Example({"text": "great fun"}, str(number % 2), candidates=("a dull mess", "great fun", "joy")[: 2 + number % 2])
        for number in range(4)
    )
    own = Lesson("own", (task,), given)
    drawn = mixture(installed, 20, lessons=(own, LESSONS[1]))
    losses = [drawn.loss(drawn.at(number)).item() for number in range(20)]
    assert {place for place, _ in drawn.turns} == {0, 1} and all(0 < loss < 20 for loss in losses)
    assert right_answers(own, installed[0].backbone).shape == (1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["choice", "language"])
def test_a_wording_never_seen_is_answered_better(loss):
    backbone = Backbone(*tiny.model("llama"), name="llama")
    unseen = lesson("unseen", ("terrible", "great"), "Text: {text}\nIt was {slot}", "{text} Sentiment: {slot}")
    before = right_answers(unseen, backbone)
    installed = plm.install(backbone, [Subset("all")], seed=1)
    losses = train(LESSONS[:1], installed, MultiTask(loss), options=FitOptions(steps=60, learning_rate=3e-3), seed=1, session=Session())
    after = right_answers(unseen, backbone)
    assert after.shape == (2, 8) and after.mean() >= 0.75 > before.mean() and losses[-1] < losses[0]
    remove_all(installed)
    assert (right_answers(unseen, backbone) == before).all()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_says_what_it_will_do(backbone):
    said, found = [], []
    for _ in range(2):
        installed = plm.install(backbone, [Subset("norms")], seed=1)
        train(LESSONS, installed, MultiTask(), options=FitOptions(steps=3, accumulate=2), seed=5, session=Session(say=said.append))
        found.append({name: weight.detach().clone() for name, weight in installed[0].weights.items()})
        remove_all(installed)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert "on 2 tasks in 3 templates: 3 steps of 2 × 8 rows, about" in said[0]


def test_a_language_loss_needs_likelihoods(backbone):
    installed = plm.install(backbone, [Subset("norms")], seed=1)
    with pytest.raises(TaskError, match="--loss language: expected a readout of likelihoods"):
        train(LESSONS, installed, MultiTask("language"), options=FitOptions(), readout=Cloze(), seed=1, session=Session())
    with pytest.raises(SpecError, match="temperature"):
        MultiTask(temperature=0)
