"""The channel through the commands that a user types."""

import csv
import json

import pytest


@pytest.fixture
def work(work):
    (work / "texts.csv").write_text("review\ngreat joy\na mess\n")
    return work


def test_without_labels(work, fewtune, llama):
    asked = ("zeroshot", "texts.csv", "--readout", "channel", "--labels", "positive,negative", "--backbone", llama)
    code, out, err = fewtune(*asked)
    assert code == 0, err
    assert [row["label"] in ("positive", "negative") for row in csv.DictReader(out.splitlines())] == [True, True]
    code, out, err = fewtune(*asked, "--json")
    assert code == 0 and json.loads(out)["method"] == "zeroshot, channel", err
    code, out, err = fewtune(*asked, "--template", "Review: {review}\\nSentiment: {slot}")
    assert code == 2 and out == "" and "expected a field behind {slot}" in err and err.count("\n") == 1
    code, _, err = fewtune(*asked, "--calibration", "contextual")
    assert code == 2 and "--calibration" in err.splitlines()[-1]


def test_fit_predict_evaluate_inspect(work, fewtune, llama):
    more = ("--readout", "channel:per=token", "--template", "A {slot} one: {review}", "--words", "positive=great|good,negative=terrible")
    code, out, err = fewtune(
        "fit", "train.csv", "--backbone", llama, "--delta", "lora", "--steps", "3", "--test", "train.csv", "--out", "m", "--json", *more
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["method"] == "supervised, channel, lora" and result["trained_parameters"] > 0
    assert json.loads((work / "m/manifest.json").read_text())["readout"] == {"name": "channel", "per": "token"}

    code, out, err = fewtune("evaluate", "m", "train.csv", "--json")
    assert code == 0 and json.loads(out)["metrics"] == result["metrics"], err
    assert fewtune("predict", "m", "texts.csv", "-o", "answers.csv")[0] == 0
    with open("answers.csv", newline="") as file:
        assert [0.5 <= float(row["probability"]) <= 1 for row in csv.DictReader(file)] == [True, True]
    code, out, err = fewtune("inspect", "m", "texts.csv", "--json")
    assert code == 0 and json.loads(out)["rows"] == 2, err


def test_the_ladder_judges_it_where_it_is_named(work, fewtune, llama):
    code, out, err = fewtune(
        *("fit", "train.csv", "--backbone", llama, "--strategy", "ladder", "--readout", "channel", "--steps", "2", "--out", "m", "--json")
    )
    assert code == 0, err
    assert "Judging zero-shot, tuned on 4 labelled rows" in err and json.loads(out)["estimate"]["rows"] == 4


def test_what_it_costs(work, fewtune, llama):
    code, out, err = fewtune("params", "--backbone", llama, "--delta", "lora", "--readout", "channel", "--length", "12", "--json")
    assert code == 0 and json.loads(out)["readout"] == "channel" and json.loads(out)["methods"][0]["seconds"]["step"] > 0, err
