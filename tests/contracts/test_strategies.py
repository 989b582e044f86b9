"""Every strategy in the table: same seed, same numbers; saveable; better than chance; the pool's labels untouched."""

import pytest

import fewtune as ft
from fewtune import artifact, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.strategies import STRATEGIES
from fewtune.train.fit import FitOptions, Session

FAMILIES = ("bert", "llama")
TRAIN = tuple(
    Example({"text": text}, label)
    for text, label in [
        ("great fun and joy", "positive"),
        ("a dull mess", "negative"),
        ("great great joy", "positive"),
        ("dull lifeless mess", "negative"),
        ("joy and fun", "positive"),
        ("a mess", "negative"),
    ]
)
POOL = tuple(Example({"text": f"{one} and {other}"}) for one in ("great", "fun", "joy", "dull", "mess") for other in ("joy", "mess", "fun"))
LEARN_FROM_A_POOL = ("pet", "ipet")
TASK = ft.Task.classification(
    ["negative", "positive"], template="Review: {text}\nSentiment: {slot}", words={"negative": "terrible", "positive": "great"}
)


def run(name, family):
    backbone = Backbone(*tiny.model(family), name=family)
    settings = job.Settings(strategy=name, fit=FitOptions(steps=60, learning_rate=0.02), seed=3)
    split = Split(train=TRAIN, unlabeled=POOL if name in LEARN_FROM_A_POOL else ())
    return job.tune(TASK, split, backbone, settings, session=Session()), backbone


def test_every_strategy_is_seen():
    assert list(STRATEGIES) == ["zeroshot", "supervised", "ladder", "pet", "ipet"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_the_same_seed_gives_the_same_numbers_and_the_artifact_keeps_them(name, family, tmp_path):
    (one, _), (two, backbone) = run(name, family), run(name, family)
    answers = one.predict([example.fields["text"] for example in TRAIN])
    assert answers == two.predict([example.fields["text"] for example in TRAIN])
    two.save(tmp_path / "model")
    two.remove()
    assert artifact.load(tmp_path / "model", backbone=backbone).predict([example.fields["text"] for example in TRAIN]) == answers


@pytest.mark.parametrize("family", FAMILIES)
# The ladder, and PET's guard, keep what does well on rows not seen, of which six rows and a random model say nothing.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("zeroshot", "ladder", *LEARN_FROM_A_POOL)])
def test_what_is_trained_learns_a_task_that_can_be_learned(name, family):
    model, _ = run(name, family)
    assert [answer.label for answer in model.predict(TRAIN)] == [example.label for example in TRAIN]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in LEARN_FROM_A_POOL])
def test_a_pool_that_nobody_asked_for_changes_nothing(name):
    model, backbone = run(name, "bert")
    answers = model.predict(TRAIN)
    model.remove()
    settings = job.Settings(strategy=name, fit=FitOptions(steps=60, learning_rate=0.02), seed=3)
    pool = (Example({"text": "N/A"}), Example({"text": "what is the capital of the country?"}))
    assert job.tune(TASK, Split(train=TRAIN, unlabeled=pool), backbone, settings, session=Session()).predict(TRAIN) == answers
