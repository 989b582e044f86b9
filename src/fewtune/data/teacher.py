"""Labels from elsewhere (an annotator, a large model) → examples with soft labels. Knows columns and labels; no task, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import isfinite

from fewtune.data.example import Example
from fewtune.data.files import Row, data_error, show
from fewtune.data.readers import LABEL_NAMES, Columns, Reading, example_of, guess, head_of, reading, table, usual

PROBABILITY = "probability"
"""The column beside the label, as `predict` writes it."""
HARD = 0.95
"""How probable a label is held to be of which nothing else is said: nobody is always right; labelled rows tell how far that is off."""


def read(source: object, *, text: Sequence[str], labels: Sequence[str], label: str | None = None, skip_bad_rows: bool = False) -> Reading:
    """Examples with `shares`, of a file, a frame or a list, as `readers.read` takes them.

    Where the source has a column of each label, these hold how probable each is; else a column has the label, and one called
    `probability`, if it is there, how probable it is, the rest being shared out among the others. That column is called `label` or another
    usual name, or is the only one that is left. Raises `DataError` for the first row without, unless `skip_bad_rows`.
    """
    if isinstance(source, Sequence) and source and all(isinstance(one, Example) and one.shares is not None for one in source):
        return Reading(tuple(source), Columns(tuple(source[0].fields), None), (), 0)
    found = table(source, "teacher", tuple(text), label)
    columns, head = head_of(found)
    text, own = text or found.text, found.label or label
    soft = set(labels) <= set(columns)
    notes: tuple[str, ...] = ()
    if not soft and own is None and text:
        own, notes = _label(columns, text, labels, found.where)
    good = [row for row in head if isinstance(row, Row)]
    chosen, guessed = guess(
        columns, good, text=text, label=None if soft else own, labeled=not soft, where=found.where, apart=(PROBABILITY, *labels)
    )
    return reading(
        found._replace(rows=chain(head, found.rows)),
        lambda row: _example(row, chosen, labels, soft),
        chosen,
        (*guessed, *notes),
        skip_bad_rows=skip_bad_rows,
    )


def _label(columns: Sequence[str], text: Sequence[str], labels: Sequence[str], where: str) -> tuple[str, tuple[str, ...]]:
    """The column that has the label, and a sentence that says which it is, unless that is plain.

    Raises `DataError` where none can have it, and where columns of some labels are there, but not of all.
    """
    left = [column for column in columns if column not in (*text, PROBABILITY)]
    found, own = usual(LABEL_NAMES, left), [label for label in labels if label in left]
    if found is None and own:
        missing = ", ".join(f'"{label}"' for label in labels if label not in own)
        raise data_error(where, "a column of each label", f"none called {missing}", "Add it, or give one column called label.")
    if found is None and len(left) != 1:
        fix = "Call it label, or give a column of each label."
        raise data_error(where, "a column with the label", f"the columns {', '.join(columns)}", fix)
    column = found or left[0]
    return column, () if column == "label" else (
        f'Reading the teacher\'s label from column "{column}" (guessed; one called label decides).',
    )


def _example(row: Row, columns: Columns, labels: Sequence[str], soft: bool) -> Example:
    plain = example_of(row, columns, labeled=not soft, known=labels)
    shares = _soft(row, labels) if soft else _spread(row, plain.label or "", labels)
    return Example(plain.fields, None, plain.where, shares)


def _soft(row: Row, labels: Sequence[str]) -> Mapping[str, float]:
    given = {label: _share(row, label) for label in labels}
    total = sum(given.values())
    if not 0.98 <= total <= 1.02:
        raise data_error(row.where, "probabilities that add up to 1", f"{total:g}", "Mend the row, or give one label with its probability.")
    return {label: share / total for label, share in given.items()}


def _spread(row: Row, label: str, labels: Sequence[str]) -> Mapping[str, float]:
    """All labels' shares where one label is named; the rest is the others', evenly. Raises `DataError` where that is more than its own."""
    first = _share(row, PROBABILITY) if row.values.get(PROBABILITY, "").strip() else HARD
    rest = (1 - first) / max(1, len(labels) - 1)
    if first < rest:
        expected = f'a probability that makes "{label}" the likeliest of {len(labels)} labels'
        raise data_error(row.where, expected, f"{first:g}", "Name the likeliest label, or give a column of each label.")
    return {one: first if one == label else rest for one in labels}


def _share(row: Row, column: str) -> float:
    given = row.values.get(column, "")
    try:
        share = float(given)
    except ValueError:
        share = float("nan")
    if not (isfinite(share) and 0 <= share <= 1):
        raise data_error(row.where, f'a probability in column "{column}"', show(given), "Write a number from 0 to 1.")
    return share
