"""Free text, and T5, through the commands that a user types, and what the how-to shows."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from fewtune.backbone import tiny

PAGE = (Path(__file__).parents[2] / "docs/how-to/generation.md").read_text(encoding="utf-8")
ROWS = "question,answer\nwhat is great fun,joy\nwhat is a dull mess,terrible\n"
FREE = ("--kind", r"generation:stop=\n,max_tokens=6", "--text", "question")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return str(tiny.save("t5", tmp_path_factory.mktemp("plm") / "t5"))


@pytest.fixture
def work(work):
    (work / "answered.csv").write_text(ROWS)
    (work / "questions.csv").write_text("question\nwhat is great fun\nwhat is a dull mess\n")
    return work


def test_zero_shot_fit_evaluate_predict(work, fewtune, llama):
    code, out, err = fewtune("zeroshot", "questions.csv", *FREE, "--backbone", llama)
    assert code == 0, err
    before = list(csv.DictReader(out.splitlines()))
    assert all(0 <= float(row["probability"]) < 1 and "\n" not in row["label"] for row in before)

    tune = ("--delta", "subset", "--learning-rate", "0.01", "--steps", "60", "--seed", "3")
    code, out, err = fewtune("fit", "answered.csv", *FREE, "--backbone", llama, *tune, "--test", "answered.csv", "--out", "qa", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["method"] == "supervised, generate, subset" and result["estimate"] is None
    assert {name: metric["value"] for name, metric in result["metrics"].items()} == {"exact_match": 1.0, "f1": 1.0}
    assert result["confusion"] == [] and result["classes"] == []

    code, out, err = fewtune("evaluate", "qa", "answered.csv", "--json")
    assert code == 0 and json.loads(out)["metrics"] == result["metrics"], err
    assert "exact_match" in fewtune("evaluate", "qa", "answered.csv")[1]
    code, _, err = fewtune("predict", "qa", "questions.csv", "-o", "answers.jsonl")
    assert code == 0, err
    lines = [json.loads(line) for line in (work / "answers.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["joy", "terrible"] and all(0 < line["probability"] <= 1 for line in lines)


def test_a_task_file(work, fewtune, llama):
    (work / "task.toml").write_text(
        'fields = ["question"]\ntemplate = "Q: {question} A: {slot}"\n[kind]\nname = "generation"\nstop = ["\\n", "###"]\nmax_tokens = 4\n'
    )
    code, out, err = fewtune("zeroshot", "questions.csv", "--task", "task.toml", "--backbone", llama, "--format", "jsonl")
    assert code == 0 and len(out.splitlines()) == 2, err


@pytest.mark.parametrize("template", ["Question: {question}\\nAnswer: {slot}", "Question: {question} Answer: {slot} ."])
def test_t5_answers_with_its_decoder(work, fewtune, t5, template):
    asked = ("--backbone", t5, "--template", template)
    code, out, err = fewtune("zeroshot", "questions.csv", *FREE, *asked, "--format", "jsonl")
    assert code == 0 and len(out.splitlines()) == 2, err
    labelled = ("--text", "question", "--labels", "joy,terrible", *asked)
    code, out, err = fewtune("zeroshot", "questions.csv", *labelled, "--readout", "likelihood:per=byte")
    assert code == 0 and {row["label"] for row in csv.DictReader(out.splitlines())} <= {"joy", "terrible"}, err
    code, out, err = fewtune(
        "fit", "answered.csv", *labelled, "--label", "answer", "--delta", "lora", "--steps", "3", "--out", "m", "--json"
    )
    assert code == 0 and json.loads(out)["method"] == "supervised, likelihood, lora", err
    code, out, err = fewtune("predict", "m", "questions.csv")
    assert code == 0 and len(out.splitlines()) == 3, err
    code, out, err = fewtune("backbones", "show", t5)
    assert code == 0 and "both ways, and writes" in out, err


def test_refused_in_one_line(work, fewtune, llama, tmp_path):
    bert = tiny.save("bert", tmp_path / "bert")
    for more, message in (
        (("--backbone", bert), "a masked model, which fills gaps of a known length"),
        (("--backbone", llama, "--labels", "a,b"), "expected no labels, for kind generation"),
        (("--backbone", llama, "--readout", "cloze"), "--readout: expected a readout for generation"),
        (("--backbone", llama, "--template", "{slot} {question}"), "expected {slot} at the end"),
        (("--backbone", llama, "--backbone", llama), "--backbone: expected one PLM for free text, got 2"),
    ):
        code, out, err = fewtune("zeroshot", "questions.csv", *FREE, *more)
        assert code == 2 and out == "" and message in err.splitlines()[-1]


def test_what_the_page_shows_runs(work, fewtune, llama, monkeypatch):
    (console,) = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    commands = [shlex.split(line) for line in console.splitlines()]
    assert len(commands) == 4
    for command in commands:
        more = {"zeroshot": ["--backbone", llama], "fit": ["--backbone", llama, "--steps", "2"]}.get(command[1], [])
        code, _, err = fewtune(*command[1:], *more)
        assert code == 0, err
    (python,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    shown = {}
    exec(python.replace('"smollm2-135m"', repr(llama)), shown)
    assert len(shown["answers"]) == 1
