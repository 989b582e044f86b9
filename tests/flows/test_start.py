"""Going on from a saved model, on the command line and in Python, with tiny models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import fewtune as ft
from fewtune import artifact
from fewtune.backbone import tiny
from fewtune.data.example import Example, Split
from fewtune.errors import ArtifactError, SpecError
from fewtune.recipe import Start
from fewtune.strategies.supervised import Supervised
from fewtune.train.fit import Session

WORDS = ("--words", "positive=great|good,negative=terrible")
FIELDS = {
    "soft-prompt": "length=3",
    "prefix": "length=3,hidden=4",
    "lora": "rank=2",
    "adapter": "size=4",
    "ia3": "",
    "subset": "part=norms",
}
TASK = ft.Task.classification(labels=["good", "bad"], template="{text} : {slot}")
ROWS = [("great fun", "good"), ("a mess", "bad"), ("joy", "good"), ("dull", "bad")]
OTHER = ft.Task.classification(labels=["good", "bad", "dull"])


def fit(fewtune, out, *more):
    code, _, err = fewtune("fit", "train.csv", "--out", out, *more)
    assert code == 0, err
    return err


def learned(folder):
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def same(first, second):
    return first.keys() == second.keys() and all(
        first[file].keys() == second[file].keys() and all(torch.equal(first[file][name], second[file][name]) for name in first[file])
        for file in first
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["narrow:trained=deltas,steps=2", "narrow:steps=2", "distill:layers=1,trained=deltas,steps=2", "prune:steps=2"]
)
def test_a_smaller_model_goes_on_from_what_it_has_learned(work, fewtune, llama, way):
    """Each delta begins before the next is there, which may stand on what it puts in the PLM's place."""
    fit(fewtune, "first", "--backbone", llama, "--delta", "lora:rank=2", "--steps", "4", "--learning-rate", "0.05", *WORDS)
    rows = [
        f"{text} and {count},{label}" for count in range(15) for text, label in (("great fun", "positive"), ("a dull mess", "negative"))
    ]
    (work / "many.csv").write_text("\n".join(["review,sentiment", *rows, ""]))
    code, _, err = fewtune("compress", "first", "--data", "many.csv", "--to", "small", "--by", way)
    assert code == 0, err
    fit(fewtune, "same", "--start", "small", "--steps", "0")
    assert same(learned(work / "small"), learned(work / "same"))
    small, again = (ft.load(name).probabilities([Example({"review": text}) for text, _ in ROWS]) for name in ("small", "same"))
    torch.testing.assert_close(small, again)
    fit(fewtune, "far", "--start", "small", "--steps", "4", "--learning-rate", "0.05")
    before, after = ([*learned(work / name).values()] for name in ("small", "far"))
    factors = [(own[name], later[name]) for own, later in zip(before, after, strict=True) for name in own if name[-7:-1] == ".lora_"]
    assert all(not torch.equal(*pair) for pair in factors) and bool(factors) != way.startswith("prune")
    assert not same(learned(work / "small"), learned(work / "far"))


@pytest.mark.parametrize("name", FIELDS)
def test_without_a_step_it_is_the_saved_model_and_with_steps_it_goes_on_from_there(work, fewtune, llama, name):
    delta = f"{name}:{FIELDS[name]}" if FIELDS[name] else name
    fit(fewtune, "first", "--backbone", llama, "--delta", delta, "--steps", "4", "--learning-rate", "0.05", *WORDS)
    said = fit(fewtune, "same", "--start", "first", "--steps", "0")
    assert "goes on from first" in said
    first, again = artifact.read("first"), artifact.read("same")
    assert same(learned(work / "first"), learned(work / "same"))
    assert (first.task, first.readout, first.calibrator) == (again.task, again.readout, again.calibrator)
    assert first.manifest["fingerprint"][:12] in (work / "same" / "README.md").read_text()

    fit(fewtune, "near", "--start", "first", "--steps", "2", "--learning-rate", "1e-6")
    fit(fewtune, "far", "--start", "first", "--steps", "2", "--learning-rate", "0.05")
    begun = learned(work / "first")["delta-0.safetensors"]
    near, far = (learned(work / name)["delta-0.safetensors"] for name in ("near", "far"))
    assert near.keys() == begun.keys()
    assert all(torch.allclose(near[name], begun[name], atol=1e-5) for name in begun)
    assert any(not torch.equal(near[name], begun[name]) for name in begun)
    assert any((far[name] - begun[name]).abs().max() > 1e-3 for name in begun)


def test_a_head_goes_on_for_the_same_labels_and_starts_anew_for_others(tmp_path):
    bert = str(tiny.save("bert", tmp_path / "bert"))
    options = ft.FitOptions(steps=3, learning_rate=0.05)
    first = ft.fit(TASK, ROWS, backbone=bert, readout=ft.Head(), deltas=[ft.LoRA(rank=2)], options=options)
    first.save(tmp_path / "first")
    still = ft.FitOptions(steps=0)
    again = ft.fit(TASK, ROWS[:2], start=tmp_path / "first", options=still)
    torch.testing.assert_close(again.probabilities(list(again.examples(["joy"]))), first.probabilities(list(first.examples(["joy"]))))
    other = ft.fit(OTHER, [*ROWS, ("dull", "dull")], start=tmp_path / "first", options=still)
    assert len(other.reader.weights["head.weight"]) == 3
    for before, after in zip(first.deltas, other.deltas, strict=True):
        assert all(torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())


