"""`fewtune export-lm-eval`: a folder that the harness runs; and, where the harness is installed, what it measures there."""

import importlib.util
import json
import subprocess
import sys

import pytest
import yaml

from fewtune import artifact
from fewtune.backbone import tiny
from fewtune.harness.answers import Answers

ROWS = "text,label\ngreat fun and joy,positive\na dull mess,negative\ngood and great,positive\n"
TEMPLATE = "Review: {text}\nSentiment: {slot}"


@pytest.fixture
def fewtune(fewtune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(ROWS)
    tiny.save("llama", tmp_path / "plm")
    tiny.save("bert", tmp_path / "masked")
    return fewtune


def fitted(fewtune, *more, plm="plm"):
    words = ("--words", "positive=great,negative=terrible", "--template", TEMPLATE)
    code, _, err = fewtune(
        "fit", "rows.csv", "--backbone", plm, "--steps", "3", "--out", "model", "--strategy", "supervised", *words, *more
    )
    assert code == 0, err


def test_the_folder_holds_the_model_its_task_and_its_rows(fewtune, tmp_path):
    fitted(fewtune, "--delta", "lora:rank=2")
    code, out, err = fewtune("export-lm-eval", "model", "--out", "harness", "--test", "rows.csv")
    assert code == 0, err
    (file,) = (tmp_path / "harness" / "tasks").glob("*.yaml")
    assert out == f"model → harness: python harness/run.py {file.stem}\n"
    task = yaml.safe_load(file.read_text())
    assert task["task"] == file.stem and task["doc_to_text"] == "Review: {{text | trim}}\nSentiment:"
    assert task["doc_to_choice"] == ["great", "terrible"] or task["doc_to_choice"] == ["terrible", "great"]
    rows = [json.loads(line) for line in (tmp_path / "harness" / "tasks" / "test.jsonl").read_text().splitlines()]
    assert rows[0] == {"text": "great fun and joy", "label": "positive"} and len(rows) == 3
    pairs = [(f"Review: {row['text']}\nSentiment:", f" {word}") for row in rows for word in task["doc_to_choice"]]
    there = Answers(artifact.load(tmp_path / "harness" / "model").backbone).loglikelihood(pairs)
    assert there == Answers(artifact.load(tmp_path / "model").backbone).loglikelihood(pairs)
    compile((tmp_path / "harness" / "run.py").read_text(), "run.py", "exec")
    code, _, err = fewtune("export-lm-eval", "model", "--out", "harness")
    assert code == 2 and "--overwrite" in err
    code, _, err = fewtune("export-lm-eval", "model", "--out", "harness", "--overwrite")
    assert code == 0 and "tasks/test.jsonl" in err and not (tmp_path / "harness" / "tasks" / "test.jsonl").exists()


@pytest.mark.parametrize(("plm", "readout", "why"), [("plm", "head", "head"), ("masked", "cloze", "masked")])
def test_refused(fewtune, plm, readout, why):
    fitted(fewtune, "--readout", readout, "--delta", "lora:rank=2", plm=plm)
    code, _, err = fewtune("export-lm-eval", "model", "--out", "harness")
    assert code == 2 and why in err and "autoregressive" in err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the harness has an environment of its own")
def test_the_harness_runs_it(fewtune, tmp_path):
    fitted(fewtune, "--delta", "lora:rank=2")
    assert fewtune("export-lm-eval", "model", "--out", "harness", "--test", "rows.csv")[0] == 0
    ran = subprocess.run([sys.executable, "harness/run.py"], capture_output=True, text=True, check=True)
    assert "acc" in ran.stdout
