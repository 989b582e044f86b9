"""Files → columns and a stream of rows: csv, tsv, JSON lines, parquet, each also gzipped. Knows nothing of texts, labels or examples.

In the stream a row that cannot be used stands as the `DataError` that says why; what is done about it is the caller's choice. An error
that concerns the whole file is raised.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from fewtune.errors import DataError

ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".jsonlines": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
DELIMITERS = {"csv": ",", "tsv": "\t"}
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Row:
    """One row as text, column → cell; a missing cell is "". `nested` names the cells that hold more than one value, as JSON.

    `candidates` are there where the source has them beside its columns.
    """

    values: Mapping[str, str]
    where: str
    nested: frozenset[str] = frozenset()
    candidates: tuple[str, ...] | None = None


class Table(NamedTuple):
    """Columns (none: the rows' own keys count) and a stream of rows; `text` and `label` where the source says which columns are which."""

    columns: tuple[str, ...] | None
    rows: Iterator[Row | DataError]
    where: str
    text: tuple[str, ...] = ()
    label: str | None = None


def table_of(path: Path) -> Table:
    """The table in a file; its rows stream in constant memory. Raises `DataError`."""
    where = str(path)
    if not path.exists() or path.is_dir():
        got, fix = ("a directory", "Name one file in it.") if path.is_dir() else ("no such file", "Check the path; texts go in a list.")
        raise data_error(where, "a file with examples", got, fix)
    form, compressed = form_of(path)
    if form == "jsonl":
        return Table(None, some(_jsonl(path, compressed), where), where)
    if form == "parquet":
        columns = distinct(_parquet_columns(path, compressed), where)
        return Table(columns, some(_parquet(path, compressed), where), where)
    records = _records(_lines(path, compressed, split_returns=True), DELIMITERS[form], where)
    columns = _header(records, DELIMITERS[form], where)
    return Table(columns, some(_cells(records, columns, where), where), where)


def form_of(path: Path) -> tuple[str, bool]:
    """The format that the ending of `path` says (csv, tsv, jsonl, parquet), and whether it is compressed with gzip."""
    compressed = path.suffix.lower() == ".gz"
    ending = (path.with_suffix("") if compressed else path).suffix.lower()
    if ending not in ENDINGS:
        got, known = f'the ending "{ending}"' if ending else "no ending", ", ".join(ENDINGS)
        raise data_error(str(path), "a file of a known format", got, f"Known endings: {known}, each also with .gz.")
    return ENDINGS[ending], compressed


def row_of(values: Mapping[Any, object], where: str) -> Row:
    """Values of any type as a row of text; whole numbers and truth values are written like 1."""
    texts = {str(name): _text(value) for name, value in values.items()}
    nested = frozenset(name for name, text in texts.items() if text is None)
    shown = {str(name): _json(value) for name, value in values.items() if str(name) in nested}
    return Row({name: shown[name] if text is None else text for name, text in texts.items()}, where, nested)


def _text(value: Any) -> str | None:
    """A cell as text; "" if it is missing, None if it holds more than one value."""
    if isinstance(value, str):
        return str(value)
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, float):
        return "" if value != value else repr(value)
    return None if hasattr(value, "__len__") or hasattr(value, "__iter__") else str(value)


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=lambda held: held.tolist() if hasattr(held, "tolist") else str(held))
    except (TypeError, ValueError):  # keys that JSON does not know, or a value that holds itself
        return repr(value)


def items(row: Row, column: str, what: str) -> list[str]:
    """The items of a list, which a row holds as JSON; raises `DataError` for anything else, `what` being what they are."""
    try:
        found = json.loads(row.values[column])
    except ValueError:
        found = None
    if not isinstance(found, list) or any(isinstance(item, dict | list) for item in found):
        raise data_error(row.where, f'a list of {what} in column "{column}"', show(row.values[column]), 'For example ["joy", "fear"].')
    return list(row_of(dict(enumerate(found)), row.where).values.values())


def some(rows: Iterator[Row | DataError], where: str) -> Iterator[Row | DataError]:
    """The same rows; raises `DataError` at the end if there was none."""
    first = next(rows, None)
    if first is None:
        raise data_error(where, "rows", "none", "Add at least one row.")
    yield first
    yield from rows


def distinct(columns: Sequence[str], where: str) -> tuple[str, ...]:
    """The same columns; raises `DataError` if a name is there twice."""
    twice = [name for index, name in enumerate(columns) if name in columns[:index]]
    if twice:
        raise data_error(where, "columns whose names differ", f"{show(twice[0])} twice", "Rename or remove one of them.")
    return tuple(columns)


