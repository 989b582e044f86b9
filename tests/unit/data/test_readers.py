"""Columns are found or refused by name, every source gives the same examples, and bad rows are told, dropped and counted."""

import numpy as np
import pytest

from fewtune.data.example import Example
from fewtune.data.readers import Columns, Row, Written, columns_of, example_of, guess, read, rows
from fewtune.errors import DataError

TEXTS, LABELS = ["a fine film", "a dull mess"], ["pos", "neg"]
EXAMPLES = tuple(Example({"review": text}, label) for text, label in zip(TEXTS, LABELS, strict=True))


def refusal(source, **options):
    with pytest.raises(DataError) as caught:
        read(source, **{"labeled": True, **options})
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def guessed(*columns, sample=(), text=(), label=None, labeled=True):
    return guess(columns, sample, text=text, label=label, labeled=labeled, where="data")


def frames_and_lists():
    yield "dicts", lambda: [{"review": text, "sentiment": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    yield "pandas", lambda: pytest.importorskip("pandas").DataFrame({"review": TEXTS, "sentiment": LABELS})
    yield "polars", lambda: pytest.importorskip("polars").DataFrame({"review": TEXTS, "sentiment": LABELS})
    yield "datasets", lambda: pytest.importorskip("datasets").Dataset.from_dict({"review": TEXTS, "sentiment": LABELS})


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in frames_and_lists()])
def test_every_source_gives_the_same_examples(make):
    reading = read(make(), labeled=True)
    assert reading.examples == EXAMPLES
    assert reading.columns == Columns(("review",), "sentiment")
    assert reading.notes == ('Reading the text from column "review" and the label from "sentiment" (guessed; --text and --label decide).',)
    assert [example.where for example in reading.examples] == ["data[0]", "data[1]"]
    assert [example.label for example in read(make(), labeled=False).examples] == [None, None]


def test_a_file_carries_its_lines(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text('sentiment,review\npos,"a\nb"\nneg,c\n')
    for given in (path, str(path)):
        reading = read(given, text=["review"], label="sentiment", labeled=True)
        assert [example.where for example in reading.examples] == [f"{path}:2", f"{path}:4"]
        assert reading.notes == ()
    assert columns_of(path) == ("sentiment", "review")
    assert [row.values["sentiment"] for row in rows(path)] == LABELS


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        (TEXTS, {"labeled": False}, [Example({"text": text}) for text in TEXTS]),
        (TEXTS, {"labeled": False, "text": ["review"]}, [Example({"review": text}) for text in TEXTS]),
        ([("x", "a"), ("y", "b")], {}, [Example({"text": "x"}, "a"), Example({"text": "y"}, "b")]),
        ([["x", 1]], {}, [Example({"text": "x"}, "1")]),
        ([("x", "y", "a")], {}, [Example({"text_a": "x", "text_b": "y"}, "a")]),
        ([("x", "y", "a")], {"text": ["premise", "hypothesis"], "label": "z"}, [Example({"premise": "x", "hypothesis": "y"}, "a")]),
        ([("x", "y")], {"text": ["premise", "hypothesis"], "labeled": False}, [Example({"premise": "x", "hypothesis": "y"})]),
        ([("x", "a")], {"labeled": False}, [Example({"text": "x"})]),
        (list(EXAMPLES), {}, list(EXAMPLES)),
        ([Example({"label": "x", "b": "y"}, "z")], {}, [Example({"label": "x", "b": "y"}, "z")]),
        ([{"text": "x", "label": 1.0}, {"text": "y", "label": True}], {}, [Example({"text": "x"}, "1"), Example({"text": "y"}, "1")]),
    ],
)
def test_plain_lists(items, options, expected):
    reading = read(items, **{"labeled": True, **options})
    assert list(reading.examples) == expected
    assert [list(example.fields) for example in reading.examples] == [list(example.fields) for example in expected]


def test_examples_keep_where_they_come_from():
    assert read([Example({"text": "x"}, "a", "old.csv:3")], labeled=True).examples[0].where == "old.csv:3"


def test_class_numbers_of_data_sets_become_names():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    reading = read(data, labeled=True, skip_bad_rows=True)
    assert [example.label for example in reading.examples] == ["pos", "neg"]
    assert reading.skipped == 1
    assert refusal(datasets.DatasetDict({"train": data})) == (
        'data: expected one table, got several: train. Choose one of them, like data["train"].'
    )


