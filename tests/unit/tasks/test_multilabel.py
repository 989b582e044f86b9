"""Several labels a row: how they are written, what is learned, which threshold is chosen, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.data.example import Example
from fewtune.errors import DataError, InputError
from fewtune.tasks import kind_of
from fewtune.tasks.multilabel import Multilabel, best_threshold
from fewtune.tasks.task import Task

TASK = Task.multilabel(["joy", "fear", "awe"], threshold=0.4)
KIND = kind_of(TASK)


def rows(*labels):
    return [Example({"text": f"text {number}"}, label, f"rows.csv:{number + 2}") for number, label in enumerate(labels)]


def test_a_task_spells_its_separator_and_its_threshold():
    assert TASK.kind == "multilabel:threshold=0.4" and Multilabel(threshold=0.4) == KIND and not KIND.undecided
    assert kind_of(Task.multilabel(["a"])) == Multilabel() and Multilabel().undecided
    assert Task.multilabel(["a"], separator=";").kind == "multilabel:separator=;"


def test_targets_are_a_yes_or_no_for_each_label():
    assert KIND.targets(TASK, rows("fear|joy", "", "awe")) == [[True, True, False], [False] * 3, [False, False, True]]


def test_answers_are_the_labels_that_reach_the_threshold_in_the_tasks_order():
    probabilities = [[0.4, 0.9, 0.1], [0.39, 0.2, 0.0], [0.1, 0.2, 0.5]]
    assert KIND.answers(TASK, (), probabilities) == ["joy|fear", "", "awe"]
    assert KIND.confidence(TASK, probabilities[0]) == pytest.approx(0.4 * 0.9 * 0.9)
    assert KIND.confidence(TASK, probabilities[1]) == pytest.approx(0.61 * 0.8 * 1.0)


@pytest.mark.parametrize(("separator", "label"), [("|", "joy|awe"), ("comma", "joy, awe"), ("space", " joy  awe"), (";", "joy ;awe;")])
def test_labels_stand_with_a_separator_between_them(separator, label):
    kind = Multilabel(separator)
    assert kind.parts(Example({}, label)) == ("joy", "awe")
    assert kind.targets(TASK, rows(label)) == [[True, False, True]]
    (answer,) = kind.answers(TASK, (), [[0.9, 0.1, 0.9]])
    assert kind.targets(TASK, rows(answer)) == [[True, False, True]]


def test_the_labels_of_rows_are_those_of_the_task():
    assert Multilabel().labels(rows("joy|fear", "", "awe|joy")) == ("awe", "fear", "joy")
    KIND.check(TASK, rows("joy|fear", ""), "rows.csv")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (None, "rows.csv:2: expected labels, got none"),
        ("joy|fera", 'rows.csv:2: expected labels of the task, got "fera". Did you mean "fear"'),
    ],
)
def test_a_row_that_does_not_fit_is_named(label, words):
    with pytest.raises(DataError) as caught:
        KIND.check(TASK, rows(label), "rows.csv")
    assert str(caught.value).startswith(words)


def test_labels_do_not_hold_the_separator():
    with pytest.raises(DataError, match="without the separator"):
        KIND.check(Task.multilabel(["a|b", "c"]), (), "rows.csv")


@pytest.mark.parametrize("text", ["separator=", "separator=,", "threshold=0", "threshold=1", "threshold=-0.5", "separator"])
def test_kinds_that_are_none(text):
    with pytest.raises(InputError):
        kind_of(Task(labels=("a",), kind=f"multilabel:{text}"))


def test_a_threshold_by_hand():
    targets = np.array([[True, False], [True, False], [False, False]])
    # With 0.25 both yes are found and nothing else; with 0.5 only one, with 0.05 two of no are taken for yes.
    assert best_threshold(targets, np.array([[0.6, 0.2], [0.3, 0.1], [0.1, 0.0]])) == 0.25
    assert best_threshold(targets, np.array([[0.9, 0.2], [0.7, 0.1], [0.1, 0.0]])) == 0.5
    assert best_threshold(np.zeros((3, 2), dtype=bool), np.full((3, 2), 0.1)) == 0.5
    assert best_threshold(np.zeros((0, 2), dtype=bool), np.zeros((0, 2))) == 0.5


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=20))
def test_no_threshold_is_better_on_the_rows_that_choose_it(pairs):
    targets, shares = np.array([[yes] for yes, _ in pairs]), np.array([[tenth / 9] for _, tenth in pairs])
    chosen = best_threshold(targets, shares)
    assert 0 < chosen < 1

    def f1(threshold):
        answers = shares >= threshold
        return 2 * (targets & answers).sum() / max(1, targets.sum() + answers.sum())

    assert f1(chosen) >= max(map(f1, np.linspace(0.0001, 0.9999, 40))) - 1e-12


def test_what_is_decided_is_kept():
    open_task = Task.multilabel(["a", "b"], separator=";")
    task = kind_of(open_task).decided(open_task, rows("a", "a", ""), np.array([[0.6, 0.2], [0.3, 0.1], [0.1, 0.0]]))
    assert kind_of(task) == Multilabel(";", 0.25) and task.labels == open_task.labels
    assert kind_of(task).decided(task, rows("b"), np.array([[0.1, 0.2]])) == task
    assert kind_of(kind_of(open_task).decided(open_task, (), np.zeros((0, 2)))).threshold == 0.5


def test_groups_are_the_rarest_labels():
    assert KIND.groups(TASK, rows("joy|awe", "joy", "", "joy|fear", "awe"), 2) == ["awe", "joy", "", "fear", "awe"]


def test_it_says_what_it_answers():
    assert KIND.described(TASK) == "Answers any of, or none of: joy, fear, awe."


def test_what_rows_add_to_f1_by_hand():
    # Answered from 0.4 on: joy and fear, none, awe. Rights 1, 0, 0; labels and answers together 1 + 2, 0 + 0, 2 + 1.
    probabilities = np.array([[0.9, 0.4, 0.1], [0.1, 0.2, 0.3], [0.0, 0.1, 0.8]])
    found = KIND.ratio(TASK, rows("joy", "", "joy|fear"), probabilities)
    assert found.over_N.tolist() == [2, 0, 0] and found.under_N.tolist() == [3, 0, 3]
    assert (found.metric, found.value) == ("micro_f1", pytest.approx(1 / 3)) and not found.counts


def test_shots_are_of_all_labels_of_a_row():
    assert KIND.drawn(TASK, rows("joy", "", "joy|fear")) == [("joy",), (), ("joy", "fear")]
    assert KIND.lacking(TASK, rows("joy", "", ""), 4) == "4 different rows" and KIND.lacking(TASK, rows("joy", "", "", "awe"), 4) is None
