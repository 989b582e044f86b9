"""The monitor: silent while all is as it was, heard where rows disagree or leave otherwise."""

import numpy as np
import pytest

from fewtune.exits.monitor import ALARM, Monitor

ABOUT = {
    **{"promise": {"kind": "agree", "value": 0.98, "confidence": 0.9}, "agreement": {"value": 0.99, "low": 0.97, "high": 1.0}},
    **{"left_early": 0.7, "rows": {"tested": 500}},
}


def test_silent_before_anything_is_seen_and_while_all_is_as_it_was():
    monitor = Monitor.of(ABOUT)
    assert monitor.flags() == ()
    monitor.note(rows=1000, early=690, compared=200, otherwise=4)
    assert monitor.flags() == ()


def test_disagreement_and_another_rate_of_exits_are_said():
    monitor = Monitor.of(ABOUT)
    monitor.note(rows=1000, early=700, compared=200, otherwise=15)
    (flag,) = monitor.flags()
    assert flag.startswith("15 of 200 rows that also went to the end are answered otherwise there, where 2.0% were to be")
    monitor.note(rows=1000, early=400)
    assert len(monitor.flags()) == 2 and "55% of 2,000 rows left early, 70% when exits were added" in monitor.flags()[1]


def test_of_another_promise_what_was_seen_counts():
    assert Monitor.of({**ABOUT, "promise": {"kind": "budget", "value": 0.5, "confidence": 0.9}}).agree == 0.97


def test_draws_are_the_samples_share_others_each_time_and_the_same_again():
    monitor, again = Monitor.of(ABOUT, sample=0.1), Monitor.of(ABOUT, sample=0.1)
    first, second = monitor.drawn(5000), monitor.drawn(5000)
    assert first != second and abs(len(first) - 500) < 100
    assert (again.drawn(5000), again.drawn(5000)) == (first, second)


@pytest.mark.slow
def test_rarely_heard_where_nothing_changed():
    """A look at rows like those that were tested: both counts are drawn as they were then."""
    random, heard = np.random.default_rng(0), 0
    for _ in range(500):
        then = random.binomial(500, 0.7) / 500
        monitor = Monitor(0.98, then, 500)
        monitor.note(rows=2000, early=random.binomial(2000, 0.7), compared=300, otherwise=random.binomial(300, 0.02))
        heard += bool(monitor.flags())
    assert heard <= 500 * 2 * ALARM + 4
