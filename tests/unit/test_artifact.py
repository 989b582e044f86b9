"""Artifacts: what is saved is what is loaded, and whatever was changed in between is refused."""

import json
import shutil

import pytest
import torch

import fewtune as ft
from fewtune import artifact, folders
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.errors import ArtifactError

ROWS = [("great fun and joy", "positive"), ("a dull mess", "negative"), ("good and great", "positive"), ("terrible, lifeless", "negative")]
TEXTS = ["a dull mess", "great joy from start to finish", "the country"]
WORDS = {"negative": ["terrible"], "positive": ["great", "good"]}


def backbone(family, seed=0):
    return Backbone(*tiny.model(family, seed=seed), name=family)


LORA = (ft.LoRA(rank=2),)


def tuned(base, readout=None, deltas=LORA):
    template = "Sentiment: {slot}\nReview: {text}" if readout and readout.reverses else "Review: {text}\nSentiment: {slot}"
    task = ft.Task.classification(["negative", "positive"], template=template, words=WORDS)
    return ft.fit(task, ROWS, backbone=base, deltas=deltas, readout=readout, options=ft.FitOptions(steps=4))


@pytest.fixture(scope="module")
def bert():
    return backbone("bert")


@pytest.fixture(scope="module")
def saved(bert, tmp_path_factory):
    model = tuned(bert)
    folder = model.save(tmp_path_factory.mktemp("saved") / "model")
    model.remove()
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize(
    ("family", "readout", "deltas"),
    [
        ("bert", None, (ft.LoRA(rank=2),)),
        ("llama", ft.Head(), (ft.Subset("norms"), ft.LoRA(rank=1, sites=("ffn_in",)))),
        ("gpt2", None, (ft.Subset("last"),)),
        ("roberta", ft.Head(pool="first"), ()),
        ("qwen3", ft.Channel(per="word"), (ft.LoRA(rank=2),)),
    ],
)
def test_what_is_loaded_answers_as_what_was_saved(tmp_path, family, readout, deltas):
    base = backbone(family)
    model = tuned(base, readout, deltas)
    before = model.predict(TEXTS)
    model.save(tmp_path / "model")
    model.remove()
    again = artifact.load(tmp_path / "model", backbone=base)
    assert again.predict(TEXTS) == before
    assert again.trained_parameters == model.trained_parameters
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_same_job_writes_the_same_bytes(tmp_path, bert, saved):
    model = tuned(bert)
    folder = model.save(tmp_path / "again")
    model.remove()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {path.name: path.read_bytes() for path in saved.iterdir()}


def test_only_what_was_trained_is_stored(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "delta-0.safetensors", "manifest.json"]
    assert saved.joinpath("README.md").read_text().startswith("---\nlibrary_name: fewtune\nbase_model:")


def remove_weights(folder):
    (folder / "delta-0.safetensors").unlink()


def add_weights(folder):
    (folder / "delta-1.safetensors").write_bytes((folder / "delta-0.safetensors").read_bytes())


def change_weights(folder):
    path = folder / "delta-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def edit(**changes):
    def change(folder):
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        for key, value in changes.items():
            target = manifest
            *parents, last = key.split("__")
            for parent in parents:
                target = target[parent]
            assert target[last] != value
            target[last] = value
        path.write_text(json.dumps(manifest))

    return change


CHANGES = {
    "missing file": remove_weights,
    "extra file": add_weights,
    "changed byte": change_weights,
    "label map": edit(task__labels=["positive", "negative"]),
    "template": edit(templates=["Text: {text} {slot}"]),
    "words": edit(words=[[1], [2]]),
    "calibrator": edit(calibrator__temperature=2.0),
    "format": edit(format=99),
    "weights' fingerprint": edit(backbone__fingerprint="0" * 64),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "torn manifest": lambda folder: (folder / "manifest.json").write_text('{"format"'),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_artifact_is_refused_in_one_line(copy, bert, name):
    CHANGES[name](copy)
    before = {key: value.clone() for key, value in bert.model.state_dict().items()}
    with pytest.raises(ArtifactError) as caught:
        artifact.load(copy, backbone=bert)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)
    after = bert.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_another_plm_or_tokenizer_is_refused(saved):
    with pytest.raises(ArtifactError, match="weights"):
        artifact.load(saved, backbone=backbone("bert", seed=1))
    model, _ = tiny.model("bert")
    with pytest.raises(ArtifactError, match="tokenizer"):
        artifact.load(saved, backbone=Backbone(model, tiny.tokenizer("unigram"), name="bert"))


def test_an_existing_folder_is_only_replaced_when_told(copy, bert):
    model = artifact.load(copy, backbone=bert)
    with pytest.raises(ArtifactError, match="--overwrite"):
        model.save(copy)
    (copy / "delta-7.safetensors").write_bytes(b"old")
    model.save(copy, overwrite=True)
    model.remove()
    assert not (copy / "delta-7.safetensors").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path, copy, bert):
    model = artifact.load(copy, backbone=bert)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ArtifactError):
        model.save(tmp_path / "mine", overwrite=True)
    model.remove()
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_a_save_that_fails_leaves_nothing(copy, bert, monkeypatch):
    model = artifact.load(copy, backbone=bert)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        model.save(copy, overwrite=True)
    model.remove()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert (copy / "manifest.json").exists()
