"""PET and iPET on tiny models: what the student learns, what the guard keeps, and that it always ends."""

from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import artifact, estimate, job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.deltas.subset import Subset
from fewtune.errors import DataError, SpecError, TaskError
from fewtune.readout.mixing import Mix
from fewtune.readout.prior import PriorMatching
from fewtune.readout.similarity import Similarity
from fewtune.settings import with_pool
from fewtune.strategies import STRATEGIES, pet
from fewtune.strategies.pet import IPet, Pet
from fewtune.strategies.school import School
from fewtune.strategies.supervised import Supervised
from fewtune.strategies.zeroshot import ZeroShot
from fewtune.train.adapt import TaskAdaptive
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great", "fun", "joy"), ("dull", "mess", "lifeless")
POSITIVE = ("great fun and joy", "great great joy", "joy and fun", "fun from start to finish")
NEGATIVE = ("a dull mess", "dull lifeless mess", "a mess", "lifeless and dull")
TRAIN = tuple(Example({"text": text}, label) for label, texts in (("yes", POSITIVE), ("no", NEGATIVE)) for text in texts)
POOL = tuple(
    Example({"text": f"{one} {between} {other}"})
    for words in (GOOD, BAD)
    for one in words
    for between in ("and", "a", "from")
    for other in words
)
TASK = ft.Task.classification(["no", "yes"], template="Review: {text}\nSentiment: {slot}", words={"no": "terrible", "yes": "great"})
OPTIONS = FitOptions(steps=30, learning_rate=0.005)


def truth(text):
    return "yes" if set(text.split()) & set(GOOD) else "no"


def settings(strategy, fit=OPTIONS, **given):
    return job.Settings(strategy=strategy, fit=fit, seed=3, deltas=(Subset(),), **given)


def run(strategy, *, train=TRAIN, pool=POOL, families=("llama",), task=TASK, folder=None, **given):
    notes = []
    first, *beside = [Backbone(*tiny.model(family), name=family) for family in families]
    session = Session(folder, "key", say=notes.append)
    split = Split(train=train, unlabeled=pool)
    model = job.tune(task, split, first, settings(strategy, backbones=families, **given), session=session, beside=beside)
    return model, notes


def accuracy(model):
    return sum(answer.label == truth(row.fields["text"]) for row, answer in zip(POOL, model.predict(POOL), strict=True)) / len(POOL)


@pytest.mark.slow
def test_the_student_of_teachers_that_know_the_task_knows_it():
    model, notes = run("pet:guard=false", families=("llama", "bert"), fit=FitOptions(steps=60, learning_rate=0.003))
    assert accuracy(model) > 0.7 and model.backbone.name == "bert", "bert is the smaller of the two"
    assert model.about["kept"] == "pet" and model.about["method"] == "pet, head, lora"
    assert model.about["pet"]["rows"] == len(POOL) - len({row.fields["text"] for row in TRAIN} & {row.fields["text"] for row in POOL})
    assert [one["name"].split()[0] for one in model.about["pet"]["members"]] == ["llama", "llama", "bert"]
    assert [one["name"].endswith("in-context") for one in model.about["pet"]["members"]] == [False, True, False]
    assert any("Step 3 of 3: the student, bert" in note for note in notes)


def test_a_pool_of_labelled_texts_only_is_refused():
    with pytest.raises(DataError, match="none but labelled ones"):
        run("pet", pool=tuple(replace(row, label=None) for row in TRAIN))


def test_rows_that_stand_for_the_pool_are_from_all_over_it():
    school = school_of()
    sample = school.sample(12)
    assert {truth(row.fields["text"]) for row in sample} == {"yes", "no"}, "the pool has all of one before the other"
    assert all(row in sample for row in school.sample(5)) and all(row in school.pool for row in sample)


