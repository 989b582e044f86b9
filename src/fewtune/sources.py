"""Where rows come from, and what they say of a task: sources → examples, the task's fields under its names. Knows files and tasks; no
model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewtune.data import readers
from fewtune.data.example import Example
from fewtune.data.teacher import read as read_teacher
from fewtune.errors import DataError
from fewtune.tasks import KINDS, check_one_label, kind_of
from fewtune.tasks.task import Task

Say = Callable[[str], None]


KIND = "classification"


def silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Source:
    """Where examples come from, and which columns of it are read (guessed where nothing is named)."""

    data: object
    text: tuple[str, ...] = ()
    label: str | None = None
    skip_bad_rows: bool = False


def task_of(
    reading: readers.Reading,
    *,
    kind: str = KIND,
    labels: Sequence[str],
    templates: Sequence[str],
    words: Mapping[str, tuple[str, ...]],
    description: str = "",
) -> Task:
    """A task from what the data shows: the columns' names and the labels that occur."""
    spec = KINDS.from_text(kind, "--kind")
    return Task(
        labels=tuple(labels) or spec.labels(reading.examples),
        fields=reading.columns.text,
        templates=tuple(templates),
        words=words,
        label_name=(reading.columns.label or "label") if spec.offered == "task" else "answer",
        kind=kind,
        description=description,
    )


def read(source: Source, *, labeled: bool, task: Task | None, kind: str = KIND, say: Say = silent) -> readers.Reading:
    """Examples of a source, with the task's fields where a task is given; `kind` is what will be asked where none is."""
    text = source.text or (task.fields if task else ())
    reading = readers.read(
        source.data,
        text=text,
        label=source.label,
        labeled=labeled,
        known=(task.labels or None) if task and labeled else None,
        written=KINDS.from_text(task.kind if task else kind, "--kind").written,
        skip_bad_rows=source.skip_bad_rows,
    )
    for note in reading.notes:
        say(note)
    if task is None or reading.columns.text == task.fields:
        return reading
    return replace(reading, examples=tuple(_renamed(example, reading.columns.text, task.fields) for example in reading.examples))


def teacher_rows(source: Source, task: Task, say: Say = silent) -> tuple[Example, ...]:
    """The rows of a teacher's file, with the task's fields; raises `TaskError` for a task whose answers are not right or wrong."""
    check_one_label(task, "--teacher", "Leave --teacher out.")
    text, skip = source.text or task.fields, source.skip_bad_rows
    found = read_teacher(source.data, text=text, labels=task.labels, label=source.label, skip_bad_rows=skip)
    for note in found.notes:
        say(note)
    return tuple(_renamed(example, found.columns.text, task.fields) for example in found.examples)


def _renamed(example: Example, columns: Sequence[str], fields: Sequence[str]) -> Example:
    """Columns that --text names stand for the task's fields, in order."""
    if len(columns) != len(fields):
        raise DataError(
            expected=f"{len(fields)} columns for {', '.join(fields)}", got=", ".join(columns), where="--text", fix="Name as many columns."
        )
    return replace(example, fields={name: example.fields[column] for name, column in zip(fields, columns, strict=True)})


@dataclass(frozen=True)
class Rows:
    """The rows of a file that are answered, of which `chosen` columns are read: plain data, so that another process can read the same.

    Without a `task` they are texts and no more."""

    path: Path
    columns: tuple[str, ...]
    chosen: readers.Columns
    task: Task | None
    skip_bad_rows: bool

    @classmethod
    def of(cls, source: Source, task: Task | None, say: Say = silent) -> Rows:
        """Those of a source for a task, or for none; what is guessed is said."""
        path = Path(str(source.data))
        columns = readers.columns_of(path)
        head = list(itertools.islice(readers.rows(path, skip_bad_rows=True), 50))
        wanted = source.text or (task.fields if task and set(task.fields) <= set(columns) else ())
        apart = kind_of(task).written.candidates if task else ()
        chosen, notes = readers.guess(columns, head, text=wanted, label=None, labeled=False, where=str(path), apart=apart)
        for note in notes:
            say(note)
        return cls(path, tuple(columns), chosen, task, source.skip_bad_rows)

    def read(self, on_skip: Callable[[DataError], None] = lambda error: None) -> Iterator[tuple[readers.Row, Example]]:
        """Each row as it stands there and as an example; raises `DataError` for one that cannot be used, unless these are skipped."""
        task = self.task
        written = kind_of(task).written if task else None
        for row in readers.rows(self.path, skip_bad_rows=self.skip_bad_rows, on_skip=on_skip):
            try:
                example = readers.example_of(row, self.chosen, labeled=False, written=written)
                yield row, _renamed(example, self.chosen.text, task.fields) if task else example
            except DataError as error:
                if not self.skip_bad_rows:
                    raise
                on_skip(error)


def check_source(source: Source) -> None:
    """Raise `DataError` at once for a file that is not there or cannot be read, before a model is loaded for it."""
    readers.columns_of(Path(str(source.data)))
