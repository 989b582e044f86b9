"""A folder of tasks with their rows: what is trained on, what is held out by name, and which texts stand on both sides.

    NAME.toml             a task; or NAME.yaml, templates of promptsource, whose labels are counted from 0; or both
    NAME.train.FORM       rows to train on
    NAME.test.FORM        rows that measure; FORM is csv, tsv, jsonl or parquet, also .gz

Knows files, tasks and templates; no tokenizer, no model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from fewtune import registry
from fewtune.data import readers
from fewtune.data.example import Example
from fewtune.data.overlap import found_in
from fewtune.errors import DataError, InputError, SpecError, TaskError
from fewtune.prompt import importers
from fewtune.prompt.importers.imported import Imported
from fewtune.prompt.template import Template
from fewtune.tasks import kind_of
from fewtune.tasks.task import Task

Say = Callable[[str], None]
Overlap = Literal["drop", "refuse"]
FORMS = ("csv", "tsv", "jsonl", "parquet")


@dataclass(frozen=True)
class Lesson:
    """A task with rows of one part. It is asked in one or more `wordings`: tasks that have the same labels, and words and templates of
    their own."""

    name: str
    wordings: tuple[Task, ...]
    rows: tuple[Example, ...]

    @property
    def task(self) -> Task:
        """The task as it is asked first."""
        return self.wordings[0]

    def prompts(self) -> tuple[Task, ...]:
        """The task once for each template, with that one alone."""
        return tuple(
            replace(wording, templates=(template,)) if template else wording
            for wording in self.wordings
            for template in wording.templates or ("",)
        )


@dataclass(frozen=True)
class Collection:
    """Lessons to train on, and others that are never trained on; `dropped` says how many rows of each these lost to the former."""

    trained: tuple[Lesson, ...]
    held_out: tuple[Lesson, ...] = ()
    dropped: tuple[tuple[str, int], ...] = ()


def read(folder: Path, held_out: Sequence[str], *, overlap: Overlap = "drop", say: Say) -> Collection:
    """The tasks of `folder`; those whose name fits one of the patterns `held_out` are kept apart.

    Rows of a held-out task that stand in a training task too are dropped, and said, or refused. Raises an `InputError` for a folder
    without tasks, a pattern that fits none, and tasks, templates and rows that cannot be used.
    """
    names = _names(folder)
    apart = _apart(names, held_out)
    if len(apart) == len(names):
        fix = "Leave some to train on."
        raise SpecError(expected="tasks that are not held out", got="none", where="--held-out", fix=fix)
    lessons = {name: _lesson(folder, name, "test" if name in apart else "train", say) for name in names}
    trained = tuple(lesson for name, lesson in lessons.items() if name not in apart)
    return kept_apart(trained, tuple(lessons[name] for name in apart), overlap=overlap, say=say)


def kept_apart(trained: Sequence[Lesson], held_out: Sequence[Lesson], *, overlap: Overlap = "drop", say: Say) -> Collection:
    """Both with no text in common; see `read`."""
    cleaned = [(lesson, found_in(lesson.rows, {one.name: one.rows for one in trained})) for lesson in held_out]
    for lesson, held in cleaned:
        if held:
            _tell(lesson, held, overlap, say)
    return Collection(
        tuple(trained),
        tuple(replace(one, rows=tuple(row for number, row in enumerate(one.rows) if number not in held)) for one, held in cleaned),
        tuple((lesson.name, len(held)) for lesson, held in cleaned if held),
    )


def _tell(lesson: Lesson, held: dict[int, str], overlap: Overlap, say: Say) -> None:
    number, name = next(iter(held.items()))
    got = f"{len(held)} of {len(lesson.rows)} rows of {lesson.name} in {', '.join(sorted(set(held.values())))}"
    where = lesson.rows[number].where or lesson.name
    if overlap == "refuse" or len(held) == len(lesson.rows):
        fix = "Hold one of the tasks out, remove the rows, or use --overlap drop." if overlap == "refuse" else "Hold out another task."
        raise DataError(expected="held-out texts that are not trained on", got=got, where=where, fix=fix)
    say(f"Dropped {got}, which is trained on; the first is {where} (also in {name}).")


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(expected="a folder of task files", got="none", where=str(folder), fix="Check the path.")
    names = sorted({path.stem for path in folder.iterdir() if path.suffix in (".toml", ".yaml")})
    if not names:
        fix = "Put NAME.toml or NAME.yaml there, and NAME.train.csv beside it."
        raise DataError(expected="task files", got="none", where=str(folder), fix=fix)
    return names


def _apart(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SpecError(expected="the name of a task", got=f'"{pattern}"', where="--held-out", fix=registry.nearest(pattern, names))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


# One task


def _lesson(folder: Path, name: str, part: str, say: Say) -> Lesson:
    path = _rows_file(folder, name, part)
    columns = readers.columns_of(path)
    wordings = tuple(_wordings(folder, name, columns, say))
    fields = tuple(dict.fromkeys(field for wording in wordings for field in wording.fields))
    wordings = tuple(replace(wording, fields=fields, name=name) for wording in wordings)
    kind = kind_of(wordings[0])
    if kind.estimated != "accuracy" or kind.offered == "none":
        fix = "Take it out of the folder."
        raise TaskError(expected="tasks with one right answer a row", got=wordings[0].kind, where=str(folder / name), fix=fix)
    reading = readers.read(path, text=fields, labeled=True, known=wordings[0].labels or None, written=kind.written)
    task, note = kind.settled(wordings[0], reading.examples)
    if note:
        say(f"{path}: {note}")
    kind_of(task).check(task, reading.examples, str(path))
    return Lesson(name, tuple(replace(wording, kind=task.kind) for wording in wordings), reading.examples)


def _rows_file(folder: Path, name: str, part: str) -> Path:
    wanted = [f"{name}.{part}.{form}{packed}" for form, packed in itertools.product(FORMS, ("", ".gz"))]
    found = [folder / one for one in wanted if (folder / one).is_file()]
    if len(found) != 1:
        got = ", ".join(path.name for path in found) or "none"
        fix = f"Put it there, for example as {wanted[0]}." if not found else "Keep one."
        raise DataError(expected=f"one file with the {part} rows", got=got, where=str(folder / name), fix=fix)
    return found[0]


def _wordings(folder: Path, name: str, columns: Sequence[str], say: Say) -> Iterator[Task]:
    """The task of the TOML file, if there is one with templates of its own or none but it; then one for each set of answer choices."""
    toml, yaml = folder / f"{name}.toml", folder / f"{name}.yaml"
    own = Task.load(toml) if toml.is_file() else None
    others = list(_imported(yaml, own, columns, say)) if yaml.is_file() else []
    if own is not None and (own.templates or not others):
        yield _on_own_fields(own)
    yield from others
    if own is None and not others:
        raise TaskError(expected="a template that can be used", got="none", where=str(yaml), fix="Write NAME.toml with a template.")


def _on_own_fields(task: Task) -> Task:
    names = tuple(dict.fromkeys(name for text in task.templates for name in Template.parse(text).names))
    for text in task.templates:
        Template.parse(text).check(task.fields, slot=True, where=task.name)
    return replace(task, fields=names or task.fields)


def _imported(path: Path, own: Task | None, columns: Sequence[str], say: Say) -> Iterator[Task]:
    """The templates of a promptsource file that fit the task and the rows' columns; the others are named."""
    labels = own.labels if own else None
    for found in importers.read_all(path):
        for note in found.notes:
            say(note)
        labels = labels or found.labels
        if len(found.labels) != len(labels):
            say(f"{path}: {len(found.templates)} left out, for {', '.join(_choices(found))} are not {len(labels)} answers.")
            continue
        fitting = tuple(text for text in found.templates if set(Template.parse(text).names) <= set(columns))
        for text in found.templates:
            if text not in fitting:
                say(f"{path}: {text[:60]!r} is left out: the rows have no column for each of {', '.join(Template.parse(text).names)}.")
        if not fitting:
            continue
        try:
            yield replace(found, templates=fitting).task(labels)
        except InputError as error:
            say(f"{path}: {', '.join(_choices(found))} left out: {error}")


def _choices(found: Imported) -> list[str]:
    return [word for words in found.words.values() for word in words]
