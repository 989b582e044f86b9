"""The order in which labels are named changes the order of probabilities and nothing else: every readout that answers untuned, on a PLM
of each kind, with every calibration that needs no label, alone and side by side.

Letters are the exception: a list of options is read in its order. They stand only where `cloze` is asked for and names begin alike.
"""

import itertools

import pytest
import torch

import fewtune as ft
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.readout import CALIBRATIONS, READOUTS
from fewtune.readout.likelihood import Likelihood
from fewtune.readout.pmi import PMI

LABELS = ("negative", "positive", "what")
WORDS = {"positive": ("great", "good"), "negative": ("terrible",)}
LONG = {"positive": ("great fun", "good"), "negative": ("terrible mess",)}
READ = {
    "llama": (
        ft.Cloze(),
        Likelihood(),
        Likelihood(per="token"),
        Likelihood(per="byte"),
        ft.Channel(),
        ft.Channel(per="token"),
        ft.Similarity(),
    ),
    "bert": (ft.Cloze(), Likelihood(per="token"), ft.Similarity()),
    "t5": (ft.Cloze(), Likelihood(per="token"), ft.Similarity()),
}
WITHOUT_LABELS = (ft.Uncalibrated(), ft.Contextual(), PMI(), ft.PriorMatching())
CASES = [
    pytest.param(family, readout, calibration, id=f"{family}-{readout}-{CALIBRATIONS.name_of(calibration)}")
    for family, readouts in READ.items()
    for readout in readouts
    for calibration in WITHOUT_LABELS
    if not (readout.reverses and calibration.needs in ("content_free", "premise"))
]
TEXTS = ("great fun and joy", "a dull mess", "what is the capital of the country?")
ROWS = [ft.Example({"text": text}) for text in TEXTS]


def test_every_readout_and_calibration_is_seen():
    seen = {READOUTS.name_of(one) for readouts in READ.values() for one in readouts}
    assert seen == set(READOUTS) - {"head", "generate"}  # which must be trained, and which has no labels
    assert {CALIBRATIONS.name_of(one) for one in WITHOUT_LABELS} == set(CALIBRATIONS) - {"temperature"}


@pytest.fixture(scope="module")
def backbones():
    return {family: Backbone(*tiny.model(family), name=family) for family in READ}


def answering(labels, backbone, readout, calibration):
    """A model for the labels in this order; what is said of each label goes with it."""
    words = LONG if not isinstance(readout, list) and readout.spells else WORDS
    described = {label: f"It is {label}." for label in labels if label == "what"}
    task = ft.Task.classification(labels, words={label: words[label] for label in labels if label in words}, description="Is it good?")
    task = ft.Task.from_dict({**task.to_dict(), "descriptions": described})
    pool = [{"text": text} for text in TEXTS] if calibration.needs == "unlabeled" else None
    return ft.zeroshot(task, backbone=backbone, readout=readout, calibration=calibration, unlabeled=pool)


def check(backbone, readout, calibration):
    first = answering(LABELS, backbone, readout, calibration)
    wanted_NC, answers = first.probabilities(ROWS), [answer.label for answer in first.predict(TEXTS)]
    assert len({*answers}) > 1 or float(wanted_NC.std(0).max()) > 1e-6  # something depends on the text
    for order in itertools.permutations(range(3)):
        turned = answering([LABELS[index] for index in order], backbone, readout, calibration)
        torch.testing.assert_close(turned.probabilities(ROWS), wanted_NC[:, list(order)], atol=1e-5, rtol=0)
        assert [answer.label for answer in turned.predict(TEXTS)] == answers


@pytest.mark.slow
@pytest.mark.parametrize(("family", "readout", "calibration"), CASES)
def test_one_route(backbones, family, readout, calibration):
    check(backbones[family], readout, calibration)


@pytest.mark.slow
@pytest.mark.parametrize("calibration", [ft.Contextual(), ft.PriorMatching()], ids=CALIBRATIONS.name_of)
def test_several_routes(backbones, calibration):
    check([backbones["llama"], backbones["bert"], backbones["t5"]], [ft.Cloze(), ft.Similarity(), ft.Cloze()], calibration)
