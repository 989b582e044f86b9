"""PET on the command line: a pool, a teacher's file, no labelled row at all, and what is refused."""

import json
import re

import pytest

WORDS = ("--words", "positive=great,negative=terrible")


@pytest.fixture
def work(work):
    rows = ["great fun,positive", "a dull mess,negative", "good and great,positive", "terrible lifeless,negative"]
    (work / "few.csv").write_text("text,label\n" + "\n".join(rows * 2) + "\n")
    pool = [
        f"{one} {two} {three}" for one in ("great", "dull", "good", "mess") for two in ("and", "a") for three in ("fun", "joy", "lifeless")
    ]
    (work / "pool.csv").write_text("text\n" + "\n".join(pool) + "\n")
    (work / "teacher.csv").write_text("text,label,probability\n" + "".join(f"{text},positive,0.9\n" for text in pool))
    return work


def fit(fewtune, llama, *more):
    return fewtune("fit", *more, "--out", "model", "--backbone", llama, "--steps", "3", *WORDS, "--json")


def test_the_student_answers_and_the_artifact_says_who_taught_it(work, fewtune, llama):
    code, out, err = fit(fewtune, llama, "few.csv", "--unlabeled", "pool.csv", "--strategy", "pet:guard=false")
    assert code == 0, err
    for said in ("Steps 1 and 2 of 3: 4 members, tuned; each labels 24 rows.", "Labelled: negative", "Step 3 of 3: the student"):
        assert said in err
    assert re.search(r"Labelled 24 rows, [\d,.]+ a second\.", err)
    assert re.search(r"The first 1 of 4 took \d+ s, the others will take about \d+ s\.", err)
    result = json.loads(out)
    assert result["method"] == "pet, head, lora" and result["pet"]["generations"] == 0
    card = (work / "model" / "README.md").read_text()
    assert "| unlabelled rows | 24, labelled by 4 members |" in card and card.count("| member | ") == 4
    about = json.loads((work / "model" / "manifest.json").read_text())["about"]["pet"]
    assert about["rows"] == 24 and len(about["members"]) == 4
    assert fewtune("predict", "model", "pool.csv", "-o", "answers.csv")[0] == 0


def test_with_its_guard_the_fit_has_an_estimate(work, fewtune, llama):
    code, out, err = fit(fewtune, llama, "few.csv", "--unlabeled", "pool.csv", "--strategy", "pet", "--template", "{text} It was {slot}")
    assert code == 0, err
    result = json.loads(out)
    assert result["estimate"]["rows"] == 4, "a text that stands twice counts once"


def test_the_card_says_why_the_pool_was_not_learned_from(work, fewtune, llama):
    (work / "two.csv").write_text("text,label\ngreat fun,positive\na dull mess,negative\n")
    code, out, err = fit(fewtune, llama, "two.csv", "--unlabeled", "pool.csv", "--strategy", "pet:margin=0,patterns=1")
    reason = json.loads(out)["pet"]["reason"]
    assert code == 0 and reason in err and json.loads(out)["estimate"] is None
    card = (work / "model" / "README.md").read_text()
    assert "| unlabelled rows | not learned from; shift" in card and f"| why not | {reason} |" in card and "| member |" not in card
    asked = json.loads((work / "model" / "manifest.json").read_text())["about"]["pet"]["asked"]
    assert asked["name"] == "pet" and asked["patterns"] == 1 and asked["merge"] == "stacked"


def test_no_labelled_row_at_all(work, fewtune, llama):
    more = ("--unlabeled", "pool.csv", "--labels", "negative,positive", "--strategy", "ipet:generations=1,first=3,patterns=1")
    code, out, err = fit(fewtune, llama, *more)
    assert code == 0 and "Generation 1 learns from 6 of these rows" in err and "No estimate" in err
    assert json.loads(out)["estimate"] is None


def test_a_teacher_s_file(work, fewtune, llama):
    code, out, err = fit(fewtune, llama, "few.csv", "--teacher", "teacher.csv", "--strategy", "pet:guard=false,patterns=0")
    assert code == 0 and "The teacher has said nothing of the labelled rows" in err, err
    assert json.loads(out)["pet"]["audit"] == {"rows": 0, "accuracy": None}
    assert json.loads(out)["method"] == "pet, head, lora"


def test_a_teacher_is_enough_where_the_labels_are_named(work, fewtune, llama):
    code, out, err = fit(fewtune, llama, "--teacher", "teacher.csv", "--labels", "negative,positive")
    assert code == 0 and "No estimate and no guard" in err, err
    assert json.loads(out)["pet"]["rows"] == 24 and json.loads(out)["pet"]["audit"]["rows"] == 0
    assert fit(fewtune, llama, "--teacher", "teacher.csv", "--labels", "negative,positive", "--strategy", "ladder")[0] == 2


def test_of_a_teacher_s_file_bad_rows_are_skipped_and_what_is_guessed_is_said(work, fewtune, llama):
    (work / "gpt.csv").write_text("text,gpt,probability\ngood day,positive,0.9\ngreat day,positive,0.8\nx,good,\n")
    code, _, err = fit(fewtune, llama, "few.csv", "--teacher", "gpt.csv", "--strategy", "pet:guard=false,patterns=0")
    assert code == 2 and "gpt.csv:4" in err and "a label of the task" in err
    code, _, err = fit(fewtune, llama, "few.csv", "--teacher", "gpt.csv", "--strategy", "pet:guard=false,patterns=0", "--skip-bad-rows")
    assert code == 0 and "Skipped 1 bad row" in err and 'Reading the teacher\'s label from column "gpt"' in err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--strategy", "ipet"), "Give a file with labels"),
        (("--unlabeled", "pool.csv", "--labels", "a,b"), "Give a file with labels"),
        (("few.csv", "--strategy", "pet"), "Give texts with --unlabeled"),
        (("few.csv", "--strategy", "pet:growing=2"), "growing"),
        (("few.csv", "--strategy", "pett"), 'Did you mean "pet"?'),
        (("few.csv", "--teacher", "teacher.csv", "--strategy", "supervised"), "Leave --teacher or --strategy out"),
        (("few.csv", "--teacher", "few.csv", "--strategy", "pet", "--labels", "good,bad"), "a label of the task"),
        (("few.csv", "--teacher", "teacher.csv", "--kind", "multilabel"), "Leave --teacher out"),
        (("--teacher", "teacher.csv"), "or --labels with --teacher"),
    ],
)
def test_what_does_not_go_together_is_one_line(work, fewtune, llama, more, said):
    code, _, err = fit(fewtune, llama, *more)
    assert code == 2 and said in err and "Traceback" not in err


def test_few_unlabelled_rows_are_left_alone_unless_asked_for(work, fewtune, llama):
    code, out, err = fewtune("fit", "few.csv", "--out", "model", "--unlabeled", "pool.csv", "--backbone", llama, *WORDS, "--json")
    assert code == 0 and "not learned from (fewer than 200)" in err and json.loads(out)["method"].split(",")[0] != "pet"
