"""The ladder: what it judges, what it keeps, and when it cannot judge."""

from dataclasses import replace

import pytest
import torch
from rungs import EVERY_RUNG

import fewtune as ft
from fewtune import job, precision
from fewtune.backbone import fingerprints, tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive, folds
from fewtune.deltas.lora import LoRA
from fewtune.deltas.subset import Subset
from fewtune.errors import SpecError
from fewtune.model import TunedModel
from fewtune.readout import CALIBRATIONS
from fewtune.readout.calibration import Contextual, Uncalibrated
from fewtune.readout.head import Head
from fewtune.readout.mixing import stacked
from fewtune.readout.similarity import Similarity
from fewtune.recipe import Recipe
from fewtune.routes import Routes
from fewtune.strategies import ladder
from fewtune.strategies.rungs import SHOWN, Rung
from fewtune.strategies.supervised import Supervised
from fewtune.strategies.verdict import Verdict
from fewtune.strategies.zeroshot import ZeroShot
from fewtune.tasks import kind_of
from fewtune.train.fit import FitOptions, Session

POSITIVE = ("great fun and joy", "great great joy", "joy and fun", "fun from start to finish")
NEGATIVE = ("a dull mess", "dull lifeless mess", "a mess", "lifeless and dull")
TRAIN = tuple(Example({"text": text}, label) for label, texts in (("yes", POSITIVE), ("no", NEGATIVE)) for text in texts)
TASK = ft.Task.classification(["no", "yes"], template="Review: {text}\nSentiment: {slot}", words={"no": "terrible", "yes": "great"})


def run(train=TRAIN, family="bert", task=TASK, **given):
    notes = []
    backbone = Backbone(*tiny.model(family), name=family)
    options = FitOptions(steps=given.pop("steps", 40), learning_rate=given.pop("learning_rate", 0.02))
    settings = job.Settings(strategy="ladder", fit=options, seed=3, **given)
    return job.tune(task, Split(train=train), backbone, settings, session=Session(say=notes.append)), backbone, notes


@pytest.mark.slow
def test_what_learns_the_task_is_kept_and_judged_on_rows_it_has_not_seen():
    model, _, notes = run(deltas=(Subset(),), family="llama", steps=60, learning_rate=0.003)
    assert model.about["kept"] == "tuned" and model.about["method"] == "tuned, cloze, subset" and model.deltas
    assert [rung["name"] for rung in model.about["rungs"]] == EVERY_RUNG
    estimate = model.about["estimate"]
    assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1 and estimate["rows"] == len(TRAIN)
    assert any("Kept: tuned. Estimate: " in note for note in notes)


@pytest.mark.slow
def test_tuning_that_does_nothing_is_not_kept():
    model, _, _ = run(deltas=(LoRA(rank=4),), steps=0)
    assert model.about["kept"].startswith("zero-shot") and not model.deltas and model.trained_parameters == 0


@pytest.mark.slow
def test_the_backbone_is_left_with_the_kept_deltas_only():
    model, backbone, _ = run(deltas=(Subset(),), family="llama", steps=60, learning_rate=0.003)
    model.remove()
    fresh = Backbone(*tiny.model("llama"), name="llama")
    bare = [job.tune(TASK, Split(), one, job.Settings(strategy="zeroshot"), session=Session()) for one in (backbone, fresh)]
    assert bare[0].predict(TRAIN) == bare[1].predict(TRAIN)


@pytest.mark.slow
@pytest.mark.parametrize(("readout", "names"), [(Head(), ["tuned"]), (Similarity(), ["tuned", "frozen embeddings"])])
def test_where_no_word_is_read_there_is_no_zero_shot(readout, names):
    model, _, _ = run(family="bert", readout=readout, deltas=(Subset("norms"),), steps=5)
    assert [rung["name"] for rung in model.about["rungs"]] == names


@pytest.mark.slow
def test_where_the_texts_are_read_nothing_is_calibrated_and_nothing_shown():
    task = replace(TASK, templates=())
    model, _, notes = run(task=task, family="llama", readout=ft.Channel(), deltas=(LoRA(rank=4),), steps=5)
    assert [rung["name"] for rung in model.about["rungs"]] == ["zero-shot", "tuned"] and "in-context" not in " ".join(notes)
    assert len(model.predict(TRAIN)) == len(TRAIN)


