"""Files, frames, data sets and lists → examples. Knows columns and labels; not how a file is read, nothing of tasks, models or tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import isfinite
from numbers import Integral
from pathlib import Path
from typing import Any

from fewtune import registry
from fewtune.data import choices
from fewtune.data.example import Example
from fewtune.data.files import Row, Table, data_error, distinct, items, row_of, show, some, table_of
from fewtune.errors import DataError

__all__ = [
    "Columns",
    "Reading",
    "Row",
    "Written",
    "columns_of",
    "example_of",
    "guess",
    "head_of",
    "read",
    "reading",
    "rows",
    "skipped",
    "table",
    "usual",
]

LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "intent", "topic", "target", "answer", "y", "score", "rating", "stars")
TEXT_NAMES = ("text", "sentence", "review", "content", "message", "tweet", "question", "title", "body", "description", "comment")
PAIR_NAMES = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("text_a", "text_b"),
    ("question", "passage"),
    ("question", "sentence"),
)
SAMPLE = 200  # rows that are looked at to guess columns


@dataclass(frozen=True)
class Columns:
    """Which columns are read; no label column where labels are not read."""

    text: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Written:
    """How a row's label is written: as one of the labels, as a `number`, or as several labels with a `separator` between them.

    Several may also be a list; none is an empty cell. Where rows have candidates of their own these stand in the columns `candidates`, with
    something `between` them if it is one column, and a label is `named` as `fewtune.data.choices` says, if that is known.
    """

    number: bool = False
    separator: str | None = None
    candidates: tuple[str, ...] = ()
    between: str = "|"
    named: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a source held. `notes` are sentences for the user, `skipped` counts the rows that were dropped."""

    examples: tuple[Example, ...]
    columns: Columns
    notes: tuple[str, ...]
    skipped: int


def read(
    source: object,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    labeled: bool,
    known: Sequence[str] | None = None,
    written: Written | None = None,
    skip_bad_rows: bool = False,
    name: str = "data",
) -> Reading:
    """All examples of a file (a path), a pandas or polars frame, a Hugging Face data set, or a list.

    A list may hold examples, dicts, texts, or tuples (text, label) or (text, text, label); `text` and `label` name the parts of tuples.
    With `labeled`, every row needs a label, one of `known` if that is given, or what `written` says; without it no example carries one,
    whatever the source holds.
    `name` is what messages call a source that has no path. Raises `DataError` for a source that cannot be read, and for the first bad
    row unless `skip_bad_rows`; then for a source without any good row.
    """
    found = table(source, name, tuple(text), label)
    columns, head = head_of(found)
    chosen, notes = guess(
        columns,
        [row for row in head if isinstance(row, Row)],
        text=text or found.text,
        label=found.label or label,
        labeled=labeled,
        where=found.where,
        apart=written.candidates if written else (),
    )
    written = written or Written()
    return reading(
        found._replace(rows=chain(head, found.rows)),
        lambda row: example_of(row, chosen, labeled=labeled, known=known, written=written),
        chosen,
        notes,
        skip_bad_rows=skip_bad_rows,
    )


def reading(found: Table, example: Callable[[Row], Example], columns: Columns, notes: tuple[str, ...], *, skip_bad_rows: bool) -> Reading:
    """All rows of a table, each as the example that it holds; see `read` for what is raised and what is skipped."""
    bad: list[str] = []
    examples = tuple(_examples(found.rows, example, bad if skip_bad_rows else None))
    if not examples:
        raise data_error(found.where, "a row that can be used", f"{len(bad)} bad", f"The first: {bad[0]}")
    if bad:
        notes = (*notes, skipped(len(bad), bad[0]))
    return Reading(examples, columns, notes, len(bad))


def skipped(count: int, first: object) -> str:
    """How many bad rows were dropped, as a person reads it."""
    return f"Skipped {count} bad row{'s' * (count > 1)}; the first: {first}"


