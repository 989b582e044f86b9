"""Exits put into tuned models: what is learned, what stays as it was, what is promised, and what is refused."""

from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import artifact, early, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.errors import DataError, SpecError, TaskError
from fewtune.exits.criteria import Confidence, Entropy, Patience
from fewtune.exits.monitor import Monitor
from fewtune.exits.promise import Promise
from fewtune.strategies.exits import AddExits, parts
from fewtune.tasks.task import Task
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great", "fun", "joy", "good"), ("dull", "mess", "terrible", "lifeless")
ROWS = [
    Example({"text": f"{one} and {other} {' '.join(['it was'] * times)}"}, label)
    for label, words in (("positive", GOOD), ("negative", BAD))
    for one in words
    for other in words
    for times in range(5)
]
TASK = ft.Task.classification(
    ["negative", "positive"], template="Review: {text}\nSentiment: {slot}", words={"negative": "terrible", "positive": "great"}
)
FEW = FitOptions(steps=150, batch_size=32)
PROMISE = Promise("agree", 0.9)


def tuned(family, *, readout=None, deltas=(), task=TASK, rows=ROWS[::8]):
    backbone = Backbone(*tiny.model(family, blocks=4), name=family)
    readout = readout or (ft.Cloze() if backbone.causal else ft.Head())
    settings = job.Settings(strategy="supervised", deltas=deltas, readout=readout, fit=FitOptions(steps=40, learning_rate=0.02), seed=3)
    return job.tune(task, Split(train=tuple(rows)), backbone, settings, session=Session())


@pytest.fixture(scope="module")
def bert():
    return tuned("bert")


@pytest.fixture(scope="module")
def with_exits(bert):
    return AddExits(promise=PROMISE, fit=FEW).run(bert, ROWS, session=Session())


@pytest.mark.slow
def test_rows_leave_early_and_agree_as_promised(bert, with_exits):
    exits = with_exits.exits
    assert exits.on and exits.layers == (1, 2, 3)
    early_ones, full = with_exits.predict([row.fields for row in ROWS]), bert.predict([row.fields for row in ROWS])
    layers = [one.exit_layer for one in early_ones]
    assert set(layers) <= {1, 2, 3, 4} and min(layers) < 4 and {one.exit_layer for one in full} == {4}
    agree = sum(one.label == other.label for one, other in zip(early_ones, full, strict=True)) / len(ROWS)
    assert agree >= 0.9
    about = exits.about
    assert about["rows"] == {"learned": 54, "judged": 26, "tested": 80} and about["agreement"]["value"] >= 0.9
    assert "agrees with the full model on at least 90.0% of inputs" in about["promised"]


@pytest.mark.slow
@pytest.mark.parametrize("training", ["distill", "two-stage"])
def test_the_model_itself_stays_as_it_was_to_the_bit(bert, training):
    before = {name: weight.clone() for name, weight in bert.backbone.model.state_dict().items()}
    head = {name: weight.clone() for name, weight in bert.reader.weights.items()}
    scores_NC = bert.raw_scores(ROWS)
    made = AddExits(promise=PROMISE, training=training, fit=FEW).run(bert, ROWS, taught=ROWS[::8], session=Session())
    assert torch.equal(made.raw_scores(ROWS), scores_NC)
    assert torch.equal(replace(made, exits=made.exits.off()).scored(ROWS)[0], scores_NC)
    assert all(torch.equal(weight, before[name]) for name, weight in bert.backbone.model.state_dict().items())
    assert all(torch.equal(weight, head[name]) for name, weight in bert.reader.weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("training", ["joint", "alternate"])
def test_tuned_together_the_readouts_learn_on_every_layer(training):
    model = tuned("bert", deltas=(ft.LoRA(rank=2),))
    before = {name: weight.detach().clone() for name, weight in model.deltas[0].weights.items()}
    made = AddExits(promise=PROMISE, training=training, fit=replace(FEW, steps=20)).run(model, ROWS, taught=ROWS[::8], session=Session())
    assert any(not torch.equal(weight, before[name]) for name, weight in made.deltas[0].weights.items())
    found = early.ways(made, made.exits, early.seen(made, ROWS[::8], made.exits.layers))
    right = [
        (found.answers_LNC[number].argmax(1) == torch.tensor([row.label == "positive" for row in ROWS[::8]])).float().mean()
        for number in range(3)
    ]
    assert min(right) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [Entropy(), Patience(), Confidence()])
def test_decoders_read_the_slot_on_every_layer(criterion):
    made = AddExits(criterion, promise=PROMISE, fit=FEW).run(tuned("llama"), ROWS, session=Session())
    assert made.exits.place == "slot"
    assert made.exits.about["agreement"]["value"] >= 0.9


@pytest.mark.slow
def test_what_is_exported_to_peft_has_no_exits_and_says_so(tmp_path):
    model = tuned("llama", deltas=(ft.LoRA(rank=2),))
    said = []
    made = AddExits(promise=PROMISE, fit=FEW).run(model, ROWS, session=Session())
    ft.export_peft(made, tmp_path / "adapter", say=said.append)
    assert "Not in the folder: the early exits." in said


@pytest.mark.slow
def test_same_seed_same_exits(bert, with_exits):
    again = AddExits(promise=PROMISE, fit=FEW).run(bert, ROWS, session=Session()).exits
    assert again.threshold == with_exits.exits.threshold and again.about == with_exits.exits.about
    assert all(torch.equal(weight, with_exits.exits.weights[name]) for name, weight in again.weights.items())


