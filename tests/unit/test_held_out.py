"""Medians and spreads by hand; intervals that hold the value, are none where nothing can differ, and pair the rows."""

import numpy as np
import pytest

from fewtune.held_out import Score, gain, mean_median, spread


def right(*rows):
    return np.array([[digit == "1" for digit in row] for row in rows])


def test_the_spread_over_templates_by_hand():
    found = spread(right("1111", "1000", "1100"))
    assert found == {"median": 0.5, "low": 0.375, "high": 0.75, "least": 0.25, "most": 1.0}


def test_the_gain_is_the_mean_over_tasks_of_the_medians_difference():
    one = Score("one", ("a", "b", "c"), right("1000", "1100", "0000"), right("1110", "1111", "1100"))
    other = Score("other", ("a",), right("1100"), right("1000"))
    found = gain([one, other])
    assert found.value == pytest.approx((0.75 - 0.25 + 0.25 - 0.5) / 2)
    assert found.low < found.value < found.high
    assert mean_median([one.after_PN, other.after_PN]) == pytest.approx(0.5)


def test_rows_are_paired_so_that_the_same_answers_leave_no_doubt():
    mixed = right("1010101010", "1100110011")
    assert gain([Score("same", ("a", "b"), mixed, mixed)]) == gain([Score("other", ("a", "b"), ~mixed, ~mixed)])
    found = gain([Score("same", ("a", "b"), mixed, mixed)])
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_interval_of_a_simple_gain_is_that_of_a_share():
    before, after = np.zeros((1, 400), dtype=bool), np.zeros((1, 400), dtype=bool)
    after[0, :100] = True
    found = gain([Score("task", ("a",), before, after)])
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert found.value == 0.25
    assert (found.low, found.high) == (pytest.approx(0.25 - half, abs=0.01), pytest.approx(0.25 + half, abs=0.01))


def test_plain_data():
    found = Score("task", ("first", "second"), right("10", "00"), right("11", "10")).to_dict()
    assert found["rows"] == 2 and found["templates"][1] == {"template": "second", "before": 0.0, "after": 0.5}
    assert found["before"]["median"] == 0.25 and found["gain"]["value"] == 0.5