def test_pandas_numbers_and_gaps():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["x", "y", None], "label": [1, 0, None]}, index=[7, 8, 9])
    reading = read(frame, labeled=True, skip_bad_rows=True)
    assert [example.label for example in reading.examples] == ["1", "0"]
    assert refusal(frame).startswith('data[2]: expected a text in column "text", got an empty one.')
    twice = pandas.DataFrame([["x", "y"]], columns=["text", "text"])
    assert refusal(twice).startswith('data: expected columns whose names differ, got "text" twice.')


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        (("id", "Text", "LABEL"), ("Text",), "LABEL"),
        (("label", "premise", "hypothesis"), ("premise", "hypothesis"), "label"),
        (("sentence2", "sentence1", "y"), ("sentence1", "sentence2"), "y"),
        (("question", "passage", "answer"), ("question", "passage"), "answer"),
        (("question", "sentence", "label"), ("question", "sentence"), "label"),
        (("title", "text", "topic"), ("text",), "topic"),
        (("review", "stars"), ("review",), "stars"),
        (("stars", "review"), ("review",), "stars"),
        (("what was said?", "class"), ("what was said?",), "class"),
        (("short", "long"), ("long",), "short"),
    ],
)
def test_columns_are_guessed_and_told(columns, text, label):
    sample = [Row({name: "word " * (9 if name == "long" else 1) for name in columns}, "")]
    chosen, notes = guessed(*columns, sample=sample)
    assert chosen == Columns(text, label)
    assert len(notes) == 1
    assert all(f'"{name}"' in notes[0] for name in (*text, label))
    assert guessed(*columns, sample=sample, text=text, label=label) == (chosen, ())


def test_one_given_column_leaves_one_to_guess():
    assert guessed("a", "b", text=["a"]) == (Columns(("a",), "b"), ('Reading the label from column "b" (guessed; --label decides).',))
    assert guessed("a", "b", label="a") == (Columns(("b",), "a"), ('Reading the text from column "b" (guessed; --text decides).',))
    chosen, notes = guessed("premise", "hypothesis", "z", label="z")
    assert notes == ('Reading the texts from columns "premise" and "hypothesis" (guessed; --text decides).',)


def test_label_columns_are_not_the_text_of_unlabelled_rows():
    long_label = [Row({"x": "a", "sentiment": "very very long"}, "")]
    assert guessed("x", "sentiment", sample=long_label, labeled=False)[0] == Columns(("x",), None)
    assert guessed("x", "stars", sample=[Row({"x": "a", "stars": "long"}, "")], label="stars", labeled=False)[0] == Columns(("x",), None)
    assert guessed("x", label="gone", labeled=False)[0] == Columns(("x",), None)
    assert guessed("topic", labeled=False)[0] == Columns(("topic",), None)


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        (("review", "label"), {"text": ["reveiw"]}, 'data: expected a column "reveiw", got none of that name. Did you mean "review"?'),
        (("review", "b"), {"label": "x"}, 'data: expected a column "x", got none of that name. Known: review, b.'),
        (("review", "b", "c"), {}, "data: expected a column with the label, got the columns review, b, c. Name it with --label."),
        (("label",), {}, "data: expected a column with the text, got the columns label. Name it with --text."),
        (("a", "b"), {"text": ["a"], "label": "a"}, "data: expected a column of its own for each text and the label"),
        (("a", "b"), {"text": ["a", "a"]}, "data: expected a column of its own for each text and the label"),
        (("premise", "hypothesis"), {}, "data: expected a column with the label, got the columns premise, hypothesis."),
    ],
)
def test_columns_that_are_not_there(columns, options, told):
    with pytest.raises(DataError) as caught:
        guessed(*columns, **options)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"text": " \n", "label": "a"}, 'here:3: expected a text in column "text", got an empty one.'),
        ({"label": "a"}, 'here:3: expected a text in column "text", got an empty one.'),
        ({"text": "x\0", "label": "a"}, 'here:3: expected text in column "text", got a NUL'),
        ({"text": "\ud800", "label": "a"}, 'here:3: expected text in column "text", got a NUL or half a character.'),
        ({"text": "x", "label": " "}, 'here:3: expected a label in column "label", got none.'),
        ({"text": "x"}, 'here:3: expected a label in column "label", got none.'),
        ({"text": "x", "label": "postive"}, 'here:3: expected a label of the task, got "postive". Did you mean "positive"?'),
        ({"text": "x", "label": "a\nb"}, 'here:3: expected a label of the task, got "a\\nb". Known: positive, a.'),
    ],
)
def test_cells_that_cannot_be_used(values, told):
    with pytest.raises(DataError) as caught:
        example_of(Row(values, "here:3"), Columns(("text",), "label"), labeled=True, known=["positive", "a"])
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("label", ["3", "-0.5", "1e3", " 2.50 "])
def test_a_number_is_read_as_it_is_written(label):
    row = Row({"text": "x", "label": label}, "here:3")
    assert example_of(row, Columns(("text",), "label"), labeled=True, known=["a"], written=Written(number=True)).label == label.strip()


