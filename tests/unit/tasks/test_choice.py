"""Tasks whose candidates differ from row to row."""

import numpy as np
import pytest

from fewtune.data.example import Example
from fewtune.errors import DataError, SpecError
from fewtune.tasks import kind_of
from fewtune.tasks.choice import Choice
from fewtune.tasks.task import Task

TASK = Task.choice()
ROWS = (
    Example({"question": "a?"}, "no", "here:1", candidates=("yes", "no")),
    Example({"question": "b?"}, "x", "here:2", candidates=("x", "y", "z")),
    Example({"question": "c?"}, "w", "here:3", candidates=("v", "w")),
)
PROBABILITIES = np.array([[0.3, 0.7, 0.0], [0.2, 0.3, 0.5], [0.4, 0.6, 0.0]])


def test_targets_are_places_among_the_rows_own():
    assert kind_of(TASK).targets(TASK, ROWS) == [1, 0, 1]
    assert kind_of(TASK).groups(TASK, ROWS, 2) == ["1", "0", "1"]
    numbered = [Example(row.fields, str(place), candidates=row.candidates) for row, place in zip(ROWS, (1, 0, 1), strict=True)]
    assert Choice(label="0").targets(TASK, numbered) == Choice().targets(TASK, numbered) == [1, 0, 1]


def test_answers_are_texts_and_the_first_of_equals():
    kind = kind_of(TASK)
    assert kind.answers(TASK, ROWS, PROBABILITIES.tolist()) == ["no", "z", "w"]
    assert kind.answers(TASK, ROWS[:1], [[0.5, 0.5, 0.0]]) == ["yes"]
    assert [kind.confidence(TASK, row) for row in PROBABILITIES.tolist()] == [0.7, 0.5, 0.6]


def test_what_is_measured():
    found = kind_of(TASK).measure(TASK, ROWS, PROBABILITIES)
    assert found.metrics["accuracy"].value == pytest.approx(2 / 3) and found.metrics["accuracy"].low < 0.4
    assert found.metrics["ece"].value == pytest.approx(np.mean([0.3, 0.5, 0.4]))
    assert (found.confusion, found.classes, found.labels, found.rows) == ((), (), (), 3)
    assert kind_of(TASK).ratio(TASK, ROWS, PROBABILITIES).over_N.tolist() == [1, 0, 1]


def test_how_labels_name_candidates_is_settled_and_said():
    columns = Task.choice(["one", "two"])
    rows = [Example({}, f"choice{number}", candidates=("a", "b")) for number in (1, 2)]
    task, note = kind_of(columns).settled(columns, rows)
    assert task.kind == "choice:candidates=one+two,label=choice1" and "the first one being choice1" in note
    assert kind_of(TASK).settled(TASK, ROWS) == (Task.choice(label="text"), None)
    assert kind_of(TASK).settled(TASK, ()) == (TASK, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Example({}, "yes", "here:9", candidates=("yes",)), "here:9: expected at least two candidates"),
        (Example({}, "yes", "here:9"), "here:9: expected at least two candidates, got none"),
        (Example({}, None, "here:9", candidates=("yes", "no")), "here:9: expected a label, got none"),
        (
            Example({}, "perhaps", "here:9", candidates=("yes", "no")),
            'here:9: expected a label that names a candidate by its text, got "perhaps"',
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_row(row, message):
    with pytest.raises(DataError, match=message):
        kind_of(TASK).check(TASK, [*ROWS, row], "data")


@pytest.mark.parametrize(
    "fields", [{"candidates": ()}, {"candidates": ("a", "a")}, {"separator": ""}, {"separator": "a,b"}, {"label": "first"}]
)
def test_a_kind_that_makes_no_sense_is_refused(fields):
    with pytest.raises(SpecError, match="task.kind"):
        Choice(**fields)


def test_rows_are_lacking_only_where_there_is_none_for_a_fold():
    assert kind_of(TASK).lacking(TASK, ROWS, 3) is None and kind_of(TASK).lacking(TASK, ROWS, 4) == "4 different rows"
    assert kind_of(TASK).drawn(TASK, ROWS) == [("row",)] * 3
