"""The precision is settled by what is there, never by the clock."""

import pytest
import torch

import fewtune as ft
from fewtune import precision
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.model import TunedModel
from fewtune.readout.head import Head

TASK = ft.Task.classification(["negative", "positive"])
SPLIT = Split(train=(Example({"text": "great fun"}, "positive"), Example({"text": "a dull mess"}, "negative")))


def model(width):
    backbone = Backbone(*tiny.model("bert", width=width), name="tiny bert")
    return TunedModel.assemble(backbone, TASK, Head())


@pytest.mark.parametrize(("width", "has", "wanted", "settled"), [
    (32, True, "auto", "float32"),
    (256, False, "auto", "float32"),
    (256, True, "auto", "bfloat16"),
    (256, True, "float32", "float32"),
    (32, False, "bfloat16", "bfloat16"),
])  # fmt: skip
def test_what_is_settled(width, has, wanted, settled, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has)
    made = model(width)
    precision.settle_precision(made, wanted, SPLIT)
    assert made.backbone.precision == settled


def test_scores_that_disagree_keep_float32(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    made = model(256)
    with torch.no_grad():  # differences of a rounding become differences of an answer
        made.reader.weights["head.weight"].mul_(1e4)
    precision.settle_precision(made, "auto", SPLIT)
    assert made.backbone.precision == "float32"


def test_without_rows_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    made = model(256)
    precision.settle_precision(made, "auto", Split())
    assert made.backbone.precision == "float32"


def test_agreement_is_of_log_probabilities():
    one_NC = torch.tensor([[2.0, 0.0]])
    assert precision.agree(one_NC, one_NC + 100) and not precision.agree(one_NC, torch.tensor([[2.3, 0.0]]).mul(1.5))


def test_agreement_of_candidates_that_are_judged_each_for_itself_is_of_yes_and_no():
    one_NC = torch.tensor([[2.0, -3.0]])
    assert precision.agree(one_NC, one_NC + 0.05, independent=True) and not precision.agree(one_NC, one_NC + 1, independent=True)
    # A single candidate has nothing to be held against but its own no.
    assert not precision.agree(torch.tensor([[2.0]]), torch.tensor([[-2.0]]), independent=True)
