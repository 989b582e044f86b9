"""Of two PLMs one way of each answers side by side: the folder that `fit` writes, who reads it, and who says that it is two."""

import json
import shutil

import pytest

import fewtune as ft
from fewtune import folders
from fewtune.backbone import tiny
from fewtune.routes import Routes
from fewtune.runs.labelling import Labeller
from fewtune.strategies import ladder

pytestmark = pytest.mark.slow
WORDS = ("--words", "positive=great|good,negative=terrible")


@pytest.fixture
def work(work, fewtune, monkeypatch):
    """A folder `model` on two tiny PLMs, and what `fit` printed of it."""
    monkeypatch.setattr(ladder, "_JOINED", 1e9)
    monkeypatch.setattr(ladder, "_HEARD", 0.0)
    for family in ("llama", "bert"):
        tiny.save(family, work / family)
    plms = ("--backbone", "llama", "--backbone", "bert")
    code, out, err = fewtune("fit", "train.csv", "--out", "model", *plms, *WORDS, "--test", "train.csv", "--json")
    assert code == 0, err
    (work / "printed.json").write_text(out)
    return work


def test_what_is_saved_answers_as_what_was_measured(work, fewtune):
    printed = json.loads((work / "printed.json").read_text())
    manifest = json.loads((work / "model" / "manifest.json").read_text())
    assert sorted(path.name for path in (work / "model").iterdir()) == ["README.md", "manifest.json", "route-1", "route-2"]
    assert printed["bytes"]["model"] == sum(path.stat().st_size for path in (work / "model").rglob("*") if path.is_file())
    assert {one["backbone"] for one in manifest["routes"]} == {"llama", "bert"} and printed["method"] == manifest["about"]["method"]
    assert printed["estimate"] == manifest["about"]["estimate"]
    assert printed["trained_parameters"] == manifest["trained_parameters"]
    card = (work / "model" / "README.md").read_text()
    assert "[route-2](route-2/README.md)" in card and "base_model: [" in card

    code, out, err = fewtune("evaluate", "model", "train.csv", "--json")
    assert code == 0 and json.loads(out)["metrics"] == printed["metrics"], err
    assert [one["backbone"] for one in json.loads(out)["routes"]] == [one["backbone"] for one in manifest["routes"]]
    code, out, err = fewtune("evaluate", "model", "train.csv")
    assert code == 0 and "alone" in out and "llama" in out and "bert" in out, err
    code, out, err = fewtune("predict", "model", "train.csv", "--format", "jsonl")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    model = ft.load("model")
    assert isinstance(model, Routes)
    texts = [answer["review"] for answer in answers]
    assert [one.label for one in model.predict(texts)] == [answer["label"] for answer in answers]
    # An actor of Ray's gets the files alone.
    files = {name: (work / "model" / name).read_bytes() for name in ("manifest.json", *manifest["files"])}
    there = Labeller(files, None, 32)(list(model.examples(texts)))
    assert [one.probability for one in there.answers] == pytest.approx([one.probability for one in model.predict(texts)])


def test_each_route_is_a_model_by_itself(work, fewtune):
    code, out, err = fewtune("evaluate", "model/route-2", "train.csv", "--json")
    assert code == 0 and "accuracy" in json.loads(out)["metrics"], err
    alone, together = ft.load("model/route-2"), ft.load("model")
    texts = ["great fun and joy", "a dull mess"]
    assert [one.probability for one in alone.predict(texts)] == [one.probability for one in together.models[1].predict(texts)]
    assert alone.about["method"] == together.models[1].about["method"] != ""
    together.save("again")
    for name in ("manifest.json", "route-1/manifest.json", "route-2/manifest.json"):
        assert (work / "again" / name).read_bytes() == (work / "model" / name).read_bytes()


def test_who_can_work_on_one_plm_only_says_so_in_one_line(work, fewtune):
    rows = ("--data", "train.csv")
    for command in (
        ("inspect", "model", "train.csv"),
        ("export-onnx", "model", "--out", "other"),
        ("compress", "model", *rows, "--by", "int8", "--to", "other"),
        ("exits", "model", *rows),
        ("fit", "train.csv", "--start", "model", "--out", "other"),
    ):
        code, _, err = fewtune(*command)
        assert code == 2 and "2 side by side" in err and "route-1" in err and len(err.strip().splitlines()) == 1, (command, err)
    assert not (work / "other").exists()


def test_a_changed_or_missing_part_is_refused(work, fewtune):
    part = work / "model" / "route-2" / "manifest.json"
    whole = part.read_bytes()
    part.write_bytes(whole.replace(b'"max_length": 256', b'"max_length": 128'))
    assert part.read_bytes() != whole
    code, _, err = fewtune("predict", "model", "train.csv")
    assert code == 2 and "route-2" in err and "changed" in err
    part.write_bytes(whole)
    assert fewtune("predict", "model", "train.csv")[0] == 0
    shutil.rmtree(work / "model" / "route-1")
    code, _, err = fewtune("predict", "model", "train.csv")
    assert code == 2 and "route-1" in err
    assert folders.read_manifest(work / "model", format=1, what="", fix="")["routes"]
