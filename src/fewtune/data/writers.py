"""Answers → csv, tsv or JSON lines, row by row, also gzipped. A file appears whole or not at all. Knows no model and no task."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from fewtune import registry
from fewtune.data.example import Prediction
from fewtune.data.files import DELIMITERS, data_error, form_of

FORMS = ("csv", "tsv", "jsonl")
ANSWERS = ("label", "probability", "exit_layer")
Write = Callable[[Mapping[str, str], Prediction], None]
WriteCells = Callable[[Mapping[str, str], Sequence[object]], None]


@contextlib.contextmanager
def open_writer(target: Path | TextIO, *, columns: Sequence[str], form: str | None = None, overwrite: bool = False) -> Iterator[Write]:
    """A function that writes one input row and its answer: the input's columns, then `label`, `probability` and `exit_layer`, as
    `open_table` does."""
    with open_table(target, columns=columns, answers=ANSWERS, form=form, overwrite=overwrite) as write:
        yield lambda row, answer: write(row, (answer.label, _rounded(answer), answer.exit_layer))


@contextlib.contextmanager
def open_table(
    target: Path | TextIO, *, columns: Sequence[str], answers: Sequence[str], form: str | None = None, overwrite: bool = False
) -> Iterator[WriteCells]:
    """A function that writes one input row and a cell for each name in `answers`: the input's columns first.

    An input column that has one of these names becomes `input_label` and so on. The format is `form` (csv, tsv or jsonl), or what the
    ending of a path says, or csv for a stream. A path is written under another name beside it, and renamed when the block ends well.
    Raises `DataError` for an unknown format, a path that cannot be written, or one that exists unless `overwrite`.
    """
    if not isinstance(target, Path):
        yield _writer(target, columns, answers, _checked(form or "csv", "standard output"), "standard output")
        return
    form = _checked(form or form_of(target)[0], str(target))
    check_place(target, overwrite)
    with _whole_file(target) as stream:
        yield _writer(stream, columns, answers, form, str(target))


def write_text(target: Path, text: str, *, overwrite: bool = False) -> None:
    """A text as a whole file; raises `DataError` for a path that cannot be written, or one that exists unless `overwrite`."""
    check_place(target, overwrite)
    with _whole_file(target) as stream:
        stream.write(text)


def _checked(form: str, where: str) -> str:
    if form not in FORMS:
        raise data_error(where, "a format for answers", f'"{form}"', registry.nearest(form, FORMS))
    return form


def check_place(target: Path, overwrite: bool) -> None:
    """Raise `DataError` for a path that cannot be written, or one that exists unless `overwrite`."""
    where = str(target)
    if target.exists() and not target.is_file():
        raise data_error(where, "a file to write", "a directory or a device", "Name a file.")
    if target.exists() and not overwrite:
        raise data_error(where, "a file that is not there yet", "one that is", "Choose another name or use --overwrite.")
    if not target.parent.is_dir():
        raise data_error(where, "a folder to write into", f"no folder {target.parent}", "Make the folder first.")


@contextlib.contextmanager
def _whole_file(target: Path) -> Iterator[TextIO]:
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        raw = draft.open("xb")
    except OSError as caught:
        raise data_error(str(target), "a file to write", caught.strerror or str(caught), "Choose another place.") from None
    try:
        with raw:
            with _text(raw, target.suffix.lower() == ".gz") as stream:
                yield stream
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _text(raw: BinaryIO, compressed: bool) -> Iterator[TextIO]:
    """UTF-8 text into `raw`, which stays open. Neither name nor time goes into the gzip header: same answers, same bytes."""
    packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if compressed else None
    stream = io.TextIOWrapper(cast(BinaryIO, packed or raw), "utf-8", newline="")
    try:
        yield stream
    finally:
        stream.flush()
        stream.detach()
        if packed:
            packed.close()


def _writer(stream: TextIO, columns: Sequence[str], answers: Sequence[str], form: str, where: str) -> WriteCells:
    """Writes the header, where the format has one."""
    if form == "jsonl":
        return lambda row, cells: _write_json(stream, {**{name: row.get(name, "") for name in columns}, **row}, answers, cells)
    table = csv.writer(_Lines(stream), delimiter=DELIMITERS[form], lineterminator="\r\n")
    table.writerow([*_renamed(columns, answers), *answers])

    def write(row: Mapping[str, str], cells: Sequence[object]) -> None:
        extra = next((name for name in row if name not in columns), None)
        if extra is not None:
            raise data_error(where, "rows that have the columns of the header", f'another, "{extra}"', "Write to .jsonl instead.")
        table.writerow([*(row.get(name, "") for name in columns), *cells])

    return write


class _Lines:
    """Ends lines with "\\n". `csv.writer` quotes a cell with a lone "\\r" only where "\\r" is part of its own line end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> int:
        return self._stream.write(line.removesuffix("\r\n") + "\n")


def _write_json(stream: TextIO, row: Mapping[str, str], answers: Sequence[str], cells: Sequence[object]) -> None:
    named = dict(zip(_renamed(list(row), answers), row.values(), strict=True))
    stream.write(json.dumps({**named, **dict(zip(answers, cells, strict=True))}, ensure_ascii=False) + "\n")


def _rounded(answer: Prediction) -> float | None:
    return None if answer.probability is None else round(float(answer.probability), 6)


def _renamed(columns: Sequence[str], answers: Sequence[str]) -> list[str]:
    """The input's columns, out of the way of the answer's."""
    names: list[str] = []
    for name in columns:
        if name in answers:
            name = f"input_{name}"
            while name in columns or name in names:
                name = f"input_{name}"
        names.append(name)
    return names