def school_of(spec=None, say=lambda line: None, **split):
    backbone = Backbone(*tiny.model("bert"), name="bert")
    given = Split(**{"train": TRAIN, "unlabeled": POOL, **split})
    return School.of(spec or Pet(), [(job.recipe_of(TASK, backbone, settings("pet")), backbone)], given, Session(say=say))


def test_no_row_that_a_teacher_has_labelled_is_lost_in_a_large_pool():
    told = taught([Example({"text": f"great {number}"}) for number in range(30)])
    many = tuple(Example({"text": f"a mess {number}"}) for number in range(400))
    texts = [row.fields["text"] for row in school_of(Pet(most=100), unlabeled=many, taught=told).pool]
    assert len(texts) == 100 and {row.fields["text"] for row in told} < set(texts)
    assert len(school_of(Pet(most=20), unlabeled=many, taught=told).pool) == 20
    sample = school_of(Pet(most=100), unlabeled=many, taught=told).sample(50)
    assert sum(row.fields["text"].startswith("great") for row in sample) == pytest.approx(15, abs=6), "it stands for all of them"


def test_a_row_that_a_teacher_has_labelled_and_the_pool_has_is_there_once():
    assert len(school_of(taught=taught(POOL)).pool) == len(school_of().pool)


@pytest.mark.slow
def test_only_the_student_stays_in_its_backbone(tmp_path):
    model, _ = run("pet:guard=false")
    answers = model.predict(POOL)
    model.save(tmp_path / "model")
    assert artifact.load(tmp_path / "model", backbone=Backbone(*tiny.model("llama"), name="llama")).predict(POOL) == answers


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "kept"), [("pet:margin=0", False), ("ipet:growth=2,margin=50", True)])
def test_the_guard_judges_the_student_with_the_other_ways(strategy, kept):
    model, notes = run(strategy)
    assert [one["name"] for one in model.about["rungs"]][-2:] == ["tuned", "student (llama)"]
    assert 0 <= model.about["estimate"]["low"] <= model.about["estimate"]["high"] <= 1
    assert any(note.startswith("Judging the student") for note in notes)
    about = model.about["pet"]
    assert about["kept"] is kept and (model.about["kept"] == "pet") is kept and (model.about["method"] == "pet, head, lora") is kept
    assert about["asked"]["name"] == strategy.split(":")[0] and about["asked"]["margin"] == (50 if kept else 0)
    assert about["rows"] and all(0 <= one["weight"] <= 1 for one in about["members"])
    assert about.get("reason") in (notes if not kept else [None])


def test_a_student_that_is_right_less_often_is_refused_whatever_its_loss_is(monkeypatch):
    monkeypatch.setattr(estimate, "worse", lambda one, other: True)
    model, notes = run("pet:margin=50")
    assert model.about["pet"]["kept"] is False and model.about["pet"]["reason"] in notes
    assert model.about["pet"]["reason"].startswith("The student is not kept: on rows not seen it is worse (")


ONE_OF_EACH = (TRAIN[0], TRAIN[-1])


def test_what_must_not_be_worse_is_not_kept_where_nobody_can_judge_it():
    model, notes = run("pet:margin=0", train=ONE_OF_EACH)
    assert model.about["pet"]["kept"] is False and "two different rows of each label" in model.about["pet"]["reason"]
    assert model.about["pet"]["reason"] in notes and model.about["method"] == "tuned, cloze, subset"
    assert model.about["pet"]["shift"] < pet.SHIFTED, "that can be said of two rows, too"


def test_pet_by_name_goes_on_where_nobody_can_judge_it_and_says_so():
    model, notes = run("pet:merge=weighted", train=ONE_OF_EACH)
    assert model.about["pet"]["kept"] and model.about["kept"] == "pet"
    assert any(note.startswith("No estimate and no guard: they need two different rows of each label.") for note in notes)
    assert any(one["weight"] < 1 for one in model.about["pet"]["members"]), "how right members were before tuning is known nonetheless"


