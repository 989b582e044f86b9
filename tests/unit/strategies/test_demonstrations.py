"""Models that show labelled examples: in-context learning and tuning with them, from the first draw to the artifact."""

import re

import pytest
import torch
from rungs import EVERY_RUNG

import fewtune as ft
from fewtune import artifact, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.errors import BackboneError, DataError, TaskError
from fewtune.inspection import inspect
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.readout import sentences
from fewtune.readout.calibration import CONTENT_FREE
from fewtune.readout.head import Head
from fewtune.readout.likelihood import Likelihood
from fewtune.strategies import supervised
from fewtune.train.cache import StateCache
from fewtune.train.fit import FitOptions, Session

FAMILIES = ("bert", "roberta", "llama", "gpt2")
POSITIVE = ("great fun and joy", "great great joy", "joy and fun", "fun from start to finish")
NEGATIVE = ("a dull mess", "dull lifeless mess", "a mess", "lifeless and dull")
TRAIN = tuple(Example({"text": text}, label) for label, texts in (("yes", POSITIVE), ("no", NEGATIVE)) for text in texts)
WORDS = {"no": "terrible", "yes": "great"}
TEMPLATE = "Review: {text}\nSentiment: {slot}"
TASK = ft.Task.classification(["no", "yes"], template=TEMPLATE, words=WORDS)
NEW = [Example({"text": text}) for text in ("a joy from start to finish", "terrible, lifeless", "what is the capital of the country?")]
ALL = Demonstrations(similar=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random sentence encoder, by its folder."""
    return str(tiny.save("bert", tmp_path_factory.mktemp("encoder") / "bert", seed=3))


def run(demonstrations=ALL, *, family="llama", strategy="zeroshot", train=TRAIN, task=TASK, session=None, backbone=None, **given):
    backbone = backbone or Backbone(*tiny.model(family), name=family)
    settings = job.Settings(strategy=strategy, demonstrations=demonstrations, seed=given.pop("seed", 3), **given)
    return job.tune(task, Split(train=train), backbone, settings, session=session or Session())


def shown(model, examples=NEW):
    """The prompts as text, pass by pass."""
    return [[model.backbone.tokenizer.decode(list(row.ids)) for row in rows] for _, rows in model.asking.encoded(examples)]


# In-context learning


def test_a_prompt_shows_one_example_of_each_label_before_the_query():
    model = run(family="llama")
    for prompts in shown(model):
        for prompt, query in zip(prompts, NEW, strict=True):
            *demonstrations, last = prompt.split("\n\n")
            assert last == f"Review: {query.fields['text']}\nSentiment:"
            first, second = (dict(line.split(": ") for line in one.split("\n")) for one in demonstrations)
            assert first["Sentiment"] == "terrible" and first["Review"] in NEGATIVE
            assert second["Sentiment"] == "great" and second["Review"] in POSITIVE


@pytest.mark.parametrize("words", [WORDS, {"no": "terrible mess", "yes": "great fun"}], ids=["cloze", "likelihood"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_mean_over_templates_and_draws(family, words):
    task = ft.Task.classification(["no", "yes"], templates=[TEMPLATE, "{text} It was {slot}"], words=words)
    readout = ft.Cloze() if words is WORDS else Likelihood()
    model = run(Demonstrations(similar=1, draws=3), family=family, task=task, calibration=ft.Uncalibrated(), readout=readout)
    scores = []
    for template in range(2):
        for draw in range(3):
            chosen = model.demonstrations.draw(NEW, draw, None)
            rows = model.asking.showing(model.asking.rows(NEW, template), template, chosen)
            for row in rows:  # one by one and whole
                with torch.no_grad():
                    scores.append(model.batch_scores(model.asking.collate([row], template)))
    expected = torch.cat(scores).view(6, len(NEW), 2).mean(0)
    torch.testing.assert_close(model.raw_scores(NEW), expected, atol=1e-4, rtol=1e-4)
    assert model.asking.passes == 6 and not torch.allclose(scores[0], scores[len(NEW)], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_example_is_shown_beside_itself(family):
    model = run(Demonstrations(similar=1, draws=8), family=family)
    again = [Example({"text": f" {example.fields['text'].upper()} "}) for example in TRAIN]
    for queries in (TRAIN, again):
        for prompts in shown(model, queries):
            for prompt, example in zip(prompts, TRAIN, strict=True):
                reviews = re.findall("review ?: (.*?)[ \n]sentiment", prompt.lower())
                assert len(set(reviews)) == 3 and reviews.count(example.fields["text"]) == 1


def test_inputs_without_content_are_calibrated_with_demonstrations_in_place():
    model = run(calibration=ft.Contextual())
    empty = [Example({"text": text}) for text in CONTENT_FREE]
    assert all(prompt.count("Review:") == 3 for prompts in shown(model, empty) for prompt in prompts)
    assert model.calibrator == ft.Contextual().fit(model.raw_scores(empty))
    plain = run(None, calibration=ft.Contextual())
    assert model.calibrator != plain.calibrator


@pytest.mark.slow
def test_a_query_is_shortened_as_without_and_demonstrations_have_a_budget_of_their_own():
    long = Example({"text": "great fun and a joy from start to finish " * 20})
    model = run(Demonstrations(similar=1, budget=30), max_length=40)
    plain = run(None, max_length=40)
    assert [row.after(row.front).ids for _, rows in model.asking.encoded([long]) for row in rows] == [
        plain.asking.rows([long], 0)[0].ids
    ] * 4
    crowded = run(Demonstrations(similar=1, budget=30), train=(*TRAIN[:6], long_labelled(long, "no"), long_labelled(long, "yes")))
    for _, rows in crowded.asking.encoded(NEW):
        assert all(20 < len(row.ids[: row.front]) <= 30 for row in rows)


def long_labelled(example, label):
    return Example({"text": f"{label} {example.fields['text']}"}, label)


def test_where_the_plm_has_no_place_demonstrations_get_half_of_it():
    model = run(Demonstrations(similar=1, budget=2000), max_length=1000, family="bert")
    assert model.asking.budget == 256 and model.asking.encoder(0).max_length == 256
    long = [Example({"text": "great fun " * 400})]
    assert all(len(row.ids) <= 512 and row.shortened for _, rows in model.asking.encoded(long) for row in rows)
    model.raw_scores(long)


def test_similar_examples_are_found_by_the_sentence_encoder(encoder):
    model = run(Demonstrations(similar=0.5, encoder=encoder, draws=6))
    embed = sentences.loaded(encoder)
    for query, number in zip(NEW, range(len(NEW)), strict=True):
        near = set()
        for texts in (POSITIVE, NEGATIVE):
            cosine = embed([query.fields["text"]]) @ embed(texts).T
            near |= {texts[one] for one in cosine[0].argsort(descending=True)[:2].tolist()}
        reviews = [prompts[number].split("Review: ") for prompts in shown(model)]
        seen = {review.split("\n")[0] for prompt in reviews for review in prompt[1:-1]}
        assert seen <= near and len(seen) > 2


def test_without_a_filter_no_encoder_is_loaded(monkeypatch):
    monkeypatch.setattr(sentences, "load", lambda name: pytest.fail("loaded"))
    sentences.loaded.cache_clear()
    run(ALL).predict(NEW)
    with pytest.raises(pytest.fail.Exception):
        run(Demonstrations())


# Tuning with demonstrations


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_tuning_learns_a_task_that_can_be_learned(family):
    model = run(family=family, strategy="supervised", fit=FitOptions(steps=60, learning_rate=0.02))
    assert [answer.label for answer in model.predict(TRAIN)] == [example.label for example in TRAIN]
    assert model.about["method"] == "supervised, cloze, lora, demonstrations"


def rows_of(model, epoch):
    return [[row.ids for row in own] for own in supervised.epoch_rows(model, TRAIN)(epoch)]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_every_epoch_has_a_draw_of_its_own_and_always_the_same(family):
    model = run(family=family)
    first, again, second = rows_of(model, 0), rows_of(run(family=family), 0), rows_of(model, 1)
    assert first == again != second
    assert run(None, family=family).demonstrations is None
    plain = run(None, family=family)
    assert rows_of(plain, 0) == rows_of(plain, 1)


@pytest.mark.slow
def test_the_cache_of_frozen_states_is_left_alone():
    cache, losses = StateCache(), []
    session = Session(cache=cache, progress=lambda what, done, steps, loss: losses.append(loss))
    run(strategy="supervised", session=session, deltas=(ft.LoRA(rank=2, top=1 / 3),), fit=FitOptions(steps=20))
    assert not cache.states and len(losses) == 20


class Stopped(Exception):
    """A fit that ends in the middle."""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_run_that_goes_on_ends_with_the_same_bytes(family, tmp_path):
    def tuned(folder, stop=None):
        def progress(what, done, steps, loss):
            if done == stop:
                raise Stopped

        session = Session(tmp_path / folder, "key", progress=progress, every_seconds=0)
        options = FitOptions(steps=12, batch_size=3, learning_rate=0.01)
        deltas = (ft.LoRA(rank=2, dropout=0.2),)
        return artifact.tensors(run(family=family, strategy="supervised", session=session, deltas=deltas, fit=options))

    alone = tuned("alone")
    with pytest.raises(Stopped):
        tuned("cut", stop=8)
    on = tuned("cut")
    assert alone.keys() == on.keys()
    assert all(torch.equal(tensor, on[file][name]) for file, own in alone.items() for name, tensor in own.items())


@pytest.mark.slow
def test_the_ladder_has_a_rung_that_only_shows_them():
    said = []
    session = Session(say=said.append)
    model = run(strategy="ladder", session=session, fit=FitOptions(steps=10))
    assert [rung["name"] for rung in model.about["rungs"]] == EVERY_RUNG
    assert (model.demonstrations is not None) == (not model.about["kept"].startswith("zero-shot"))
    assert job.Settings(demonstrations=ALL).way == "supervised"


# Artifacts


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["zeroshot", "supervised"])
def test_what_is_loaded_answers_as_what_was_saved(family, strategy, encoder, tmp_path):
    backbone = Backbone(*tiny.model(family), name=family)
    spec = Demonstrations(draws=2, encoder=encoder, order="nearest")
    model = run(spec, backbone=backbone, strategy=strategy, fit=FitOptions(steps=4))
    answers = model.predict([*NEW, *TRAIN])
    model.save(tmp_path / "model")
    model.remove()
    again = artifact.load(tmp_path / "model", backbone=backbone)
    assert again.predict([*NEW, *TRAIN]) == answers
    assert again.demonstrations == model.demonstrations


def test_the_card_says_that_texts_are_in_the_folder(tmp_path):
    model = run()
    card = (model.save(tmp_path / "model") / "README.md").read_text()
    assert "It also holds 8 labelled examples, with their texts" in card and "the mean over 4 draws" in card
    plain = run(None).save(tmp_path / "plain")
    assert "labelled examples" not in (plain / "README.md").read_text()
    assert all(text not in (plain / "manifest.json").read_text() for text in POSITIVE)


def test_another_version_of_the_encoder_is_refused(encoder, tmp_path):
    copied = tiny.save("bert", tmp_path / "encoder", seed=3)
    backbone = Backbone(*tiny.model("llama"), name="llama")
    run(Demonstrations(encoder=str(copied)), backbone=backbone).save(tmp_path / "model")
    sentences.loaded.cache_clear()
    tiny.save("bert", copied, seed=4)
    model = artifact.load(tmp_path / "model", backbone=backbone)
    with pytest.raises(BackboneError, match="another version of the sentence encoder"):
        model.predict(NEW)
    sentences.loaded.cache_clear()


@pytest.mark.slow
def test_inspection_sees_the_prompts_that_are_answered():
    model = run(strategy="supervised", fit=FitOptions(steps=20, learning_rate=0.02))
    plain, expected = inspect(model, NEW), model.predict(NEW)
    after = {changed.row: changed.after.label for changed in plain.changed}
    assert all(expected[row].label == label for row, label in after.items())
    assert len(plain.moved) == model.backbone.depth


# What is refused, and what is said


def test_a_head_no_rows_and_too_small_a_budget_are_refused():
    with pytest.raises(TaskError, match="--demonstrations: expected a readout that reads a word"):
        run(strategy="supervised", readout=Head())
    with pytest.raises(DataError, match="--demonstrations: expected labelled rows, got none"):
        run(train=())
    with pytest.raises(TaskError, match="demonstrations.budget: expected demonstrations of at most 12 tokens, got"):
        run(Demonstrations(similar=1, budget=12))


def test_what_cannot_be_shown_is_said():
    said = []
    task = ft.Task.classification(["no", "yes", "maybe"], template=TEMPLATE, words={**WORDS, "maybe": "maybe"})
    model = run(task=task, train=TRAIN[:5], session=Session(say=said.append))
    assert 'The only row of "no" is learned from without demonstrations; with two or more it would have some.' in said
    assert "No demonstration of maybe: no labelled row has that label." in said
    assert shown(model, TRAIN[4:5])[0] == [f"Review: {TRAIN[4].fields['text']}\nSentiment:"]