def data_error(where: str, expected: str, got: str, fix: str) -> DataError:
    """A `DataError` in one line of code."""
    return DataError(expected=expected, got=got, where=where, fix=fix)


def show(text: str) -> str:
    """What the user wrote, quoted and cut to fit into a message of one line."""
    return json.dumps(text if len(text) <= 60 else text[:60] + "…", ensure_ascii=False)


# Bytes → lines


@contextlib.contextmanager
def opened(path: Path, compressed: bool) -> Iterator[IO[bytes]]:
    """The bytes of a file; what the system, gzip or an encoding says against them becomes a `DataError`."""
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as caught:
        raise data_error(str(path), "a whole gzip file", str(caught), "Compress it again, or remove .gz from its name.") from None
    except UnicodeDecodeError as caught:
        fix = "Save it as UTF-8."
        raise data_error(str(path), "UTF-16, as its first bytes say", f"{caught.reason} at byte {caught.start}", fix) from None
    except OSError as caught:
        raise data_error(str(path), "a file that can be read", caught.strerror or str(caught), "Check the file and its rights.") from None


class _Line(NamedTuple):
    number: int  # from 1, as in the file
    text: str
    flaw: DataError | None


def _lines(path: Path, compressed: bool, *, split_returns: bool = False) -> Iterator[_Line]:
    """The lines of a text file, in UTF-8 with or without a byte order mark, or in UTF-16 with one; raises `DataError` if it is empty.

    `split_returns` ends a line at a lone carriage return too, as old files do.
    """
    number = 0
    with opened(path, compressed) as stream:
        is_utf16 = cast(io.BufferedReader, stream).peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        whole = io.TextIOWrapper(stream, "utf-16", newline="\n") if is_utf16 else None
        for text, flaw in ((text, None) for text in whole) if whole else _utf8(stream, str(path)):
            for part in re.split(r"(?<=\r)(?!\n|$)", text) if split_returns and "\r" in text else [text]:
                number += 1
                yield _Line(number, part, flaw(number) if flaw else _nul(part, f"{path}:{number}"))
    if number == 0:
        raise data_error(str(path), "rows", "an empty file", "Write a header and at least one row.")


def _utf8(stream: IO[bytes], path: str) -> Iterator[tuple[str, Callable[[int], DataError] | None]]:
    """Each line, and what is wrong with it, if anything, once its number is known."""
    offset = 0
    for raw in stream:
        body = raw.removeprefix(codecs.BOM_UTF8) if offset == 0 else raw
        try:
            yield body.decode(), None
        except UnicodeDecodeError as caught:
            got = f"byte 0x{body[caught.start]:02x} at offset {offset + len(raw) - len(body) + caught.start} of the file"
            yield body.decode(errors="replace"), lambda number, got=got: _not_utf8(f"{path}:{number}", got)  # type: ignore[misc]
        offset += len(raw)


def _not_utf8(where: str, got: str) -> DataError:
    fix = "Save it as UTF-8; iconv -f WINDOWS-1252 -t UTF-8 may do it."
    return data_error(where, "UTF-8, or UTF-16 with a byte order mark", got, fix)


def _nul(text: str, where: str) -> DataError | None:
    if "\0" not in text:
        return None
    return data_error(where, "text", "a NUL byte", "Remove it; if the file is UTF-16, save it as UTF-8.")


# csv and tsv