@pytest.mark.slow
def test_what_is_untuned_reads_the_rows_once_and_is_judged_as_if_it_were_alone(monkeypatch):
    read, scores = [], TunedModel.raw_scores
    monkeypatch.setattr(
        TunedModel, "raw_scores", lambda model, examples, **given: read.append(len(examples)) or scores(model, examples, **given)
    )
    model, _, _ = run(family="llama", deltas=(LoRA(rank=4),), steps=0)
    rungs = {one["name"]: one["loss"] for one in model.about["rungs"]}
    assert read.count(len(TRAIN)) == 2, "zero-shot and in-context, however many calibrations are tried of each"
    for name, shown in (("zero-shot", None), ("in-context", SHOWN)):
        for way, calibration in (("", Uncalibrated()), (" calibrated", Contextual())):
            settings = job.Settings(strategy="zeroshot", demonstrations=shown, calibration=calibration, seed=3)
            backbone = Backbone(*tiny.model("llama"), name="llama")
            alone = job.tune(TASK, Split(train=TRAIN), backbone, settings, session=Session()).log_probabilities(TRAIN)
            verdict = Verdict.of(alone, TASK, TRAIN, seed=3, tempered=True)
            assert rungs[name + way] == pytest.approx(verdict.losses_N.mean(), abs=1e-6)


def test_without_two_different_rows_of_a_label_there_is_no_estimate():
    model, _, notes = run(train=TRAIN[:5] + TRAIN[4:5], steps=5)
    assert "estimate" not in model.about and any(note.startswith("No estimate") for note in notes)


def test_it_is_what_is_done_unless_something_of_the_method_is_chosen():
    assert job.Settings().way == "ladder"
    assert job.Settings(strategy="zeroshot").way == "zeroshot"
    for chosen in ({"deltas": ()}, {"readout": Head()}, {"fit": FitOptions(steps=3)}, {"calibration": ft.Contextual()}):
        assert job.Settings(**chosen).way == "supervised"


def among(*families, **given):
    notes = []
    first, *others = (Backbone(*tiny.model(family, head=family != "t5"), name=family) for family in families)
    settings = job.Settings(backbones=families, seed=3, **given)
    model = job.tune(TASK, Split(train=TRAIN), first, settings, session=Session(say=notes.append), beside=others)
    return model, (first, *others), notes


@pytest.mark.slow
def test_of_several_plms_the_rows_choose_one_where_that_is_wanted():
    model, backbones, notes = among("llama", "t5", strategy="ladder:combine=false")
    names = [rung["name"] for rung in model.about["rungs"]]
    untuned = [f"{name}{way} (llama)" for name in ("zero-shot", "in-context") for way in ("", " calibrated")]
    learning = {"llama": ["tuned (llama)"], "t5": ["tuned (t5)", "frozen embeddings (t5)"]}
    assert names == [*untuned, *(name for one in sorted(backbones, key=lambda one: one.parameters) for name in learning[one.name])]
    assert [rung for rung in backbones if rung is model.backbone] and model.about["kept"].endswith(f"({model.backbone.name})")
    assert model.about["recipe"]["backbone"] == model.backbone.name
    assert model.about["estimate"]["rows"] == len(TRAIN) and any("Kept: " in note for note in notes)
    model.remove()


@pytest.mark.slow
def test_it_does_not_matter_which_plm_is_named_first():
    kept = [among(*families)[0] for families in (("llama", "t5"), ("t5", "llama"))]
    assert kept[0].about["kept"] == kept[1].about["kept"] and kept[0].about["rungs"] == kept[1].about["rungs"]
    torch.testing.assert_close(kept[0].probabilities(TRAIN), kept[1].probabilities(TRAIN))