def test_a_prompt_of_peft_is_trained_further(work, fewtune, llama):
    (work / "train.csv").write_text((work / "train.csv").read_text().replace("review,sentiment", "text,label"))
    asked = ("--template", r"{text}\nIt was {slot}", "--words", "positive=great,negative=terrible")
    fit(fewtune, "first", "--backbone", llama, "--delta", "soft-prompt:length=3", "--readout", "cloze", "--steps", "3", *asked)
    code, _, err = fewtune("export-peft", "first", "--out", "peft")
    assert code == 0, err
    code, _, err = fewtune("import-peft", "peft", "--backbone", llama, "--labels", "negative,positive", *asked, "--out", "imported")
    assert code == 0, err
    fit(fewtune, "further", "--start", "imported", "--steps", "2", "--learning-rate", "0.01")
    first, begun, gone = (learned(work / name)["delta-0.safetensors"]["soft_prompt"] for name in ("first", "imported", "further"))
    torch.testing.assert_close(begun, first)
    assert 0 < (begun - gone).abs().max() < 0.1


def test_demonstrations_are_shown_again(work, fewtune, llama):
    fit(fewtune, "first", "--backbone", llama, "--delta", "lora:rank=2", "--demonstrations", "similar=1", "--steps", "1", *WORDS)
    fit(fewtune, "further", "--start", "first", "--steps", "1")
    first, further = artifact.read("first"), artifact.read("further")
    assert first.demonstrations is not None and further.demonstrations == first.demonstrations


def test_other_words_are_calibrated_anew(work, fewtune, llama):
    fit(fewtune, "first", "--backbone", llama, "--delta", "lora:rank=2", "--steps", "1", "--calibration", "contextual", *WORDS)
    more = ("--start", "first", "--steps", "0", "--text", "review", "--label", "sentiment")
    fit(fewtune, "same", *more, *WORDS)
    fit(fewtune, "other", *more, "--words", "positive=joy,negative=dull")
    first, same, other = (artifact.read(name).calibrator for name in ("first", "same", "other"))
    assert any(first.bias_C) and first == same != other


def test_what_does_not_go_together_is_refused(work, fewtune, llama, tmp_path):
    fit(fewtune, "first", "--backbone", llama, "--delta", "lora:rank=2", "--steps", "1", *WORDS)
    for more, said in (
        (("--start", "nowhere"), "manifest.json"),
        (("--start", "first", "--delta", "lora"), "--delta"),
        (("--start", "first", "--strategy", "ladder"), "--start"),
        (("--start", "first", "--backbone", str(tiny.save("gpt2", tmp_path / "gpt2"))), "first"),
    ):
        code, _, err = fewtune("fit", "train.csv", "--out", "model", *more)
        assert code == 2 and said in err, (more, err)
    # Rows of labels that the saved model does not know.
    (work / "train.csv").write_text("review,sentiment\nfun,so\na mess,la\n")
    code, _, err = fewtune("fit", "train.csv", "--out", "model", "--start", "first")
    assert code == 2 and '"so"' in err


def test_the_saved_model_must_not_change_meanwhile(tmp_path, llama):
    deltas, options = (ft.LoRA(rank=2),), ft.FitOptions(steps=1)
    for name in ("a", "b"):
        model = ft.fit(TASK, ROWS, backbone=llama, deltas=deltas, options=options, seed=len(name) + ord(name))
        model.save(tmp_path / name)
        model.remove()
    split = Split(train=tuple(Example({"text": text}, label) for text, label in ROWS))
    run = Supervised().run
    wrong = Start(str(tmp_path / "a"), artifact.read(tmp_path / "b").manifest["fingerprint"])
    backbone = ft.load_backbone(llama)
    with pytest.raises(ArtifactError, match="another by now"):
        run(ft.Recipe(TASK, backbone=llama, deltas=deltas, start=wrong), split, backbone, session=Session())
    right = Start(str(tmp_path / "a"), artifact.read(tmp_path / "a").manifest["fingerprint"])
    with pytest.raises(SpecError, match="deltas of the saved model"):
        run(ft.Recipe(TASK, backbone=llama, deltas=(ft.LoRA(rank=3),), start=right), split, backbone, session=Session())


def test_a_job_file_compares_what_goes_on_with_what_starts_anew(work, fewtune, llama):
    fit(fewtune, "first", "--backbone", llama, "--delta", "lora:rank=2", "--steps", "1", *WORDS)
    shutil.copy("train.csv", "test.csv")
    (work / "job.toml").write_text(
        f'''seeds = [1]
[data.reviews]
train = "train.csv"
test = "test.csv"
words = {{positive = ["great", "good"], negative = "terrible"}}
[methods.anew]
deltas = "lora:rank=2"
backbone = "{llama}"
steps = 1
[methods.further]
start = "first"
steps = 1
'''
    )
    code, out, err = fewtune("compare", "job.toml", "--json")
    assert code == 0, err
    assert [row["done"] for row in json.loads(out)["rows"]] == [1, 1]
    results = [json.loads(line) for line in (work / "job.jsonl").read_text().splitlines() if line]
    assert {result["method"] for result in results} == {"anew", "further"}
    assert len({result["trained_parameters"] for result in results}) == 1
