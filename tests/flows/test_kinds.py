"""Tasks that are not classification of one text, and pairs, through every command that a user types."""

import csv
import json

import pytest

RATINGS = """review,rating
great fun and joy,4.5
a dull mess,1
good and great,4
"terrible, lifeless",0.5
fun,3
a mess,1.5
joy and fun,3.5
dull,2
"""
PAIRS = "a,b,label\ngreat fun,good,yes\na mess,great,no\ngood,great joy,yes\ndull,joy,no\n"


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "pairs.csv").write_text(PAIRS)
    (tmp_path / "scored.csv").write_text(PAIRS.replace("label", "score").replace("yes", "3").replace("no", "1"))
    return tmp_path


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_ratings_from_a_file_to_answers(work, fewtune, llama):
    code, out, err = fewtune(
        "fit", "ratings.csv", "--kind", "regression", "--backbone", llama, "--steps", "3", "--test", "ratings.csv", "--out", "m", "--json"
    )
    assert code == 0, err
    assert "Values lie between 0.5 and 4.5" in err and "--kind regression:low=0.5,high=4.5" in err
    result = json.loads(out)
    assert set(result["metrics"]) == {"pearson", "spearman", "mae", "rmse"} and result["estimate"] is None
    assert (result["confusion"], result["classes"], result["labels"]) == ([], [], ["low", "high"])

    code, out, err = fewtune("evaluate", "m", "ratings.csv", "--json")
    assert code == 0 and json.loads(out)["metrics"] == result["metrics"], err
    code, out, err = fewtune("evaluate", "m", "ratings.csv")
    assert code == 0 and "spearman" in out and "precision" not in out

    assert fewtune("predict", "m", "ratings.csv", "-o", "answers.csv")[0] == 0
    answers = rows_of("answers.csv")
    assert list(answers[0]) == ["review", "rating", "label", "probability", "exit_layer"]
    assert all(0.5 <= float(row["label"]) <= 4.5 and row["probability"] == "" for row in answers)
    errors = [abs(float(row["label"]) - float(row["rating"])) for row in answers]
    assert sum(errors) / len(errors) == pytest.approx(result["metrics"]["mae"]["value"], abs=1e-3)

    code, out, err = fewtune("inspect", "m", "ratings.csv", "--json")
    assert code == 0 and all(row["after"]["probability"] is None for row in json.loads(out)["changed"])
    assert fewtune("inspect", "m", "ratings.csv")[0] == 0


def test_ratings_from_a_task_file_with_words(work, fewtune, llama):
    (work / "task.toml").write_text(
        'kind = {name = "regression", low = 0, high = 5}\nlabels = ["bad", "good"]\nfields = ["review"]\n'
        'template = "{review} It was {slot}"\nwords = {bad = "terrible", good = ["great", "good"]}\n'
    )
    more = ("--task", "task.toml", "--backbone", llama, "--out", "m", "--steps", "2")
    code, out, err = fewtune("fit", "ratings.csv", *more)
    assert code == 0 and "Values lie" not in err, err
    assert json.loads((work / "m/manifest.json").read_text())["task"]["kind"] == "regression:low=0,high=5"
    assert "Answers a number from 0 (bad) to 5 (good)." in (work / "m/README.md").read_text()


def test_ratings_without_any_training(work, fewtune, llama):
    asked = ("ratings.csv", "--kind", "regression:low=0,high=5", "--labels", "terrible,great", "--backbone", llama)
    code, out, err = fewtune("zeroshot", *asked, "--label", "rating", "--json")
    assert code == 0 and set(json.loads(out)["metrics"]) == {"pearson", "spearman", "mae", "rmse"}, err
    code, out, err = fewtune("zeroshot", *asked)
    assert code == 0 and all(0 <= float(row["label"]) <= 5 for row in csv.DictReader(out.splitlines())), err
    (work / "texts.csv").write_text("review\ngreat fun\n")
    code, out, err = fewtune("zeroshot", "texts.csv", *asked[1:], "--json")
    assert code == 0 and json.loads(out)["answers"][0]["probability"] is None, err


@pytest.mark.parametrize("more", [("--readout", "head"), ("--calibration", "temperature"), ("--calibration", "contextual")])
def test_pairs_with_a_score(work, fewtune, llama, more):
    asked = ("scored.csv", "--kind", "regression", "--text", "a", "--text", "b", "--backbone", llama, "--steps", "2", "--out", "m")
    code, out, err = fewtune("fit", *asked, *more)
    assert code == 0, err
    assert fewtune("evaluate", "m", "scored.csv")[0] == 0


