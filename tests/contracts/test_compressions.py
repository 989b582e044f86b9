"""Every way to make a model smaller: the teacher stays as it was, the result is a model like any other, a seed gives one result."""

import pytest
import torch

import fewtune as ft
from fewtune import artifact, job, plm
from fewtune.backbone import tiny
from fewtune.data.example import Example, Split
from fewtune.deltas.int8 import Int8
from fewtune.deltas.mask import Mask
from fewtune.deltas.narrow import Narrow
from fewtune.deltas.sharing import Sharing
from fewtune.errors import SpecError
from fewtune.model import TunedModel
from fewtune.strategies.compression import COMPRESSIONS
from fewtune.train.fit import FitOptions, Session

WAYS = {
    "distill": "distill:layers=2,steps=60,learning_rate=0.003",
    "narrow": "narrow:heads=0.5,ffn=0.5,rounds=2,steps=60,learning_rate=0.003",
    "prune": "prune:steps=60,learning_rate=0.003",
    "share": "share:groups=2,rank=2,steps=60,learning_rate=0.003",
    "int8": "int8",
}
"""One of each member, small enough for a test."""
GOOD, BAD = ("great", "fun", "joy"), ("dull", "mess", "terrible")
ROWS = tuple(
    Example({"text": f"{one} and {other}"}, label) for label, words in (("pos", GOOD), ("neg", BAD)) for one in words for other in words
)
POOL = tuple(Example({"text": f"it was {one}, {other}"}) for one in (*GOOD, *BAD) for other in (*GOOD, *BAD))
TEXTS = [row.fields["text"] for row in (*ROWS, *POOL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.save("bert", tmp_path_factory.mktemp("plm") / "bert", blocks=4))


@pytest.fixture(scope="module")
def teacher(folder):
    settings = job.Settings(
        strategy="supervised", readout=ft.Head(), deltas=(ft.Subset("all"),), fit=FitOptions(steps=40, learning_rate=0.003), seed=3
    )
    return job.tune(ft.Task.classification(["neg", "pos"]), Split(train=ROWS), plm.load(folder), settings, session=Session())


def run(way, teacher):
    return COMPRESSIONS.from_text(way).run(teacher, Split(train=ROWS, unlabeled=POOL), session=Session())


def test_every_way_is_seen():
    assert list(COMPRESSIONS) == list(WAYS) == ["distill", "narrow", "prune", "share", "int8"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_teacher_stays_as_it_was_and_the_artifact_keeps_the_answers(way, teacher, tmp_path):
    before = teacher.predict(TEXTS)
    weights = {name: {key: weight.clone() for key, weight in state.items()} for name, state in artifact.tensors(teacher).items()}
    made = run(way, teacher)
    answers = made.predict(TEXTS)
    after = artifact.tensors(teacher)
    assert all(torch.equal(weight, after[name][key]) for name, state in weights.items() for key, weight in state.items())
    made.save(tmp_path / "small")
    loaded = artifact.load(tmp_path / "small")
    assert loaded.predict(TEXTS) == answers
    loaded.remove()
    made.remove()
    assert teacher.predict(TEXTS) == before


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_same_seed_gives_the_same_numbers(way, teacher):
    one, other = run(way, teacher), run(way, teacher)
    assert one.predict(TEXTS) == other.predict(TEXTS)
    one.remove()
    other.remove()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_smaller_model_answers_what_the_teacher_answers(way, teacher):
    made = run(way, teacher)
    same = [one.label == other.label for one, other in zip(made.predict(TEXTS), teacher.predict(TEXTS), strict=True)]
    assert sum(same) / len(same) >= 0.8
    made.remove()


@pytest.mark.parametrize(
    "before, way, message",
    [
        (
            (Int8(), ft.LoRA(rank=1)),
            "prune",
            "prune: expected a model whose deltas are changes of weights, got one by int8.*--by prune --by int8",
        ),
        ((Narrow(), ft.LoRA(rank=1)), "prune", "got one by narrow. Narrow it with narrow:trained=deltas"),
        ((Sharing(groups=2), ft.LoRA(rank=1)), "prune", "got one by share. Take one of the two ways"),
        ((Sharing(groups=2),), "prune", "got one by share. Take one of the two ways"),
        ((Int8(), ft.LoRA(rank=1)), "distill", "distill: expected a teacher.*got one by int8. Choose --by distill --by int8"),
        ((Narrow(), ft.LoRA(rank=1)), "distill", "got one by narrow. Choose --by distill --by narrow"),
        ((Int8(), ft.LoRA(rank=1)), "narrow", "narrow: expected matrices that can be trained.*--by narrow --by int8"),
        ((Int8(), ft.LoRA(rank=1)), "share", "share: expected deltas that suit shared blocks, got eight bits"),
        ((Mask(),), "share", "share: expected deltas that suit shared blocks, got pruned weights"),
        ((ft.LoRA(rank=1),), "share:groups=4", "share.groups: expected fewer groups"),
    ],
)
def test_what_cannot_follow_another_way_says_which_order_can(before, way, message, folder):
    backbone = plm.load(folder)
    deltas = tuple(delta.install(backbone, generator=torch.Generator().manual_seed(0)) for delta in before)
    model = TunedModel.assemble(backbone, ft.Task.classification(["neg", "pos"]), ft.Head(), deltas=deltas)
    with pytest.raises(SpecError, match=message):
        run(way, model)
