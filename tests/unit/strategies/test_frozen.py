"""Frozen embeddings judged in folds: the same as tuning nothing in each fold, and parted more often."""

import pytest
import torch

import fewtune as ft
from fewtune import estimate, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.deltas.lora import LoRA
from fewtune.model import TunedModel
from fewtune.readout.calibration import Contextual
from fewtune.readout.head import Head
from fewtune.readout.similarity import Similarity
from fewtune.recipe import Recipe
from fewtune.strategies import frozen
from fewtune.strategies.folds import out_of_fold, parts_of
from fewtune.strategies.supervised import Supervised
from fewtune.train.fit import Session

TEXTS = {
    "positive": ("great fun and joy", "great great joy", "joy and fun", "fun from start to finish"),
    "negative": ("a dull mess", "dull lifeless mess", "a mess", "it was terrible"),
}
TRAIN = tuple(Example({"text": text}, label) for label, texts in TEXTS.items() for text in texts)
TASK = ft.Task.classification(["negative", "positive"])
SEVERAL = ft.Task.multilabel(["negative", "positive"], threshold=0.5)


def recipe(task=TASK, **given):
    return Recipe(task, backbone="bert", **{"deltas": (), "readout": Similarity(), "seed": 3, **given})


@pytest.mark.parametrize(
    "task",
    [TASK, ft.Task.classification(TASK.labels, templates=["{text}", "a text: {text}"]), SEVERAL],
    ids=["one", "templates", "several"],
)
def test_the_first_parting_is_what_tuning_nothing_in_each_fold_gives(task):
    backbone, own = Backbone(*tiny.model("bert"), name="bert"), recipe(task)
    found = frozen.unseen(own, Split(train=TRAIN), backbone, Session())
    plain = out_of_fold(Supervised(), own, Split(train=TRAIN), backbone, Session(), read=TunedModel.log_probabilities)
    assert len(found) == frozen.MOST and torch.allclose(found[0], plain, atol=1e-5)


def test_each_parting_is_another_and_every_row_is_held_out_once_in_each():
    parts = [parts_of(recipe(), TRAIN, number) for number in range(3)]
    assert len({str(one) for one in parts}) == 3
    assert all(sorted(row for _, held in one for row in held) == list(range(len(TRAIN))) for one in parts)


def test_many_rows_are_parted_once():
    many = tuple(Example({"text": f"{text} {number}"}, label) for number in range(300) for label, texts in TEXTS.items() for text in texts)
    assert len(frozen.unseen(recipe(), Split(train=many), Backbone(*tiny.model("bert"), name="bert"), Session())) == 1


@pytest.mark.parametrize("given", [{"deltas": (LoRA(),)}, {"readout": Head()}, {"calibration": Contextual()}])
def test_it_is_for_what_learns_nothing_but_a_regression(given):
    assert frozen.applies(recipe()) and not frozen.applies(recipe(**given))


def test_the_interval_knows_how_often_rows_were_parted():
    backbone = Backbone(*tiny.model("bert"), name="bert")
    settings = job.Settings(strategy="ladder", readout=Similarity(), deltas=(), seed=3)
    found = job.tune(TASK, Split(train=TRAIN), backbone, settings, session=Session()).about["estimate"]
    wide = estimate.accuracy(found["value"], len(TRAIN), widened=estimate.widened(frozen.MOST))
    assert (found["low"], found["high"], found["rows"]) == pytest.approx((wide.low, wide.high, len(TRAIN)))