def test_saved_and_loaded_it_answers_alike_and_the_card_says_what_is_promised(with_exits, tmp_path):
    backbone = with_exits.backbone
    folder = with_exits.save(tmp_path / "model")
    loaded = artifact.load(folder, backbone=backbone)
    assert loaded.exits.threshold == with_exits.exits.threshold and loaded.exits.about == with_exits.exits.about
    texts = [row.fields for row in ROWS[::3]]
    assert loaded.predict(texts) == with_exits.predict(texts)
    card = (folder / "README.md").read_text()
    assert "| early exits | after layers 1, 2, 3; distill, confidence |" in card
    assert "agrees with the full model on at least 90.0% of inputs (confidence 90%), tested on 80 rows: there " in card


def test_watched_answers_are_the_models_and_the_sample_is_compared_with_the_whole_stack(bert, with_exits):
    monitor = Monitor.of(with_exits.exits.about, sample=0.5)
    answers = list(early.watched(with_exits, iter(ROWS), monitor, window=60))
    assert [one.label for one in answers] == [one.label for one in with_exits.predict([row.fields for row in ROWS])]
    assert monitor.rows == len(ROWS) and monitor.early == sum(one.exit_layer < 4 for one in answers)
    assert 40 < monitor.compared < 120
    full = bert.predict([row.fields for row in ROWS])
    drawn, again = [], Monitor.of(with_exits.exits.about, sample=0.5)
    for start in range(0, len(ROWS), 60):
        drawn += [start + row for row in again.drawn(len(ROWS[start : start + 60]))]
    assert monitor.otherwise == sum(answers[row].label != full[row].label for row in drawn)


def test_what_cannot_be_shown_is_not_promised_and_the_exits_are_off(bert, tmp_path):
    said = []
    strict = Promise("agree", 0.97)  # of random exits nothing can be shown
    made = AddExits(promise=strict, fit=replace(FEW, steps=0), criterion=Entropy()).run(bert, ROWS * 2, session=Session(say=said.append))
    assert not made.exits.on and "The exits are off" in said[-1]
    assert {answer.exit_layer for answer in made.predict([row.fields for row in ROWS])} == {4}
    folder = made.save(tmp_path / "model")
    assert not artifact.load(folder, backbone=bert.backbone).exits.on
    assert "| promised | nothing: Of " in (folder / "README.md").read_text()


@pytest.mark.slow
def test_a_budget_of_layers_and_of_points(bert):
    half = AddExits(promise=Promise("budget", 0.6), fit=FEW).run(bert, ROWS, session=Session())
    assert half.exits.about["mean_layer"] <= 0.6 * 4
    points = AddExits(promise=Promise("drop", 5.0), fit=FEW).run(bert, ROWS, session=Session())
    assert points.exits.on and "loses at most 5 points" in points.exits.about["promised"]


@pytest.mark.slow
def test_a_value_leaves_when_it_changes_no_more():
    task = Task.regression(low=0, high=1, template="Review: {text}\nScore: {slot}")
    rows = [replace(row, label="0.8" if row.label == "positive" else "0.3") for row in ROWS]
    model = tuned("bert", task=task, rows=rows[::8])
    made = AddExits(Patience(), promise=PROMISE, tolerance=0.1, fit=FEW).run(model, rows, session=Session())
    assert made.exits.tolerance == made.exits.criterion.tolerance == 0.1 and made.exits.on
    with pytest.raises(SpecError, match="a criterion that can judge a value, got entropy"):
        AddExits(Entropy(), promise=PROMISE).run(model, rows, session=Session())


@pytest.mark.slow
def test_a_pair_leaves_early_too():
    task = Task.classification(["no", "yes"], fields=("text", "other"))
    rows = [Example({"text": row.fields["text"], "other": "it was"}, "yes" if row.label == "positive" else "no") for row in ROWS]
    made = AddExits(promise=PROMISE, fit=FEW).run(tuned("bert", task=task, rows=rows[::8]), rows, session=Session())
    assert min(answer.exit_layer for answer in made.predict([row.fields for row in rows])) < 4


def test_what_does_not_fit_is_refused(bert):
    with pytest.raises(DataError, match="at least 156 rows, got 100"):
        AddExits(promise=Promise("agree", 0.98)).run(bert, ROWS[:100], session=Session())
    with pytest.raises(DataError, match="labelled rows to learn from, got none.*--train"):
        AddExits(training="joint", promise=PROMISE).run(bert, ROWS, session=Session())
    with pytest.raises(SpecError, match="layers from 1 to 3, in order, got 4"):
        AddExits(layers=(4,), promise=PROMISE).run(bert, ROWS, session=Session())
    two = tuned("bert", task=replace(TASK, templates=("{text}", "It was {text}"), words={}))
    with pytest.raises(TaskError, match="answers from one prompt, got the mean of 2"):
        AddExits(promise=PROMISE).run(two, ROWS, session=Session())


def test_parts_share_no_row_and_half_of_them_test():
    learn, judge, test = parts(ROWS, 1, fewest=22)
    assert (len(learn), len(judge), len(test)) == (54, 26, 80)
    assert tuple(map(len, parts(ROWS, 1, fewest=22, taught=True))) == (27, 53, 80)
    where = [id(row) for row in (*learn, *judge, *test)]
    assert len(set(where)) == len(ROWS)