def _examples(found: Iterable[Row | DataError], example: Callable[[Row], Example], bad: list[str] | None) -> Iterator[Example]:
    """The examples; bad rows go to the list `bad`, all but the first without a word, or are raised where there is no such list."""
    for row in found:
        try:
            if isinstance(row, DataError):
                raise row
            yield example(row)
        except DataError as caught:
            if bad is None:
                raise
            bad.append("" if bad else str(caught))


def rows(
    path: str | os.PathLike[str], *, skip_bad_rows: bool = False, on_skip: Callable[[DataError], object] | None = None
) -> Iterator[Row]:
    """The rows of a file one by one, in order, in constant memory; `on_skip` is told of each bad row that is dropped.

    Raises `DataError` as `read` does, except for what concerns single columns: see `example_of`.
    """
    for row in table_of(Path(path)).rows:
        if isinstance(row, Row):
            yield row
        elif not skip_bad_rows:
            raise row
        elif on_skip:
            on_skip(row)


def columns_of(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The columns of a file; for JSON lines, the keys of its first rows."""
    return head_of(table_of(Path(path)))[0]


# Columns, and one row → one example


def guess(
    columns: Sequence[str],
    sample_rows: Sequence[Row],
    *,
    text: Sequence[str],
    label: str | None,
    labeled: bool,
    where: str,
    apart: Sequence[str] = (),
) -> tuple[Columns, tuple[str, ...]]:
    """Which columns hold the text and the label; what is not given is guessed, and the notes say so. Those that are `apart` are neither,
    unless they are given.

    By the usual names first (pairs before single texts); then, of two columns, the one that is left is the label; then the longest text.
    Raises `DataError` for a given column that is not there, and for a label or text that cannot be guessed.
    """
    for name in (*text, *([label] if label is not None and labeled else [])):
        if name not in columns:
            raise data_error(where, f'a column "{name}"', "none of that name", registry.nearest(name, columns))
    if len({*text, label}) < len(text) + 1:
        raise data_error(where, "a column of its own for each text and the label", "one column twice", "Name each column once.")
    columns = [column for column in columns if column in (*text, label) or column not in apart]
    set_apart = label if label in columns else usual(LABEL_NAMES, [name for name in columns if name not in text])
    if not labeled and len(columns) == 1:
        set_apart = None  # a lone column called "topic" can only be the text
    found = tuple(text) or _guess_text([name for name in columns if name != set_apart], sample_rows)
    if labeled and set_apart is None and len(columns) == 2 and len(found) == 1:
        set_apart = next(name for name in columns if name not in found)
    if not found or (labeled and set_apart is None):
        flag = "--label" if found else "--text"
        raise data_error(where, f"a column with the {flag[2:]}", f"the columns {', '.join(columns)}", f"Name it with {flag}.")
    read_label = set_apart if labeled else None
    return Columns(found, read_label), _told(() if text else found, None if label == read_label else read_label)


def example_of(row: Row, columns: Columns, *, labeled: bool, known: Sequence[str] | None = None, written: Written | None = None) -> Example:
    """The example that a row holds; raises `DataError` for an empty text, a missing or unknown label, a nested value, or candidates
    that are missing."""
    fields = {name: _cell(row, name) for name in columns.text}
    for name, text in fields.items():
        if not text.strip():
            raise data_error(row.where, f'a text in column "{name}"', "an empty one", "Fill it in, drop the row, or use --skip-bad-rows.")
        if "\0" in text or not _encodable(text):
            raise data_error(row.where, f'text in column "{name}"', "a NUL or half a character", "Remove it from the row.")
    written = written or Written()
    candidates = choices.of_row(row, written.candidates, written.between) if written.candidates else None
    if not labeled or columns.label is None:
        return Example(fields, None, row.where, candidates=candidates)
    label = _label(row, columns.label, known, written)
    if candidates and written.named and choices.place(label, candidates, written.named, written.candidates) is None:
        expected = f"a label that names a candidate {choices.spoken(written.named)}"
        raise data_error(row.where, expected, show(label), registry.nearest(label, candidates))
    return Example(fields, label, row.where, candidates=candidates)


def _label(row: Row, column: str, known: Sequence[str] | None, written: Written) -> str:
    if written.separator is not None:
        return _several(row, column, known, written.separator)
    label = _cell(row, column).strip()
    if not label:
        raise data_error(row.where, f'a label in column "{column}"', "none", "Label the row, drop it, or use --skip-bad-rows.")
    if written.number:
        return _number(label, row.where)
    if known is not None and label not in known:
        raise data_error(row.where, "a label of the task", show(label), registry.nearest(label, known))
    return label


def _several(row: Row, column: str, known: Sequence[str] | None, separator: str) -> str:
    """The labels of a cell, each once, with the separator between them."""
    listed = items(row, column, "labels") if column in row.nested else row.values.get(column, "").split(separator)
    labels = tuple(dict.fromkeys(label.strip() for label in listed if label.strip()))
    for label in labels:
        if separator in label:
            fix = "Choose another, like --kind multilabel:separator=;."
            raise data_error(row.where, f"labels without the separator {show(separator)}", show(label), fix)
        if known is not None and label not in known:
            raise data_error(row.where, "labels of the task", show(label), registry.nearest(label, known))
    return separator.join(labels)


def _number(label: str, where: str) -> str:
    try:
        finite = isfinite(float(label))
    except ValueError:
        finite = False
    if not finite:
        raise data_error(where, "a number", show(label), "Write 3.5, drop the row, or use --skip-bad-rows.")
    return label


def _cell(row: Row, name: str) -> str:
    if name in row.nested:
        raise data_error(row.where, f'one value in column "{name}"', show(row.values[name]), "Flatten the column or choose another.")
    return row.values.get(name, "")


def _encodable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def usual(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column that has the first of these names, however it is cased; None where there is none."""
    folded = {column.strip().lower(): column for column in reversed(columns)}
    return next((folded[name] for name in names if name in folded), None)


def _guess_text(columns: Sequence[str], sample_rows: Sequence[Row]) -> tuple[str, ...]:
    for first, second in PAIR_NAMES:
        pair = usual([first], columns), usual([second], columns)
        if pair[0] is not None and pair[1] is not None:
            return pair[0], pair[1]
    one = usual(TEXT_NAMES, columns)
    if one is None and columns:
        one = max(columns, key=lambda name: sum(len(row.values.get(name, "")) for row in sample_rows))
    return () if one is None else (one,)


def _told(text: Sequence[str], label: str | None) -> tuple[str, ...]:
    parts, flags = [], [*["--text"] * bool(text), *["--label"] * (label is not None)]
    if text:
        names = " and ".join(f'"{name}"' for name in text)
        parts.append(f"the text{'s' * (len(text) > 1)} from column{'s' * (len(text) > 1)} {names}")
    if label is not None:
        parts.append(f'the label from {"" if text else "column "}"{label}"')
    decide = " and ".join(flags) + (" decide" if len(flags) > 1 else " decides")
    return (f"Reading {' and '.join(parts)} (guessed; {decide}).",) if parts else ()


# Sources → tables


def table(source: Any, name: str, text: tuple[str, ...], label: str | None) -> Table:
    """The rows of any source, with their columns; `text` and `label` name the parts of tuples and of examples."""
    if isinstance(source, str | os.PathLike):
        return table_of(Path(os.fspath(source)))
    if hasattr(source, "itertuples") and hasattr(source, "columns"):
        return _frame(source.columns, source.itertuples(index=False, name=None), name)
    if hasattr(source, "iter_rows") and hasattr(source, "columns"):
        return _frame(source.columns, source.iter_rows(), name)
    if isinstance(source, Mapping):
        raise data_error(name, "one table", f"several: {', '.join(map(str, source))}", f'Choose one of them, like {name}["train"].')
    if getattr(source, "column_names", None) or hasattr(source, "features"):
        return _dataset(source, name)
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        fix = "Give a path, a frame, a data set or a list."
        raise data_error(name, "a source of rows", type(source).__name__, fix)
    return _list(list(source), name, text, label)


def head_of(table: Table) -> tuple[tuple[str, ...], list[Row | DataError]]:
    """The columns and the first rows; raises `DataError` if there are none."""
    head = list(islice(table.rows, SAMPLE))
    good = [row for row in head if isinstance(row, Row)]
    if table.columns is None and not good:
        raise next(row for row in head if isinstance(row, DataError))
    return table.columns or tuple(dict.fromkeys(key for row in good for key in row.values)), head


def _frame(columns: Iterable[object], values: Iterable[Sequence[object]], name: str) -> Table:
    names = distinct([str(column) for column in columns], name)
    found = (row_of(dict(zip(names, row, strict=True)), f"{name}[{index}]") for index, row in enumerate(values))
    return Table(names, some(found, name), name)


def _dataset(source: Any, name: str) -> Table:
    """Class numbers become class names; a number without a name (-1 by custom) is a missing label."""
    features = getattr(source, "features", None) or {}
    classes = {column: feature.names for column, feature in features.items() if getattr(feature, "names", None)}
    names = getattr(source, "column_names", None)
    found = (_named_row(row, classes, f"{name}[{index}]") for index, row in enumerate(source))
    return Table(distinct(names, name) if names else None, some(found, name), name)


def _named_row(row: object, classes: Mapping[str, Sequence[str]], where: str) -> Row | DataError:
    if not isinstance(row, Mapping):
        return data_error(where, "a row with named columns", type(row).__name__, "Give a data set whose rows are dicts.")
    values = dict(row)
    for column, names in classes.items():
        if isinstance(values.get(column), Integral):
            values[column] = names[int(values[column])] if 0 <= values[column] < len(names) else None
    return row_of(values, where)


def _list(items: list[Any], name: str, text: tuple[str, ...], label: str | None) -> Table:
    """Texts, tuples and examples say themselves which part is which; dicts have columns."""
    first, label = (items[0] if items else None), label or "label"
    if isinstance(first, Example):
        text = text or tuple(first.fields)
        while label in first.fields:
            label += "_"
    elif isinstance(first, tuple | list):
        text = text or (("text_a", "text_b") if len(first) == 3 else ("text",))
    elif isinstance(first, str):
        text = text or ("text",)
    found = (_item(item, first, f"{name}[{index}]", (*text, label)) for index, item in enumerate(items))
    is_dict = isinstance(first, Mapping)
    return Table(None, some(found, name), name, () if is_dict else text, None if is_dict or isinstance(first, str) else label)


def _item(item: Any, first: Any, where: str, names: tuple[str, ...]) -> Row | DataError:
    values: Mapping[str, object] | None = None
    if isinstance(item, Example) and isinstance(first, Example):
        values, where = {**item.fields, names[-1]: item.label}, item.where or where
    elif isinstance(item, Mapping) and isinstance(first, Mapping):
        values = item
    elif isinstance(item, str) and isinstance(first, str) and len(names) == 2:
        values = {names[0]: item}
    elif isinstance(item, tuple | list) and isinstance(first, tuple | list) and len(item) == len(first):
        values = dict(zip(names, item, strict=False)) if len(item) in (len(names) - 1, len(names)) else None
    if values is not None:
        own = item.candidates if isinstance(item, Example) else None
        return replace(row_of(values, where), candidates=own)
    got = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
    fix = "Give examples, dicts, texts, or tuples (text, label) or (text, text, label), and one kind of them."
    return data_error(where, "an item of the same kind as the first, with one part for each text and the label", got, fix)
