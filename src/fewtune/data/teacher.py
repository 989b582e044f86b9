"""Labels from elsewhere (an annotator, a large model) → examples with soft labels. Knows columns and labels; no task, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import isfinite

from fewtune import registry
from fewtune.data.example import Example
from fewtune.data.files import Row, data_error, show
from fewtune.data.readers import Columns, example_of, guess, head_of, table

PROBABILITY = "probability"
"""The column beside the label, as `predict` writes it."""
HARD = 0.95
"""How probable a label is held to be of which nothing else is said: nobody is always right; labelled rows tell how far that is off."""


def read(source: object, *, text: Sequence[str], labels: Sequence[str], label: str | None = None) -> tuple[Example, ...]:
    """Examples with `shares`, of a file, a frame or a list, as `readers.read` takes them.

    Where the source has a column of each label, these hold how probable each is; else a column has the label, and one called
    `probability`, if it is there, how probable it is, the rest being shared out among the others. Raises `DataError` for a row without.
    """
    if isinstance(source, Sequence) and source and all(isinstance(one, Example) and one.shares is not None for one in source):
        return tuple(source)
    found = table(source, "teacher", tuple(text), label)
    columns, head = head_of(found)
    soft = set(labels) <= set(columns)
    good = [row for row in head if isinstance(row, Row)]
    own = None if soft else found.label or label
    chosen, _ = guess(columns, good, text=text or found.text, label=own, labeled=not soft, where=found.where)
    return tuple(_example(row, chosen, labels, soft) for row in chain(head, found.rows))


def _example(row: Row | Exception, columns: Columns, labels: Sequence[str], soft: bool) -> Example:
    if isinstance(row, Exception):
        raise row
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
    """All labels' shares where one label is named; the rest is the others', evenly."""
    first = _share(row, PROBABILITY) if row.values.get(PROBABILITY, "").strip() else HARD
    rest = (1 - first) / max(1, len(labels) - 1)
    return {one: first if one == label else rest for one in labels}


def _share(row: Row, column: str) -> float:
    try:
        share = float(row.values.get(column, ""))
    except ValueError:
        share = float("nan")
    if not (isfinite(share) and 0 <= share <= 1):
        raise data_error(
            row.where, f'a probability in column "{column}"', show(row.values.get(column, "")), registry.nearest(column, row.values)
        )
    return share