class _Feed:
    """Lines for `csv.reader`, remembering those of the row being read so that they can be read again."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines, self._again = lines, deque[_Line]()
        self.taken: list[_Line] = []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        return line.text

    def give_back(self) -> None:
        """All lines of the row but its first will be read again."""
        self._again.extendleft(reversed(self.taken[1:]))


def _records(lines: Iterator[_Line], delimiter: str, where: str) -> Iterator[tuple[int, list[str]] | DataError]:
    """The line where each row starts, and its cells.

    After a quote that does not end well, reading goes on in the line below the row's first: a stray quote costs one row, not the rest.
    """
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.taken = []
        try:
            cells = next(reader, None)
        except csv.Error as caught:
            yield _flaw(feed.taken) or _broken(feed.taken, delimiter, where, str(caught))
            feed.give_back()
            reader = csv.reader(feed, delimiter=delimiter, strict=True)
            continue
        if cells is None:
            return
        if cells:
            yield _flaw(feed.taken) or (feed.taken[0].number, cells)


def _flaw(lines: list[_Line]) -> DataError | None:
    return next((line.flaw for line in lines if line.flaw), None)


def _broken(lines: list[_Line], delimiter: str, where: str, reason: str) -> DataError:
    """The error at the line where the cell that broke the row starts."""
    text, mark = "".join(line.text for line in lines), re.escape(delimiter)
    before = re.match(f'(?:(?:"(?:[^"]|"")*+"|[^"{mark}\r\n][^{mark}\r\n]*+)?{mark})*+', text)
    start = before.end() if before else 0
    ends, number = 0, lines[0].number
    for line in lines:
        ends, number = ends + len(line.text), line.number
        if ends > start:
            break
    got, fix = _quote_fault(reason, is_long=len(lines) == 1 or not text.startswith('"', start), last=lines[-1].number)
    return data_error(f"{where}:{number}", "a whole cell", got, fix)


def _quote_fault(reason: str, *, is_long: bool, last: int) -> tuple[str, str]:
    limit = f"{csv.field_size_limit()} characters"
    if "expected after" in reason:
        return f"one with a closing quote in its middle, on line {last}", 'Close it where it ends; write a quote inside it twice ("").'
    if "field larger" not in reason:
        return "a quote that is not closed before the file ends", "Close it."
    if is_long:
        return f"one longer than {limit}", "Shorten it; .jsonl and .parquet hold longer ones."
    return f"a quote that is not closed within {limit}", "Close it; .jsonl and .parquet hold longer texts."


def _header(records: Iterator[tuple[int, list[str]] | DataError], delimiter: str, where: str) -> tuple[str, ...]:
    first = next(records, None)
    if first is None:
        raise data_error(where, "a header", "blank lines only", "Write a header and at least one row.")
    if isinstance(first, DataError):
        raise first
    number, columns = first
    for other, name in _SEPARATORS.items():
        if len(columns) == 1 and other != delimiter and other in columns[0]:
            fix = "Name it .tsv." if other == "\t" else "Name it .csv." if other == "," else f"Write {_SEPARATORS[delimiter]} instead."
            raise data_error(f"{where}:{number}", f"cells between {_SEPARATORS[delimiter]}", f"a header with {name}", fix)
    return distinct(columns, f"{where}:{number}")


def _cells(records: Iterator[tuple[int, list[str]] | DataError], columns: tuple[str, ...], where: str) -> Iterator[Row | DataError]:
    for record in records:
        if isinstance(record, DataError):
            yield record
        elif len(record[1]) != len(columns):
            fix = "Put quotes around a cell that holds the separator, or complete the row."
            yield data_error(f"{where}:{record[0]}", f"{len(columns)} cells, as in the header", str(len(record[1])), fix)
        else:
            yield Row(dict(zip(columns, record[1], strict=True)), f"{where}:{record[0]}")


# JSON lines and parquet


def _jsonl(path: Path, compressed: bool) -> Iterator[Row | DataError]:
    for line in _lines(path, compressed):
        if line.flaw or line.text.strip():
            yield line.flaw or _json_row(line.text, f"{path}:{line.number}")


def _json_row(text: str, where: str) -> Row | DataError:
    fix = 'Write one object a line, like {"text": "…", "label": "…"}.'
    try:
        values = json.loads(text, object_pairs_hook=_object)
        if "\\u" in text:
            json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but not text
        return row_of(values, where) if isinstance(values, dict) else data_error(where, "a JSON object", show(text.strip()), fix)
    except UnicodeEncodeError:
        return data_error(where, "text", "half of a surrogate pair (\\u…)", "Remove it from the row.")
    except (ValueError, RecursionError) as caught:
        return data_error(where, "a JSON object", str(caught), fix)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name that is there twice")
    return values


@contextlib.contextmanager
def _parquet_file(path: Path, compressed: bool) -> Iterator[Any]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(opened(path, compressed))
        if compressed:  # parquet is read from its end, gzip from its start
            seekable = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, seekable)
            stream = seekable
        try:
            yield stack.enter_context(pq.ParquetFile(stream))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as caught:
            got = str(caught).splitlines()[0] if str(caught) else type(caught).__name__
            raise data_error(str(path), "a whole parquet file", got, "Write it again.") from None


def _parquet_columns(path: Path, compressed: bool) -> list[str]:
    with _parquet_file(path, compressed) as file:
        return [str(name) for name in file.schema_arrow.names]


def _parquet(path: Path, compressed: bool) -> Iterator[Row | DataError]:
    number = 0
    with _parquet_file(path, compressed) as file:
        for batch in file.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield row_of(values, f"{path}:{number}")