@pytest.mark.parametrize("strategy", ["pet", "pet:margin=0"])
def test_a_pool_from_elsewhere_is_not_learned_from_either_where_nobody_can_judge(strategy, monkeypatch):
    monkeypatch.setattr(pet, "SHIFTED", 0.0)
    model, notes = run(strategy, train=ONE_OF_EACH)
    assert model.about["pet"]["kept"] is False and "do not look like the labelled ones" in model.about["pet"]["reason"]
    assert model.about["pet"]["asked"]["margin"] == (1 if strategy == "pet" else 0)
    assert [one["name"].split()[0] for one in model.about["pet"]["members"]] == ["llama", "llama"]


@pytest.mark.slow
def test_a_pool_from_elsewhere_is_not_learned_from(monkeypatch):
    monkeypatch.setattr(pet, "SHIFTED", 0.5)  # states of a random model tell little apart
    foreign = tuple(Example({"text": f"{number} capital of the country {number}"}) for number in range(40))
    far = replace(settings("pet"), fit=FitOptions(steps=5, learning_rate=0.003))
    notes, backbone = [], Backbone(*tiny.model("llama"), name="llama")
    model = job.tune(TASK, Split(train=TRAIN, unlabeled=foreign), backbone, far, session=Session(say=notes.append))
    assert model.about["pet"]["kept"] is False and model.about["pet"]["shift"] > 0.5
    assert any("do not look like the labelled ones" in note for note in notes)
    assert model.about["kept"] != "pet" and "estimate" in model.about


@pytest.mark.slow
def test_ipet_starts_from_no_labelled_row_at_all():
    model, notes = run("ipet:generations=1,first=5", train=())
    assert model.about["pet"]["generations"] == 1 and any("No estimate and no guard" in note for note in notes)
    assert any("Generation 1 learns from 10 of these rows beside the labelled ones" in note for note in notes)


def test_without_labelled_rows_somebody_must_be_able_to_answer():
    with pytest.raises(DataError, match="answers without"):
        run("pet", train=(), readout=Similarity(), families=("bert",))


@pytest.mark.parametrize("strategy", ["pet", "ipet"])
def test_without_unlabelled_rows_it_is_refused(strategy):
    with pytest.raises(DataError, match="unlabelled rows"):
        run(strategy, pool=())


def test_a_task_without_right_and_wrong_answers_is_refused():
    task = ft.Task(labels=("joy", "fear"), kind="multilabel:threshold=0.5")
    with pytest.raises((TaskError, SpecError)):
        run("pet", task=task, train=(Example({"text": "a"}, "joy"),))


@pytest.mark.slow
def test_with_a_single_row_of_a_label_it_ends():
    school = ft.Task.classification(["no", "yes", "never"], template="Review: {text}\nSentiment: {slot}")
    task = replace(school, words={"no": ("terrible",), "yes": ("great",), "never": ("capital",)})
    train = (*TRAIN, Example({"text": "start"}, "never"))
    model, notes = run("ipet:generations=1", task=task, train=train)
    assert model.about["pet"]["generations"] == 1
    assert any("No estimate and no guard" in note for note in notes), "a single row of a label cannot be held out"


def generation(spec, *, found, train=TRAIN):
    """What is said of a generation if each member `found` so many rows to be a yes, and the others a no."""
    notes, backbone = [], Backbone(*tiny.model("bert"), name="bert")
    task = replace(TASK, templates=("{text} {slot}", "{text} It was {slot}")[: len(found)])
    recipe = job.recipe_of(task, backbone, settings("pet"))
    school = School.of(spec, [(recipe, backbone)], Split(train=train, unlabeled=POOL), Session())
    rows = len(school.pool)
    log_MNC = torch.stack([torch.tensor([[0.1, 0.9]] * yes + [[0.9, 0.1]] * (rows - yes)).log() for yes in found])
    sets = school._next_sets(train, school.pool, log_MNC, Mix.equal(len(found)), 1)
    school._say_generation(train, sets, 1, Session(say=notes.append))
    return notes


