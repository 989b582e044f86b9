"""A tuned model that answers with onnxruntime alone: the script is run as its user runs it, and says what the model says."""

import subprocess
import sys
from dataclasses import replace

import onnxruntime
import pytest
import torch

import fewtune as ft
from fewtune import job, plm, portable
from fewtune.backbone import tiny
from fewtune.data.example import Example, Split
from fewtune.errors import ArtifactError
from fewtune.exits.criteria import Margin
from fewtune.exits.exits import Exits
from fewtune.strategies.compression import COMPRESSIONS
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great", "fun", "joy"), ("dull", "mess", "terrible")
ROWS = tuple(
    Example({"text": f"{one} and {other}"}, label) for label, words in (("pos", GOOD), ("neg", BAD)) for one in words for other in words
)


PLAIN = ft.Task.classification(["neg", "pos"])
WORDS = {"neg": ("terrible",), "pos": ("great",)}
SLOT, FIRST = (
    ft.Task(("neg", "pos"), ("text",), (template,), WORDS) for template in ("{text} It was {slot}", "It was {slot} fun. {text} yes")
)
TEXTS = [row.fields["text"] for row in ROWS]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that write graphs


def tuned(family, tmp_path, readout, task, *deltas, **sizes):
    folder = str(tiny.save(family, tmp_path / family, **sizes))
    settings = job.Settings(
        strategy="supervised", readout=readout, deltas=deltas, fit=FitOptions(steps=20, learning_rate=0.003, batch_size=8), seed=3
    )
    return job.tune(task, Split(train=ROWS), plm.load(folder), settings, session=Session())


def said(folder, texts):
    """What the script says of each text: a label and its probability."""
    command = [sys.executable, "-X", "utf8", str(folder / "run.py")]
    ran = subprocess.run(command, input="\n".join(texts), capture_output=True, encoding="utf-8", check=True)
    return [(label, float(share)) for line in ran.stdout.splitlines() for label, share in [line.split("\t")]]


def answers_alike(model, folder, texts):
    for (label, share), wanted in zip(said(folder, texts), model.predict(texts), strict=True):
        assert label == wanted.label
        assert share == pytest.approx(wanted.probability, abs=1e-4)


CASES = {
    "bert": (ft.Head(), PLAIN, ft.LoRA(rank=2), ft.Adapter(size=4)),
    "llama": (ft.Cloze(), SLOT, ft.LoRA(rank=2)),
    "gpt2": (ft.Head(), PLAIN, ft.Subset("all")),
    "roberta": (ft.Cloze(), SLOT, ft.LoRA(rank=2)),
    "albert": (ft.Cloze(), FIRST, ft.LoRA(rank=2)),
}


@pytest.mark.parametrize("family", CASES)
def test_the_script_answers_as_the_model_does(family, tmp_path):
    readout, task, *deltas = CASES[family]
    model = tuned(family, tmp_path, readout, task, *deltas)
    out = tmp_path / "out"
    assert portable.export(model, out) <= 1e-4
    answers_alike(model, out, TEXTS)
    # Rows of any number and length.
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    rows = model.asking.rows(ROWS[:5], 0)
    batch = model.asking.collate(rows, 0)
    found = session.run(None, {"input_ids": batch.ids_BT.numpy(), "attention_mask": batch.mask_BT.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found).double(), model.log_probabilities(ROWS[:5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["bert", "llama", "albert"])
def test_what_looks_like_a_special_token_is_text_and_white_space_around_a_text_is_none(family, tmp_path):
    model = tuned(family, tmp_path, *CASES[family])
    portable.export(model, tmp_path / "out")
    special = [f"great {token} fun{token}" for token in model.backbone.tokenizer.all_special_tokens]
    answers_alike(model, tmp_path / "out", [*special, "\t a joy  ", "dull " * 300 + special[0], "sports\u2028business"])


@pytest.mark.parametrize(
    "by", ["prune:share=0.3,steps=5", "prune:share=0.3,words=trained,steps=5", "narrow:steps=5", "share:groups=1,steps=5"]
)
def test_what_was_made_smaller_answers_so_too(by, tmp_path):
    model = tuned("bert", tmp_path, ft.Head(), PLAIN, ft.LoRA(rank=2))
    small = COMPRESSIONS.from_text(by).run(model, Split(train=ROWS), session=Session())
    assert portable.export(small, tmp_path / "out") <= 1e-4
    answers_alike(small, tmp_path / "out", TEXTS)


def test_a_model_in_bfloat16_is_a_graph_in_float32(tmp_path):
    model = tuned("bert", tmp_path, ft.Head(), PLAIN, ft.LoRA(rank=2), width=128)
    model.backbone.precision = "bfloat16"
    assert portable.export(model, tmp_path / "out") <= 1e-4
    assert model.backbone.precision == "bfloat16"
    with model.backbone.as_precision("float32"):
        answers_alike(model, tmp_path / "out", TEXTS)


def test_of_a_model_with_exits_every_text_goes_to_the_end(tmp_path):
    model = tuned("bert", tmp_path, ft.Head(), PLAIN, ft.LoRA(rank=2), blocks=4)
    whole = model.probabilities(ROWS)
    exits = Exits.install(Margin(), [1], backbone=model.backbone, reader=model.reader, candidates=2, threshold=-1.0)
    early = replace(model, exits=exits)
    assert {one.exit_layer for one in early.predict(TEXTS)} == {1}
    assert portable.export(early, tmp_path / "out") <= 1e-4
    assert [share for _, share in said(tmp_path / "out", TEXTS)] == pytest.approx(whole.max(1).values.tolist(), abs=1e-4)


def test_the_command_writes_a_folder_beside_the_model(fewtune, tmp_path):
    tuned("gpt2", tmp_path, *CASES["gpt2"]).save(tmp_path / "model")
    code, out, err = fewtune("export-onnx", tmp_path / "model", "--out", tmp_path / "out")
    assert code == 0 and "texts as the model does" in err and "run.py < texts.txt" in out, err
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.onnx", "run.py", "task.json", "tokenizer.json"}
    code, _, err = fewtune("export-onnx", tmp_path / "model", "--out", tmp_path / "out")
    assert code == 2 and "or --overwrite" in err
    code, _, err = fewtune("export-onnx", tmp_path / "model", "--out", tmp_path / "out", "--overwrite")
    assert code == 0, err


def test_what_has_no_such_form_is_refused(tmp_path, monkeypatch):
    model = tuned("bert", tmp_path, ft.Head(), PLAIN, ft.LoRA(rank=2))
    with pytest.raises(ArtifactError, match="got maps in eight bits"):
        portable.export(COMPRESSIONS.from_text("int8").run(model, Split(), session=Session()), tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "own").write_text("mine")
    with pytest.raises(ArtifactError, match="a folder that is not there yet"):
        portable.export(model, tmp_path / "there")
    with pytest.raises(ArtifactError, match="expected rows of any number, got a prefix"):
        portable.export(tuned("bert", tmp_path, ft.Head(), PLAIN, ft.Prefix(length=2)), tmp_path / "out")
    twice = ft.Task(("neg", "pos"), ("text",), ("{text} {text}",))
    with pytest.raises(ArtifactError, match="a template with the text once"):
        portable.export(tuned("bert", tmp_path, ft.Head(), twice, ft.LoRA(rank=2)), tmp_path / "out")

    def trips(*arguments, **options):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", trips)
    with pytest.raises(ArtifactError, match="expected a model that has a graph, got RuntimeError"):
        portable.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
