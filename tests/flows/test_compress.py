"""`fewtune compress`, from a tuned model to a smaller one: by name, by promise, gone on with, and what is refused."""

import csv
import json
import re
import shutil

import pytest

import fewtune as ft
from fewtune import job, plm
from fewtune.backbone import tiny
from fewtune.data.example import Example, Split
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great", "fun", "joy", "good"), ("dull", "mess", "terrible", "lifeless")
ROWS = [
    (f"{one} and {other}{' it was' * times}", label)
    for label, words in (("positive", GOOD), ("negative", BAD))
    for one in words
    for other in words
    for times in range(2)
]
FEWER = "distill:layers=2,steps=40,learning_rate=0.003"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with a tuned model, which tests copy."""
    root = tmp_path_factory.mktemp("tuned")
    plm_folder = str(tiny.save("bert", root / "bert", blocks=6))
    rows = tuple(Example({"text": text}, label) for text, label in ROWS)
    settings = job.Settings(
        strategy="supervised", readout=ft.Head(), deltas=(ft.Subset("all"),), fit=FitOptions(steps=40, learning_rate=0.003)
    )
    model = job.tune(ft.Task.classification(["negative", "positive"]), Split(train=rows), plm.load(plm_folder), settings, session=Session())
    return model.save(root / "model")


@pytest.fixture
def model(work, tuned):
    with open(work / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    (work / "texts.csv").write_text("text\n" + "".join(f"it was {text}\n" for text, _ in ROWS))
    shutil.copytree(tuned, work / "model")
    return "model"


def hidden(work):
    return sorted(path.name for path in work.iterdir() if path.name.startswith("."))


def test_by_name_measured_and_said(fewtune, model, work):
    code, out, err = fewtune("compress", model, "--data", "rows.csv", "--unlabeled", "texts.csv", "--to", "small", "--by", FEWER, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model"] == "small" and found["kept"] and found["by"] == [FEWER] and found["target"] is None
    assert found["rows"] == {"learned": 52, "unlabeled": 64, "measured": 12}
    (tried,), full = found["tried"], found["full"]
    assert tried["bytes"]["needed"] < full["bytes"]["needed"] and tried["size"] < 1 and tried["speed"] > 0
    assert tried["drop"]["low"] <= tried["drop"]["value"] <= tried["drop"]["high"] and tried["metric"] == "accuracy"
    assert tried["bytes"]["artifact"] == sum(path.stat().st_size for path in (work / "small").iterdir()) or tried["keeps"]
    manifest = json.loads((work / "small" / "manifest.json").read_text())
    assert [delta["name"] for delta in manifest["deltas"]] == ["shallow", "subset"]
    assert manifest["about"]["compressed"]["by"] == [FEWER] and "estimate" not in manifest["about"]
    assert "| compressed | distill" in (work / "small" / "README.md").read_text()
    assert hidden(work) == []
    code, out, err = fewtune("evaluate", "small", "rows.csv", "--json")
    assert code == 0 and json.loads(out)["metrics"]["accuracy"]["value"] >= 0.8, err
    code, out, err = fewtune("compress", "small", "--data", "rows.csv", "--to", "smaller", "--by", "distill:layers=1,steps=5")
    assert code == 0 and "lost" in out and "taken" in out and "model  smaller" in out, err
    manifest = json.loads((work / "smaller" / "manifest.json").read_text())
    assert manifest["deltas"][0]["layers"] == [0] and len(manifest["about"]["compressed"]["by"]) == 2


def test_two_teachers_are_another_job_than_one(fewtune, model, work):
    command = ("compress", model, "--data", "rows.csv", "--to", "small", "--by", "distill:layers=2,steps=3")
    code, _, err = fewtune(*command, "--teacher", model)
    assert code == 0 and "rows are answered by 2 teachers" in err, err
    code, _, err = fewtune(*command, "--target", "size=0.0001")
    assert code == 2 and "Name another folder" in err
    code, _, err = fewtune(*command, "--target", "size=0.0001", "--overwrite")
    assert code == 1 and "rows are answered by the teacher" in err and (work / "small").exists()


def test_a_promise_that_none_keeps_writes_nothing_and_a_looser_one_goes_on(fewtune, model, work):
    command = ("compress", model, "--data", "rows.csv", "--to", "small", "--by", FEWER)
    code, out, err = fewtune(*command, "--target", "size=0.001", "--json")
    assert code == 1 and "expected a model that keeps size=0.001, got none" in err
    found = json.loads(out)
    assert (found["model"], found["kept"], found["by"]) == (None, False, None) and not found["tried"][0]["keeps"]
    assert not (work / "small").exists() and hidden(work) == [".small.work"]
    code, out, err = fewtune(*command, "--target", "size=0.9", "--json")
    assert code == 0 and "It is there already." in err, err
    assert json.loads(out)["target"] == "size=0.9" and hidden(work) == []


def test_the_ladder_is_tried_and_the_best_is_taken(fewtune, model, work):
    code, out, err = fewtune("compress", model, "--data", "rows.csv", "--to", "small", "--target", "size=0.95,speed=0.01", "--json")
    assert code == 0, err
    found = json.loads(out)
    kept = [one for one in found["tried"] if one.get("keeps")]
    assert found["by"] == min(kept, key=lambda one: (one["drop"]["value"], one["size"]))["by"]
    assert all("refused" in one or one["size"] > 0 for one in found["tried"])
    assert "narrow is there already." in err and "distill is there already." in err


def test_no_row_that_measures_is_learned_from(fewtune, model, work):
    """Neither a text that stands twice, nor one of the pool, whatever its case and punctuation, nor one that others have labelled."""
    with open(work / "rows.csv", "a", newline="") as file:
        csv.writer(file).writerows(ROWS[:20])
    (work / "pool.csv").write_text("text\n" + "".join(f"{text.upper()}!\n" for text, _ in ROWS) + "a new text\n")
    (work / "labels.csv").write_text("text,label,probability\n" + "".join(f"{text},{label},0.9\n" for text, label in ROWS))
    command = ("compress", model, "--data", "rows.csv", "--unlabeled", "pool.csv", "--teacher", "labels.csv", "--to", "small", "--json")
    code, out, err = fewtune(*command, "--by", "distill:layers=2,steps=2")
    assert code == 0, err
    assert json.loads(out)["rows"] == {"learned": 52, "unlabeled": 53, "taught": 52, "measured": 12}
    assert "20 labelled rows have a text that stands there before" in err and "24 other rows are left out" in err
    assert "157 rows are answered" in err


def test_labels_from_elsewhere_are_another_job(fewtune, model, work):
    (work / "labels.csv").write_text("text,label,probability\na joy,positive,0.9\na mess,negative,0.8\n")
    command = ("compress", model, "--data", "rows.csv", "--to", "small", "--by", "narrow:steps=2", "--target", "size=0.0001")
    for more, rows in ((), 52), (("--teacher", "labels.csv"), 54):
        code, _, err = fewtune(*command, *more)
        assert code == 1 and f"{rows} rows are answered by the teacher" in err, err


def test_here_is_a_place_too(fewtune, model, work, monkeypatch):
    (work / "here").mkdir()
    monkeypatch.chdir(work / "here")
    code, _, err = fewtune("compress", "../model", "--data", "../rows.csv", "--to", ".", "--by", "int8")
    assert code == 0 and (work / "here" / "manifest.json").exists() and hidden(work) == [], err


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "expected ways or a promise, got neither"),
        (("--by", "distil"), 'Did you mean "distill"'),
        (("--by", "distill:layers=9"), "at most 6 layers"),
        (("--by", "distill:layers"), "expected field=value"),
        (("--target", "siz=1"), 'Did you mean "size"'),
        (("--target", "size=0"), "--target.size: expected a share of the bytes, above 0, got 0.0"),
        (("--target", "size=inf"), "--target.size: expected a share of the bytes"),
        (("--target", "size=0.5,size=0.6"), '--target: expected each field once, got "size" twice'),
        (("--by", "distill:temperature=0"), "distill.temperature: expected above 0, got 0.0"),
        (("--target", ""), "expected a promise"),
        (("--by", "narrow", "--teacher", "model"), "--teacher: expected a way that has teachers"),
        (("--by", "distill", "--teacher", "none"), "none: expected an artifact"),
        (("--by", "distill", "--data", "few.csv"), "expected at least 20 labelled rows, no two alike, got 4"),
        (("--by", "distill", "--data", "texts.csv"), "label"),
        (("--by", "distill", "--to", "model"), "Name another folder"),
        (("--by", "distill", "--data", "none.csv"), "none.csv"),
        (("--by", "distill", "--teacher", "rows.csv", "--text", "nothing"), "nothing"),
        (("--by", "distill", "--to", "rows.csv/small"), "rows.csv/small: expected a place to write to, got Not a directory"),
        (("--by", "distill", "--to", "/proc/small"), "expected a place to write to"),
        (("--by", "int8", "--device", "foo"), '--device: expected a device of this machine, got "foo"'),
        (("--by", "int8", "--device", "cuda:99"), "--device: expected a device of this machine"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fewtune, model, work, options, message):
    (work / "few.csv").write_text("text,label\ngreat,positive\nbad,negative\ngood,positive\ndull,negative\n")
    code, out, err = fewtune("compress", model, "--data", "rows.csv", "--to", "small", *options)
    assert (code, out) == (2, "") and re.search(message, err.strip().splitlines()[-1]), err
    assert not (work / "small").exists()
