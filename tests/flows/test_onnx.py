"""A tuned model that answers with onnxruntime alone: the script is run as its user runs it, and says what the model says."""

import subprocess
import sys

import onnxruntime
import pytest
import torch

import fewtune as ft
from fewtune import job, plm, portable
from fewtune.backbone import tiny
from fewtune.data.example import Example, Split
from fewtune.errors import ArtifactError
from fewtune.strategies.int8 import ToInt8
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great", "fun", "joy"), ("dull", "mess", "terrible")
ROWS = tuple(
    Example({"text": f"{one} and {other}"}, label) for label, words in (("pos", GOOD), ("neg", BAD)) for one in words for other in words
)


def tuned(family, tmp_path, readout, task, *deltas):
    folder = str(tiny.save(family, tmp_path / family))
    settings = job.Settings(
        strategy="supervised", readout=readout, deltas=deltas, fit=FitOptions(steps=20, learning_rate=0.003, batch_size=8), seed=3
    )
    return job.tune(task, Split(train=ROWS), plm.load(folder), settings, session=Session())


PLAIN = ft.Task.classification(["neg", "pos"])
SLOT = ft.Task(("neg", "pos"), ("text",), ("{text} It was {slot}",), {"neg": ("terrible",), "pos": ("great",)})
CASES = {
    "bert": (ft.Head(), PLAIN, ft.LoRA(rank=2), ft.Adapter(size=4)),
    "llama": (ft.Cloze(), SLOT, ft.LoRA(rank=2)),
    "gpt2": (ft.Head(), PLAIN, ft.Subset("all")),
}


@pytest.mark.filterwarnings("ignore")  # of the packages that write graphs
@pytest.mark.parametrize("family", CASES)
def test_the_script_answers_as_the_model_does(family, tmp_path):
    readout, task, *deltas = CASES[family]
    model = tuned(family, tmp_path, readout, task, *deltas)
    out = tmp_path / "out"
    assert portable.export(model, out) <= 1e-4
    texts = [row.fields["text"] for row in ROWS]
    ran = subprocess.run(
        [sys.executable, str(out / "run.py")], input="\n".join(texts), capture_output=True, text=True, check=True, cwd=tmp_path
    )
    for line, wanted in zip(ran.stdout.splitlines(), model.predict(texts), strict=True):
        label, share = line.split("\t")
        assert label == wanted.label
        assert float(share) == pytest.approx(wanted.probability, abs=1e-4)
    # Rows of any number and length.
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    rows = model.asking.rows(ROWS[:5], 0)
    batch = model.asking.collate(rows, 0)
    found = session.run(None, {"input_ids": batch.ids_BT.numpy(), "attention_mask": batch.mask_BT.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found).double(), model.log_probabilities(ROWS[:5]), atol=1e-4, rtol=0)


def test_what_has_no_such_form_is_refused(tmp_path):
    model = tuned("bert", tmp_path, ft.Head(), PLAIN, ft.LoRA(rank=2))
    with pytest.raises(ArtifactError, match="got maps in eight bits"):
        portable.export(ToInt8().run(model, Split(), session=Session()), tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "own").write_text("mine")
    with pytest.raises(ArtifactError, match="a folder that is not there yet"):
        portable.export(model, tmp_path / "there")
    assert not (tmp_path / "out").exists()
