"""Free text over every family that writes: it is learned, answered, measured, saved and loaded; what cannot is refused with the reason."""

import io
import json
from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import artifact, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.data.example import Example, Split
from fewtune.data.writers import open_writer
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError, InputError, TaskError
from fewtune.evaluation import evaluate
from fewtune.inspection import inspect
from fewtune.readout.generate import Generate
from fewtune.train.fit import FitOptions, Session

WRITING = [family for family in FAMILIES if FAMILIES[family].objective != "masked"]
TASK = ft.Task.generation(max_tokens=8, template="Text: {text}\nLabel: {slot}")
ROWS = tuple(Example({"text": text}, answer) for text, answer in (("great fun and joy", "good"), ("a dull mess", "bad"), ("fun", "good")))
ALIKE = tuple(replace(row, label="good") for row in ROWS)
"""What a random decoder can learn: the encoder's states move it little."""
PLAIN = [row.fields["text"] for row in ROWS]
LEARN = {"deltas": (Subset(part="all"),), "fit": FitOptions(steps=40, learning_rate=5e-3, batch_size=3)}


def made(family, **shape):
    return Backbone(*tiny.model(family, **shape), name=family)


def run(family="llama", *, task=TASK, strategy="supervised", train=ROWS, backbone=None, **given):
    said = []
    settings = job.Settings(strategy=strategy, seed=3, **(given or LEARN))
    model = job.tune(task, Split(train=train), backbone or made(family), settings, session=Session(say=said.append))
    return model, said


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITING)
def test_what_was_learned_is_written_measured_and_saved(family, tmp_path):
    backbone = Backbone(*tiny.model(family), name=str(tiny.save(family, tmp_path / "plm")))
    bare = job.zeroshot(TASK, backbone=backbone).predict(PLAIN)
    rows = ALIKE if family == "t5" else ROWS
    model, _ = run(backbone=backbone, train=rows, deltas=(Subset(part="all"),), fit=FitOptions(steps=80, learning_rate=0.02, batch_size=3))
    answers = model.predict(PLAIN)
    assert [answer.label for answer in answers] == [row.label for row in rows] != [answer.label for answer in bare]
    assert all(0.05 < answer.probability <= 1 and answer.probabilities == {answer.label: answer.probability} for answer in answers)
    found = evaluate(model, rows)
    assert found.measures.metrics["exact_match"].value == found.measures.metrics["f1"].value == found.ratio.value == 1
    loaded = artifact.load(model.save(tmp_path / "model"))
    assert loaded.readout == Generate() and loaded.predict(PLAIN) == answers
    card = (tmp_path / "model" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "Answers in free text of at most 8 tokens." in card
    model.remove()
    assert job.zeroshot(TASK, backbone=backbone).predict(PLAIN) == bare


@pytest.mark.parametrize("slot", ["Text: {text}\nLabel: {slot}", "Text: {text} Label: {slot}, I say."])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_the_loss_is_transformers_own_over_the_answers_tokens(family, slot):
    if family != "t5" and slot.endswith("."):
        return  # an autoregressive model has nothing behind the slot
    task = ft.Task.generation(max_tokens=8, template=slot)
    model = job.zeroshot(task, backbone=made(family))
    plain, tokenizer = tiny.model(family)
    rows = model.asking.rows(ROWS, 0)
    batch = model.asking.collate(rows, 0)
    loss = model.reader.loss(model.output(batch), batch, torch.zeros(3), torch.zeros(()))
    scores_B1 = model.batch_scores(batch)
    total, tokens = 0.0, 0
    for number, row in enumerate(rows):
        assert tokenizer.decode(row.answer[:-1]).strip() == ROWS[number].label
        if family == "t5":
            begin = [0, *([tokenizer.get_vocab()["<extra_id_0>"]] if row.slot else [])]
            given, target = torch.tensor([row.ids]), [*begin, *row.answer]
            with torch.no_grad():
                logits_TV = plain(input_ids=given, decoder_input_ids=torch.tensor([target])).logits[0]
        else:
            target = [*row.ids, *row.answer]
            with torch.no_grad():
                logits_TV = plain(input_ids=torch.tensor([target])).logits[0]
        size = len(row.answer)
        own = torch.nn.functional.cross_entropy(logits_TV[-size - 1 : -1], torch.tensor(row.answer), reduction="sum").item()
        assert scores_B1[number, 0].item() == pytest.approx(-own, abs=1e-4)
        total, tokens = total + own, tokens + size
    assert loss.item() == pytest.approx(total / tokens, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_answers_are_the_same_alone_and_together_and_their_probability_is_that_of_their_tokens(family):
    model = job.zeroshot(TASK, backbone=made(family))
    together = model.predict(PLAIN)
    alone = [model.predict([text])[0] for text in PLAIN]
    assert [one.label for one in together] == [one.label for one in alone]
    assert [one.probability for one in together] == pytest.approx([one.probability for one in alone], rel=1e-4)
    written, log_N1 = model.written([Example({"text": text}) for text in PLAIN])
    assert [one.probability for one in together] == pytest.approx(log_N1[:, 0].exp().tolist())
    assert [one.candidates for one in written] == [(one.label,) for one in together]


@pytest.mark.slow
@pytest.mark.parametrize("delta", [LoRA(rank=4), SoftPrompt(length=4), Prefix(length=3)], ids=lambda delta: type(delta).__name__)
def test_small_deltas_lower_the_loss(delta):
    losses = []
    settings = job.Settings(strategy="supervised", deltas=(delta,), fit=FitOptions(steps=30, learning_rate=0.03), seed=3)
    session = Session(progress=lambda what, done, steps, loss: losses.append(loss))
    model = job.tune(TASK, Split(train=ROWS), made("llama"), settings, session=session)
    assert losses[-1] < losses[0] - 0.5 and model.trained_parameters > 0


def test_the_states_below_the_first_tuned_block_are_kept():
    said, losses = [], {}
    for top in (1 / 3, 1.0):
        model, told = run(deltas=(LoRA(rank=2, top=top),), fit=FitOptions(steps=6, learning_rate=0.02, batch_size=3))
        said += told
        losses[top] = model.predict(PLAIN)
    assert any("States below block 2 of 3 are computed once" in line for line in said)


@pytest.mark.slow
def test_with_nothing_chosen_it_is_tuned_on_all_rows_without_an_estimate():
    model, said = run(strategy=None, fit=FitOptions(batch_size=4))
    assert model.readout == Generate() and "estimate" not in model.about
    assert "No estimate: it needs answers to choose from, and free text has none." in said
    assert any(line.startswith("Tuning ") and " 40 steps" in line for line in said)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_answers_are_written_as_labels_with_their_probability(form):
    model = job.zeroshot(TASK, backbone=made("llama"))
    stream = io.StringIO()
    with open_writer(stream, columns=("text",), form=form) as write:
        for text, answer in zip(PLAIN, model.predict(PLAIN), strict=True):
            write({"text": text}, answer)
    if form == "jsonl":
        first = json.loads(stream.getvalue().splitlines()[0])
        assert first["label"] == model.predict(PLAIN)[0].label and 0 < first["probability"] < 1


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_masked_plm_is_refused_with_the_reason(family):
    for strategy in ("zeroshot", "supervised"):
        with pytest.raises(BackboneError, match=f"expected an autoregressive PLM, or one with a decoder, got {family}, a masked model"):
            run(family, strategy=strategy, train=ROWS, readout=Generate())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"readout": ft.Cloze()}, "--readout: expected a readout for generation"),
        ({"readout": ft.Head()}, "--readout: expected a readout for generation"),
        ({"calibration": ft.Contextual(), "strategy": "zeroshot"}, "--calibration: expected none for free text"),
        ({"demonstrations": ft.Demonstrations()}, "--demonstrations: expected labels, of each of which a row is shown"),
        ({"search": (ft.WordSearch(),)}, "--search: expected a task of kind classification"),
        ({"strategy": "pet"}, "strategy pet: expected a task with labels"),
        (
            {"task": ft.Task(templates=("{text} {slot}", "a {text} {slot}"), kind="generation")},
            "task.templates: expected one template, got 2",
        ),
        ({"task": ft.Task.generation(max_tokens=500)}, "task.kind max_tokens: expected fewer than the 256 tokens that there are, got 500"),
    ],
)
def test_what_does_not_go_with_free_text_is_refused(given, message):
    with pytest.raises(InputError) as caught:
        run(**given)
    assert message in str(caught.value)


def test_free_text_is_for_its_own_kind_only():
    with pytest.raises(TaskError, match="--readout: expected a readout for classification, got generate, which writes free text"):
        job.zeroshot(ft.Task.classification(["no", "yes"]), backbone=made("llama"), readout=Generate())


def test_there_is_nothing_to_inspect():
    with pytest.raises(TaskError, match="inspect: expected answers to choose from"):
        inspect(job.zeroshot(TASK, backbone=made("llama")), ROWS)
