"""The search before tuning: within every strategy, inside the folds, kept in the artifact, refused where no word is read."""

from dataclasses import replace

import pytest

import fewtune as ft
from fewtune import artifact, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.errors import DataError, SpecError, TaskError
from fewtune.prompt.search import TemplateSearch, WordSearch
from fewtune.readout.calibration import Temperature
from fewtune.readout.cloze import Cloze
from fewtune.readout.likelihood import Likelihood
from fewtune.recipe import Recipe
from fewtune.strategies import searching
from fewtune.train.fit import FitOptions, Session

YES = ("great fun and joy", "great great joy", "joy and fun", "fun from start to finish")
NO = ("a dull mess", "dull lifeless mess", "a mess", "lifeless and dull")
TRAIN = tuple(Example({"text": text}, label) for label, texts in (("yes", YES), ("no", NO)) for text in texts)
TASK = ft.Task.classification(["no", "yes"], template="Review: {text}\nSentiment: {slot}", words={"no": "terrible", "yes": "great"})
BOTH = (WordSearch(keep=3, tried=10, guard=False), TemplateSearch(keep=2, tried=5, guard=False))


def run(strategy="supervised", family="bert", *, task=TASK, train=TRAIN, session=None, **given):
    backbone = Backbone(*tiny.model(family), name=family)
    options = FitOptions(steps=3, learning_rate=0.01)
    settings = job.Settings(**{"strategy": strategy, "readout": Cloze(), "search": BOTH, "fit": options, "seed": 3} | given)
    return job.tune(task, Split(train=train), backbone, settings, session=session or Session()), backbone


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zeroshot", "supervised"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_what_is_found_is_in_the_model_and_in_its_artifact(strategy, family, tmp_path):
    model, backbone = run(strategy, family)
    assert len(model.asked.templates) == 2 and str(model.asked.templates[0]) == TASK.templates[0]
    assert model.task.words["no"][0] == "terrible" and len(model.task.words["no"]) > 1
    assert list(model.about["search"]) == ["templates", "words"] and "searched words, searched templates" in model.about["method"]
    answers = model.predict(TRAIN)
    model.save(tmp_path / "model")
    model.remove()
    loaded = artifact.load(tmp_path / "model", backbone=backbone)
    assert loaded.predict(TRAIN) == answers and loaded.about["search"] == model.about["search"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| templates, found | 2 of 5 tried on 8 labelled rows; losses " in card and "which estimate nothing" in card
    assert Recipe.from_dict(model.about["recipe"]).search == BOTH and Recipe.from_dict(model.about["recipe"]).task == TASK


@pytest.mark.slow
def test_the_same_seed_finds_the_same():
    one, two = run(family="llama")[0], run(family="llama")[0]
    assert one.task == two.task and one.about == two.about and one.predict(TRAIN) == two.predict(TRAIN)


def test_words_are_read_in_the_templates_that_were_found():
    model, _ = run("zeroshot", "llama", search=(WordSearch(keep=3, tried=10, guard=False),))
    assert model.task.templates == TASK.templates and list(model.about["search"]) == ["words"]


class Looking(searching.PLMJudge):
    """Remembers the rows that each search was given."""

    seen: list[frozenset[str]] = []

    def __init__(self, recipe, examples, backbone, session, **how):
        super().__init__(recipe, examples, backbone, session, **how)
        self.seen.append(frozenset(example.fields["text"] for example in examples))


@pytest.fixture
def looked(monkeypatch):
    monkeypatch.setattr(Looking, "seen", [])
    monkeypatch.setattr(searching, "PLMJudge", Looking)
    return Looking.seen


@pytest.mark.slow
def test_a_folds_search_never_sees_the_rows_that_judge_it(looked):
    run(calibration=Temperature())
    whole, *folds = looked
    everything = {example.fields["text"] for example in TRAIN}
    assert whole == everything and len(folds) == 4
    held = [everything - fold for fold in folds]
    assert all(len(rows) == 2 for rows in held) and set().union(*held) == everything


@pytest.mark.slow
def test_the_ladder_judges_the_search_in_folds_and_keeps_the_simplest(looked):
    said = []
    model, _ = run("ladder", "llama", search=BOTH[:1], session=Session(say=said.append))
    names = [rung["name"] for rung in model.about["rungs"]]
    assert names == ["zero-shot", "zero-shot calibrated", "zero-shot, searched", "in-context", "in-context calibrated", "tuned"]
    # Two rungs of four folds, and the kept one once more on all rows if it searches.
    searches = model.about["kept"] in ("zero-shot, searched", "tuned")
    assert [len(rows) for rows in looked] == [6] * 8 + [8] * searches and ("search" in model.about) == searches
    assert model.about["estimate"]["rows"] == len(TRAIN)
    assert sum("estimate nothing" in line for line in said) <= 3, "folds after the first are silent"


PLANTED = ("this book", "capital")
"""How the texts of each label end: of what stands beside the slot even a random model makes much the same whatever comes before."""


@pytest.mark.slow
def test_words_that_help_on_rows_without_a_part_in_finding_them_are_used(looked):
    fronts = ("the", "a", "who wrote", "great", "dull", "a book")
    train = tuple(Example({"text": f"{front} {PLANTED[place]}"}, TASK.labels[place]) for front in fronts for place in range(2))
    task = replace(TASK, templates=("{text} {slot}",))
    model, _ = run("zeroshot", "bert", task=task, train=(*train, *train), search=(WordSearch(keep=5),))
    found = model.about["search"]["words"]
    assert found["taken"] and found["unseen"]["after"] < found["unseen"]["before"] and len(model.task.words["no"]) > 1
    assert [len(rows) for rows in looked] == [12] + [9] * 4, "once with all texts and once without each fold"


@pytest.mark.slow
def test_words_for_labels_that_are_drawn_by_lot_are_not_used():
    words = [word for text in (*YES, *NO) for word in text.split()]
    train = tuple(Example({"text": f"{words[number]} {words[-number]}"}, ["no", "yes"][number // 2 % 2]) for number in range(1, 21))
    said = []
    model, _ = run("zeroshot", "llama", train=train, search=(WordSearch(keep=5),), session=Session(say=said.append))
    found = model.about["search"]["words"]
    assert not found["taken"] and model.task == TASK and found["loss"]["averaged"] < found["unseen"]["after"]
    assert said[-1].startswith("Not used: on rows that had no part in finding them the loss is ")


def test_with_one_row_of_a_label_nothing_can_be_seen_and_nothing_is_used():
    said = []
    search = TemplateSearch(keep=2, tried=4)
    model, _ = run("zeroshot", train=TRAIN[3:5], search=(search,), session=Session(say=said.append))
    assert model.task == TASK and model.about["search"]["templates"]["unseen"] is None and "two rows of each label" in said[-1]
    taken, _ = run("zeroshot", train=TRAIN[3:5], search=(replace(search, guard=False),))
    assert len(taken.task.templates) == 2


def test_pairs_and_readouts_of_whole_words():
    task = ft.Task.classification(["not the same", "the same thing"], fields=["one", "two"], label_name="meaning")
    pairs = tuple(Example({"one": a, "two": b}, task.labels[a == b]) for a in ("great fun", "a mess") for b in ("great fun", "a mess"))
    model, _ = run("zeroshot", "llama", task=task, train=pairs, readout=Likelihood(per="token"), search=BOTH)
    assert all(template.names == ("one", "two") for template in model.asked.templates)
    assert model.task.words["the same thing"][0] == "the same thing" and len(model.predict([("a", "b")])) == 1


def test_names_that_begin_alike_are_replaced_by_words():
    task = ft.Task.classification(["no", "no matter"])
    train = tuple(replace(example, label={"yes": "no matter"}.get(example.label, "no")) for example in TRAIN)
    model, _ = run("zeroshot", "llama", task=task, train=train, search=(WordSearch(keep=2, tried=10, guard=False),))
    assert "Options:" not in str(model.asked.templates[0])
    assert model.task.words.keys() == set(task.labels) and "no" not in model.task.words["no"]


def test_many_labels():
    labels = tuple("abcdefghijkl")
    train = tuple(Example({"text": f"{TEXT} {label}"}, label) for label in labels for TEXT in ("what is", "the"))
    model, _ = run(
        "zeroshot", "bert", task=ft.Task.classification(labels), train=train, search=(WordSearch(likely=20, tried=5, guard=False),)
    )
    words = [word for own in model.task.words.values() for word in own]
    assert len(set(words)) == len(words) and all(model.task.words[label] for label in labels)


def test_a_readout_without_a_slot_is_refused_before_anything_is_done():
    with pytest.raises(TaskError, match="--search: expected a readout that reads a word"):
        job.recipe_of(TASK, Backbone(*tiny.model("bert"), name="bert"), job.Settings(readout=ft.Head(), search=BOTH))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"search": (WordSearch(), WordSearch(by="ratio"))}, SpecError, "each search once"),
        ({"train": ()}, DataError, 'labelled rows of "no", got none'),
        ({"train": TRAIN[:4]}, DataError, 'labelled rows of "no", got none'),
        ({"task": replace(TASK, templates=("no slot: {text}",))}, TaskError, "{slot}"),
    ],
)
def test_refused_in_one_line(change, error, message):
    with pytest.raises(error, match=message):
        run("zeroshot", **change)
