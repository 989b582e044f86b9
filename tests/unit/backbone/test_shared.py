"""What rows have in common, and whether it is worth being computed once."""

from hypothesis import given
from hypothesis import strategies as st

from fewtune.backbone.shared import Group, plan


def walked(group, before=()):
    """Every row with what is in front of it."""
    before += group.tokens
    yield from ((row, before) for row in group.rows)
    for inner in group.groups:
        yield from walked(inner, before)


def test_one_beginning_inside_the_other():
    ids = [(1, 1, 2, 2, 5), (9,), (1, 1, 2, 2, 6), (1, 1, 3), (1, 1, 3)]
    assert plan(ids, worth=2) == Group((), (1,), (Group((1, 1), (3, 4), (Group((2, 2), (0, 2)),)),))


def test_what_is_not_worth_it_is_left_in_the_rows():
    ids = [(1, 1, 1, 5), (1, 1, 1, 6), (2, 5), (2, 6)]
    assert plan(ids, worth=3) == Group((), (2, 3), (Group((1, 1, 1), (0, 1)),))
    assert plan(ids, worth=4) == Group((), (0, 1, 2, 3))
    assert plan(ids, worth=3, least=4) == Group((), (0, 1, 2, 3))


def test_the_last_token_of_each_row_stays_with_it():
    assert plan([(1, 2), (1, 2), (1, 2, 3)], worth=1) == Group((1,), (0, 1, 2))
    assert plan([(1,), (1,)], worth=1) == Group((), (0, 1))


def test_no_rows():
    assert plan([], worth=1) == Group((), ())


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), max_size=12), st.integers(1, 9))
def test_each_row_comes_once_behind_its_own_beginning(ids, worth):
    found = list(walked(plan(ids, worth=worth)))
    assert sorted(row for row, _ in found) == list(range(len(ids)))
    assert all(ids[row][: len(before)] == before and len(before) < len(ids[row]) for row, before in found)


def test_rows_that_are_each_the_beginning_of_the_next():
    ids = [(1,) * size for size in range(1, 400)]
    assert sorted(row for row, _ in walked(plan(ids, worth=4))) == list(range(399))
