"""`fewtune multitask`: from a folder of tasks to a folder that stands for the PLM in other commands, alone or as two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fewtune as ft
from fewtune import artifact

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fewtune"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TASKS = {
    "mood.toml": 'labels = ["negative", "positive"]\nfields = ["review"]\n'
    'templates = ["{review} It was {slot}", "Review: {review}\\n{slot}"]\nwords = {negative = "terrible", positive = "great"}\n',
    "mood.train.csv": "review,label\n" + "great fun and joy,positive\na dull mess,negative\n" * 4,
    "topic.yaml": "templates:\n  a: !Template\n    answer_choices: world ||| sports\n    name: plain\n"
    '    jinja: "Text: {{text}}\\nLabel: ||| {{answer_choices[label]}}"\n',
    "topic.train.csv": "text,label\n" + "the capital of the country,0\nsports and fun,1\n" * 3,
    "good.toml": 'labels = ["no", "yes"]\ntemplates = ["{text} Is it good? {slot}", "Text: {text}\\nGood: {slot}"]\n',
    "good.test.csv": "text,label\nfun and joy,yes\na terrible book,no\nGreat fun and joy!,yes\n",
}


@pytest.fixture
def tasks(work):
    (work / "tasks").mkdir()
    for name, text in TASKS.items():
        (work / "tasks" / name).write_text(text)
    return ("multitask", "tasks", "--held-out", "good", "--steps", "3", "--accumulate", "2", "--delta", "lora:rank=2")


def test_a_better_plm_other_commands_start_from(fewtune, tasks, llama, work):
    code, out, err = fewtune(*tasks, "--backbone", llama, "--out", "better", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["trained"] == {"mood": {"rows": 8, "templates": 2}, "topic": {"rows": 6, "templates": 1}}
    good = found["held_out"]["good"]
    assert good["rows"] == 2 and good["dropped"] == 1 and len(good["templates"]) == 2
    assert found["mean"]["gain"]["value"] == pytest.approx(found["mean"]["after"] - found["mean"]["before"])
    assert "Dropped 1 of 3 rows of good in mood" in err and "on 2 tasks in 3 templates: 3 steps of 2 × 8 rows" in err
    assert sorted(path.name for path in (work / "better").iterdir()) == ["README.md", "backbone.json", "delta-0.safetensors"]
    assert not (work / ".better.work").exists()

    given = ("train.csv", "--text", "review", "--label", "sentiment", "--words", "positive=great,negative=terrible")
    scores = [
        json.loads(fewtune("zeroshot", *given, "--labels", "negative,positive", "--backbone", plm, "--json")[1])["metrics"]["ece"]
        for plm in (llama, "better")
    ]
    assert scores[0] != scores[1]
    code, _, err = fewtune("fit", *given, "--backbone", "better", "--strategy", "supervised", "--steps", "2", "--out", "model")
    assert code == 0, err
    backbone = artifact.read_manifest("model")["backbone"]
    assert (
        backbone["name"] == "better"
        and backbone["fingerprint"] == json.loads((work / "better" / "backbone.json").read_text())["fingerprint"]
    )
    assert fewtune("evaluate", "model", "train.csv", "--text", "review", "--label", "sentiment")[0] == 0

    assert fewtune(*tasks, "--backbone", llama, "--out", "better", "--seed", "7", "--overwrite")[0] == 0
    code, _, err = fewtune("evaluate", "model", "train.csv", "--text", "review", "--label", "sentiment")
    assert code == 2 and "model: expected better with weights" in err


def test_the_same_bytes_again_and_a_table_for_people(fewtune, tasks, llama, work):
    code, out, _ = fewtune(*tasks, "--backbone", llama, "--out", "one")
    assert code == 0 and "good" in out and "mean" in out and "2 tasks, 3 templates" in out
    assert fewtune(*tasks, "--backbone", llama, "--out", "two")[0] == 0
    assert (work / "one" / "delta-0.safetensors").read_bytes() == (work / "two" / "delta-0.safetensors").read_bytes()
    code, out, _ = fewtune("multitask", "tasks", "--backbone", llama, "--steps", "1", "--out", "three", "--json")
    assert code == 2  # good has no rows to train on


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--delta", "adapter"), "--delta: expected deltas that can become part of the weights"),
        (("--held-out", "god"), 'expected the name of a task, got "god". Did you mean "good"?'),
        (("--workers", "2"), "--workers: expected --engine ray, got --engine local"),
        (("--overlap", "refuse"), "expected held-out texts that are not trained on"),
    ],
)
def test_refused_in_one_line(fewtune, tasks, llama, work, flags, message):
    code, out, err = fewtune(*tasks, "--backbone", llama, "--out", "better", *flags)
    assert code == 2 and out == "" and message in err.splitlines()[-1]
    assert not (work / "better").exists()


def test_two_processes_write_what_one_writes_of_both_their_batches(fewtune, tasks, llama, work):
    """As torchrun starts them; the deltas are the same to the rounding of a mean."""
    from safetensors.torch import load_file

    command = [*LAUNCH, *tasks, "--accumulate", "1", "--backbone", llama, "--out", "two", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "two" and done.stderr.count("Training ") == 1
    assert fewtune(*tasks, "--backbone", llama, "--out", "one")[0] == 0
    one, two = (load_file(work / name / "delta-0.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all((one[name] - two[name]).abs().max() < 1e-6 for name in one)


def test_two_workers_of_ray_write_the_bytes_of_two_processes(fewtune, tasks, llama, work, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(ft.__file__).parents[1]))
    given = (*tasks, "--accumulate", "1", "--backbone", llama)
    code, out, err = fewtune(*given, "--engine", "ray", "--workers", "2", "--out", "ray", "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == "ray" and "3 steps of 2 × 8 rows" in err and not (work / ".ray.work").exists()
    done = subprocess.run([*LAUNCH, *given, "--out", "two"], capture_output=True, text=True, env=ONE_THREAD, timeout=400)
    assert done.returncode == 0, done.stderr
    assert all(
        (work / "ray" / name).read_bytes() == (work / "two" / name).read_bytes() for name in ("delta-0.safetensors", "backbone.json")
    )
    code, _, err = fewtune(*given, "--engine", "ray", "--workers", "999", "--out", "many")
    assert code == 2 and "--workers: expected at most" in err