def test_a_generation_that_has_what_it_asks_for_says_how_much_that_is():
    assert generation(Pet(growth=3.0), found=(20, 20)) == ["Generation 1 learns from 16 of these rows beside the labelled ones."]


def test_a_pool_smaller_than_the_training_set_that_is_asked_for_is_said():
    (said,) = generation(Pet(growth=20.0), found=(20, 20))
    assert said.endswith(" of these rows beside the labelled ones, not from 152: the pool has no more.")
    (said,) = generation(Pet(first=100), found=(20, 20), train=())
    assert said.endswith(" of these rows beside the labelled ones, not from 200: the pool has no more.")


def test_a_label_of_which_few_or_no_rows_are_found_is_said_of_all_members():
    (said,) = generation(Pet(growth=3.0), found=(5, 20))
    assert said.startswith("Generation 1 learns from 13 to 16 of these rows") and said.endswith(
        "not from 16: no more are found of some labels."
    )
    _, said = generation(Pet(growth=3.0), found=(0, 0))
    assert said == "Generation 1 has no row of yes beside the labelled ones."


def test_a_single_member_that_learns_from_itself_is_said():
    assert generation(Pet(growth=3.0), found=(20,))[1:] == ["There is a single member, so it learns from what it said itself."]


@pytest.mark.slow
def test_answers_are_kept_for_a_job_that_is_typed_again(tmp_path):
    one, _ = run("pet:guard=false", folder=tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("*.answers.safetensors"))
    assert len(kept) == 10, "two members in four folds, and on all rows"
    again, notes = run("pet:guard=false", folder=tmp_path)
    assert again.predict(POOL) == one.predict(POOL)
    assert sum(note.startswith("Tuning") for note in notes) <= 1, "no member is tuned again"
    other, _ = run("pet:guard=false")
    assert other.predict(POOL) == one.predict(POOL)


@pytest.mark.slow
def test_the_merge_rules_of_the_papers_are_to_be_had():
    for rule in ("probabilities", "logits", "weighted"):
        model, _ = run(f"pet:guard=false,merge={rule}")
        weights = [one["weight"] for one in model.about["pet"]["members"]]
        assert weights == [1, 1] or (rule == "weighted" and all(0 < weight <= 1 for weight in weights))


def test_weights_before_tuning_take_one_pass_of_a_pattern(monkeypatch):
    passes, before = [], ZeroShot.run
    monkeypatch.setattr(ZeroShot, "run", lambda self, *given, **named: passes.append(given) or before(self, *given, **named))
    backbone = Backbone(*tiny.model("llama"), name="llama")
    recipe = job.recipe_of(TASK, backbone, settings("pet"))
    school = School.of(Pet(merge="weighted"), [(recipe, backbone)], Split(train=TRAIN, unlabeled=POOL), Session())
    assert len(school.members) == 2, "one of them is shown rows"
    right_MN = school._untuned(TRAIN)
    weights = school._weights(right_MN)
    assert len(passes) == 1 and weights[0] == weights[1] == max(1e-3, right_MN[0].mean().item())
    assert school._weights(right_MN[:, :4]) == [max(1e-3, right_MN[0, :4].mean().item())] * 2


def test_a_pool_travels_with_members_only_where_they_read_it():
    backbone = Backbone(*tiny.model("bert"), name="bert")
    for given, read in (({}, False), ({"adapt": (TaskAdaptive(),)}, True), ({"calibration": PriorMatching()}, True)):
        recipe = job.recipe_of(TASK, backbone, settings("pet", **given))
        (member,) = School.of(Pet(), [(recipe, backbone)], Split(train=TRAIN, unlabeled=POOL), Session()).members
        assert member.pool == (POOL if read else ())