SEVERAL = Written(separator="|")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("a|b", "a|b"),
        (" b | a |b|", "b|a"),
        ("", ""),
        (None, ""),
        (["a", "b"], "a|b"),
        ([], ""),
        (("b", " a "), "b|a"),
        (np.array(["b", "a"]), "b|a"),
        ([1, 2.0, None], "1|2"),
    ],
)
def test_several_labels_of_a_row(label, expected):
    reading = read([{"text": "x", "label": label}], labeled=True, known=["a", "b", "1", "2"], written=SEVERAL)
    assert reading.examples[0].label == expected


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("a|c", 'data[0]: expected labels of the task, got "c". Known: a, b.'),
        (["a|b"], 'data[0]: expected labels without the separator "|", got "a|b".'),
        ({"a": 1}, 'data[0]: expected a list of labels in column "label", got'),
        ([["a"]], 'data[0]: expected a list of labels in column "label", got'),
    ],
)
def test_several_labels_that_cannot_be_used(label, told):
    with pytest.raises(DataError) as caught:
        read([{"text": "x", "label": label}], labeled=True, known=["a", "b"], written=SEVERAL)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("label", ["a", "3,5", "nan", "-inf", "3 of 5"])
def test_what_is_no_number(label):
    row = Row({"text": "x", "label": label}, "here:3")
    with pytest.raises(DataError, match="here:3: expected a number, got"):
        example_of(row, Columns(("text",), "label"), labeled=True, written=Written(number=True))


def test_text_is_kept_and_labels_are_stripped():
    row = Row({"text": " x ", "label": " a\t"}, "here:3")
    assert example_of(row, Columns(("text",), "label"), labeled=True, known=["a"]) == Example({"text": " x "}, "a")
    assert example_of(row, Columns(("text",), "label"), labeled=False, known=[]).label is None


def test_nested_values_matter_only_in_columns_that_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x", "label": "a", "tags": ["t"]}\n{"text": {"en": "y"}, "label": "b", "tags": []}\n')
    assert refusal(path).startswith(f'{path}:2: expected one value in column "text", got "{{\\"en\\": \\"y\\"}}".')
    assert [row.values["tags"] for row in rows(path)] == ['["t"]', "[]"]


BAD = "text,label\nfine,a\n,a\nlonely\ndull,zz\nlast,b\n"


def test_bad_rows_are_dropped_and_counted(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(BAD)
    reading = read(path, labeled=True, known=["a", "b"], skip_bad_rows=True)
    assert [example.fields["text"] for example in reading.examples] == ["fine", "last"]
    assert reading.skipped == 3
    assert reading.notes[-1].startswith(f'Skipped 3 bad rows; the first: {path}:3: expected a text in column "text", got an empty one.')
    assert refusal(path).startswith(f"{path}:3: ")


def test_rows_tell_what_they_drop(tmp_path):
    path, told = tmp_path / "rows.csv", []
    path.write_text(BAD)
    assert len(list(rows(path, skip_bad_rows=True, on_skip=told.append))) == 4
    assert [error.where for error in told] == [f"{path}:4"]
    with pytest.raises(DataError, match="rows.csv:4: expected 2 cells"):
        list(rows(path))


def test_only_bad_rows_are_an_error(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n,a\n,b\n")
    told = refusal(path, skip_bad_rows=True)
    assert told.startswith(f"{path}: expected a row that can be used, got 2 bad. The first: {path}:2: expected a text")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ([], "data: expected rows, got none."),
        (7, "data: expected a source of rows, got int."),
        (b"text", "data: expected a source of rows, got bytes."),
        ({"train": [], "test": []}, "data: expected one table, got several: train, test."),
        (["x"], "data: expected a column with the label, got the columns text."),
        ([("x", "a"), "y"], "data[1]: expected an item of the same kind as the first"),
        ([("x", "a"), ("y",)], "data[1]: expected an item of the same kind as the first"),
        ([("x",) * 5], "data[0]: expected an item of the same kind as the first"),
        ([3.5], "data[0]: expected an item of the same kind as the first"),
        ([Example({"text": "x"})], 'data[0]: expected a label in column "label", got none.'),
        ([("x", ["a"])], 'data[0]: expected one value in column "label", got "[\\"a\\"]".'),
    ],
)
def test_sources_that_are_none(source, told):
    assert refusal(source).startswith(told)


@pytest.mark.slow
def test_a_large_csv_takes_time_in_proportion(tmp_path):
    path = tmp_path / "large.csv"
    path.write_text("text,label\n" + '"a ""long"" review of a film",positive\n' * 30_000)
    assert len(read(path, labeled=True).examples) == 30_000
