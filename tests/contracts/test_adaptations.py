"""Every adaptation in the table: same seed, same bytes; goes on to the same bytes; saveable in an artifact no larger; nothing but the pool
has a part in it."""

from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import artifact, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.recipe import Recipe
from fewtune.train.adapt import ADAPTATIONS, Auxiliary, TaskAdaptive
from fewtune.train.fit import FitOptions, Session

FAMILIES = ("bert", "llama")
TRAIN = tuple(
    Example({"text": text}, label)
    for text, label in [("great fun and joy", "yes"), ("a dull mess", "no"), ("joy and fun", "yes"), ("lifeless and dull", "no")]
)
POOL = tuple(
    Example({"text": text})
    for text in ("the world of sports", "it was terrible", "what is the capital of the country?", "a joy from start to finish!", "business")
    * 2
)
TASK = ft.Task.classification(["no", "yes"], template="Review: {text}\nSentiment: {slot}", words={"no": "terrible", "yes": "great"})
SHORT = {"tapt": TaskAdaptive(steps=6, batch_size=4), "auxiliary": Auxiliary(weight=0.5, batch_size=4)}


def run(name, family, *, session=None, train=TRAIN, pool=POOL):
    backbone = Backbone(*tiny.model(family), name=family)
    settings = job.Settings(
        strategy="supervised",
        deltas=(ft.LoRA(rank=2, dropout=0.2),),
        readout=ft.Cloze(),
        adapt=(SHORT[name],) if name else (),
        fit=FitOptions(steps=6, batch_size=3, learning_rate=0.01),
        seed=3,
    )
    return job.tune(TASK, Split(train=train, unlabeled=pool), backbone, settings, session=session or Session())


def same(one, other):
    one, other = artifact.tensors(one), artifact.tensors(other)
    assert {file: own.keys() for file, own in one.items()} == {file: own.keys() for file, own in other.items()}
    return all(torch.equal(tensor, other[file][key]) for file, own in one.items() for key, tensor in own.items())


def test_every_adaptation_is_seen():
    assert list(ADAPTATIONS) == list(SHORT) == ["tapt", "auxiliary"]
    assert [ADAPTATIONS.from_text(name) for name in SHORT] == [TaskAdaptive(), Auxiliary()]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", list(SHORT))
def test_the_same_seed_gives_the_same_bytes_which_are_not_those_without_it(name, family):
    one = run(name, family)
    assert same(one, run(name, family)) and not same(one, run(None, family))
    assert not same(one, run(name, family, pool=POOL[:3]))


class Stopped(Exception):
    """A fit that ends in the middle."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "what"), [("tapt", "fit.tapt-"), ("tapt", "fit"), ("auxiliary", "fit")])
@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_bytes(name, what, family, tmp_path):
    said = []

    def stop(label, done, steps, loss):
        if (label == what or label.startswith("fit.tapt-") and what == "fit.tapt-") and done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        run(name, family, session=Session(tmp_path, "key", progress=stop, every_seconds=0))
    on = run(name, family, session=Session(tmp_path, "key", say=said.append))
    assert any(line.startswith(f"Going on with {what}") and line.endswith("after step 3 of 6.") for line in said)
    assert same(on, run(name, family))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SHORT))
def test_the_artifact_holds_the_same_deltas_and_says_how_they_were_made(name, tmp_path):
    model, plain = run(name, "llama"), run(None, "llama")
    answers = model.predict(TRAIN)
    for one, folder in ((model, "adapted"), (plain, "plain")):
        one.save(tmp_path / folder)
        one.remove()
    sizes = [sum(path.stat().st_size for path in (tmp_path / folder).glob("*.safetensors")) for folder in ("adapted", "plain")]
    assert sizes[0] == sizes[1]
    backbone = Backbone(*tiny.model("llama"), name="llama")
    loaded = artifact.load(tmp_path / "adapted", backbone=backbone)
    assert loaded.predict(TRAIN) == answers and loaded.about["method"] == f"supervised, cloze, {name}, lora"
    assert Recipe.from_dict(loaded.about["recipe"]).adapt == (SHORT[name],)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SHORT))
def test_labels_of_a_pool_are_not_looked_at(name):
    labelled = tuple(replace(example, label="yes") for example in POOL)
    assert same(run(name, "llama"), run(name, "llama", pool=labelled))
