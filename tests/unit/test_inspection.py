"""What is planted is found: where states begin to move, and whose label changed."""

from dataclasses import replace

import pytest
import torch

from fewtune import inspection
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example
from fewtune.deltas import DELTAS
from fewtune.model import TunedModel
from fewtune.readout.calibration import Calibrator
from fewtune.readout.channel import Channel
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.tasks.task import Task

BLOCKS = 4
FAMILIES = ("bert", "llama", "gpt2")
TEXTS = (
    "great fun and joy",
    "a dull mess",
    "science and business of the world",
    "who wrote this book?",
    "what is the capital of the country?",
)
WORDS = ("good", "great", "dull", "joy", "fun", "A", "B", "C", "D", "E")
TASK = Task(labels=("negative", "positive"), templates=("Review: {text} It was {slot}", "{text} Sentiment: {slot}"))


def made(family, *texts, scale=0.5, task=TASK, readout=None):
    """A tiny model whose deltas hold what training could have led to."""
    backbone = Backbone(*tiny.model(family, blocks=BLOCKS), name=family)
    model = TunedModel.assemble(backbone, task, readout or Cloze(), max_length=64)
    generator = torch.Generator().manual_seed(3)
    model.deltas = tuple(DELTAS.from_text(text).install(backbone, generator=generator) for text in texts)
    with torch.no_grad():
        for delta in model.deltas:
            for weight in delta.weights.values():
                weight += scale * torch.randn(weight.shape, generator=generator)
    return model


def examples(texts=TEXTS):
    return [Example({"text": text}) for text in texts]


def plant(model, step):
    """Only the low-rank updates of that block change anything: B is zero in all the others."""
    with torch.no_grad():
        for name, weight in model.deltas[0].weights.items():
            if name.endswith("lora_B") and f".{step}." not in name:
                weight.zero_()


@pytest.mark.parametrize("step", [0, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_move_from_the_planted_step_on(family, step):
    model = made(family, "lora")
    plant(model, step)
    found = inspection.inspect(model, examples())
    assert found.rows == len(TEXTS) and found.embeddings == 0 and len(found.moved) == BLOCKS
    assert all(moved == 0 for moved in found.moved[:step])
    assert all(moved > 1e-4 for moved in found.moved[step:])


def test_deltas_that_change_nothing_move_nothing():
    found = inspection.inspect(made("llama", "lora", scale=0), examples())
    assert found.embeddings == 0 and set(found.moved) == {0.0} and found.changed == () and found.note is None


def test_how_far_is_the_length_of_the_change_relative_to_the_state():
    """By hand: two tokens, of which one moved by (3, 4) from (0, 10), beside padding that does not count."""
    before = torch.tensor([[[0.0, 10.0], [1.0, 0.0], [5.0, 5.0]]])
    after = torch.tensor([[[3.0, 14.0], [1.0, 0.0], [9.0, 9.0]]])
    moved = inspection._relative(after, before, torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(moved, torch.tensor([0.25]))


@pytest.mark.parametrize(("family", "readout"), [("bert", Cloze()), ("llama", Cloze()), ("llama", Channel()), ("gpt2", Channel())])
@pytest.mark.parametrize(
    "text", ["lora", "subset:part=all", "subset:part=norms", "adapter", "ia3", "soft-prompt:length=3", "prefix:length=3"]
)
@pytest.mark.slow
def test_changed_labels_are_those_of_the_model_with_and_without_deltas(family, readout, text):
    model = made(family, text, task=replace(TASK, templates=()) if readout.reverses else TASK, readout=readout)
    model.calibrator = Calibrator(bias_C=(0.2, -0.1), temperature=1.5)
    found = inspection.inspect(model, examples(), batch_size=2)
    tuned = model.predict(TEXTS)
    model.remove()
    bare = model.predict(TEXTS)
    wanted = [row for row in range(len(TEXTS)) if tuned[row].label != bare[row].label]
    assert [changed.row for changed in found.changed] == wanted
    for changed in found.changed:
        assert changed.text == TEXTS[changed.row]
        for answer, prediction in ((changed.before, bare[changed.row]), (changed.after, tuned[changed.row])):
            assert answer.label == prediction.label and answer.probability == pytest.approx(prediction.probability, abs=1e-5)


def test_some_labels_do_change():
    assert any(inspection.inspect(made(family, "lora", scale=2.0), examples()).changed for family in FAMILIES)


def test_the_model_is_left_as_it_was():
    model = made("bert", "lora", "subset:part=norms")
    before = model.predict(TEXTS)
    inspection.inspect(model, examples())
    assert model.predict(TEXTS) == before


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_and_padding_change_nothing(size):
    model = made("bert", "lora")
    one, other = inspection.inspect(model, examples(), batch_size=size), inspection.inspect(model, examples(), batch_size=3)
    assert one.moved == pytest.approx(other.moved, rel=1e-4)


def test_a_trained_readout_has_no_answer_from_before():
    model = made("bert", "lora", task=Task(labels=("negative", "positive")), readout=Head())
    found = inspection.inspect(model, examples())
    assert found.changed == () and "no answer from before" in (found.note or "") and found.moved[0] > 0
    assert found.to_dict()["changed_rows"] is None and found.to_dict()["changed"] == []


def test_plain_data_shows_the_first_rows_and_counts_all():
    model = made("llama", "lora", scale=2.0)
    found = inspection.inspect(model, examples([f"{text} {word}" for text in TEXTS for word in WORDS]))
    plain = found.to_dict()
    assert plain["rows"] == 50 and plain["changed_rows"] == len(found.changed)
    assert [step["step"] for step in plain["layers"]] == list(range(BLOCKS))
    assert plain["changed"] == [
        {
            "row": changed.row,
            "text": changed.text,
            "before": {"label": changed.before.label, "probability": changed.before.probability},
            "after": {"label": changed.after.label, "probability": changed.after.probability},
        }
        for changed in found.changed[: inspection.SHOWN]
    ]
