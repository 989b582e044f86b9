"""Labels from elsewhere: soft ones by column, hard ones with and without their probability, and what is refused."""

import pytest

from fewtune.data.example import Example
from fewtune.data.teacher import HARD, read
from fewtune.errors import DataError

LABELS = ("no", "yes", "maybe")


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
        ("text,label\ngood,perhaps\n", "a label of the task"),
        ("text,no,yes,maybe\n,0.2,0.7,0.1\n", "an empty one"),
    ],
)
def test_what_cannot_be_a_label_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read(written(tmp_path, text), text=("text",), labels=LABELS)
    assert "teacher.csv:2" in str(caught.value)
