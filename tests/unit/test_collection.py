"""A folder of tasks as it stands: TOML and promptsource, both sides apart by name and by text, and what cannot be used named."""

import gzip

import pytest

from fewtune.collection import read
from fewtune.errors import DataError, SpecError, TaskError

MOOD = """labels = ["negative", "positive"]
fields = ["review"]
templates = ["Review: {review}\\nSentiment: {slot}", "{review} It was {slot}"]
words = {negative = "terrible", positive = "great"}
"""
SOURCE = """dataset: moods
templates:
  a: !Template
    answer_choices: bad ||| good
    jinja: "{{review}} All in all it was ||| {{answer_choices[label]}}"
    name: words
  b: !Template
    answer_choices: bad ||| good
    jinja: "{{other}} was ||| {{answer_choices[label]}}"
    name: no such column
  c: !Template
    answer_choices: No ||| Yes
    jinja: "{{review}} Is that good? ||| {{answer_choices[label]}}"
    name: yes or no
  d: !Template
    answer_choices: bad ||| fair ||| good
    jinja: "{{review}} So it was ||| {{answer_choices[label]}}"
    name: three
  e: !Template
    answer_choices: bad ||| good
    jinja: "{% if review %}{{review}}{% endif %} ||| {{answer_choices[label]}}"
    name: control
"""
ROWS = "review,label\nfine fun,positive\na dull mess,negative\n"
LONG = "This sentence is long enough to be known again"


@pytest.fixture
def folder(tmp_path):
    files = {
        "mood.toml": MOOD,
        "mood.train.csv": ROWS,
        "topic.toml": 'labels = ["a", "b"]\n',
        "topic.test.csv": f"text,label\n{LONG},a\nno,b\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_tasks_are_kept_apart_by_name(folder):
    found = read(folder, ["top*"], say=print)
    assert [lesson.name for lesson in found.trained] == ["mood"] and [lesson.name for lesson in found.held_out] == ["topic"]
    (mood,), (topic,) = found.trained, found.held_out
    assert [task.templates for task in mood.prompts()] == [("Review: {review}\nSentiment: {slot}",), ("{review} It was {slot}",)]
    assert mood.rows[0].fields == {"review": "fine fun"} and mood.task.name == "mood"
    assert [task.templates for task in topic.prompts()] == [()] and len(topic.rows) == 2 and not found.dropped


def test_promptsource_files_are_used_as_they_are_and_what_is_left_out_is_named(folder):
    (folder / "mood.yaml").write_text(SOURCE)
    said = []
    (mood,) = read(folder, ["topic"], say=said.append).trained
    own, words, yes_no = mood.wordings
    assert own.words == {"negative": ("terrible",), "positive": ("great",)} and len(own.templates) == 2
    assert words.templates == ("{review} All in all it was {slot}",) and words.words == {"negative": ("bad",), "positive": ("good",)}
    assert yes_no.templates == ("{review} Is that good? {slot}",) and yes_no.words["negative"] == ("No",)
    assert all(wording.labels == ("negative", "positive") and wording.fields == ("review",) for wording in mood.wordings)
    told = "\n".join(said)
    assert "'{other} was {slot}' is left out: the rows have no column for each of other" in told
    assert "bad, fair, good are not 2 answers" in told and '"control" is left out' in told and told.count("left out") == 3


def test_rows_may_have_candidates_of_their_own(folder):
    (folder / "mood.toml").write_text('kind = "choice:candidates=options"\nfields = ["review"]\ntemplate = "{review} It was {slot}"\n')
    (folder / "mood.train.csv").write_text("review,options,label\nfine,a dull mess|great fun,great fun\ndull,no|yes|maybe,no\n")
    said = []
    (mood,) = read(folder, ["topic"], say=said.append).trained
    assert [row.candidates for row in mood.rows] == [("a dull mess", "great fun"), ("no", "yes", "maybe")]
    assert mood.task.kind.startswith("choice:candidates=options") and "label=text" in mood.task.kind


def test_a_promptsource_file_alone_counts_its_labels_from_0(folder):
    (folder / "mood.toml").unlink()
    (folder / "mood.yaml").write_text(SOURCE)
    (folder / "mood.train.csv").unlink()
    (folder / "mood.train.csv.gz").write_bytes(gzip.compress(b"review,label\nfine fun,1\na dull mess,0\n"))
    (mood,) = read(folder, ["topic"], say=print).trained
    assert mood.task.labels == ("0", "1") and len(mood.prompts()) == 2 and [row.label for row in mood.rows] == ["1", "0"]


def test_texts_on_both_sides_are_dropped_and_counted_or_refused(folder):
    (folder / "mood.train.csv").write_text(ROWS + f"{LONG.upper()}!,positive\n")
    said = []
    found = read(folder, ["topic"], say=said.append)
    assert [row.fields["text"] for row in found.held_out[0].rows] == ["no"] and found.dropped == (("topic", 1),)
    assert said == [
        f"Dropped 1 of 2 rows of topic in mood, which is trained on; the first is {folder / 'topic.test.csv'}:2 (also in mood)."
    ]
    with pytest.raises(DataError, match="expected held-out texts that are not trained on, got 1 of 2 rows of topic in mood"):
        read(folder, ["topic"], overlap="refuse", say=print)
    (folder / "topic.test.csv").write_text(f"text,label\n{LONG},a\nfine FUN,b\n")
    with pytest.raises(DataError, match="got 2 of 2 rows"):
        read(folder, ["topic"], say=print)


@pytest.mark.parametrize(
    ("change", "held_out", "error", "message"),
    [
        ({}, ["topik"], SpecError, 'got "topik". Did you mean "topic"?'),
        ({}, ["*"], SpecError, "expected tasks that are not held out, got none"),
        ({"mood.train.jsonl": '{"review": "x", "label": "positive"}\n'}, ["topic"], DataError, "got mood.train.csv, mood.train.jsonl"),
        ({"more.toml": MOOD}, ["topic"], DataError, "expected one file with the train rows, got none"),
        ({"mood.train.csv": "review,label\nfine,happy\n"}, ["topic"], DataError, "expected a label of the task"),
        ({"mood.toml": 'kind = "multilabel"\n' + MOOD}, ["topic"], TaskError, "one right answer a row, got multilabel"),
        ({"mood.toml": MOOD.replace("{review} It", "{text} It")}, ["topic"], TaskError, "expected a field of the task, got {text}"),
    ],
)
def test_what_cannot_be_used_is_refused(folder, change, held_out, error, message):
    for name, text in change.items():
        (folder / name).write_text(text)
    with pytest.raises(error) as caught:
        read(folder, held_out, say=print)
    assert message in str(caught.value)


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected task files, got none"):
        read(tmp_path, [], say=print)
    with pytest.raises(DataError, match="expected a folder of task files"):
        read(tmp_path / "none", [], say=print)
