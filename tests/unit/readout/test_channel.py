"""What the channel does not go with is refused in one line, and what it goes with runs."""

import pytest

import fewtune as ft
from fewtune import job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.errors import BackboneError, FewtuneError, TaskError
from fewtune.readout.calibration import Calibrator
from fewtune.readout.pmi import PMI
from fewtune.train.fit import FitOptions, Session

ROWS = [("great fun and joy", "yes"), ("a dull mess", "no"), ("good and great", "yes"), ("terrible, lifeless", "no")]
TRAIN = tuple(Example({"text": text}, label) for text, label in ROWS)
TASK = ft.Task.classification(["no", "yes"], words={"no": "terrible", "yes": ["great", "great fun"]})


def backbone(family="llama"):
    return Backbone(*tiny.model(family), name=family)


def run(strategy, *, task=TASK, family="llama", train=(), unlabeled=(), **more):
    settings = job.Settings(strategy=strategy, readout=ft.Channel(), fit=FitOptions(steps=2), seed=3, **more)
    return job.tune(task, Split(train=tuple(train), unlabeled=tuple(unlabeled)), backbone(family), settings, session=Session())


def refused(kind, *args, **more):
    with pytest.raises(kind) as caught:
        run(*args, **more)
    assert isinstance(caught.value, FewtuneError) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5"])
def test_a_plm_that_is_not_autoregressive_is_refused_with_the_reason(family):
    template = ft.Task.classification(["no", "yes"], template="{text} It was {slot}")
    for task in (TASK, template):  # the PLM first, for another template would not help
        said = refused(BackboneError, "zeroshot", family=family, task=task)
        assert f"expected an autoregressive PLM, got {family}, which gives a whole text no probability" in said


def test_a_template_with_its_slot_behind_the_text_is_refused():
    task = ft.Task.classification(["no", "yes"], template="Review: {text}\nSentiment: {slot}")
    assert "template 1: expected a field behind {slot}" in refused(TaskError, "supervised", task=task, train=TRAIN)


@pytest.mark.parametrize("calibration", [ft.Contextual(), PMI()], ids=str)
@pytest.mark.parametrize("strategy", ["zeroshot", "supervised", "ladder"])
def test_texts_that_say_nothing_calibrate_nothing(strategy, calibration):
    assert "--calibration" in refused(TaskError, strategy, train=TRAIN, calibration=calibration)


def test_demonstrations_and_searches_are_refused():
    shown = ft.Demonstrations(per_label=1)
    assert "--demonstrations" in refused(TaskError, "supervised", train=TRAIN, demonstrations=shown)
    assert "--demonstrations" in refused(TaskError, "zeroshot", train=TRAIN, demonstrations=shown)
    for search in (ft.WordSearch(), ft.TemplateSearch()):
        assert "--search" in refused(TaskError, "supervised", train=TRAIN, search=(search,))


@pytest.mark.parametrize("train", [(), TRAIN])
def test_uncalibrated_unless_told_otherwise(train):
    assert run("zeroshot", train=train).calibrator == Calibrator.identity(2)


def test_unlabelled_rows_and_labelled_ones_do_calibrate():
    prior = run("zeroshot", unlabeled=TRAIN, calibration=ft.PriorMatching())
    assert sum(answer.probabilities["yes"] for answer in prior.predict(TRAIN)) == pytest.approx(len(TRAIN) / 2, abs=1e-4)
    assert run("supervised", train=TRAIN, calibration=ft.Temperature()).calibrator.temperature != 1


def test_from_python_without_labels():
    model = ft.zeroshot(TASK, backbone=backbone(), readout=ft.Channel(per="token"))
    assert model.readout == ft.Channel(per="token") and model.calibrator == Calibrator.identity(2)
    assert [str(template) for template in model.asked.templates] == ["Label: {slot}\nText: {text}"]
    assert ft.Recipe.from_dict(model.about["recipe"]).readout == ft.Channel(per="token")


def test_how_sure_it_is_depends_on_the_length_and_what_it_answers_does_not():
    texts = [example.fields["text"] for example in TRAIN]
    whole, token, word = (
        ft.zeroshot(TASK, backbone=backbone(), readout=ft.Channel(per=per)).predict(texts) for per in ("text", "token", "word")
    )
    assert [one.label for one in whole] == [one.label for one in token] == [one.label for one in word]
    assert all(one.probability > other.probability for one, other in zip(whole, token, strict=True))


def test_an_empty_field_says_nothing():
    task = ft.Task.classification(["no", "yes"], fields=["a", "b"], template="{a} {slot}: {b}")
    model = ft.zeroshot(task, backbone=backbone(), readout=ft.Channel())
    assert model.raw_scores([Example({"a": "great fun", "b": ""})]).tolist() == [[0.0, 0.0]]
