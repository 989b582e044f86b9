"""Candidates of each row's own through every command that a user types."""

import csv
import gzip
import json

import pytest

ROWS = (
    ("was it fun?", ["yes", "no", "a mess"], 0),
    ("who wrote this book?", ["a joy", "terrible"], 1),
    ("what is the capital of the country?", ["business", "world sports", "science", "no"], 2),
    ("great fun?", ["dull", "great"], 1),
    ("a dull mess?", ["a dull, lifeless mess", "joy"], 0),
    ("is it good?", ["bad", "fine"], 1),
)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The same questions as lists, in a cell, and with the choices in columns of their own."""
    monkeypatch.chdir(tmp_path)
    with open("rows.jsonl", "w") as lines, open("cells.csv", "w", newline="") as cells, open("columns.csv", "w", newline="") as columns:
        in_cells, in_columns = csv.writer(cells), csv.writer(columns)
        in_cells.writerow(["question", "choices", "label"])
        in_columns.writerow(["question", "one", "two", "three", "four", "label"])
        for question, choices, right in ROWS:
            lines.write(json.dumps({"question": question, "choices": choices, "label": right}) + "\n")
            in_cells.writerow([question, "|".join(choices), choices[right]])
            in_columns.writerow([question, *choices, *[""] * (4 - len(choices)), f"choice{right + 1}"])
    return tmp_path


KINDS = {"rows.jsonl": "choice", "cells.csv": "choice", "columns.csv": "choice:candidates=one+two+three+four"}
SETTLED = {"rows.jsonl": "choice:label=0", "cells.csv": "choice:label=text", "columns.csv": f"{KINDS['columns.csv']},label=choice1"}


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", KINDS)
def test_from_a_file_to_answers(work, fewtune, llama, name):
    more = ("--kind", KINDS[name], "--backbone", llama, "--steps", "3", "--test", name, "--out", "m", "--json")
    code, out, err = fewtune("fit", name, *more)
    assert code == 0, err
    result = json.loads(out)
    assert list(result["metrics"]) == ["accuracy", "ece"] and (result["confusion"], result["classes"], result["labels"]) == ([], [], [])
    manifest = json.loads((work / "m/manifest.json").read_text())
    assert manifest["task"]["kind"] == SETTLED[name] and manifest["templates"] == ["Question: {question}\nAnswer: {slot}"]
    assert "one of the candidates that each row has of its own" in (work / "m/README.md").read_text()

    code, out, err = fewtune("evaluate", "m", name, "--json")
    assert code == 0 and json.loads(out)["metrics"] == result["metrics"], err
    code, out, err = fewtune("evaluate", "m", name)
    assert code == 0 and "accuracy" in out and "precision" not in out, err

    assert fewtune("predict", "m", name, "-o", "answers.csv")[0] == 0
    answers = rows_of("answers.csv")
    assert all(row["label"] in choices and 0 < float(row["probability"]) <= 1 for row, (_, choices, _) in zip(answers, ROWS, strict=True))
    right = [row["label"] == choices[number] for row, (_, choices, number) in zip(answers, ROWS, strict=True)]
    assert sum(right) / len(right) == pytest.approx(result["metrics"]["accuracy"]["value"])
    code, out, err = fewtune("inspect", "m", name, "--json")
    assert code == 0 and json.loads(out)["rows"] == len(ROWS), err


def test_the_three_ways_of_writing_them_are_answered_alike(work, fewtune, llama):
    found = []
    for name, kind in KINDS.items():
        code, out, err = fewtune("zeroshot", name, "--kind", kind, "--backbone", llama, "--label", "label", "--json")
        assert code == 0 and "A label names its candidate by its" in err, err
        found.append(json.loads(out)["metrics"])
    assert found[0] == found[1] == found[2]


def test_answers_without_any_label(work, fewtune, llama):
    with gzip.open("asked.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"question": question, "choices": choices}) + "\n" for question, choices, _ in ROWS)
    code, out, err = fewtune("zeroshot", "asked.jsonl.gz", "--kind", "choice", "--backbone", llama, "--json")
    assert code == 0, err
    assert all(one["label"] in choices for one, (_, choices, _) in zip(json.loads(out)["answers"], ROWS, strict=True))
    code, out, err = fewtune("zeroshot", "asked.jsonl.gz", "--kind", "choice", "--backbone", llama)
    assert code == 0 and len(out.splitlines()) == len(ROWS) + 1, err


def test_a_task_file_and_a_job_of_several_methods(work, fewtune, llama):
    (work / "task.toml").write_text('kind = {name = "choice", label = "0"}\nfields = ["question"]\ntemplate = "{question} {slot}"\n')
    code, out, err = fewtune("zeroshot", "rows.jsonl", "--task", "task.toml", "--backbone", llama, "--json")
    assert code == 0 and json.loads(out)["rows"] == len(ROWS), err
    methods = {"zero": 'strategy = "zeroshot"', "lora": 'strategy = "supervised"\ndeltas = ["lora:rank=2"]\nsteps = 2'}
    text = "".join(f'[methods.{name}]\n{method}\nbackbone = "{llama}"\n' for name, method in methods.items())
    (work / "job.toml").write_text(
        f'seeds = [1]\nshots = [4]\n[data.d]\ntrain = "rows.jsonl"\ntest = "rows.jsonl"\nkind = "choice:label=0"\n{text}'
    )
    code, out, err = fewtune("compare", "job.toml", "--json")
    assert code == 0 and [row["metric"] for row in json.loads(out)["rows"]] == ["accuracy"] * 2, err


def test_ways_are_judged_where_none_is_chosen(work, fewtune, llama):
    asked = ("fit", "rows.jsonl", "--kind", "choice", "--backbone", llama, "--out", "m", "--json")
    code, out, err = fewtune(*asked)
    assert code == 0 and "Judging zero-shot, zero-shot calibrated, tuned on 6 labelled rows" in err, err
    found = json.loads(out)["estimate"]
    assert (found["metric"], found["rows"]) == ("accuracy", 6) and 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def line(**values):
    return json.dumps({"question": "was it fun?", "choices": ["yes", "no"], "label": 0, **values})


WRONG = {
    "a single candidate": ([line(choices=["yes"])], (), 'rows.jsonl:2: expected at least two candidates, got "yes"'),
    "two alike": ([line(choices=["yes", "yes "])], (), 'rows.jsonl:2: expected candidates that differ, got "yes" twice'),
    "one without a text": ([line(choices=["yes", ""])], (), "rows.jsonl:2: expected candidates with a text, got candidate 2 without"),
    "no list": ([line(choices={"a": 1})], (), 'rows.jsonl:2: expected a list of candidates in column "choices"'),
    "no such column": ([], ("--kind", "choice:candidates=choises"), 'Did you mean "choices"?'),
    "a label beyond": (
        [line(label=5)],
        (),
        'rows.jsonl:2: expected a label that names a candidate by its place, the first one being 0, got "5"',
    ),
    "a label of no candidate": (
        [line(label="perhaps")],
        ("--kind", "choice:label=text"),
        "rows.jsonl:1: expected a label that names a candidate",
    ),
    "counted from where": ([line(label=1)] * 2, (), "Say which: --kind choice:label=0, or label=1."),
    "labels": ([], ("--labels", "yes,no"), "expected no labels, for kind choice"),
    "a readout of one token": ([], ("--readout", "cloze"), "which reads a first token only"),
    "a readout of labels": ([], ("--readout", "head"), "which learns labels that all rows share"),
    "a readout of texts": ([], ("--readout", "channel"), "which puts the same words before every row's text"),
    "a bias of labels": ([], ("--calibration", "contextual"), "a calibration for candidates of each row's own"),
    "demonstrations": ([], ("--demonstrations", "per_label=1"), "--demonstrations"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line_and_exit_code_2(work, fewtune, llama, name):
    more, arguments, message = WRONG[name]
    first = [] if name == "counted from where" else [line()]
    (work / "rows.jsonl").write_text("\n".join([*first, *more]) + "\n")
    kind = () if "--kind" in arguments else ("--kind", "choice")
    code, out, err = fewtune("fit", "rows.jsonl", *kind, *arguments, "--backbone", llama, "--steps", "1", "--out", "m")
    assert code == 2 and out == "" and message in err.splitlines()[-1], err
    assert not (work / "m").exists()


def test_rows_that_cannot_be_used_are_skipped(work, fewtune, llama):
    with open("rows.jsonl", "a") as file:
        file.write(line(choices=["yes"]) + "\n")
    code, _, err = fewtune("fit", "rows.jsonl", "--kind", "choice", "--backbone", llama, "--steps", "1", "--out", "m", "--skip-bad-rows")
    assert code == 0 and "Skipped 1 bad row" in err, err
    code, _, err = fewtune("predict", "m", "rows.jsonl", "-o", "answers.jsonl", "--skip-bad-rows")
    assert code == 0 and "Skipped 1 bad rows." in err, err


def test_a_pool_is_not_learned_from_and_pet_is_refused(work, fewtune, llama):
    asked = ("fit", "rows.jsonl", "--kind", "choice:label=0", "--unlabeled", "rows.jsonl", "--backbone", llama, "--out", "m")
    code, _, err = fewtune(*asked, "--strategy", "pet")
    assert code == 2 and "a task with labels, whose answers are right or wrong" in err.splitlines()[-1], err
