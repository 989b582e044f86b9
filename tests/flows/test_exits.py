"""`fewtune exits`, from a tuned model to answers that leave early, and what is refused."""

import csv
import json
import re
from dataclasses import replace

import pytest

from fewtune import artifact
from fewtune.backbone import tiny

GOOD, BAD = ("great", "fun", "joy", "good"), ("dull", "mess", "terrible", "lifeless")
ROWS = [
    (f"{one} and {other}{' it was' * times}", label)
    for label, words in (("positive", GOOD), ("negative", BAD))
    for one in words
    for other in words
    for times in range(4)
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny.save("bert", tmp_path_factory.mktemp("plm") / "bert", blocks=4))


@pytest.fixture
def model(work, fewtune, bert):
    for name, rows in (("some.csv", ROWS[::8]), ("pool.csv", ROWS)):
        with open(work / name, "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    (work / "texts.csv").write_text("text\n" + "".join(f"{text}\n" for text, _ in ROWS))
    options = ("--backbone", bert, "--readout", "head", "--delta", "lora:rank=2", "--strategy", "supervised", "--calibration", "none")
    code, _, err = fewtune("fit", "some.csv", "--out", "model", "--steps", "30", "--learning-rate", "0.02", *options)
    assert code == 0, err
    return "model"


def test_exits_are_added_used_and_measured(fewtune, model, work):
    code, out, err = fewtune("exits", model, "--data", "texts.csv", "--agree", "0.9", "--out", "fast", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["kept"] and found["model"] == "fast" and found["criterion"] == "confidence" and found["layers"] == [1, 2, 3]
    assert found["promise"] == {"kind": "agree", "value": 0.9, "confidence": 0.9} and found["rows"]["tested"] == 64
    code, out, err = fewtune("predict", "fast", "texts.csv", "--format", "csv")
    assert code == 0, err
    layers = [int(row["exit_layer"]) for row in csv.DictReader(out.splitlines())]
    assert min(layers) < 4 and max(layers) <= 4
    code, watched, err = fewtune("predict", "fast", "texts.csv", "--format", "csv", "--watch", "1")
    assert code == 0 and watched == out, err
    assert re.search(r"128 of 128 rows also went to the end, where \d+ are answered otherwise; \d+% left early, \d+% when", err), err
    code, out, err = fewtune("evaluate", "fast", "pool.csv", "--json")
    assert code == 0, err
    measured = json.loads(out)
    assert measured["metrics"]["agreement"]["value"] >= 0.85
    assert measured["metrics"]["mean_layer"]["value"] == pytest.approx(sum(layers) / len(layers))
    shares = {one["layer"]: one["share"] for one in measured["exits"]["layers"]}
    assert shares == {layer: pytest.approx(layers.count(layer) / len(layers)) for layer in (1, 2, 3, 4)}
    assert measured["exits"]["late_rows"] == layers.count(4) and len(measured["exits"]["late"]) == min(20, layers.count(4))
    means = [point["mean_layer"] for point in measured["exits"]["curve"]]
    assert means == sorted(means, reverse=True) and means[-1] == 1
    code, out, _ = fewtune("evaluate", "fast", "pool.csv")
    assert code == 0 and "Where rows left the 4 layers" in out and "mean_layer" in out
    assert "| early exits | after layers 1, 2, 3" in (work / "fast" / "README.md").read_text()


def test_in_place_with_points_and_in_words(fewtune, model, work):
    code, out, err = fewtune("exits", model, "--data", "pool.csv", "--drop", "5", "--criterion", "entropy", "--training", "two-stage")
    assert code == 2 and "--train" in err
    code, out, err = fewtune(
        *("exits", model, "--data", "pool.csv", "--drop", "5", "--criterion", "entropy"),
        *("--training", "two-stage", "--train", "some.csv", "--layers", "2,3", "--ensemble"),
    )
    assert code == 0, err
    assert out.startswith("promised") and "two-stage, entropy, ensemble" in out
    assert json.loads((work / "model" / "manifest.json").read_text())["exits"]["layers"] == [2, 3]
    assert sorted(path.name for path in work.iterdir() if path.name.startswith(".")) == []


def test_rows_unlike_those_before_are_noticed(fewtune, model, work):
    assert fewtune("exits", model, "--data", "texts.csv", "--agree", "0.9", "--out", "fast")[0] == 0
    fast = artifact.load(work / "fast")
    about = {**fast.exits.about, "left_early": 0.5}  # then, whatever these rows do is something else
    artifact.save(replace(fast, exits=replace(fast.exits, about=about)), work / "fast", overwrite=True)
    (work / "one.csv").write_text("text\n" + "great fun\n" * 200)
    code, _, err = fewtune("predict", "fast", "one.csv", "-o", "answers.csv", "--watch", "0")
    assert code == 0, err
    assert "0 of 200 rows also went to the end" in err and "the texts are others" in err, err


def test_only_exits_can_be_watched_and_only_here(fewtune, model):
    code, out, err = fewtune("predict", model, "texts.csv", "--watch", "0.1")
    assert code == 2 and out == "" and "--watch: expected a model with exits" in err
    code, out, err = fewtune("predict", model, "texts.csv", "--watch", "0.1", "--engine", "ray")
    assert code == 2 and out == "" and "--watch: expected --engine local" in err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--agree", "0.9", "--budget", "0.5"), "expected one promise, got --agree and --budget"),
        (("--agree", "2"), "--agree: expected a share between 0 and 1, got 2"),
        (("--agree", "0.999"), "expected at least .* rows, got 128"),
        (("--criterion", "entropi"), 'Did you mean "entropy"'),
        (("--layers", "4"), "expected layers from 1 to 3"),
        (("--layers", "top"), "expected numbers of layers, got top"),
        (("--drop", "1", "--data", "texts.csv"), "label"),
        (("--out", "some.csv"), "expected a folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fewtune, model, options, message):
    code, out, err = fewtune("exits", model, "--data", "texts.csv", *options)
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