@pytest.mark.slow
def test_of_several_plms_one_way_of_each_answers_side_by_side(monkeypatch):
    monkeypatch.setattr(ladder, "_JOINED", 1e9)
    monkeypatch.setattr(ladder, "_HEARD", 0.0)
    model, backbones, _ = among("llama", "bert")
    assert isinstance(model, Routes) and {one.backbone.name for one in model.models} == {"llama", "bert"}
    names = [f"{one.about['kept']} ({one.backbone.name})" for one in model.models]
    assert model.about["kept"] == " + ".join(names) == model.about["rungs"][-1]["name"] and model.about["rows"] == len(TRAIN)
    assert set(names) <= {rung["name"] for rung in model.about["rungs"]}
    assert model.about["method"] == " and ".join(f"{one.backbone.name} ({one.about['method']})" for one in model.models)
    assert model.trained_parameters == sum(one.trained_parameters for one in model.models)
    assert model.backbone_parameters == sum(one.parameters for one in backbones)
    alone = [one.probabilities(TRAIN) for one in model.models]
    mixed_NC = sum(weight * own_NC for weight, own_NC in zip(model.mix.weights_M, alone, strict=True))
    heated_NC = (mixed_NC.log() / model.calibrator.temperature).softmax(1)
    torch.testing.assert_close(model.probabilities(TRAIN), heated_NC)
    model.remove()
    assert all(fingerprints.model(one.model) == one.fingerprint for one in backbones)


ROWS = tuple(Example({"text": f"row {number}"}, ("no", "yes")[number % 2]) for number in range(16))
PLMS = {name: Backbone(*tiny.model("bert", seed=number), name=name) for number, name in enumerate(("one", "other", "third"))}