@pytest.mark.slow
def test_no_fold_is_tuned_where_none_decides_anything(tmp_path):
    run("pet:guard=false,merge=probabilities", folder=tmp_path)
    assert len(list(tmp_path.glob("*.answers.safetensors"))) == 2, "two members on all rows"


@pytest.mark.parametrize("value", ["patterns=-1", "growth=1", "share=0", "temperature=0", "generations=-1", "merge=none"])
def test_values_out_of_range_are_refused(value):
    with pytest.raises(SpecError):
        STRATEGIES.from_text(f"pet:{value}")


def test_ipet_is_pet_in_three_generations():
    assert STRATEGIES.from_text("ipet") == IPet() and IPet().generations == 3 and Pet().generations == 0


def texts(count):
    return tuple(Example({"text": f"text {number}"}) for number in range(count))


def settled(pool, given=None, task=TASK, train=TRAIN, taught=()):
    """The way that is taken, and what is said of it."""
    notes = []
    way = with_pool(task, given or job.Settings(), Split(train=train, unlabeled=pool, taught=taught), notes.append).way
    return way, " ".join(notes)


def test_enough_unlabelled_rows_are_learned_from_by_default():
    assert settled(texts(500)) == ("pet", "") and settled(()) == ("ladder", "")
    few = "The 20 unlabelled rows are not learned from (fewer than 200); --strategy pet decides otherwise."
    assert settled(texts(20)) == ("ladder", few) and settled(texts(1))[1].startswith("The one unlabelled row is not learned from")
    for named in ("ladder", "supervised"):
        assert settled(texts(500), job.Settings(strategy=named)) == (named, "")


def test_what_counts_are_different_texts_that_are_not_labelled_ones():
    assert settled(texts(1) * 500)[1].startswith(
        "The 500 unlabelled rows are not learned from (fewer than 200 different texts that are not labelled: 1)"
    )
    labelled = tuple(replace(row, label="yes") for row in texts(300))
    way, said = settled(texts(350), train=labelled)
    assert way == "ladder" and "fewer than 200 different texts that are not labelled: 50" in said
    assert settled(texts(500), train=labelled) == ("pet", "")


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"fit": FitOptions(steps=3)}, "--steps"),
        ({"fit": FitOptions(learning_rate=0.1)}, "--learning-rate"),
        ({"deltas": ()}, "--delta"),
        ({"readout": Similarity()}, "--readout"),
    ],
)
def test_a_pool_is_not_ignored_without_a_word_where_something_settles_the_method(given, flag):
    expected = f"The 480 unlabelled rows are not learned from ({flag} settles the method); --strategy pet decides otherwise."
    assert settled(texts(480), job.Settings(**given)) == ("supervised", expected)


def test_nothing_is_said_where_something_else_reads_the_pool():
    assert settled(texts(480), job.Settings(calibration=PriorMatching())) == ("supervised", "")
    assert settled(texts(480), job.Settings(adapt=(TaskAdaptive(),), deltas=())) == ("supervised", "")


def test_of_a_task_that_pet_cannot_learn_no_strategy_is_advised():
    regression = ft.Task(labels=("low", "high"), kind="regression:low=0,high=1")
    assert settled(texts(480), task=regression) == (
        "ladder",
        "The 480 unlabelled rows are not learned from (regression:low=0,high=1 is not learned so).",
    )


@pytest.mark.slow
def test_soft_labels_are_learned():
    shares = {"yes": 0.8, "no": 0.2}
    rows = tuple(replace(row, label=None, shares=shares) for row in TRAIN)
    backbone = Backbone(*tiny.model("llama"), name="llama")
    recipe = job.recipe_of(TASK, backbone, replace(settings("supervised"), fit=FitOptions(steps=150, learning_rate=0.003)))
    model = Supervised().run(recipe, Split(train=rows), backbone, session=Session())
    assert model.probabilities(TRAIN)[:, 1].mean().item() == pytest.approx(0.8, abs=0.05)
    model.remove()


