"""Labels from elsewhere: soft ones by column, hard ones with and without their probability, and what is refused."""

import pytest

from fewtune.data import teacher
from fewtune.data.example import Example
from fewtune.data.teacher import HARD
from fewtune.errors import DataError

LABELS = ("no", "yes", "maybe")


def read(*given, **named):
    return teacher.read(*given, **named).examples


def written(tmp_path, text):
    path = tmp_path / "teacher.csv"
    path.write_text(text)
    return path


def test_a_column_of_each_label_holds_the_shares(tmp_path):
    (one,) = read(written(tmp_path, "text,no,yes,maybe\ngood fun,0.2,0.7,0.1\n"), text=("text",), labels=LABELS)
    assert one.shares == pytest.approx({"no": 0.2, "yes": 0.7, "maybe": 0.1}) and one.label is None
    assert one.fields == {"text": "good fun"} and one.where.endswith("teacher.csv:2")


def test_what_predict_writes_can_be_a_teacher(tmp_path):
    path = written(tmp_path, "text,label,probability,exit_layer\ngood fun,yes,0.8,6\n")
    (one,) = read(path, text=("text",), labels=LABELS)
    assert one.shares == pytest.approx({"no": 0.1, "yes": 0.8, "maybe": 0.1})


def test_a_hard_label_is_not_held_to_be_certain(tmp_path):
    (one,) = read(written(tmp_path, "text,label\ngood fun,yes\n"), text=("text",), labels=LABELS)
    assert one.shares == pytest.approx({"yes": HARD, "no": (1 - HARD) / 2, "maybe": (1 - HARD) / 2})


def test_examples_with_shares_are_taken_as_they_are():
    given = [Example({"text": "a"}, shares={"no": 1.0})]
    assert read(given, text=("text",), labels=LABELS) == tuple(given)
    assert read([("good fun", "yes")], text=(), labels=LABELS)[0].shares["yes"] == HARD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,no,yes,maybe\ngood,0.2,0.2,0.1\n", "add up to 1"),
        ("text,no,yes,maybe\ngood,0.2,often,0.1\n", 'a probability in column "yes"'),
        ("text,label,probability\ngood,yes,1.5\n", 'a probability in column "probability"'),
        ("text,label,probability\ngood,yes,often\n", "Write a number from 0 to 1"),
        ("text,no,yes,maybe\ngood,0.2,,0.8\n", "Write a number from 0 to 1"),
        ("text,label,probability\ngood,yes,0.2\n", 'makes "yes" the likeliest of 3 labels, got 0.2'),
        ("text,label\ngood,perhaps\n", "a label of the task"),
        ("text,no,yes,maybe\n,0.2,0.7,0.1\n", "an empty one"),
    ],
)
def test_what_cannot_be_a_label_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read(written(tmp_path, text), text=("text",), labels=LABELS)
    assert "teacher.csv:2" in str(caught.value)


def test_the_one_column_that_is_left_has_the_label_and_that_is_said(tmp_path):
    found = teacher.read(written(tmp_path, "text,gpt,probability\ngood fun,yes,0.8\n"), text=("text",), labels=LABELS)
    assert found.examples[0].shares["yes"] == 0.8
    assert found.notes == ('Reading the teacher\'s label from column "gpt" (guessed; one called label decides).',)
    assert not teacher.read(written(tmp_path, "text,label,by\ngood fun,yes,me\n"), text=("text",), labels=LABELS).notes


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("text,gpt,by", "Call it label, or give a column of each label"),
        ("text,no,yes", 'a column of each label, got none called "maybe"'),
        ("text,yes", 'a column of each label, got none called "no", "maybe"'),
    ],
)
def test_columns_that_hold_no_label_are_refused_with_what_to_do(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, f"{columns}\n{',0.5' * columns.count(',')}\n"), text=("text",), labels=LABELS)


def test_bad_rows_are_skipped_where_that_is_wanted_and_the_first_is_said(tmp_path):
    path = written(tmp_path, "text,label\ngood fun,yes\nhello,perhaps\n,yes\nfun,no\n")
    found = teacher.read(path, text=("text",), labels=LABELS, skip_bad_rows=True)
    assert [one.fields["text"] for one in found.examples] == ["good fun", "fun"] and found.skipped == 2
    assert found.notes[-1].startswith("Skipped 2 bad rows; the first: ") and "teacher.csv:3" in found.notes[-1]


def test_a_label_as_likely_as_the_others_is_taken(tmp_path):
    (one,) = read(written(tmp_path, "text,label,probability\ngood fun,yes,0.5\n"), text=("text",), labels=("no", "yes"))
    assert one.shares == {"no": 0.5, "yes": 0.5}
