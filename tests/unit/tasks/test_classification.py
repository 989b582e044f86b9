"""Decoding and checks on three examples."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.data.example import Example
from fewtune.errors import DataError
from fewtune.tasks.classification import Classification
from fewtune.tasks.metrics import METRICS
from fewtune.tasks.task import Task

KIND = Classification()
TASK = Task.classification(["bad", "fair", "good"])


def examples(*labels: str | None) -> list[Example]:
    return [Example({"text": f"text {number}"}, label, f"rows.csv:{number + 2}") for number, label in enumerate(labels)]


def test_targets_are_positions_among_the_labels() -> None:
    assert KIND.targets(TASK, examples("good", "bad", "fair")) == [2, 0, 1]


def test_answers_are_the_most_probable_labels() -> None:
    assert KIND.answers(TASK, (), [[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]) == ["fair", "bad", "good"]


def test_of_equals_the_first_is_the_answer() -> None:
    assert KIND.answers(TASK, (), [[0.2, 0.4, 0.4], [1 / 3, 1 / 3, 1 / 3]]) == ["fair", "bad"]


@given(st.lists(st.sampled_from(TASK.labels), max_size=5))
@pytest.mark.slow
def test_certain_answers_give_the_targets_back(labels: Sequence[str]) -> None:
    certain = [[float(target == place) for place in range(3)] for target in KIND.targets(TASK, examples(*labels))]
    assert KIND.answers(TASK, (), certain) == list(labels)


def test_fitting_examples_pass() -> None:
    KIND.check(TASK, examples("good", "bad"), "rows.csv")
    KIND.check(TASK, examples("good"), "rows.csv")


@pytest.mark.parametrize(
    ("labels", "words"),
    [(("good", None), "rows.csv:3: expected a label, got none"), (("good", "bda"), 'rows.csv:3: expected a label of the task, got "bda"')],
)
def test_a_row_that_does_not_fit_is_named(labels: tuple[str | None, ...], words: str) -> None:
    with pytest.raises(DataError) as caught:
        KIND.check(TASK, examples(*labels), "rows.csv")
    assert str(caught.value).startswith(words)


def test_a_near_label_is_proposed() -> None:
    with pytest.raises(DataError, match='Did you mean "fair"'):
        KIND.check(TASK, examples("fare"), "rows.csv")


def test_a_row_without_a_place_is_told_by_the_file() -> None:
    with pytest.raises(DataError) as caught:
        KIND.check(TASK, [Example({"text": "a"})], "rows.csv")
    assert caught.value.where == "rows.csv"


def test_a_single_label_cannot_be_told_from_anything() -> None:
    with pytest.raises(DataError, match='only "good"'):
        KIND.check(Task.classification(["good"]), examples("good", "good"), "rows.csv")


def test_its_metrics_exist() -> None:
    assert KIND.metrics
    assert set(KIND.metrics) <= set(METRICS)


def test_what_rows_add_to_accuracy_by_hand() -> None:
    found = KIND.ratio(TASK, [Example({}, label) for label in ("bad", "good")], np.array([[0.6, 0.1, 0.3], [0.4, 0.4, 0.2]]))
    assert found.over_N.tolist() == [1, 0] and found.under_N.tolist() == [1, 1] and found.counts and found.value == 0.5


def test_two_rows_of_each_label_are_needed_to_judge_by() -> None:
    rows = [Example({}, label) for label in ("bad", "bad", "fair", "fair", "good")]
    assert KIND.lacking(TASK, rows, 4) == "two different rows of each label" and KIND.lacking(TASK, [], 4) is not None
    assert KIND.lacking(TASK, [*rows, Example({}, "good")], 4) is None
    assert KIND.drawn(TASK, rows[3:]) == [("fair",), ("good",)]


def soft(**shares):
    return Example({"text": "a"}, where="teacher.csv:2", shares=shares)


def test_soft_labels_are_targets_beside_hard_ones():
    task, kind = Task(labels=("no", "yes")), Classification()
    rows = [soft(yes=0.75, no=0.25), Example({"text": "b"}, "no")]
    kind.check(task, rows, "fit")
    assert kind.targets(task, rows) == [[0.25, 0.75], [1.0, 0.0]] and kind.targets(task, rows[1:]) == [0]
    assert kind.groups(task, rows, 4) == ["yes", "no"]


@pytest.mark.parametrize("shares", [{"yes": 0.6}, {"yes": 1.2, "no": -0.2}, {"maybe": 1.0}])
def test_what_is_no_distribution_over_the_labels_is_refused(shares):
    with pytest.raises(DataError, match="teacher.csv:2"):
        Classification().check(Task(labels=("no", "yes")), [soft(**shares)], "fit")