def test_a_readout_that_learns_from_pairs_refuses_soft_labels():
    backbone = Backbone(*tiny.model("bert"), name="bert")
    recipe = job.recipe_of(replace(TASK, templates=()), backbone, settings("supervised", readout=Similarity()))
    rows = tuple(replace(row, label=None, shares={"yes": 1.0}) for row in TRAIN)
    with pytest.raises(TaskError, match="soft labels"):
        Supervised().run(recipe, Split(train=rows), backbone, session=Session())


@pytest.mark.slow
def test_members_learn_nothing_from_the_labels_of_the_pool():
    lied = tuple(replace(row, label="no") for row in POOL)
    one, two = (run("pet:guard=false", pool=pool)[0].probabilities(TRAIN) for pool in (POOL, lied))
    assert torch.equal(one, two)


def taught(rows, right=1.0):
    """A teacher who is right in a share of the rows."""
    found = []
    for number, row in enumerate(rows):
        label = truth(row.fields["text"])
        if number >= right * len(rows):
            label = {"yes": "no", "no": "yes"}[label]
        found.append(replace(row, label=None, shares={label: 0.9, {"yes": "no", "no": "yes"}[label]: 0.1}))
    return tuple(found)


def with_teacher(strategy, teacher, *, pool=POOL, train=TRAIN):
    notes, backbone = [], Backbone(*tiny.model("llama"), name="llama")
    split = Split(train=train, unlabeled=pool, taught=teacher)
    return job.tune(TASK, split, backbone, settings(strategy), session=Session(say=notes.append)), notes


@pytest.mark.slow
def test_a_teacher_alone_stands_in_for_members():
    model, notes = with_teacher("pet:patterns=0,guard=false", taught(POOL), pool=())
    assert [one["name"] for one in model.about["pet"]["members"]] == [f"a teacher of {len(POOL)} rows"]
    assert accuracy(model) > 0.7 and not any("Steps 1 and 2" in note for note in notes), "nobody is tuned"
    assert any(note.startswith(f"1 member: a teacher of {len(POOL)} rows. ") for note in notes)


def test_of_a_text_that_a_teacher_names_several_times_the_mean_is_heard_and_that_is_said():
    said = [("fun", 0.9), ("mess", 0.2), ("fun", 0.9), ("fun", 0.3)]
    told = tuple(Example({"text": text}, shares={"yes": share, "no": 1 - share}) for text, share in said)
    notes = []
    teacher = school_of(taught=told, say=notes.append).members[-1]
    assert teacher.name == "a teacher of 2 rows" and teacher.said[("fun",)] == pytest.approx((0.3, 0.7))
    assert "The teacher speaks of 1 text more than once: the mean of what it says is heard." in notes


@pytest.mark.slow
def test_a_teacher_is_audited_on_labelled_rows():
    known = taught((*POOL, *TRAIN))
    model, notes = with_teacher("pet:patterns=0,guard=false", known)
    audit = model.about["pet"]["audit"]
    assert audit["rows"] == len(TRAIN) and audit["accuracy"]["value"] == 1 and audit["accuracy"]["low"] < 1
    assert any("The teacher is right on 100 %" in note for note in notes)
    nothing, notes = with_teacher("pet:patterns=0,guard=false", taught(POOL[:20]))
    assert nothing.about["pet"]["audit"]["rows"] == len({row.fields["text"] for row in POOL[:20]} & {row.fields["text"] for row in TRAIN})


@pytest.mark.slow
def test_a_teacher_beside_members_is_weighed_by_the_audit():
    weights = {}
    for right in (1.0, 0.0):
        model, _ = with_teacher("pet:guard=false", taught((*TRAIN, *POOL), right))
        weights[right] = next(one["weight"] for one in model.about["pet"]["members"] if "teacher" in one["name"])
    assert weights[1.0] > weights[0.0]


