"""Values, poles and the range: what is settled by rows, what is learned, what is written, what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewtune.data.example import Example
from fewtune.errors import DataError, InputError, SpecError, TaskError
from fewtune.tasks import kind_of
from fewtune.tasks.regression import POLES, Regression
from fewtune.tasks.task import Task
from fewtune.train.losses import cross_entropy

TASK = Task.regression(low=0, high=5)
KIND = kind_of(TASK)


def rows(*values):
    return [Example({"text": f"text {number}"}, value, f"rows.csv:{number + 2}") for number, value in enumerate(values)]


def test_a_task_spells_its_range_and_its_poles():
    assert TASK.kind == "regression:low=0,high=5" and Regression(0.0, 5.0) == KIND
    assert TASK.labels == POLES == ("low", "high") and TASK.label_name == "score"
    named = Task.regression(poles=("terrible", "great"), words={"great": "good"})
    assert named.kind == "regression" and kind_of(named) == Regression() and named.words == {"great": ("good",)}


def test_targets_are_the_poles_probabilities():
    assert KIND.targets(TASK, rows("0", "5", "1", "2.5")) == [[1, 0], [0, 1], [0.8, 0.2], [0.5, 0.5]]


def test_answers_are_values_written_to_a_ten_thousandth_of_the_range():
    probabilities = [[1.0, 0.0], [0.25, 0.75], [2 / 3, 1 / 3]]
    assert KIND.answers(TASK, (), probabilities) == ["0.0000", "3.7500", "1.6667"]
    assert Regression(0, 100).answers(TASK, (), probabilities) == ["0.00", "75.00", "33.33"]
    assert Regression(-1e6, 1e6).answers(TASK, (), probabilities) == ["-1000000", "500000", "-333333"]
    assert Regression(0, 0.01).answers(TASK, (), probabilities) == ["0.000000", "0.007500", "0.003333"]
    assert KIND.answers(TASK, (), []) == []


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(0, 1))
def test_a_sure_answer_gives_the_value_back(low, span, share):
    kind, value = Regression(low, low + span), low + share * span
    value = min(value, low + span)
    (target,) = kind.targets(TASK, rows(repr(value)))
    assert float(kind.answers(TASK, (), [target])[0]) == pytest.approx(value, abs=span * 1e-3)


@pytest.mark.parametrize("value", ["0", "0.05", "1", "2.5", "4.9", "5"])
def test_the_loss_is_least_where_the_value_is_right_over_the_full_range(value):
    target_1C = torch.tensor(KIND.targets(TASK, rows(value)), dtype=torch.float64)
    scores_1C = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores_1C], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(scores_1C, target_1C)
        loss.backward()
        return loss

    optimizer.step(closure)
    (found,) = KIND.values(scores_1C.detach().softmax(-1).numpy())
    assert found == pytest.approx(float(value), abs=1e-3)
    # LM-BFF's own code weighs by the exponential of the target; the least of that loss is σ(2t - 1), never beyond 27 to 73 %.
    weights = np.exp(KIND.targets(TASK, rows(value))[0])
    flawed = 5 * weights[1] / weights.sum()
    assert flawed == pytest.approx(5 / (1 + math.exp(1 - 2 * float(value) / 5))) and 5 * 0.268 < flawed < 5 * 0.732


def test_the_loss_is_the_divergence_from_the_target_up_to_its_entropy():
    scores, targets = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(KIND.targets(TASK, rows(*"012345")))
    entropy = -torch.special.xlogy(targets, targets).sum(1).mean()
    divergence = torch.nn.functional.kl_div(scores.log_softmax(1), targets, reduction="batchmean")
    torch.testing.assert_close(cross_entropy(scores, targets), divergence + entropy)


def test_an_open_range_is_what_the_rows_hold():
    settled, note = kind_of(Task.regression()).settled(Task.regression(), rows("2", "4.5", "3"))
    assert settled.kind == "regression:low=2,high=4.5" and "between 2 and 4.5" in note and settled.kind in note
    settled, note = Regression(low=0).settled(Task.regression(low=0), rows("2", "4.5"))
    assert settled.kind == "regression:low=0,high=4.5" and note
    assert KIND.settled(TASK, rows("2", "4.5")) == (TASK, None)
    assert KIND.settled(TASK, ()) == (TASK, None)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, unique=True))
def test_every_row_fits_the_range_that_rows_settle(values):
    examples = rows(*map(repr, values))
    task, _ = Regression().settled(Task.regression(), examples)
    assert all(0 <= share <= 1 for _, share in kind_of(task).targets(task, examples))


@pytest.mark.parametrize(
    ("kind", "values", "error", "words"),
    [
        (Regression(), (), TaskError, "the low end of the range, got none"),
        (Regression(low=0), (), TaskError, "the high end of the range, got none"),
        (Regression(), ("3", "3"), SpecError, "got 3.0 and 3.0. Label rows of other values"),
        (Regression(low=1), ("2", "0.5"), DataError, "rows.csv:3: expected a value from 1 to 2, got 0.5"),
        (Regression(high=1), ("0", "7"), DataError, "rows.csv:3: expected a value from 0 to 1, got 7"),
        (Regression(0, 1), ("0", "many"), DataError, 'rows.csv:3: expected a number, got "many"'),
        (Regression(0, 1), ("0", None), DataError, "rows.csv:3: expected a number, got none"),
        (Regression(0, 1), ("0", "nan"), DataError, 'rows.csv:3: expected a number, got "nan"'),
    ],
)
def test_rows_that_settle_nothing_or_do_not_fit(kind, values, error, words):
    with pytest.raises(error) as caught:
        kind.settled(TASK, rows(*values))
    assert words in str(caught.value)


def test_rows_that_only_measure_may_lie_outside_the_range():
    KIND.check(TASK, rows("-1", "9"), "evaluate")
    found = KIND.measure(TASK, rows("-1", "9"), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert found.metrics["mae"].value == pytest.approx(2.5)
    with pytest.raises(DataError, match="a value from 0 to 5, got 9"):
        KIND.targets(TASK, rows("9"))


@pytest.mark.parametrize("text", ["regression:low=5,high=0", "regression:low=1,high=1", "regression:low=inf", "regression:lo=3"])
def test_ranges_that_are_none(text):
    with pytest.raises(InputError):
        kind_of(Task(labels=POLES, kind=text))


def test_a_task_has_two_poles():
    with pytest.raises(TaskError, match="two poles, got a, b, c"):
        KIND.check(Task(labels=("a", "b", "c"), kind=TASK.kind), rows("1"), "rows.csv")


def test_groups_are_quantiles_of_the_values():
    assert KIND.groups(TASK, rows("5", "0", "1", "4"), 2) == ["1", "0", "0", "1"]
    assert KIND.groups(TASK, rows("3", "3", "3", "3"), 4) == ["0", "1", "2", "3"]
    counts = np.unique(KIND.groups(TASK, rows(*map(str, np.random.default_rng(0).random(41))), 10), return_counts=True)[1]
    assert len(counts) == 10 and set(counts.tolist()) == {4, 5}


def test_it_says_what_it_answers():
    assert KIND.described(TASK) == "Answers a number from 0 (low) to 5 (high)."
    assert KIND.confidence(TASK, [0.3, 0.7]) is None


def test_what_rows_add_to_the_error_by_hand():
    found = KIND.ratio(TASK, rows("1", "4", "5"), np.array([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]))
    assert found.over_N.tolist() == pytest.approx([1.5, 0.0, 5.0]) and found.under_N.tolist() == [1, 1, 1]
    assert (found.metric, found.most, found.value) == ("mae", 5.0, pytest.approx(6.5 / 3)) and not found.counts


def test_shots_are_of_either_side_of_the_median():
    assert KIND.drawn(TASK, rows("5", "0", "1", "4")) == [("upper half",), ("lower half",), ("lower half",), ("upper half",)]
    assert KIND.lacking(TASK, rows("1", "1", "2"), 4) == "4 different rows" and KIND.lacking(TASK, rows("1", "1", "2", "3"), 4) is None
