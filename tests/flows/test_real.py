"""The main job on the real SmolLM2: the slot's scores are those of plain transformers, and the artifact keeps the answers."""

from pathlib import Path

import pytest
import torch

import fewtune as ft
from fewtune.data import readers

pytestmark = pytest.mark.slow
REVIEWS = Path(__file__).parents[2] / "examples" / "reviews"


@pytest.fixture(scope="module")
def backbone():
    return ft.load_backbone("smollm2-135m")


def examples(task, name, count):
    return readers.read(REVIEWS / name, text=task.fields, labeled=True, known=task.labels).examples[:count]


def test_zero_shot_scores_are_the_models_own(backbone):
    task = ft.Task.load(REVIEWS / "task.toml")
    model = ft.zeroshot(task, backbone=backbone, calibration=ft.Uncalibrated())
    tokens = [backbone.tokenizer.encode(f" {label}", add_special_tokens=False) for label in task.labels]
    assert [len(ids) for ids in tokens] == [1, 1]
    for example in examples(task, "test.csv", 3):
        text = f"Review: {example.fields['review']}\nSentiment:"
        with torch.inference_mode():
            logits_V = backbone.model(**backbone.tokenizer(text, return_tensors="pt")).logits[0, -1]
        torch.testing.assert_close(model.raw_scores([example])[0], logits_V[[ids[0] for ids in tokens]], atol=1e-4, rtol=1e-4)


def test_tuned_saved_and_loaded(backbone, tmp_path):
    task = ft.Task.load(REVIEWS / "task.toml")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    model = ft.fit(task, list(examples(task, "train.csv", 16)), backbone=backbone, options=ft.FitOptions(steps=12))
    texts = [example.fields["review"] for example in examples(task, "test.csv", 20)]
    answers = model.predict(texts)
    model.save(tmp_path / "model")
    model.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    again = ft.load(tmp_path / "model")
    assert again.predict(texts) == answers
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 1_000_000