@pytest.mark.slow
def test_rows_of_which_the_teacher_says_nothing_are_left_to_the_members():
    model, _ = with_teacher("ipet:guard=false,generations=1,share=1", taught(POOL[:10]))
    assert model.about["pet"]["rows"] > 20 and torch.isfinite(model.probabilities(POOL)).all()


def test_a_teacher_needs_a_strategy_that_learns_from_one():
    with pytest.raises(SpecError, match="learns from a teacher"):
        settled((), job.Settings(strategy="supervised"), taught=taught(POOL))
    assert settled((), taught=taught(POOL)) == ("pet", "")


def test_a_backbone_or_a_template_that_is_named_twice_counts_once():
    assert job.Settings(("a", "b", "a"), strategy="pet").judged == ("a", "b") and job.Settings(("a", "a")).beside == ()
    backbone = Backbone(*tiny.model("bert"), name="bert")
    task = replace(TASK, templates=("{text} {slot}", "{text} It was {slot}", "{text} {slot}"))
    recipe = job.recipe_of(task, backbone, settings("pet"))
    assert len(School.of(Pet(), [(recipe, backbone)], Split(train=TRAIN, unlabeled=POOL), Session()).members) == 2


def test_the_texts_of_a_teacher_are_unlabelled_rows_to_those_that_adapt():
    backbone = Backbone(*tiny.model("llama"), name="llama")
    split = Split(train=TRAIN, taught=taught(POOL))
    wanted = settings("pet:patterns=1,guard=false,shown=false,merge=probabilities", FitOptions(steps=1), adapt=(TaskAdaptive(steps=1),))
    notes = []
    job.tune(TASK, split, backbone, wanted, session=Session(say=notes.append))
    assert any(f"to the language of {len(POOL)} unlabelled texts" in note for note in notes)


@pytest.mark.slow
def test_from_python_a_teacher_is_a_list_or_a_file(tmp_path):
    (tmp_path / "teacher.csv").write_text("text,label\n" + "".join(f"{row.fields['text']},{truth(row.fields['text'])}\n" for row in POOL))
    backbone = Backbone(*tiny.model("bert"), name="bert")
    model = ft.fit(TASK, TRAIN, teacher=str(tmp_path / "teacher.csv"), backbone=backbone, strategy="pet:patterns=0,guard=false")
    assert model.about["kept"] == "pet"


def test_each_pattern_with_each_verbalizer_is_a_member():
    backbone = Backbone(*tiny.model("bert"), name="bert")
    words = {"no": ("terrible", "dull"), "yes": ("great", "fun")}
    task = replace(TASK, words=words, templates=("{text} It was {slot}.", "{text} {slot}"))
    recipe = job.recipe_of(task, backbone, settings("pet"))
    split = Split(train=TRAIN, unlabeled=POOL)
    members = School.of(Pet(words="each"), [(recipe, backbone)], split, Session()).members
    assert [(one.recipe.task.templates[0], one.recipe.task.words["yes"]) for one in members] == [
        (text, (word,)) for text in task.templates for word in words["yes"]
    ]
    assert len({one.name for one in members}) == 4
    assert len(School.of(Pet(), [(recipe, backbone)], split, Session()).members) == 2
    with pytest.raises(TaskError, match="as many words of each label"):
        School.of(Pet(words="each"), [(replace(recipe, task=replace(task, words={"no": ("a", "b")})), backbone)], split, Session())


@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
def test_the_members_precision_is_settled_and_the_student_has_the_one_that_was_asked_for(asked):
    backbone = Backbone(*tiny.model("bert"), name="bert")
    recipe = replace(job.recipe_of(TASK, backbone, job.Settings()), precision=asked)
    school = School.of(Pet(), [(recipe, backbone)], Split(train=TRAIN, unlabeled=POOL), Session())
    assert {member.recipe.precision for member in school.members} == {"float32" if asked == "auto" else asked}
    assert school._student_recipe(8).precision == asked
