"""Free text as a kind of task: how it is written as a flag, what fits, and how near texts are to the right ones, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.data.example import Example
from fewtune.errors import DataError, SpecError, TaskError
from fewtune.tasks import KINDS, kind_of
from fewtune.tasks.generation import Generation
from fewtune.tasks.generation_metrics import exact_match, f1, measure, normalised
from fewtune.tasks.task import Task

RIGHT = ["Paris", "the year 1889", "a dull mess", "yes"]
ANSWERS = ["paris.", "in 1889", "great fun", ""]


def examples(answers=None):
    return [Example({"text": "?"}, right, candidates=None if answers is None else (answers[number],)) for number, right in enumerate(RIGHT)]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t,+\\ "), min_size=1), max_size=3))
def test_any_stop_can_be_written_as_a_flag_has_it(stops):
    kind = kind_of(Task.generation(stop=stops, max_tokens=5))
    assert kind.stops == tuple(stops) and kind.max_tokens == 5


def test_the_same_in_a_flag_a_table_and_python():
    wanted = Generation((r"\n", "END"), 8)
    assert KINDS.from_text(r"generation:stop=\n+END,max_tokens=8") == wanted == kind_of(Task.generation(stop=["\n", "END"], max_tokens=8))
    table = Task.from_dict({"kind": {"name": "generation", "stop": ["\n", "END"], "max_tokens": 8}})
    assert kind_of(table) == wanted and KINDS.from_text(KINDS.to_text(wanted)) == wanted
    assert Generation().stops == ("\n",) and KINDS.from_text("generation:stop=").stops == ()


def test_task_file_round_trip(tmp_path):
    task = Task.generation(stop=["\n", ","], template="Q: {q}\nA: {slot}", fields=["q"])
    (tmp_path / "task.toml").write_text(task.to_toml())
    assert Task.load(tmp_path / "task.toml") == task


def test_it_has_no_labels_and_at_least_one_token():
    with pytest.raises(TaskError, match="expected no labels, for kind generation"):
        Task(labels=("a", "b"), kind="generation")
    with pytest.raises(SpecError, match="max_tokens: expected at least 1, got 0"):
        kind_of(Task.generation(max_tokens=0))


@pytest.mark.parametrize(("label", "message"), [(None, "an answer"), (" ", "an answer"), ("two\nlines", "answers without the stop")])
def test_rows_that_do_not_fit_are_refused(label, message):
    with pytest.raises(DataError, match=f"f.csv:3: expected {message}"):
        Generation().check(Task.generation(), [Example({"text": "?"}, label, "f.csv:3")], "fit")
    Generation().check(Task.generation(), examples(), "fit")


def test_words_by_hand():
    assert normalised("  The  Eiffel-Tower, an A+ ") == "eiffeltower"
    assert [exact_match(*pair) for pair in zip(RIGHT, ANSWERS, strict=True)] == [1, 0, 0, 0]
    # "year 1889" and "in 1889" have one word of two in common.
    assert [f1(*pair) for pair in zip(RIGHT, ANSWERS, strict=True)] == [1, 0.5, 0, 0]
    assert f1("the", "a") == 1 and f1("b b c", "b") == 0.5


@given(st.text(), st.text())
def test_f1_lies_between_exact_match_and_one_and_knows_no_side(left, right):
    assert exact_match(left, right) <= f1(left, right) <= 1
    assert f1(left, right) == pytest.approx(f1(right, left)) and f1(left, left) == 1


def test_measured_with_intervals():
    kind, task, answered = Generation(), Task.generation(), examples(ANSWERS)
    shares_N1 = np.array([[0.5], [0.25], [0.1], [0.9]])
    found = kind.measure(task, answered, shares_N1)
    assert found.rows == 4 and found.classes == () and list(found.metrics) == list(kind.metrics) == ["exact_match", "f1"]
    assert found.metrics["exact_match"].value == 0.25 and found.metrics["f1"].value == 0.375
    for metric in found.metrics.values():
        assert 0 <= metric.low < metric.value < metric.high <= 1
    ratio = kind.ratio(task, answered, shares_N1)
    assert ratio.metric == kind.estimated == "exact_match" and ratio.value == 0.25 and ratio.over_N.tolist() == [1, 0, 0, 0]
    assert kind.answers(task, answered, shares_N1.tolist()) == ANSWERS and kind.confidence(task, [0.25]) == 0.25


def test_one_row_and_rows_alike_have_an_interval():
    assert measure(["a b"], ["b"]).metrics["f1"].high > 0.5
    alike = measure(["x"] * 9, ["x"] * 9).metrics["f1"]
    assert alike.value == alike.high == 1 and 0.6 < alike.low < 0.8
    with pytest.raises(DataError, match="an answer for each labelled row"):
        measure(["a"], [])


def test_all_rows_are_shots_of_one_thing():
    kind, task = Generation(), Task.generation()
    assert set(kind.groups(task, examples(), 2)) == {""} and set(kind.drawn(task, examples())) == {("answer",)}
    assert kind.lacking(task, examples(), 4) and kind.labels(examples()) == ()
    assert kind.described(task) == "Answers in free text of at most 32 tokens."
