"""`fewtune search` and `fewtune fit --search`: proposals shown and written, found and averaged by a fit, refused where no word is read."""

import json

import pytest

from fewtune import artifact
from fewtune.backbone import tiny
from fewtune.tasks.task import Task

ROWS = ["great fun,positive", "a dull mess,negative", "great and joy,positive", "terrible lifeless,negative"]
COLUMNS = ("--text", "text", "--label", "label")


@pytest.fixture
def train(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(ROWS) + "\n")
    return tmp_path / "train.csv"


def test_proposals_are_shown_and_written_as_a_task_file_that_fit_takes(fewtune, train, llama, tmp_path):
    command = (
        "search",
        train,
        "--backbone",
        llama,
        "--search",
        "templates:tried=4,guard=false",
        "--search",
        "words:tried=5,keep=2,guard=false",
    )
    code, out, err = fewtune(*command, "--out", tmp_path / "task.toml")
    assert code == 0 and "templates, on 4 labelled rows" in out and "words, on 4 labelled rows" in out
    assert (
        " ".join(out.split()).count("estimate nothing") == 2
        and out.count("Used.") == 2
        and "averaged, given" in out
        and "negative=negative|" in out
    )
    task = Task.load(tmp_path / "task.toml")
    assert len(task.templates) == 4 and task.words["negative"][0] == "negative" and task.fields == ("text",)
    assert err.endswith(f"{train} → {tmp_path / 'task.toml'}\n")
    assert fewtune(*command, "--out", tmp_path / "task.toml")[0] == 2
    fit = ("fit", train, "--task", tmp_path / "task.toml", "--backbone", llama, "--strategy", "zeroshot", "--out", tmp_path / "model")
    assert fewtune(*fit)[0] == 0
    assert artifact.read_manifest(tmp_path / "model")["templates"] == list(task.templates)


def test_both_are_searched_if_nothing_is_named_and_json_has_them(fewtune, train, llama):
    code, out, _ = fewtune("search", train, "--backbone", llama, "--json")
    found = json.loads(out)
    assert code == 0 and list(found["search"]) == ["templates", "words"] and found["search"]["words"]["rows"] == 4
    words = found["search"]["words"]
    assert words["found"][1].startswith("positive=positive|") and bool(Task.from_dict(found["task"]).words) == words["taken"]
    again = json.loads(fewtune("search", train, "--backbone", llama, "--json")[1])
    assert again == found


def test_a_fit_finds_them_by_itself_and_says_so(fewtune, train, llama, tmp_path):
    command = ("fit", train, "--backbone", llama, "--strategy", "supervised", "--steps", "2", "--out", tmp_path / "model", "--json")
    code, out, err = fewtune(*command, "--search", "words:tried=5,keep=2,guard=false", "--search", "templates:tried=4,keep=2,guard=false")
    result = json.loads(out)
    assert code == 0 and result["method"] == "supervised, cloze, searched words, searched templates, lora"
    assert result["search"]["templates"]["kept"] == 2 and result["search"]["words"]["tried"] >= 2 and "estimate" in result
    assert "Searching templates and words with 4 labelled rows." in err and "negative=negative|" in err
    manifest = artifact.read_manifest(tmp_path / "model")
    assert len(manifest["templates"]) == 2 and manifest["about"]["search"] == result["search"]
    assert fewtune("evaluate", tmp_path / "model", train)[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--search", "word"), 'expected the name of a search, got "word". Did you mean "words"?'),
        (("--search", "words:by=chance"), "--search words.by"),
        (("--search", "words", "--readout", "head"), "--search: expected a readout that reads a word"),
        (("--search", "words", "--search", "words:by=ratio"), "--search: expected each search once"),
    ],
)
def test_refused_in_one_line(fewtune, train, llama, tmp_path, flags, message):
    code, out, err = fewtune("fit", train, *COLUMNS, "--backbone", llama, "--out", tmp_path / "model", *flags)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert not (tmp_path / "model").exists()


def test_a_plm_without_a_language_modelling_head_is_refused(fewtune, train, tmp_path):
    encoder = tiny.save("t5", tmp_path / "t5", head=False)
    code, _, err = fewtune("search", train, *COLUMNS, "--backbone", encoder)
    assert code == 2 and err.count("\n") == 1 and "a language-modelling head" in err
