"""`fewtune import-peft` and `fewtune export-peft`, from a folder to answers and back."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewtune import artifact
from fewtune.backbone import tiny

ROWS = "text,label\ngreat fun and joy,positive\na dull mess,negative\ngood and great,positive\n"


@pytest.fixture(scope="module")
def plms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plms")
    return {family: str(tiny.save(family, folder / family)) for family in ("roberta", "llama")}


@pytest.fixture
def fewtune(fewtune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(ROWS)
    return fewtune


def answers(fewtune, model):
    code, out, err = fewtune("predict", model, "rows.csv", "--format", "csv")
    assert code == 0, err
    return [(row["label"], float(row["probability"])) for row in csv.DictReader(out.splitlines())]


def fitted(fewtune, plm, *more):
    code, _, err = fewtune("fit", "rows.csv", "--backbone", plm, "--steps", "3", "--out", "model", "--calibration", "none", *more)
    assert code == 0, err


@pytest.mark.parametrize(
    "delta", ["lora:rank=2", "lora:rank=2,dora=true,top=0.5", "ia3", "soft-prompt:length=3", "prefix:length=3,hidden=4"]
)
def test_a_head_there_and_back(fewtune, plms, delta):
    fitted(fewtune, plms["roberta"], "--delta", delta, "--readout", "head:pool=front,layer=tanh")
    wanted = answers(fewtune, "model")
    code, out, err = fewtune("export-peft", "model", "--out", "adapter")
    assert code == 0, err
    assert out == "model → adapter\n" and "Labels, in the order of the scores: negative, positive." in err
    options = ("--backbone", plms["roberta"], "--labels", "negative,positive", "--out", "again")
    code, out, err = fewtune("import-peft", "adapter", *options)
    assert code == 0, err
    name = delta.partition(":")[0]
    assert out == f"imported from PEFT, head, {name} → again\n"
    got = answers(fewtune, "again")
    assert [label for label, _ in got] == [label for label, _ in wanted]
    assert [probability for _, probability in got] == pytest.approx([probability for _, probability in wanted], abs=1e-6)
    code, _, err = fewtune("import-peft", "adapter", *options)
    assert code == 2 and "--overwrite" in err
    code, out, err = fewtune("import-peft", "adapter", *options, "--overwrite", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model"] == "again" and found["labels"] == ["negative", "positive"]
    assert found["trained_parameters"] == artifact.load("again").trained_parameters
    assert "imported from PEFT" in Path("again/README.md").read_text()


def test_a_language_model_there_and_back(fewtune, plms):
    asked = ("--template", r"{text}\nIt was {slot}", "--words", "positive=great,negative=terrible")
    fitted(fewtune, plms["llama"], "--delta", "lora:rank=2", "--readout", "cloze", *asked)
    code, _, err = fewtune("export-peft", "model", "--out", "adapter")
    assert code == 0, err
    assert "Not in the folder: the template '{text}\\nIt was {slot}'." in err and "the label words" in err
    options = ("--backbone", plms["llama"], "--labels", "negative,positive", "--out", "again")
    code, _, err = fewtune("import-peft", "adapter", *options)
    assert code == 2 and "--template" in err
    code, _, err = fewtune("import-peft", "adapter", *options, *asked)
    assert code == 0, err
    assert [p for _, p in answers(fewtune, "again")] == pytest.approx([p for _, p in answers(fewtune, "model")], abs=1e-6)


def test_pairs_are_named_by_their_columns(fewtune, plms):
    fitted(fewtune, plms["roberta"], "--delta", "lora:rank=2", "--readout", "head:pool=front,layer=tanh")
    assert fewtune("export-peft", "model", "--out", "adapter")[0] == 0
    options = ("--backbone", plms["roberta"], "--labels", "no,yes", "--text", "premise", "--text", "hypothesis", "--out", "pairs")
    code, _, err = fewtune("import-peft", "adapter", *options)
    assert code == 0, err
    assert json.loads(Path("pairs/manifest.json").read_text())["templates"] == ["{premise}{sep}{hypothesis}"]
    Path("pairs.csv").write_text("premise,hypothesis\na dog runs,an animal moves\n")
    code, out, err = fewtune("predict", "pairs", "pairs.csv", "--format", "csv")
    assert code == 0, err
    assert out.splitlines()[1].split(",")[2] in ("no", "yes")


def test_another_base_model_is_said(fewtune, plms, tmp_path):
    fitted(fewtune, plms["roberta"], "--delta", "lora:rank=2", "--readout", "head:pool=front,layer=tanh")
    assert fewtune("export-peft", "model", "--out", "adapter")[0] == 0
    other = tiny.save("roberta", tmp_path / "other", seed=7)
    code, _, err = fewtune("import-peft", "adapter", "--backbone", other, "--labels", "a,b", "--out", "again")
    assert code == 0, err
    assert f'The folder was made on "{plms["roberta"]}"; it is put on "{other}". If their weights differ, so do the answers.' in err


def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(fewtune, plms, tmp_path):
    fitted(fewtune, plms["roberta"], "--delta", "adapter", "--readout", "head:pool=front,layer=tanh")
    code, out, err = fewtune("export-peft", "model", "--out", "adapter")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "got Adapter" in err
    code, _, err = fewtune("export-peft", "nowhere", "--out", "adapter")
    assert code == 2 and "no manifest.json" in err
    code, _, err = fewtune("import-peft", "nowhere", "--backbone", plms["roberta"], "--labels", "a,b", "--out", "again")
    assert code == 2 and "no adapter_config.json" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.csv"]


def test_the_exported_file_holds_what_was_learned_and_no_more(fewtune, plms):
    fitted(fewtune, plms["roberta"], "--delta", "lora:rank=2", "--readout", "head:pool=front,layer=tanh")
    assert fewtune("export-peft", "model", "--out", "adapter")[0] == 0
    held = sum(tensor.numel() for tensor in load_file("adapter/adapter_model.safetensors").values())
    assert held == artifact.load("model").trained_parameters
    assert all(tensor.dtype == torch.float32 for tensor in load_file("adapter/adapter_model.safetensors").values())