WRONG = {
    "a range without an end": (("zeroshot", "ratings.csv", "--kind", "regression"), "the low end of the range"),
    "an unknown kind": (("fit", "ratings.csv", "--kind", "regresion", "--out", "m"), 'Did you mean "regression"?'),
    "an unknown field": (("fit", "ratings.csv", "--kind", "regression:lo=1", "--out", "m"), 'Did you mean "low"?'),
    "a value outside": (("fit", "ratings.csv", "--kind", "regression:low=1,high=5", "--out", "m"), "ratings.csv:5"),
    "no number": (("fit", "pairs.csv", "--text", "a", "--kind", "regression", "--out", "m"), 'pairs.csv:2: expected a number, got "yes"'),
    "pairs of one label": (("fit", "ratings.csv", "--kind", "regression", "--readout", "similarity", "--out", "m"), "--readout"),
    "three poles": (("fit", "ratings.csv", "--kind", "regression", "--labels", "a,b,c", "--out", "m"), "two poles"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line_and_exit_code_2(work, fewtune, llama, name):
    arguments, message = WRONG[name]
    code, out, err = fewtune(*arguments, "--backbone", llama)
    assert code == 2 and out == "" and message in err.splitlines()[-1], err
    assert not (work / "m").exists()


def test_rows_without_a_number_can_be_skipped(work, fewtune, llama):
    (work / "ratings.csv").write_text(RATINGS + "fun,n/a\n")
    asked = ("fit", "ratings.csv", "--kind", "regression", "--backbone", llama, "--steps", "1", "--out", "m")
    assert fewtune(*asked)[0] == 2
    code, _, err = fewtune(*asked, "--skip-bad-rows")
    assert code == 0 and "Skipped 1 bad row" in err


def test_ratings_are_judged_where_no_method_is_chosen(work, fewtune, llama):
    asked = ("fit", "ratings.csv", "--kind", "regression", "--labels", "terrible,great", "--backbone", llama, "--out", "m")
    code, out, err = fewtune(*asked, "--json")
    assert code == 0 and "Judging zero-shot, zero-shot calibrated, tuned on 8 labelled rows" in err, err
    found = json.loads(out)["estimate"]
    assert (found["metric"], found["rows"], found["level"]) == ("mae", 8, 0.9) and 0 <= found["low"] <= found["value"] <= found["high"] <= 4
    about = json.loads((work / "m/manifest.json").read_text())["about"]
    assert about["estimate"] == found and [set(rung) for rung in about["rungs"]] == [{"name", "mae", "loss"}] * 3
    assert f"| mean absolute error, estimated | {found['value']:.3g} (90 % interval" in (work / "m/README.md").read_text()
    code, out, err = fewtune(*asked, "--overwrite")
    assert code == 0 and f"mean absolute error {found['value']:.3g} (90 % interval" in out, err
    assert fewtune("evaluate", "m", "ratings.csv")[0] == 0
    (work / "few.csv").write_text("\n".join(RATINGS.splitlines()[:4]) + "\n")
    code, out, err = fewtune(*asked[:1], "few.csv", *asked[2:], "--overwrite", "--json")
    assert code == 0 and "No estimate: it needs 4 different rows." in err and json.loads(out)["estimate"] is None, err


COMPARED = """seeds = [1, 2]
[data.d]
train = "ratings.csv"
test = "ratings.csv"
kind = "regression:low=0,high=5"
labels = ["terrible", "great"]
[methods.zero]
strategy = "zeroshot"
backbone = "LLAMA"
[methods.lora]
strategy = "supervised"
deltas = ["lora:rank=2"]
steps = 2
backbone = "LLAMA"
[methods.calibrated]
strategy = "zeroshot"
calibration = "contextual"
backbone = "LLAMA"
"""


def test_ways_of_rating_are_compared_by_their_errors(work, fewtune, llama):
    (work / "job.toml").write_text(COMPARED.replace("LLAMA", llama))
    code, out, err = fewtune("compare", "job.toml", "--json")
    assert code == 0, err
    zero, lora, calibrated = json.loads(out)["rows"]
    assert {row["metric"] for row in (zero, lora, calibrated)} == {"mae"} and set(lora["metrics"]) == {"pearson", "spearman", "mae", "rmse"}
    assert lora["contrast"]["test"] in ("t", "permutation") and lora["metrics"]["mae"]["deviation"] is not None
    difference = calibrated["metrics"]["mae"]["value"] - zero["metrics"]["mae"]["value"]
    assert calibrated["contrast"]["test"] == "permutation" and calibrated["contrast"]["difference"] == pytest.approx(difference)
    verdict = "cannot be told apart" if calibrated["contrast"]["p"] >= 0.1 else "better" if difference < 0 else "worse"
    assert calibrated["contrast"]["verdict"] == verdict
    code, out, _ = fewtune("compare", "job.toml")
    assert code == 0 and "mae" in out and "accuracy" not in out and f"{zero['metrics']['mae']['value']:.3f}" in out


def test_ways_of_giving_several_labels_are_compared_by_their_f1(work, fewtune, llama):
    (work / "feelings.csv").write_text(FEELINGS)
    data = '[data.d]\ntrain = "feelings.csv"\ntest = "feelings.csv"\nkind = "multilabel"\n'
    one, two = (f'[methods.{name}]\nreadout = "{name}"\nsteps = 2\nbackbone = "{llama}"\n' for name in ("head", "similarity"))
    (work / "job.toml").write_text(f"seeds = [1]\n{data}{one}{two}")
    code, out, err = fewtune("compare", "job.toml", "--json")
    assert code == 0, err
    head, similarity = json.loads(out)["rows"]
    assert head["metric"] == "micro_f1" and similarity["contrast"]["test"] == "permutation"
    difference = similarity["metrics"]["micro_f1"]["value"] - head["metrics"]["micro_f1"]["value"]
    assert similarity["contrast"]["difference"] == pytest.approx(difference)


@pytest.mark.parametrize("readout", ["cloze", "head", "similarity"])
def test_pairs_in_every_command(work, fewtune, llama, readout):
    columns = ("--text", "a", "--text", "b")
    more = ("--backbone", llama, "--readout", readout, "--steps", "2", "--out", "m")
    code, _, err = fewtune("fit", "pairs.csv", *columns, *more, "--test", "pairs.csv")
    assert code == 0, err
    assert fewtune("predict", "m", "pairs.csv", "-o", "answers.csv")[0] == 0
    assert [row["b"] for row in rows_of("answers.csv")] == ["good", "great", "great joy", "joy"]
    assert fewtune("inspect", "m", "pairs.csv")[0] == 0
    # Columns of other names stand for the model's fields, in order.
    (work / "other.csv").write_text(PAIRS.replace("a,b,label", "first,second,label"))
    code, out, err = fewtune("evaluate", "m", "other.csv", "--text", "first", "--text", "second", "--json")
    assert code == 0 and json.loads(out)["rows"] == 4, err


def test_pairs_without_any_training(work, fewtune, llama):
    asked = ("--labels", "no,yes", "--text", "a", "--text", "b", "--backbone", llama)
    code, out, err = fewtune("zeroshot", "pairs.csv", *asked, "--json")
    assert code == 0 and json.loads(out)["rows"] == 4, err
    code, out, err = fewtune("zeroshot", "pairs.csv", *asked)
    assert code == 0 and len(out.splitlines()) == 5, err


def test_pairs_are_guessed_by_their_usual_names(work, fewtune, llama):
    (work / "pairs.csv").write_text(PAIRS.replace("a,b,label", "premise,hypothesis,label"))
    code, _, err = fewtune("fit", "pairs.csv", "--backbone", llama, "--steps", "1", "--out", "m")
    assert code == 0 and '"premise" and "hypothesis"' in err, err
    assert json.loads((work / "m/manifest.json").read_text())["templates"] == [
        "Premise: {premise}\nHypothesis: {hypothesis}\nLabel: {slot}"
    ]


FEELINGS = """text,labels
great fun and joy,joy
a dull mess,gloom|anger
good and great,joy
"terrible, lifeless",gloom
joy from start to finish,joy
a mess,anger
the film,
dull and a mess,gloom|anger
"""


@pytest.mark.parametrize("readout", ["head", "similarity"])
def test_several_labels_from_a_file_to_answers(work, fewtune, llama, readout):
    (work / "feelings.csv").write_text(FEELINGS)
    more = ("--backbone", llama, "--readout", readout, "--steps", "3", "--out", "m", "--test", "feelings.csv", "--json")
    code, out, err = fewtune("fit", "feelings.csv", "--kind", "multilabel", *more)
    assert code == 0, err
    result = json.loads(out)
    assert list(result["metrics"]) == ["micro_f1", "macro_f1", "subset_accuracy", "hamming_loss", "mean_average_precision"]
    assert result["labels"] == ["anger", "gloom", "joy"] == [row["label"] for row in result["classes"]]
    assert result["confusion"] == [] and result["estimate"] is None
    kind = json.loads((work / "m/manifest.json").read_text())["task"]["kind"]
    assert kind.startswith("multilabel:separator=|,threshold=0.") and f"Chosen on rows not seen: --kind {kind}." in err
    assert "Answers any of, or none of: anger, gloom, joy." in (work / "m/README.md").read_text()

    code, out, err = fewtune("evaluate", "m", "feelings.csv", "--json")
    assert code == 0 and json.loads(out)["metrics"] == result["metrics"], err
    code, out, err = fewtune("evaluate", "m", "feelings.csv")
    assert code == 0 and "hamming_loss" in out and "gloom" in out and "given instead" not in out, err

    assert fewtune("predict", "m", "feelings.csv", "-o", "answers.csv")[0] == 0
    answers = rows_of("answers.csv")
    assert all(set(filter(None, row["label"].split("|"))) <= set(result["labels"]) for row in answers)
    assert all(0 <= float(row["probability"]) <= 1 for row in answers)
    exact = [set(row["label"].split("|")) == set(row["labels"].split("|")) for row in answers]
    assert sum(exact) / len(exact) == pytest.approx(result["metrics"]["subset_accuracy"]["value"])
    assert fewtune("inspect", "m", "feelings.csv")[0] == 0


def test_several_labels_are_judged_where_no_method_is_chosen(work, fewtune, llama):
    (work / "feelings.csv").write_text(FEELINGS)
    code, out, err = fewtune("fit", "feelings.csv", "--kind", "multilabel", "--backbone", llama, "--out", "m", "--json")
    assert code == 0 and err.count("4 folds, each like the first:") == 1, err
    found = json.loads(out)["estimate"]
    assert (found["metric"], found["rows"]) == ("micro_f1", 8) and 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    manifest = json.loads((work / "m/manifest.json").read_text())
    kind = manifest["task"]["kind"]
    assert kind.startswith("multilabel:separator=|,threshold=0.") and f"Chosen on rows not seen: --kind {kind}." in err
    assert manifest["about"]["recipe"]["task"]["kind"] == "multilabel", "what was asked"
    assert f"| micro-F1, estimated | {found['value']:.3g} (90 % interval" in (work / "m/README.md").read_text()
    assert fewtune("evaluate", "m", "feelings.csv")[0] == 0


def test_several_labels_as_lists_and_with_commas(work, fewtune, llama):
    rows = [line.split(",") for line in FEELINGS.replace(", ", " ").splitlines()[1:]]
    with open("feelings.jsonl", "w") as file:
        for text, labels in rows:
            file.write(json.dumps({"text": text, "labels": [label for label in labels.split("|") if label]}) + "\n")
    asked = ("--backbone", llama, "--steps", "1")
    code, _, err = fewtune("fit", "feelings.jsonl", "--kind", "multilabel:threshold=0.5", *asked, "--out", "m1")
    assert code == 0 and "folds" not in err, err
    (work / "feelings.tsv").write_text("text\tlabels\n" + "".join(f"{text}\t{labels.replace('|', ', ')}\n" for text, labels in rows))
    code, _, err = fewtune("fit", "feelings.tsv", "--kind", "multilabel:separator=comma", *asked, "--out", "m2")
    assert code == 0, err
    assert json.loads((work / "m2/manifest.json").read_text())["task"]["labels"] == ["anger", "gloom", "joy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "feelings.csv", "--readout", "cloze", "--out", "m"), "holds the word of one label"),
        (("fit", "feelings.csv", "--labels", "joy,gloom", "--out", "m"), 'feelings.csv:3: expected labels of the task, got "anger"'),
        (("zeroshot", "feelings.csv", "--labels", "joy,gloom"), "Label some rows"),
    ],
)
def test_several_labels_that_do_not_fit(work, fewtune, llama, arguments, message):
    (work / "feelings.csv").write_text(FEELINGS)
    code, out, err = fewtune(*arguments, "--kind", "multilabel", "--backbone", llama)
    assert code == 2 and out == "" and message in err.splitlines()[-1], err
