"""What a student starts from, what it learns from, several teachers, and what cannot be taught."""

from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import job, plm
from fewtune.backbone import tiny
from fewtune.backbone.bank import Bank
from fewtune.data.example import Example, Split
from fewtune.errors import BackboneError, DataError, SpecError, TaskError
from fewtune.model import TunedModel
from fewtune.readout.generate import Generate
from fewtune.readout.likelihood import Likelihood
from fewtune.strategies import distill
from fewtune.strategies.distill import Distill, layer_map
from fewtune.strategies.narrow import Narrowing
from fewtune.strategies.share import Share
from fewtune.strategies.student import smaller
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great", "fun", "joy"), ("dull", "mess", "terrible")
ROWS = tuple(
    Example({"text": f"{one} and {other}"}, label) for label, words in (("pos", GOOD), ("neg", BAD)) for one in words for other in words
)
TEXTS = [row.fields["text"] for row in ROWS]
TASK = ft.Task.classification(["neg", "pos"])
CLOZE = ft.Task(("neg", "pos"), ("text",), ("{text} It was {slot}",), {"neg": ("terrible",), "pos": ("great",)})
FULL = (ft.Subset("all"),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("plm")
    return {
        **{family: str(tiny.save(family, root / family, blocks=4)) for family in ("bert", "llama", "albert")},
        "narrow": str(tiny.save("bert", root / "narrow", blocks=2, width=16)),
    }


def tuned(folder, deltas=FULL, *, task=TASK, rows=ROWS, readout=None, rate=0.003, steps=30):
    settings = job.Settings(
        strategy="supervised", readout=readout or ft.Head(), deltas=deltas, fit=FitOptions(steps=steps, learning_rate=rate), seed=3
    )
    return job.tune(task, Split(train=rows), plm.load(folder), settings, session=Session())


def shown(model):
    """The model with demonstrations in front of each text."""
    spec = ft.Demonstrations(per_label=1, similar=1.0, draws=1)
    return replace(model, demonstrations=spec.of(ROWS, model.task, seed=1, in_front=True))


@pytest.fixture(scope="module")
def teacher(folders):
    return tuned(folders["bert"])


def run(spec, model, **split):
    return spec.run(model, Split(**{"train": ROWS, **split}), session=Session())


def states(model, steps):
    """What the blocks of these numbers make of a text one after another, in the tuned model."""
    batch = model.asking.collate(model.asking.rows(ROWS[:3], 0), 0)
    with torch.no_grad():
        return list(model.backbone.layers(batch.ids_BT, batch.mask_BT, batch.types_BT))[steps]


@pytest.mark.slow
@pytest.mark.parametrize("deltas", [FULL, (ft.LoRA(rank=2),), (ft.LoRA(rank=2, top=1 / 2), ft.Subset("norms"))], ids=["all", "lora", "two"])
@pytest.mark.parametrize("trained", ["all", "deltas"])
def test_a_student_of_all_layers_starts_as_its_teacher(folders, deltas, trained):
    model = tuned(folders["bert"], deltas)
    student = smaller(model, 4, None, trained=trained)
    torch.testing.assert_close(student.log_probabilities(ROWS), model.log_probabilities(ROWS), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_fewer_layers_start_with_the_weights_of_those_that_remain(folders, family):
    model = tuned(folders[family], (ft.LoRA(rank=2, top=1.0),))
    for trained in ("all", "deltas"):
        student = smaller(model, (0, 1), None, trained=trained)
        assert student.backbone.depth == 2 and student.backbone is not model.backbone
        torch.testing.assert_close(states(student, -1), states(model, 2), atol=1e-4, rtol=1e-4)
        kinds = [type(one.delta).__name__ for one in student.deltas]
        assert kinds == (["Shallow", "Subset"] if trained == "all" else ["Shallow", "LoRA"])
    upper = smaller(model, (0, 3), None, trained="deltas")
    own, theirs = upper.deltas[1].state_dict(), model.deltas[0].state_dict()
    path = model.backbone.blocks_path
    assert all(torch.equal(weight, theirs[name.replace(f"{path}.1.", f"{path}.3.")]) for name, weight in own.items())
    assert len(own) == len(theirs) // 2


@pytest.mark.parametrize("trained", ["all", "deltas"])
def test_a_student_of_the_same_plm_is_shown_the_same_demonstrations(folders, trained):
    model = shown(tuned(folders["llama"], (ft.LoRA(rank=2),), task=CLOZE, readout=ft.Cloze(), steps=2))
    student = smaller(model, 4, None, trained=trained)
    assert student.demonstrations == model.demonstrations
    torch.testing.assert_close(student.log_probabilities(ROWS), model.log_probabilities(ROWS), atol=1e-4, rtol=1e-4)
    lesson = distill.Teaching.of(Distill(layers=2), [model], student, Split(train=ROWS), Session())
    batch, (first, *_) = lesson.batches()(0)
    alone = model.asking.rows([ROWS[first]], 0)[0].ids
    assert int(batch.mask_BT[0].sum()) > len(alone)


def test_another_plm_is_shown_none_which_is_said(folders):
    model, lines = shown(tuned(folders["llama"], (ft.LoRA(rank=2),), task=CLOZE, readout=ft.Cloze(), steps=2)), []
    made = Distill(backbone=folders["bert"], steps=1).run(model, Split(train=ROWS), session=Session(say=lines.append))
    assert made.demonstrations is None and any("shown no demonstrations" in line for line in lines)


@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (0, 1)])
@pytest.mark.parametrize("trained", ["all", "deltas"])
def test_fewer_layers_of_narrower_ones_keep_units_and_deltas(folders, trained, kept):
    """What is narrow is put there before anything stands on it."""
    whole = tuned(folders["bert"], (ft.LoRA(rank=2),))
    model = run(Narrowing(steps=1, trained=trained), whole)
    student = smaller(model, kept, None, trained="deltas")
    assert [type(one.delta).__name__ for one in student.deltas][-2:] == ["Narrow", "LoRA"]
    units = {(part, kept[block]): own_K.tolist() for (part, block), own_K in student.deltas[-2].kept.items()}
    assert units == {key: own_K.tolist() for key, own_K in model.deltas[0].kept.items() if key[1] in kept}
    assert [name for name, module in student.backbone.model.named_modules() if isinstance(module, Bank)]
    torch.testing.assert_close(states(student, -1), states(model, len(kept)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", ["all", "deltas"])
def test_blocks_that_a_shorter_stack_does_not_run_are_gone(folders, trained):
    """ALBERT's: four steps of two groups; the first step alone runs one of them."""
    student = smaller(tuned(folders["albert"], (ft.LoRA(rank=2),)), (0,), None, trained=trained)
    assert (student.backbone.depth, len(student.backbone.blocks), student.backbone.model.config.num_hidden_groups) == (1, 1, 1)
    assert not [name for name in student.deltas[-1].state_dict() if f"{student.backbone.blocks_path}.1." in name]
    student.remove()
    assert (student.backbone.depth, len(student.backbone.blocks), student.backbone.model.config.num_hidden_groups) == (4, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "blocks"), [((0,), [0]), ((0, 2), [0, 1]), ((0, 1, 2, 3), [0, 1])])
def test_fewer_steps_of_groups_of_narrower_blocks(folders, kept, blocks):
    model = run(Narrowing(steps=1, trained="deltas"), tuned(folders["albert"], (ft.LoRA(rank=2),)))
    student = smaller(model, kept, None, trained="deltas")
    units = {(part, blocks[block]): own_K.tolist() for (part, block), own_K in student.deltas[-2].kept.items()}
    assert units == {key: own_K.tolist() for key, own_K in model.deltas[0].kept.items() if key[1] in blocks}
    torch.testing.assert_close(states(student, 1), states(model, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "kept", "fits"), [(1, (0, 2), True), (2, (0, 1, 2, 3), True), (2, (0, 1), False), (2, (0, 1, 3), False)]
)
def test_layers_of_shared_ones_begin_as_the_teachers_or_not_at_all(folders, groups, kept, fits):
    model = run(Share(groups=groups, rank=2, steps=1), tuned(folders["bert"]))
    if fits:
        student = smaller(model, kept, None, trained="deltas")
        torch.testing.assert_close(states(student, 1), states(model, 1), atol=1e-4, rtol=1e-4)
    else:
        with pytest.raises(SpecError, match="layers that share as the teacher's do"):
            smaller(model, kept, None, trained="deltas")


@pytest.mark.slow
def test_a_student_of_a_student_counts_the_steps_of_the_plm(teacher):
    once = run(Distill(layers=(0, 2, 3), steps=0), teacher)
    twice = run(Distill(layers=(0, 2), steps=0), once)
    assert twice.deltas[0].delta.layers == (0, 3)
    torch.testing.assert_close(states(twice, 1), states(once, 1))


@pytest.mark.parametrize("layers", [(1, 9), (0, 4), (1, 0), (2, 2)])
def test_layers_that_are_not_there_are_refused(teacher, layers):
    with pytest.raises(BackboneError, match="expected some of the steps 0 to 3"):
        run(Distill(layers=layers, steps=0), teacher)
    shorter = run(Distill(layers=2, steps=0), teacher)
    for numbers in (layers, (0, 2)):  # those of its own layers, not of the PLM's
        with pytest.raises(BackboneError, match="expected some of the steps 0 to 1"):
            run(Distill(layers=numbers, steps=0), shorter)


def test_half_of_the_layers_where_nothing_is_said(teacher):
    assert run(Distill(steps=0), teacher).backbone.depth == 2


@pytest.mark.slow
@pytest.mark.parametrize("spec", [Distill(hidden=1.0), Distill(relations=1.0), Distill(hidden=1.0, relations=1.0, heads=2)])
def test_what_goes_on_inside_comes_nearer(teacher, spec):
    spec = replace(spec, layers=2, steps=60, learning_rate=0.003)
    before, after = run(replace(spec, steps=0), teacher), run(spec, teacher)
    lessons = [distill.Teaching.of(spec, [teacher], student, Split(train=ROWS), Session()) for student in (before, after)]
    apart = []
    for lesson in lessons:
        batch, _ = lesson.batches()(0)
        with torch.no_grad(), distill.watch.inside(lesson.student.backbone) as own, distill.watch.inside(teacher.backbone) as theirs:
            lesson.student.output(batch)
            teacher.output(batch)
            apart.append(float(lesson._inside(own, theirs, batch.mask_BT)))
    assert apart[1] < 0.7 * apart[0]


@pytest.mark.slow
def test_another_plm_learns_through_a_projection_that_is_thrown_away(teacher, folders, tmp_path):
    spec = Distill(backbone=folders["narrow"], hidden=0.5, relations=0.5, heads=4, steps=60, learning_rate=0.005)
    made = run(spec, teacher)
    assert made.backbone.width == 16 and [type(one.delta).__name__ for one in made.deltas] == ["Subset"]
    assert not any("projection" in name for one in made.deltas for name in one.weights)
    same = [one.label == other.label for one, other in zip(made.predict(TEXTS), teacher.predict(TEXTS), strict=True)]
    assert sum(same) >= 0.8 * len(same)
    fewer = run(replace(spec, layers=1, steps=0), teacher)
    assert fewer.backbone.depth == 1 and fewer.backbone.name == folders["narrow"]


@pytest.mark.slow
def test_teachers_are_averaged_and_soft_labels_kept(teacher, folders):
    other = tuned(folders["bert"], (ft.LoRA(rank=1),))
    said = distill._said([teacher, other], ROWS, (Example({"text": "so so"}, shares={"neg": 0.25, "pos": 0.75}),))
    mean = (teacher.probabilities(ROWS) + other.probabilities(ROWS)) / 2
    torch.testing.assert_close(said[:-1], mean.float())
    assert said[-1].tolist() == [0.25, 0.75]
    made = Distill(layers=2, steps=2).taught_by([teacher, other], Split(unlabeled=ROWS), session=Session())
    assert made.backbone.depth == 2


def test_the_loss_by_hand(teacher):
    """Of a labelled row `gold` of the cross-entropy and the rest of T² · KL, of others all of T² · KL; the mean over rows."""
    spec = Distill(layers=2, gold=0.3, temperature=2.0, steps=0)
    student = run(spec, teacher)
    lesson = distill.Teaching.of(spec, [teacher], student, Split(train=ROWS[:2], unlabeled=ROWS[2:4]), Session())
    scores = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([3, 0, 2])
    own, theirs = scores.log_softmax(1), lesson.said_NC[rows]
    bias, warm = student.calibrator.bias.float(), student.calibrator.temperature
    own = (own - bias) / warm
    soft = [
        4 * ((p.log() / 2).softmax(0) * ((p.log() / 2).log_softmax(0) - (z / 2).log_softmax(0))).sum()
        for p, z in zip(theirs, own, strict=True)
    ]
    hard = -own.log_softmax(1)[1, lesson.targets[0]]
    expected = (soft[0] + 0.3 * hard + 0.7 * soft[1] + soft[2]) / 3
    assert lesson._answers(scores, rows).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.slow
def test_values_and_several_labels_are_taught(folders):
    for task, rows in (
        (
            ft.Task(kind="regression:low=0,high=1", labels=("low", "high")),
            [replace(row, label=str(float(row.label == "pos"))) for row in ROWS],
        ),
        (ft.Task(kind="multilabel", labels=("neg", "pos")), ROWS),
    ):
        model = tuned(folders["bert"], (ft.LoRA(rank=1),), task=task, rows=tuple(rows), steps=5)
        made = Distill(layers=2, steps=3).run(model, Split(train=tuple(rows), unlabeled=ROWS), session=Session())
        assert len(made.predict(TEXTS)) == len(TEXTS)


def test_layers_are_held_to_those_as_far_up():
    assert layer_map(4, 12) == (2, 5, 8, 11)  # TinyBERT's
    assert layer_map(3, 3) == (0, 1, 2)


@pytest.mark.slow
def test_what_cannot_be_taught_is_refused(teacher, folders):
    with pytest.raises(DataError, match="expected texts to learn from"):
        run(Distill(), teacher, train=())
    with pytest.raises(SpecError, match="distill.temperature"):
        Distill(temperature=0)
    with pytest.raises(SpecError, match="expected heads of relations that divide the widths"):
        run(Distill(layers=2, relations=1.0, heads=5), teacher)
    with pytest.raises(SpecError, match="reads the same tokens"):
        run(Distill(backbone=folders["llama"], hidden=1.0), teacher)
    prefix = tuned(folders["bert"], (ft.Prefix(length=2),), steps=2)
    with pytest.raises(SpecError, match="expected a teacher whose deltas are changes of weights.*trained=deltas"):
        run(Distill(layers=2), prefix)
    pairs = tuned(folders["bert"], (ft.LoRA(rank=1),), readout=ft.Similarity(), steps=2)
    with pytest.raises(TaskError, match="pairs of rows"):
        run(Distill(layers=2), pairs)


@pytest.mark.parametrize("kind", ["choice:candidates=a+b", "generation"])
def test_answers_that_are_no_labels_are_refused(folders, kind):
    """What a row is answered from differs from row to row, or is written: there is no distribution that a student could be held to."""
    task = ft.Task(kind=kind, labels=(), templates=("{text} {slot}",))
    readout = Likelihood() if kind.startswith("choice") else Generate()
    model = TunedModel.assemble(plm.load(folders["llama"]), task, readout)
    with pytest.raises(
        TaskError, match=f"distill: expected a task and a readout whose scores can be learned, got {kind.partition(':')[0]}"
    ):
        run(Distill(layers=2), model)
