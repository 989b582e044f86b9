"""Beginnings that rows share: which are worth computing once, one inside the other, and the rows that go on after them. Knows token ids.

    Topic? ─┬─ Text: rain … (one row)
            └─ Title: a ── ─┬─ b …            rows of "Topic? Title: a" go on after its keys and values,
                            └─ c …            which go on after those of "Topic?"

Only autoregressive models go on after what others made of a beginning (`Backbone.goes_on`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fewtune.backbone.backbone import Backbone

Ids = tuple[int, ...]
WORTH = 64
"""So many tokens must be saved by computing a beginning apart: a pass reads all weights of the model, however few tokens it has."""
LEAST = 8
"""And so many tokens a beginning must have: whatever goes on after it has it in front of its keys and values in every block."""
_DEEPEST = 100  # so many times rows are told apart; what still begins alike then is left as it is


@dataclass(frozen=True)
class Group:
    """Rows that go on after `tokens`: `rows` by their numbers, and `groups` of rows that have more in common."""

    tokens: Ids
    rows: tuple[int, ...]
    groups: tuple[Group, ...] = ()


def beginnings(backbone: Backbone, ids: Sequence[Ids]) -> Iterator[tuple[list[int], int]]:
    """(numbers of rows, how many of their first tokens are in front already): until the next item is asked for, `backbone` goes on after
    these tokens. Each row comes once and is left at least its last token; rows that begin alike come one behind the other.
    """
    if not backbone.goes_on:
        yield sorted(range(len(ids)), key=ids.__getitem__), 0
        return
    yield from _within(backbone, plan(ids, worth=WORTH, least=LEAST), 0)


def _within(backbone: Backbone, group: Group, start: int) -> Iterator[tuple[list[int], int]]:
    start += len(group.tokens)
    with backbone.after(group.tokens):
        if group.rows:
            yield list(group.rows), start
        for inner in group.groups:
            yield from _within(backbone, inner, start)


def plan(ids: Sequence[Ids], *, worth: int, least: int = 1) -> Group:
    """What rows share, from what all have on; a beginning counts that has at least `least` tokens and saves at least `worth`.

    >>> plan([(1, 2, 3), (1, 2, 4), (1, 5)], worth=2)
    Group(tokens=(1,), rows=(0, 1, 2), groups=())
    """
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return _group(ids, order, 0, (worth, least), _DEEPEST) if order else Group((), ())


def _group(ids: Sequence[Ids], order: Sequence[int], start: int, limits: tuple[int, int], deepest: int) -> Group:
    """`order` are rows sorted by their tokens, of which the first `start` are in front already."""
    common = _common(ids[order[0]], ids[order[-1]], most=min(len(ids[row]) for row in order) - 1)
    worth, least = limits
    taken = common - start >= least and (common - start) * (len(order) - 1) >= worth
    tokens, start = (ids[order[0]][start:common], common) if taken else ((), start)
    rows: list[int] = []
    groups: list[Group] = []
    for alike in _apart(ids, order, common):
        inner = _group(ids, alike, start, limits, deepest - 1) if len(alike) > 1 and deepest else Group((), tuple(alike))
        if inner.tokens:
            groups.append(inner)
        else:
            rows += inner.rows
            groups += inner.groups
    return Group(tokens, tuple(rows), tuple(groups))


def _apart(ids: Sequence[Ids], order: Sequence[int], at: int) -> Iterator[list[int]]:
    """The rows by their token number `at`, those that end with it each alone, for no more can be in front of them."""
    for _, alike in itertools.groupby(order, key=lambda row: (ids[row][at], row if len(ids[row]) == at + 1 else -1)):
        yield list(alike)


def _common(one: Ids, other: Ids, *, most: int) -> int:
    """How many tokens both begin with, at most `most`."""
    return next((at for at in range(most) if one[at] != other[at]), most)