def told(*shares, task=TASK, combine=True):
    """What is judged where the PLMs, one way each, give the right label such shares in the rows, in turn."""
    rungs = tuple(
        Rung(f"zero-shot ({name})", ZeroShot(), Recipe(task=task, backbone=name, seed=3), PLMS[name]) for name in list(PLMS)[: len(shares)]
    )
    targets_N = torch.arange(len(ROWS)) % 2
    said = {}
    for rung, given in zip(rungs, shares, strict=True):
        right_N = torch.tensor([given[number // 2 % len(given)] for number in range(len(ROWS))], dtype=torch.float64)
        said[rung.name] = torch.where(targets_N[:, None] == torch.arange(2), right_N[:, None], 1 - right_N[:, None]).log()
    split = Split(train=ROWS)
    return ladder.judge(rungs, split, Session(), tempered=False, known=lambda rung: said[rung.name], combine=combine), said


def test_plms_that_know_different_things_are_joined_and_judged_by_the_mix_of_other_rows():
    judged, said = told((0.9, 0.9, 0.3), (0.9, 0.3, 0.9))
    joined = judged.rungs[-1]
    assert joined.name == "zero-shot (one) + zero-shot (other)" and judged.kept == 2
    assert judged.verdicts_M[-1].partings == 0, "nothing was learned but how to mix"
    log_MNC, targets_N, losses_N = torch.stack(list(said.values())), torch.arange(len(ROWS)) % 2, torch.zeros(len(ROWS)).double()
    for kept, held in folds(ROWS, 4, seed=derive(3, "mix")):
        mix = stacked(log_MNC[:, list(kept)], targets_N[list(kept)])
        losses_N[list(held)] = -mix(log_MNC[:, list(held)]).gather(1, targets_N[list(held), None])[:, 0].log()
    assert judged.losses_NM[:, 2] == pytest.approx(losses_N.numpy(), abs=1e-9)
    whole = stacked(log_MNC, targets_N)
    assert joined.mix.weights_M == pytest.approx(whole.weights_M) and joined.mix.temperatures_M == pytest.approx(whole.temperatures_M)
    assert [rung.name for rung in told((0.9, 0.9, 0.3), (0.9, 0.3, 0.9), combine=False)[0].rungs] == list(said)


def test_a_plm_that_knows_nothing_is_not_joined():
    judged, _ = told((0.98,), (0.5,))
    assert len(judged.rungs) == 2 and judged.kept == 0 and not judged.margins
    judged, _ = told((0.97, 0.97, 0.6), (0.5,), (0.97, 0.6, 0.97))
    assert judged.rungs[-1].name == "zero-shot (one) + zero-shot (third)"


def test_answers_of_which_several_can_be_right_are_not_mixed():
    several = replace(TASK, kind="multilabel")
    judged, said = told((0.9, 0.9, 0.3), (0.9, 0.3, 0.9), task=several)
    assert [rung.name for rung in judged.rungs] == list(said) and not judged.margins


def test_what_is_worse_than_one_alone_is_not_kept(monkeypatch):
    judged, _ = told((0.99, 0.98, 0.97), (0.7, 0.6, 0.9, 0.4))
    assert len(judged.rungs) == 3 and judged.kept == 0, "though both are heard"
    monkeypatch.setattr(ladder, "_JOINED", 1e9)
    assert told((0.99, 0.98, 0.97), (0.7, 0.6, 0.9, 0.4))[0].kept == 2


def test_several_plms_are_for_the_ladder_only():
    for given in ({"strategy": "supervised"}, {"readout": Head()}, {"strategy": "zeroshot"}):
        with pytest.raises(SpecError, match="--backbone"):
            job.Settings(backbones=("one", "other"), **given)
    assert job.Settings(backbones=("one", "other")).way == "ladder"


def test_where_no_plm_is_named_two_are_judged_and_one_is_tuned():
    usual = job.Settings()
    assert (usual.backbone, *usual.beside) == ("smollm2-135m", "minilm-l6")
    assert job.Settings(backbones=("gpt2",)).beside == () == job.Settings(deltas=()).beside
    assert job.Settings(strategy="zeroshot").beside == ()


@pytest.mark.slow
def test_the_kept_model_has_the_temperature_that_suits_rows_not_seen_unless_a_calibration_is_named():
    options = {"deltas": (Subset(),), "family": "llama", "steps": 60, "learning_rate": 0.003}
    mended, named = run(**options)[0], run(**options, calibration=Contextual())[0]
    assert mended.calibrator.temperature != 1.0 and named.calibrator.temperature == 1.0


@pytest.mark.slow
def test_examples_are_shown_where_they_come_cheap_and_there_is_room_for_them():
    def rungs(family, template):
        backbone, settings = Backbone(*tiny.model(family), name=family), job.Settings(strategy="ladder", fit=FitOptions(steps=2))
        task = ft.Task.classification(["no", "yes"], template=template, words={"no": "terrible", "yes": "great"})
        return [rung["name"] for rung in job.tune(task, Split(train=TRAIN), backbone, settings, session=Session()).about["rungs"]]

    short = "Review: {text}\nSentiment: {slot}"
    assert "in-context" in rungs("llama", short) and "in-context" not in rungs("bert", short)
    assert "in-context" not in rungs("llama", "a film " * 30 + short)


SCORES = ("4", "4.5", "3.5", "3", "1", "0.5", "1.5", "0")
RATED = tuple(Example(one.fields, score) for one, score in zip(TRAIN, SCORES, strict=True))
RATING = ft.Task.regression(low=0, high=5, poles=("terrible", "great"), template="Review: {text}\nSentiment: {slot}")


@pytest.mark.slow
def test_ratings_climb_the_same_rungs_but_those_that_show_a_label():
    model, _, notes = run(train=RATED, task=RATING, family="llama", deltas=(Subset(),), steps=60, learning_rate=0.003)
    assert [rung["name"] for rung in model.about["rungs"]] == ["zero-shot", "zero-shot calibrated", "tuned"]
    assert model.about["kept"] == "tuned" and model.about["estimate"]["metric"] == "mae"
    assert model.about["estimate"]["value"] < 2, "random texts lie 1.5 from the middle"
    assert any("Estimate: mean absolute error " in note for note in notes)


@pytest.mark.slow
def test_tuning_that_does_nothing_is_not_kept_for_ratings_either():
    model, _, _ = run(train=RATED, task=RATING, family="llama", deltas=(LoRA(rank=4),), steps=0)
    assert model.about["kept"].startswith("zero-shot") and not model.deltas


LABELLED = tuple(Example(one.fields, label) for one, label in zip(TRAIN, ["fun|good"] * 4 + ["dull"] * 3 + ["dull|bad"], strict=True))
SEVERAL = ft.Task.multilabel(["bad", "dull", "fun", "good"])


@pytest.mark.slow
@pytest.mark.parametrize(("readout", "names"), [(Head(), ["tuned"]), (Similarity(), ["tuned", "frozen embeddings"])])
def test_several_labels_are_judged_by_f1_and_the_rows_that_judge_choose_the_threshold(readout, names):
    model, _, notes = run(train=LABELLED, task=SEVERAL, readout=readout, deltas=(Subset("norms"),), steps=5)
    assert [rung["name"] for rung in model.about["rungs"]] == names and model.about["estimate"]["metric"] == "micro_f1"
    assert kind_of(model.task).threshold is not None and any(f"--kind {model.task.kind}." in note for note in notes)
    assert sum("4 folds, each like the first" in note for note in notes) <= len(names), "no folds within folds"


def test_a_threshold_that_is_named_stays():
    task = ft.Task.multilabel(["bad", "dull", "fun", "good"], threshold=0.3)
    model, _, _ = run(train=LABELLED, task=task, readout=Head(), deltas=(), steps=5)
    assert model.task == task


MORE = (*TRAIN, *(Example({"text": f"{one.fields['text']} again"}, one.label) for one in TRAIN))


@pytest.fixture
def tuned(monkeypatch):
    """How many rows each model that was tuned has learned from."""
    rows, run_it = [], Supervised.run
    monkeypatch.setattr(Supervised, "run", lambda self, recipe, split, *rest, **more: (
        rows.append(len(split.train)) or run_it(self, recipe, split, *rest, **more)
    ))  # fmt: skip
    return rows


@pytest.mark.parametrize(("worse", "judged"), [(1.0, 2), (-1.0, 4)])
def test_a_dear_way_that_is_not_better_on_the_first_rows_is_set_aside(tuned, monkeypatch, worse, judged):
    verdict_of = Verdict.of

    def of(log_NC, task, examples, **more):
        found = verdict_of(log_NC, task, examples, **more)
        return replace(found, losses_N=found.losses_N + worse) if len(examples) < len(MORE) else found

    monkeypatch.setattr(Verdict, "of", of)
    model, _, notes = run(MORE, deltas=(LoRA(rank=4),), steps=0)
    aside = judged == 2
    assert len(tuned) == judged and model.about.get("set_aside", []) == ["tuned"] * aside and model.about["kept"].startswith("zero-shot")
    assert [rung["name"] for rung in model.about["rungs"]] == ["zero-shot", "zero-shot calibrated", *(["tuned"] * (not aside))]
    assert any(note.startswith("Set aside: tuned") for note in notes) == aside


def test_few_rows_set_nothing_aside(tuned):
    model, _, _ = run(deltas=(LoRA(rank=4),), steps=0)
    assert len(tuned) == 4 and "set_aside" not in model.about and model.about["rungs"][-1]["name"] == "tuned"


@pytest.mark.slow
def test_a_dear_way_that_is_better_is_judged_on_all_rows(tuned):
    model, _, _ = run(MORE, deltas=(Subset(),), family="llama", steps=60, learning_rate=0.003)
    assert model.about["kept"] == "tuned" and "set_aside" not in model.about and len(tuned) == 4 + 1


@pytest.mark.parametrize("calibration", [None, "temperature"])
def test_the_precision_is_looked_for_once_for_all_rungs_and_folds_and_the_recipe_says_what_was_asked(calibration, monkeypatch):
    looked = []

    def settle(backbone, wanted, same):
        looked.append(wanted)
        backbone.precision = "bfloat16" if wanted == "auto" else wanted

    monkeypatch.setattr(precision, "settle", settle)
    chosen = CALIBRATIONS.from_text(calibration) if calibration else None
    model, backbone, _ = run(deltas=(LoRA(rank=4),), steps=1, calibration=chosen)
    assert looked.count("auto") == 1 and set(looked) == {"auto", "bfloat16"}
    assert backbone.precision == "bfloat16" and model.about["recipe"]["precision"] == "auto"
