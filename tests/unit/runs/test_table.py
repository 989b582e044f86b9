"""Means, deviations and tests against figures worked out by hand or written out in full."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.errors import Interrupted
from fewtune.runs.grid import Cell, Grid
from fewtune.runs.store import Result
from fewtune.runs.table import APART, mcnemar, paired_t, permuted, table
from fewtune.tasks.metrics import Interval, Ratio

OUT = Path("out.jsonl")


def result(key, right):
    share = right.count("1") / len(right)
    return Result(key, "d", "m", 8, 13, metrics={"accuracy": Interval(share, share - 0.1, share + 0.1)}, right=right)


def compared(baseline, method, done):
    cells = (Cell("d", 8, "base", baseline), Cell("d", 8, "other", method))
    return table(Grid((), cells), done, OUT).rows


def fails(name):
    return Result(name, "d", "m", 8, 13, failed="no")


@given(st.lists(st.tuples(st.sampled_from("01"), st.sampled_from("01")), min_size=1, max_size=24))
@pytest.mark.slow
def test_mcnemar_is_the_sum_over_a_fair_coin(pairs):
    baseline, method = ("".join(column) for column in zip(*pairs, strict=True))
    gained, lost = pairs.count(("0", "1")), pairs.count(("1", "0"))
    n, fewer = gained + lost, min(gained, lost)
    plain = min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    baseline, method = result("a", baseline).ratio, result("b", method).ratio
    assert mcnemar(baseline, method) == pytest.approx(plain)
    assert mcnemar(method, baseline) == pytest.approx(plain)
    if len(pairs) <= 10:
        assert permuted(baseline, method) == pytest.approx(plain), "which is the same test where rows are right or wrong"


def exchanged(baseline, method):
    """Written out in full: the share of all exchanges whose difference is as far on one side, twice, at most 1."""
    found = []
    for sides in itertools.product((False, True), repeat=len(baseline.over_N)):
        pairs = [(two, one) if swap else (one, two) for one, two, swap in zip(rows_of(baseline), rows_of(method), sides, strict=True)]
        one, two = (sum(over for over, _ in side) / sum(under for _, under in side) for side in zip(*pairs, strict=True))
        found.append(two - one)
    observed = found[0]
    tails = (sum(one <= observed + 1e-12 for one in found), sum(one >= observed - 1e-12 for one in found))
    return min(1.0, 2 * min(tails) / len(found))


def rows_of(ratio):
    return list(zip(ratio.over_N.tolist(), ratio.under_N.tolist(), strict=True))


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.integers(0, 32).map(lambda eighths: eighths / 8)] * 2), min_size=1, max_size=8))
def test_errors_are_told_apart_by_all_exchanges(pairs):
    baseline, method = (Ratio("mae", np.array(side), np.ones(len(side)), most=4) for side in zip(*pairs, strict=True))
    assert permuted(baseline, method) == pytest.approx(exchanged(baseline, method))


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2), min_size=2, max_size=8))
def test_f1_is_told_apart_by_all_exchanges(pairs):
    # A row of two labels with so many rights and so many wrongs in each answer.
    baseline, method = (
        Ratio("micro_f1", np.array([2.0 * right for right, _ in side]), np.array([2.0 + right + wrong for right, wrong in side]))
        for side in zip(*pairs, strict=True)
    )
    assert permuted(baseline, method) == pytest.approx(exchanged(baseline, method))


@pytest.mark.slow
def test_many_rows_are_told_by_exchanges_that_are_drawn():
    random = np.random.default_rng(3)
    errors = random.exponential(0.5, 400)
    same, less = (Ratio("mae", one, np.ones(400), most=5) for one in (random.permutation(errors), errors * 0.5))
    baseline = Ratio("mae", errors, np.ones(400), most=5)
    assert permuted(baseline, less) < 0.001 and permuted(baseline, same) > 0.05 and permuted(baseline, baseline) == 1.0
    assert permuted(baseline, same) == permuted(baseline, same)


def scored(key, metric, over, under):
    found = Ratio(metric, np.array(over, dtype=float), np.array(under, dtype=float), most=5)
    return Result(key, "d", "m", 8, 13, metrics={metric: Interval(found.value, found.value, found.value)}).having(found)


@pytest.mark.parametrize(
    ("metric", "baseline", "method", "verdict"),
    [
        ("mae", [2, 1, 3, 2, 1, 2], [1, 0, 1, 1, 0.5, 1], "better"),
        ("mae", [1, 0, 1, 1, 0.5, 1], [2, 1, 3, 2, 1, 2], "worse"),
        ("mae", [1, 0, 1, 1, 0.5, 1], [0, 1, 1, 1, 0.5, 1], APART),
        ("micro_f1", [0, 2, 0, 0, 0, 0, 2], [2, 2, 2, 2, 2, 2, 4], "better"),
        ("micro_f1", [0, 2, 2, 0], [2, 2, 0, 0], APART),
    ],
)
def test_the_metric_says_which_way_is_better(metric, baseline, method, verdict):
    under = [1 if metric == "mae" else 4] * len(method)
    done = {"a": scored("a", metric, baseline, under), "b": scored("b", metric, method, under)}
    cells = (Cell("d", 8, "base", ("a",), metric), Cell("d", 8, "other", ("b",), metric))
    base, other = table(Grid((), cells), done, OUT).rows
    assert base.metric == other.metric == metric and other.contrast.test == "permutation"
    assert other.contrast.difference == pytest.approx((sum(method) - sum(baseline)) / sum(under)) and other.contrast.verdict == verdict
    assert other.contrast.p == pytest.approx(exchanged(done["a"].ratio, done["b"].ratio))


def test_several_seeds_of_errors_are_told_by_their_means():
    over = {"a": [2, 2, 2, 2], "b": [1, 1, 1, 1], "c": [1, 1, 1, 2], "d": [1, 1, 2, 1.5]}
    done = {key: scored(key, "mae", each, [1] * 4) for key, each in over.items()}
    cells = (Cell("d", 8, "base", ("a", "a", "a"), "mae"), Cell("d", 8, "other", ("b", "c", "d"), "mae"))
    contrast = table(Grid((), cells), done, OUT).rows[1].contrast
    assert contrast.test == "t" and contrast.p == pytest.approx(paired_t([-1.0, -0.75, -0.625])) and contrast.verdict == "better"


def test_paired_t_by_hand():
    # mean 2, deviation 1, t = 2 / (1 / √3) = 2√3 on two degrees of freedom, whose tail is closed: 1/2 - t / (2 √(2 + t²)).
    t = 2 * math.sqrt(3)
    assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(2 * (0.5 - t / (2 * math.sqrt(2 + t * t))))


def test_a_single_run_has_its_interval_and_several_their_deviation():
    done = {"a": result("a", "0011"), "b": result("b", "0111"), "c": result("c", "1111")}
    base, other = compared(("a", "a"), ("b", "c"), done)
    assert (base.runs, base.done, other.runs, other.done) == (1, 1, 2, 2)
    figure = base.metrics["accuracy"]
    assert (figure.value, figure.low, figure.high, figure.deviation) == (0.5, 0.4, 0.6, None)
    figure = other.metrics["accuracy"]
    assert figure.value == 0.875 and figure.deviation == pytest.approx(0.125 * math.sqrt(2)) and figure.low is figure.high is None
    assert base.contrast is None


@pytest.mark.parametrize(
    ("baseline", "method", "p", "verdict"),
    [
        ("0" * 5 + "1", "1" * 6, 2 / 2**5, "better"),
        ("1" * 6, "0" * 5 + "1", 2 / 2**5, "worse"),
        ("0" * 4 + "1", "1" * 5, 2 / 2**4, APART),
        ("01", "01", 1.0, APART),
    ],
)
def test_one_seed_is_told_row_by_row(baseline, method, p, verdict):
    _, other = compared(("a",), ("b",), {"a": result("a", baseline), "b": result("b", method)})
    assert other.contrast.test == "mcnemar" and other.contrast.p == pytest.approx(p) and other.contrast.verdict == verdict


def test_several_seeds_are_told_by_their_means():
    done = {"a": result("a", "0" * 8), "b": result("b", "11110000"), "c": result("c", "11111000"), "d": result("d", "11111100")}
    _, other = compared(("a", "a", "a"), ("b", "c", "d"), done)
    assert other.contrast.test == "t" and other.contrast.difference == pytest.approx(0.625) and other.contrast.verdict == "better"
    assert other.contrast.p == pytest.approx(paired_t([0.5, 0.625, 0.75]))


def test_seeds_are_paired_in_order():
    done = {key: result(key, right) for key, right in {"a": "0001", "b": "0111", "c": "0011", "d": "1111"}.items()}
    _, other = compared(("a", "b"), ("c", "d"), done)
    assert other.contrast.difference == 0.25  # the same with each seed: the least sure one speaks
    assert other.contrast.test == "mcnemar" and other.contrast.p == 1.0 and other.contrast.verdict == APART


def test_failed_and_missing_runs_are_left_out():
    done = {"a": result("a", "01"), "b": result("b", "11"), "c": fails("c")}
    _, other = compared(("a", "a", "a"), ("b", "c", "d"), done)
    assert (other.runs, other.done, other.failed) == (3, 1, ("no",))
    assert other.contrast.difference == 0.5 and other.contrast.test == "mcnemar"
    _, other = compared(("a",), ("c",), done)
    assert other.metrics == {} and other.contrast is None and other.failed == ("no",)
    base, other = compared(("c",), ("b",), done)
    assert base.failed == ("no",) and other.contrast is None and other.metrics["accuracy"].value == 1.0


def test_what_is_left_is_said():
    grid = Grid((fails("a"), fails("b")), (Cell("d", None, "base", ("a", "b")),))
    with pytest.raises(Interrupted, match="1 when it was stopped.*type the same command again"):
        table(grid, {"a": result("a", "01")}, OUT).check()
    table(grid, {"a": result("a", "01"), "b": fails("b")}, OUT).check()
