"""Answers of an untuned PLM where no word is read: texts are compared with sentences for the labels."""

from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import artifact
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.errors import TaskError
from fewtune.model import TunedModel
from fewtune.readout.sentences import Sentences
from fewtune.strategies import zeroshot
from fewtune.strategies.zeroshot import ZeroShot
from fewtune.train.fit import Session

TASK = ft.Task.classification(["negative", "positive", "neither"], words={"positive": ["great", "good"]})
TEXTS = ["great fun and joy", "a dull mess", "the capital of the country", ""]


@pytest.fixture(scope="module")
def encoder():
    return Backbone(*tiny.model("bert"), name="bert")


def answered(encoder, task=TASK, texts=TEXTS, **given):
    given = {"calibration": ft.Uncalibrated(), "readout": ft.Similarity(), **given}
    return ft.zeroshot(task, backbone=encoder, **given).probabilities([ft.Example({"text": text}) for text in texts])


def compared(encoder, *labels, scale=20.0):
    """softmax of the scaled cosines of the texts and the mean embedding of each label's sentences."""
    embed = Sentences(encoder)
    labels_CD = torch.stack([torch.nn.functional.normalize(embed(sentences).mean(0), dim=0) for sentences in labels])
    return (scale * embed(TEXTS) @ labels_CD.T).double().softmax(-1)


def test_a_score_is_the_scaled_cosine_of_text_and_label(encoder):
    labels = [f"This text is about {word}." for word in ("negative", "great", "good", "neither")]
    wanted = compared(encoder, labels[:1], labels[1:3], labels[3:])
    torch.testing.assert_close(answered(encoder), wanted, atol=1e-5, rtol=0)
    wanted = compared(encoder, labels[:1], labels[1:3], labels[3:], scale=3.0)
    torch.testing.assert_close(answered(encoder, readout=ft.Similarity(scale=3.0)), wanted, atol=1e-5, rtol=0)


def test_descriptions_say_what_labels_mean(encoder):
    task = replace(TASK, description="Did somebody like it?", descriptions={"negative": "It was terrible."})
    labels = ["It was terrible.", *(f"This text is about {word}." for word in ("great", "good", "neither"))]
    asked = [f"{label} Did somebody like it?" for label in labels]
    wanted = compared(encoder, [labels[0], asked[0]], [*labels[1:3], *asked[1:3]], [labels[3], asked[3]])
    torch.testing.assert_close(answered(encoder, task), wanted, atol=1e-5, rtol=0)


def test_a_template_with_a_slot_is_for_other_plms(encoder):
    assert torch.equal(answered(encoder, replace(TASK, templates=("Review: {text} It was {slot}",))), answered(encoder))
    assert not torch.equal(answered(encoder, replace(TASK, templates=("Review: {text}",))), answered(encoder))


def test_it_is_calibrated_by_texts_that_say_nothing_unless_told_otherwise(encoder):
    model = ft.zeroshot(TASK, backbone=encoder, readout=ft.Similarity())
    torch.testing.assert_close(
        model.calibrator(model.content_free_scores()).softmax(-1).mean(0), torch.full((3,), 1 / 3).double(), atol=0.02, rtol=0
    )
    assert not torch.equal(answered(encoder, calibration=None), answered(encoder))


def test_of_a_large_file_a_few_rows_of_every_part_choose_the_calibration(encoder, monkeypatch):
    read, inner = [], TunedModel.raw_scores
    monkeypatch.setattr(TunedModel, "raw_scores", lambda model, rows: read.append([row.label for row in rows]) or inner(model, rows))
    monkeypatch.setattr(zeroshot, "_MOST_LABELED", 6)
    rows = tuple(ft.Example({"text": TEXTS[row % 3]}, label) for label in TASK.labels for row in range(100))
    recipe = ft.Recipe(TASK, readout=ft.Similarity())
    ZeroShot().run(recipe, Split(train=rows), encoder, session=Session())
    assert [label for label in TASK.labels for _ in range(2)] in read and max(map(len, read)) == 6


def test_it_is_saved_and_read_back(encoder, tmp_path):
    model = ft.zeroshot(TASK, backbone=encoder, readout=ft.Similarity())
    again = artifact.load(model.save(tmp_path / "model"), backbone=encoder)
    assert again.predict(TEXTS[:3]) == model.predict(TEXTS[:3])


def test_a_value_between_two_poles(encoder):
    task = ft.Task.regression(low=1, high=5, poles=("terrible", "great"), description="How good is it?")
    for readout in (None, ft.Similarity()):
        values = [float(answer.label) for answer in ft.zeroshot(task, backbone=encoder, readout=readout).predict(TEXTS[:3])]
        assert all(1 <= value <= 5 for value in values) and len(set(values)) == 3


def test_several_labels_need_labelled_rows(encoder):
    with pytest.raises(TaskError, match="one label a row.*Label some rows"):
        ft.zeroshot(ft.Task.multilabel(["joy", "fear"]), backbone=encoder, readout=ft.Similarity())
