"""Several models side by side: the formula, one calibration over all, and the verbs of a model."""

import pytest
import torch

import fewtune as ft
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.errors import SpecError
from fewtune.model import Tally

TASK = ft.Task.classification(["negative", "positive"], description="Is it good?")
TEXTS = ("great fun and joy", "a dull mess", "joy", "what is the capital of the country?")
ROWS = [ft.Example({"text": text}, label) for text, label in zip(TEXTS, ("positive", "negative") * 2, strict=True)]
READOUTS = [ft.Cloze(), ft.Similarity(), ft.Channel()]


@pytest.fixture(scope="module")
def backbones():
    made = {family: Backbone(*tiny.model(family), name=family) for family in ("bert", "llama")}
    return [made["llama"], made["bert"], made["llama"]]


@pytest.fixture(scope="module")
def routes(backbones):
    return ft.zeroshot(TASK, backbone=backbones, readout=READOUTS, unlabeled=[{"text": text} for text in TEXTS])


def test_the_answer_is_the_mean_of_log_probabilities(backbones):
    made = ft.zeroshot(TASK, backbone=backbones, readout=READOUTS, calibration=ft.Uncalibrated())
    alone = [
        ft.zeroshot(TASK, backbone=one, readout=own, calibration=ft.Uncalibrated()).probabilities(ROWS)
        for one, own in zip(backbones, READOUTS, strict=True)
    ]
    product_NC = (alone[0] * alone[1] * alone[2]) ** (1 / 3)
    torch.testing.assert_close(made.probabilities(ROWS), product_NC / product_NC.sum(1, keepdim=True))
    for log_NC, own_NC in zip(made.each(ROWS), alone, strict=True):
        torch.testing.assert_close(log_NC.exp(), own_NC)


def test_one_calibration_lies_over_all(routes, backbones):
    for log_NC in routes.each(ROWS):
        torch.testing.assert_close(log_NC.exp().mean(0), torch.tensor([0.5, 0.5]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(routes.probabilities(ROWS).mean(0), torch.tensor([0.5, 0.5]).double(), atol=1e-6, rtol=0)
    usual = ft.zeroshot(TASK, backbone=backbones[:2], readout=READOUTS[:2])
    calm_NC = usual.likely(usual.content_free_scores())
    torch.testing.assert_close(calm_NC.mean(0), torch.tensor([0.5, 0.5]).double(), atol=0.02, rtol=0)
    assert ft.zeroshot(TASK, backbone=backbones, readout=READOUTS).calibrator.bias_C == (0.0, 0.0)  # one of them reads the texts


def test_it_answers_as_a_model_does(routes):
    tally = Tally()
    answers = list(routes.stream(ROWS, window=3, tally=tally))
    assert [one.label for one in answers] == [one.label for one in routes.predict(TEXTS)] and tally.rows == 4
    for answer, row in zip(answers, routes.probabilities(ROWS).tolist(), strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(row, abs=1e-5) and answer.probability == pytest.approx(
            max(row), abs=1e-5
        )


def test_routes_are_measured_beside_their_mean(routes):
    together = ft.evaluate(routes, ROWS)
    alone = [route.alone for route in together.routes]
    wanted = [ft.evaluate(model, ROWS).measures for model in routes.models]
    assert [one.measures.confusion for one in alone] == [one.confusion for one in wanted]
    found = [one.measures.metrics["ece"].value for one in alone]
    assert found == pytest.approx([one.metrics["ece"].value for one in wanted], abs=1e-5)
    answers = [answer.label == row.label for answer, row in zip(routes.predict(TEXTS), ROWS, strict=True)]
    assert together.measures.metrics["accuracy"].value == sum(answers) / len(answers)
    plain = together.to_dict()["routes"]
    assert [(one["backbone"], one["method"]) for one in plain] == [(one.backbone.name, one.about["method"]) for one in routes.models]
    assert "routes" not in ft.evaluate(routes.models[0], ROWS).to_dict()


def test_a_readout_for_each_for_all_or_none(backbones):
    with pytest.raises(SpecError, match="--readout: expected a readout for each PLM, one for all, or none, got 2 for 3 PLMs"):
        ft.zeroshot(TASK, backbone=backbones, readout=READOUTS[:2])
    both = ft.zeroshot(TASK, backbone=backbones[:2], readout=ft.Cloze())
    assert [model.readout for model in both.models] == [ft.Cloze(), ft.Cloze()]
