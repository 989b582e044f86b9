"""The similarity readout: embeddings, the regression against scikit-learn, tuning on pairs, and the artifact."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import fewtune as ft
from fewtune import artifact, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.deltas.lora import LoRA
from fewtune.errors import SpecError
from fewtune.readout.similarity import Similarity, logistic, one_by_one
from fewtune.train.fit import FitOptions, Session

TEXTS = {
    "positive": ("great fun and joy", "great great joy", "joy and fun", "fun from start to finish"),
    "negative": ("a dull mess", "dull lifeless mess", "a mess", "it was terrible"),
}
TRAIN = tuple(Example({"text": text}, label) for label, texts in TEXTS.items() for text in texts)
TASK = ft.Task.classification(["negative", "positive"])


def run(deltas, train=TRAIN, task=TASK, **options):
    backbone = Backbone(*tiny.model("bert"), name="bert")
    settings = job.Settings(strategy="supervised", readout=Similarity(strength=100.0), deltas=deltas, fit=FitOptions(**options), seed=3)
    return job.tune(task, Split(train=train), backbone, settings, session=Session()), backbone


@pytest.mark.parametrize("classes", [2, 3])
def test_the_regression_is_scikit_learns(classes):
    generator = torch.Generator().manual_seed(1)
    embeddings_ND = torch.nn.functional.normalize(torch.randn(30, 5, generator=generator), dim=-1)
    targets_N = torch.arange(30) % classes
    weight_CD, bias_C = logistic(embeddings_ND, targets_N, candidates=classes, strength=2.0)
    found = LogisticRegression(C=2.0, max_iter=1000).fit(embeddings_ND.double().numpy(), targets_N.numpy())
    own = (embeddings_ND.double() @ weight_CD.T + bias_C).softmax(-1).numpy()
    np.testing.assert_allclose(own, found.predict_proba(embeddings_ND.double().numpy()), atol=1e-9)


def test_labels_without_a_row_get_next_to_no_probability():
    embeddings_ND = torch.eye(4)
    weight_CD, bias_C = logistic(embeddings_ND, torch.tensor([0, 2, 0, 2]), candidates=3, strength=1.0)
    probabilities = (embeddings_ND.double() @ weight_CD.T + bias_C).softmax(-1)
    assert bool((probabilities[:, 1] < 1e-5).all()) and probabilities.argmax(-1).tolist() == [0, 2, 0, 2]
    weight_CD, bias_C = logistic(embeddings_ND, torch.tensor([1, 1, 1, 1]), candidates=3, strength=1.0)
    assert bool((weight_CD == 0).all()) and bias_C.argmax() == 1


def test_a_regression_for_each_label_is_scikit_learns():
    generator = torch.Generator().manual_seed(1)
    embeddings_ND, targets_NC = torch.randn(30, 5, generator=generator), torch.rand(30, 3, generator=generator) < 0.4
    weight_CD, bias_C = one_by_one(embeddings_ND, targets_NC, candidates=3, strength=2.0)
    own_NC = (embeddings_ND.double() @ weight_CD.T + bias_C).sigmoid().numpy()
    for label in range(3):
        found = LogisticRegression(C=2.0, max_iter=1000).fit(embeddings_ND.double().numpy(), targets_NC[:, label].numpy())
        np.testing.assert_allclose(own_NC[:, label], found.predict_proba(embeddings_ND.double().numpy())[:, 1], atol=1e-9)


def test_a_label_that_no_row_has_or_every_row_is_as_good_as_sure():
    targets_NC = torch.tensor([[False, True, True], [False, True, False]])
    weight_CD, bias_C = one_by_one(torch.eye(2), targets_NC, candidates=3, strength=1.0)
    probabilities = (torch.eye(2).double() @ weight_CD.T + bias_C).sigmoid()
    assert bool((probabilities[:, 0] < 1e-5).all()) and bool((probabilities[:, 1] > 1 - 1e-5).all()) and probabilities[0, 2] > 0.5


def test_as_many_labels_as_rows_are_no_cause_for_a_warning():
    weight_CD, bias_C = logistic(torch.eye(25), torch.arange(25), candidates=25, strength=1.0)
    assert (torch.eye(25).double() @ weight_CD.T + bias_C).argmax(-1).tolist() == list(range(25))


def test_frozen_embeddings_alone_are_a_classifier():
    model, backbone = run(())
    assert model.trained_parameters == 2 * backbone.width + 2
    assert [answer.label for answer in model.predict(TRAIN)] == [example.label for example in TRAIN]


@pytest.mark.slow
def test_tuning_pulls_texts_of_a_label_together():
    def gap(model):
        rows = model.asking.rows(TRAIN, 0)
        batch = model.asking.collate(rows, 0)
        with torch.no_grad():
            embeddings_BD = model.reader.embeddings(model.output(batch), batch)
        similar_BB = embeddings_BD @ embeddings_BD.T
        return (similar_BB[:4, :4].mean() + similar_BB[4:, 4:].mean() - 2 * similar_BB[:4, 4:].mean()).item()

    frozen, _ = run(())
    tuned, _ = run((LoRA(rank=4),), steps=30, learning_rate=0.02)
    assert gap(tuned) > 2 * gap(frozen)
    assert [answer.label for answer in tuned.predict(TRAIN)] == [example.label for example in TRAIN]


def test_the_artifact_answers_the_same(tmp_path):
    model, backbone = run((LoRA(rank=2),), steps=5)
    probabilities_NC = model.probabilities(TRAIN)
    model.save(tmp_path / "model")
    model.remove()
    assert torch.equal(artifact.load(tmp_path / "model", backbone=backbone).probabilities(TRAIN), probabilities_NC)


@pytest.mark.slow
def test_one_row_of_a_label_is_enough():
    model, _ = run((LoRA(rank=2),), train=TRAIN[:5], steps=3)
    assert model.probabilities(TRAIN).isfinite().all()


@pytest.mark.parametrize("field", ["temperature", "strength"])
def test_numbers_out_of_range_are_refused(field):
    with pytest.raises(SpecError, match=f"similarity.{field}"):
        Similarity(**{field: 0.0})
