"""The command line as a user types it, on a tiny model folder: results, files, exit codes and one-line messages."""

import csv
import json
import shutil

import pytest
from typer.main import get_command

from fewtune.backbone import tiny
from fewtune.cli.app import app

WORDS = ("--words", "positive=great|good,negative=terrible")


def named(command, before=()):
    """All commands, and those below them, as they are typed."""
    below = getattr(command, "commands", {})
    return [one for name, child in below.items() for one in ((*before, name), *named(child, (*before, name)))]


COMMANDS = named(get_command(app))


@pytest.fixture
def work(work):
    (work / "pairs.csv").write_text("a,b,label\ngreat fun,good,yes\na mess,great,no\ngood,great joy,yes\ndull,joy,no\n")
    return work


def fit(fewtune, llama, *more):
    return fewtune("fit", "train.csv", "--out", "model", "--backbone", llama, "--steps", "3", *WORDS, *more)


def test_fit_predict_evaluate(work, fewtune, llama):
    code, out, err = fit(fewtune, llama, "--test", "train.csv", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["model"] == "model" and result["trained_parameters"] > 0 and "estimate" in result
    assert set(result["seconds"]) == {"load", "fit", "predict"} and result["bytes"]["model"] > 0
    accuracy = result["metrics"]["accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert sorted(path.name for path in work.iterdir()) == ["model", "pairs.csv", "train.csv"]

    code, out, err = fewtune("evaluate", "model", "train.csv", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["metrics"] == result["metrics"] and set(found["seconds"]) == {"load", "predict"}
    assert set(found["metrics"]) == {"accuracy", "macro_f1", "mcc", "ece"}

    code, out, err = fewtune("predict", "model", "train.csv", "-o", "answers.csv")
    assert code == 0, err
    with open("answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["review"] for row in rows] == ["great fun and joy", "a dull mess", "good and great", "terrible, lifeless"]
    assert list(rows[0]) == ["review", "sentiment", "label", "probability", "exit_layer"]
    assert all(row["label"] in ("positive", "negative") and 0.5 <= float(row["probability"]) <= 1 for row in rows)

    code, out, _ = fewtune("predict", "model", "train.csv", "--format", "jsonl")
    assert code == 0
    assert [json.loads(line)["label"] for line in out.splitlines()] == [row["label"] for row in rows]


@pytest.mark.slow
def test_of_two_plms_the_rows_choose_one_and_the_artifact_names_it(work, fewtune, llama):
    first, second = "first", "second"
    shutil.copytree(llama, first)
    shutil.copytree(llama, second)
    plms = ("--backbone", first, "--backbone", second)
    alone = ("--strategy", "ladder:combine=false")
    code, _, err = fewtune("fit", "train.csv", "--out", "model", *plms, *alone, *WORDS, "--json")
    assert code == 0 and f"zero-shot ({first})" in err and f"tuned ({second})" in err
    manifest = json.loads((work / "model" / "manifest.json").read_text())
    assert manifest["backbone"]["name"] in (first, second) and manifest["about"]["kept"].endswith(f"({manifest['backbone']['name']})")
    assert fewtune("predict", "model", "train.csv", "-o", "answers.csv")[0] == 0

    code, _, err = fewtune("fit", "train.csv", "--out", "other", *plms, *WORDS, "--delta", "lora")
    assert code == 2 and len(err.splitlines()) == 1 and "--backbone" in err


@pytest.mark.slow
def test_many_rows_keep_their_order(work, fewtune, llama):
    assert fit(fewtune, llama)[0] == 0
    with open("many.jsonl", "w") as file:
        for number in range(1300):
            file.write(json.dumps({"id": number, "review": "great " * (number % 7 + 1), "label": "x"}) + "\n")
    code, _, err = fewtune("predict", "model", "many.jsonl", "-o", "out.jsonl")
    assert code == 0, err
    with open("out.jsonl") as file:
        rows = [json.loads(line) for line in file]
    assert [int(row["id"]) for row in rows] == list(range(1300))
    assert rows[0]["input_label"] == "x" and rows[0]["label"] in ("positive", "negative")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--delta", "lora:rank=4,sites=ffn_in+ffn_out", "--delta", "subset:part=norms"),
        ("--readout", "head", "--delta", "subset:part=none"),
        ("--readout", "head:pool=first"),
        ("--template", r"{review}\nIt was {slot}", "--template", "Review: {review} {slot}"),
        ("--calibration", "temperature"),
        ("--strategy", "zeroshot"),
        ("--labels", "negative,positive", "--learning-rate", "0.01", "--batch-size", "2"),
    ],
)
def test_flags(work, fewtune, llama, more):
    code, out, err = fit(fewtune, llama, "--json", *more)
    assert code == 0, err
    assert fewtune("evaluate", "model", "train.csv")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--strategy", "zeroshot"), ()])
def test_demonstrations(work, fewtune, llama, more):
    shown = ("--demonstrations", "per_label=1,similar=1,draws=2")
    code, out, err = fit(fewtune, llama, *shown, *more, "--json")
    assert code == 0, err
    assert json.loads(out)["method"].endswith("demonstrations")
    manifest = json.loads((work / "model" / "manifest.json").read_text())["demonstrations"]
    assert len(manifest["examples"]) == 4 and manifest["spec"]["draws"] == 2 and manifest["encoder_fingerprint"] is None
    code, out, _ = fewtune("predict", "model", "train.csv", "--format", "jsonl")
    assert code == 0 and len(out.splitlines()) == 4
    code, out, err = fit(fewtune, llama, "--overwrite", "--demonstrations", "per_label=0")
    assert code == 2 and err.strip() == "demonstrations.per_label: expected at least 1, got 0. Change the value."


def test_a_template_from_the_shell_has_its_new_line(work, fewtune, llama):
    assert fit(fewtune, llama, "--template", r"{review}\nIt was {slot}")[0] == 0
    assert json.loads((work / "model/manifest.json").read_text())["templates"] == ["{review}\nIt was {slot}"]


@pytest.mark.slow
def test_pairs_and_a_task_file(work, fewtune, llama):
    more = ("--backbone", llama, "--steps", "2", "--out", "pair-model")
    code, _, err = fewtune("fit", "pairs.csv", "--text", "a", "--text", "b", "--label", "label", *more)
    assert code == 0, err
    assert fewtune("predict", "pair-model", "pairs.csv")[0] == 0
    (work / "task.toml").write_text(
        'labels = ["no", "yes"]\nfields = ["a", "b"]\ntemplate = "{a}? {slot}"\nwords = {no = ["terrible"], yes = ["great"]}\n'
    )
    code, _, err = fewtune("fit", "pairs.csv", "--task", "task.toml", *more, "--overwrite")
    assert code == 0, err


@pytest.mark.slow
def test_zeroshot(work, fewtune, llama):
    options = ("--template", "Review: {review} It was {slot}", "--backbone", llama)
    code, out, err = fewtune("zeroshot", "train.csv", "--labels", "positive,negative", "--label", "sentiment", *options, *WORDS, "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["accuracy"]["value"] in (0, 0.25, 0.5, 0.75, 1)
    (work / "texts.csv").write_text("review\ngreat fun\na mess\n")
    code, out, err = fewtune("zeroshot", "texts.csv", "--labels", "positive,negative", *options, *WORDS, "--json")
    assert code == 0, err
    assert len(json.loads(out)["answers"]) == 2
    code, out, err = fewtune("zeroshot", "texts.csv", "--labels", "positive,negative", *options, *WORDS)
    assert code == 0 and out.splitlines()[0] == "review,label,probability,exit_layer"


@pytest.mark.slow
def test_a_description_is_part_of_prompts_artifact_and_card(work, fewtune, llama):
    asked = "Is the review positive or negative?"
    assert fit(fewtune, llama, "--describe", asked)[0] == 0
    manifest = json.loads((work / "model/manifest.json").read_text())
    assert manifest["task"]["description"] == asked
    assert manifest["templates"] == [f"{asked}\nReview: {{review}}\nSentiment: {{slot}}"]
    assert asked in (work / "model/README.md").read_text().splitlines()
    assert fewtune("predict", "model", "train.csv")[0] == 0
    (work / "task.toml").write_text('labels = ["negative", "positive"]\nfields = ["review"]\ndescription = "Another?"\n')
    options = ("--task", "task.toml", "--overwrite", *WORDS)
    assert fit(fewtune, llama, "--describe", asked, *options)[0] == 0
    assert json.loads((work / "model/manifest.json").read_text())["task"]["description"] == asked
    assert fit(fewtune, llama, *options)[0] == 0
    assert json.loads((work / "model/manifest.json").read_text())["task"]["description"] == "Another?"


@pytest.mark.slow
def test_zeroshot_from_a_description(work, fewtune, llama):
    options = ("--labels", "positive,negative", "--label", "sentiment", "--backbone", llama, *WORDS)
    plain = fewtune("zeroshot", "train.csv", *options)[1]
    code, described, err = fewtune("zeroshot", "train.csv", *options, "--describe", "Is the review positive or negative?")
    assert code == 0, err
    asked = r"Is the review positive or negative?\nReview: {review}\nLabel: {slot}"
    assert described == fewtune("zeroshot", "train.csv", *options, "--template", asked)[1] != plain


@pytest.mark.slow
def test_zeroshot_by_several_routes(work, fewtune, llama, tmp_path_factory):
    bert = str(tiny.save("bert", tmp_path_factory.mktemp("plm") / "bert"))
    options = ("--labels", "positive,negative", "--describe", "Is it good?", "--backbone", llama, "--backbone", bert)
    readouts = ("--readout", "channel", "--readout", "similarity")
    code, out, err = fewtune("zeroshot", "train.csv", "--label", "sentiment", *options, *readouts, "--calibration", "prior", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["method"] for one in found["routes"]] == ["zeroshot, channel", "zeroshot, similarity"]
    assert all(one["metrics"]["accuracy"]["value"] in (0, 0.25, 0.5, 0.75, 1) for one in (found, *found["routes"]))
    (work / "texts.csv").write_text("review\ngreat fun\na mess\n")
    code, out, err = fewtune("zeroshot", "texts.csv", *options, *readouts, "--unlabeled", "train.csv", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [len(one["answers"]) for one in (found, *found["routes"])] == [2, 2, 2]
    code, out, err = fewtune("zeroshot", "texts.csv", *options, "--unlabeled", "train.csv", "--format", "jsonl")
    assert code == 0 and len(out.splitlines()) == 2, err
    code, _, err = fewtune("zeroshot", "texts.csv", *options, "--unlabeled", "train.csv", "--calibration", "contextual")
    assert code == 2 and "--calibration: expected a calibration that learns from unlabelled rows" in err.splitlines()[-1]
    code, _, err = fewtune("zeroshot", "texts.csv", *options, *readouts, "--readout", "cloze")
    assert code == 2 and "got 3 for 2 PLMs" in err.splitlines()[-1]


WRONG = {
    "no file": (("nofile.csv",), "nofile.csv"),
    "no column": (("train.csv", "--text", "revew"), '"review"'),
    "unknown delta": (("train.csv", "--delta", "lorra"), 'Did you mean "lora"?'),
    "unknown field of a delta": (("train.csv", "--delta", "lora:rnk=2"), 'Did you mean "rank"?'),
    "unknown strategy": (("train.csv", "--strategy", "supervized"), 'Did you mean "supervised"?'),
    "unknown readout": (("train.csv", "--readout", "clozze"), 'Did you mean "cloze"?'),
    "unknown calibration": (("train.csv", "--calibration", "ctx"), "Known: none, contextual"),
    "unknown backbone": (("train.csv", "--backbone", "smolm2-135m"), 'Did you mean "smollm2-135m"?'),
    "no slot": (("train.csv", "--template", "Review: {review}"), "{slot}"),
    "unknown field": (("train.csv", "--template", "{revew} {slot}"), 'Did you mean "review"?'),
    "unknown label": (("train.csv", "--labels", "negative,neutral"), "train.csv:2"),
    "single label": (("single.csv",), "at least two labels"),
    "broken row": (("broken.csv",), "broken.csv:3"),
    "empty text": (("empty.csv",), "empty.csv:3"),
    "words": (("train.csv", "--words", "positive"), "--words"),
    "clash": (("train.csv", "--words", "positive=great,negative=great"), "great"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(work, fewtune, llama, name):
    (work / "single.csv").write_text("review,sentiment\ngreat,positive\ngood,positive\n")
    (work / "broken.csv").write_text("review,sentiment\ngreat,positive\ngood,positive,x\nmess,negative\n")
    (work / "empty.csv").write_text("review,sentiment\ngreat,positive\n  ,negative\n")
    arguments, message = WRONG[name]
    more = () if "--backbone" in arguments else ("--backbone", llama)
    code, out, err = fewtune("fit", *arguments, "--out", "model", *more)
    assert code == 2 and out == ""
    assert message in err.splitlines()[-1], err
    assert "Traceback" not in err
    assert not (work / "model").exists()


def test_bad_rows_can_be_skipped(work, fewtune, llama):
    train = work / "train.csv"
    train.write_text(train.read_text() + "too,many,cells\n")
    assert fit(fewtune, llama)[0] == 2
    code, _, err = fit(fewtune, llama, "--skip-bad-rows")
    assert code == 0 and "Skipped 1 bad row" in err


def test_an_existing_model_is_refused(work, fewtune, llama):
    assert fit(fewtune, llama)[0] == 0
    code, _, err = fit(fewtune, llama)
    assert code == 2 and "--overwrite" in err
    assert fit(fewtune, llama, "--overwrite")[0] == 0


@pytest.mark.parametrize("command", [(), *COMMANDS])
def test_help(fewtune, command):
    code, out, _ = fewtune(*command, "--help")
    assert code == 0 and "Usage" in out


def test_every_command_is_asked_for_help():
    assert len(COMMANDS) > 20 and ("fit",) in COMMANDS and ("backbones", "pull") in COMMANDS


def test_the_catalogue(fewtune):
    code, out, _ = fewtune("backbones", "list")
    assert code == 0 and "smollm2-135m" in out and "minilm-l6" in out
