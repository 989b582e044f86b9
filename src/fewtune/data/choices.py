"""What a row alone is answered from: its columns → candidates, and which of them its label names. Knows cells; no task and no model.

A label names a candidate by its text, by the name of its column, or by its place, counted from 0, from 1 or from A. Which of these it is
holds for all rows, and is taken only where the rows leave no doubt: numbers from 1 to 2 of three candidates may be counted from either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fewtune import registry
from fewtune.data.example import Example
from fewtune.data.files import Row, data_error, items, row_of, show

TEXT, COLUMN = "text", "column"


def of_row(row: Row, columns: Sequence[str], separator: str) -> tuple[str, ...]:
    """The candidates of a row: a list in a cell, or texts with `separator` between them; or the cells of several columns, where the last
    ones may be empty. Raises `DataError` for fewer than two, for one that is empty, and for two alike."""
    if row.candidates is not None:
        return checked(row.candidates, row.where)
    for column in columns:
        if column not in row.values:
            fix = f"{registry.nearest(column, row.values)} Name it with --kind choice:candidates=…"
            raise data_error(row.where, f'candidates in column "{column}"', "no such column", fix)
    if len(columns) == 1:
        column = columns[0]
        found = items(row, column, "candidates") if column in row.nested else row.values[column].split(separator)
    else:
        found = [row.values[column] for column in columns]
        while found and not found[-1].strip():
            found.pop()
    return checked([one.strip() for one in found], row.where)


def checked(candidates: Sequence[str], where: str) -> tuple[str, ...]:
    """The same candidates; raises `DataError` for fewer than two, for one that is empty, and for two alike."""
    fix = "Mend the row, or drop it."
    if len(candidates) < 2:
        raise data_error(where, "at least two candidates", ", ".join(map(show, candidates)) or "none", fix)
    for number, one in enumerate(candidates):
        if not one.strip():
            raise data_error(where, "candidates with a text", f"candidate {number + 1} without", fix)
        if one in candidates[:number]:
            raise data_error(where, "candidates that differ", f"{show(one)} twice", fix)
    return tuple(candidates)


def given(item: object, columns: Sequence[str], separator: str, where: str) -> tuple[str, ...]:
    """The candidates of what a caller has in hand: an `Example` with some, or a mapping with these columns."""
    if isinstance(item, Example) and item.candidates is not None:
        return checked(item.candidates, item.where or where)
    values = item.fields if isinstance(item, Example) else item
    if not isinstance(values, Mapping):
        fix = f"Give an Example with candidates, or a dict with {', '.join(columns)}."
        raise data_error(where, "a row with candidates of its own", type(item).__name__, fix)
    return of_row(row_of(values, where), columns, separator)


def place(label: str, candidates: Sequence[str], form: str, columns: Sequence[str]) -> int | None:
    """The number of the candidate, from 0, that a label names; None if it names none.

    `form` is `text`, `column`, or what the first candidate is called: `0`, `1`, `A`, `choice1`.

    >>> place("choice2", ["yes", "no"], "choice1", ()), place("B", ["yes", "no"], "A", ()), place("2", ["yes", "no"], "0", ())
    (1, 1, None)
    """
    if form in (TEXT, COLUMN):
        named = candidates if form == TEXT else columns[: len(candidates)]
        return named.index(label) if label in named else None
    first, counted = counting(form), counting(label)
    if first is None or counted is None or counted[0] != first[0]:
        return None
    number = counted[1] - first[1]
    return number if 0 <= number < len(candidates) else None


def counting(name: str) -> tuple[str, int] | None:
    """What stands before the number at the end of a name, or before a letter that stands there alone, and which one it is.

    >>> counting("choice12"), counting("A"), counting("(1"), counting("no")
    (('choice', 12), ('', 65), ('(', 1), None)
    """
    found = re.fullmatch(r"(.*?)(\d+)|((?:.*[\W_])?)([A-Za-z])", name)
    if found is None:
        return None
    return (found[1], int(found[2])) if found[2] else (found[3], ord(found[4]))


def form_of(examples: Sequence[Example], columns: Sequence[str]) -> str:
    """How labels name candidates, from all labelled rows: the one form that fits the most of them.

    Raises `DataError` where none fits any row, and where two do that would name other candidates.
    """
    labels = [(example.label or "", example.candidates or ()) for example in examples]
    found = {form: [place(*row, form, columns) for row in labels] for form in _forms(labels, columns)}
    right = {form: sum(one is not None for one in places) for form, places in found.items()}
    best = [form for form in found if right[form] == max(right.values())]
    where = next((example.where for example in examples if example.where), "labels")
    if not right[best[0]]:
        got = f"{show(labels[0][0])} where they are {', '.join(map(show, labels[0][1]))}" if labels else "no row"
        raise data_error(where, "labels that name a candidate", got, "Give its text, its column's name, or its number.")
    if other := next((form for form in best if found[form] != found[best[0]]), None):
        fix = f"Say which: --kind choice:label={best[0]}, or label={other}."
        raise data_error(where, "labels that name candidates in one way", f"some that fit {best[0]} and {other}", fix)
    return best[0]


def _forms(labels: Sequence[tuple[str, Sequence[str]]], columns: Sequence[str]) -> list[str]:
    """The forms that labels may have: text first, then columns, then counting with what the first label has before its number."""
    usual = [TEXT, *([COLUMN] if len(columns) > 1 else [])]
    if all(label in columns for label, _ in labels):
        return usual
    named = next((label for label, _ in labels if counting(label)), None)
    if named is None:
        return usual
    starts = ("0", "1") if named[-1].isdigit() else ("A",) if named[-1].isupper() else ("a",)
    return [*usual, *(f"{named[:-1].rstrip('0123456789')}{start}" for start in starts)]


def spoken(form: str) -> str:
    """A form in words.

    >>> spoken("text"), spoken("1")
    ('by its text', 'by its place, the first one being 1')
    """
    return {TEXT: "by its text", COLUMN: "by its column"}.get(form, f"by its place, the first one being {form}")
