"""Every format gives the same rows, everything broken gives one line with file and line, and nothing else is lost."""

import csv
import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.data.files import ENDINGS, Row, form_of, row_of, table_of
from fewtune.errors import DataError

ROWS = [{"text": 'a "fine"\nfilm, really', "label": "pos"}, {"text": "dull\tmess ; è", "label": "neg"}]


def write(path, rows, form):
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]), delimiter={"csv": ",", "tsv": "\t"}[form])
            table.writeheader()
            table.writerows(rows)
    return path


def squeeze(path):
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return packed


def found(path):
    """Rows as (where within the file, cells), and the errors as text."""
    rows, errors = [], []
    for item in table_of(path).rows:
        if isinstance(item, Row):
            rows.append((item.where.removeprefix(f"{path}:"), dict(item.values)))
        else:
            errors.append(str(item).removeprefix(f"{path}:"))
    return rows, errors


def refusal(path):
    with pytest.raises(DataError) as caught:
        rows, errors = found(path)
        assert not errors, errors
    assert str(caught.value).splitlines() == [str(caught.value)]
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_rows(tmp_path, ending, compressed):
    path = write(tmp_path / f"rows{ending}", ROWS, ENDINGS[ending])
    path = squeeze(path) if compressed else path
    assert form_of(path) == (ENDINGS[ending], compressed)
    rows, errors = found(path)
    assert [cells for _, cells in rows] == ROWS
    assert not errors
    first, second = ("2", "4") if ENDINGS[ending] in ("csv", "tsv") else ("1", "2")
    assert [where for where, _ in rows] == [first, second]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_encodings_with_a_byte_order_mark(tmp_path, form, encoding):
    path = write(tmp_path / f"rows.{form}", ROWS, form)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert [cells for _, cells in found(path)[0]] == ROWS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_counts_lines(tmp_path, end):
    path = tmp_path / "rows.csv"
    path.write_bytes(end.join(["text,label", "one,a", "", '"two', 'too",b', "three,c"]).encode())
    rows, errors = found(path)
    assert [(where, cells["label"]) for where, cells in rows] == [("2", "a"), ("4", "b"), ("6", "c")]
    assert rows[1][1]["text"] == f"two{end}too"
    assert not errors


@pytest.mark.parametrize(
    ("body", "told", "kept"),
    [
        ("good,a\nlonely\nfine,b\n", "3: expected 2 cells, as in the header, got 1.", ["good", "fine"]),
        ("good,a\none,two,three\nfine,b\n", "3: expected 2 cells, as in the header, got 3.", ["good", "fine"]),
        ("good,a\nx\0y,b\nfine,b\n", "3: expected text, got a NUL byte.", ["good", "fine"]),
        ('good,a\n"open,b\nfine,b\nlast,a\n', "3: expected a whole cell, got a quote that is not closed before the file ends.", 3),
        ('good,a\n"open,b\nfine,b\n"last, one",a\n', "3: expected a whole cell, got one with a closing quote in its middle, on line 5.", 3),
        ('good,a\n"fi\nne","open\nlast,a\n', "4: expected a whole cell, got a quote that is not closed before the file ends.", None),
        (
            'good,a\n"fi"ne,b\nlast,a\n',
            "3: expected a whole cell, got one with a closing quote in its middle, on line 3.",
            ["good", "last"],
        ),
    ],
)
def test_broken_csv_rows_are_told_by_line_and_cost_themselves_only(tmp_path, body, told, kept):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + body)
    rows, errors = found(path)
    assert errors[0].startswith(told)
    if isinstance(kept, list):
        assert len(errors) == 1
        assert [cells["text"] for _, cells in rows] == kept
    elif kept:
        assert len(rows) == kept


def test_a_quote_that_swallows_a_long_file_is_told_where_it_opened(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nfirst,a\n" + '"open,b\n' + "fine and well,c\n" * 20_000)
    rows, errors = found(path)
    assert len(errors) == 1
    assert errors[0].startswith(f"3: expected a whole cell, got a quote that is not closed within {csv.field_size_limit()} characters.")
    assert len(rows) == 20_001


def test_a_cell_beyond_the_limit_of_the_csv_module_is_one_bad_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f'text,label\n{"x" * 140_000},a\n"{"y" * 140_000}",b\nfine,c\n')
    rows, errors = found(path)
    assert [error.partition(",")[0] for error in errors] == ["2: expected a whole cell", "3: expected a whole cell"]
    assert all("longer than 131072 characters" in error for error in errors)
    assert [cells["text"] for _, cells in rows] == ["fine"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_invalid_utf8_names_the_byte(tmp_path, form):
    path = write(tmp_path / f"rows.{form}", [{"text": "one"}, {"text": "two"}], form)
    whole = path.read_bytes().replace(b"two", b"tw\xe9")
    path.write_bytes(b"\xef\xbb\xbf" + whole)
    rows, errors = found(path)
    line, offset = (3 if form == "csv" else 2), whole.index(b"\xe9") + 3
    assert errors[0].startswith(f"{line}: expected UTF-8, or UTF-16 with a byte order mark, got byte 0xe9 at offset {offset} of the file.")
    assert len(rows) == len(errors) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "a JSON object, got Expecting property name"),
        ("[1, 2]", 'a JSON object, got "[1, 2]"'),
        ('{"text": "x", "text": "y"}', "a JSON object, got a name that is there twice"),
        ('{"text": "\\ud800"}', "text, got half of a surrogate pair"),
        ("[" * 100_000, "a JSON object, got"),
        ('{"text": "x\0"}', "text, got a NUL byte"),
        ('{"n": ' + "1" * 5000 + "}", "a JSON object, got Exceeds the limit"),
    ],
)
def test_broken_json_rows(tmp_path, line, told):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n{{"text": "last"}}\n')
    rows, errors = found(path)
    assert len(errors) == 1
    assert errors[0].startswith(f"3: expected {told}")
    assert [where for where, _ in rows] == ["1", "4"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.csv", b"", ": expected rows, got an empty file."),
        ("rows.jsonl", b"", ": expected rows, got an empty file."),
        ("rows.csv", b"\n\n", ": expected a header, got blank lines only."),
        ("rows.csv", b"text,label\n", ": expected rows, got none."),
        ("rows.jsonl", b" \n", ": expected rows, got none."),
        ("rows.csv", b"a,b,a\n1,2,3\n", ':1: expected columns whose names differ, got "a" twice.'),
        ("rows.csv", b"text;label\nx;y\n", ":1: expected cells between commas, got a header with semicolons."),
        ("rows.csv", b"text\tlabel\nx\ty\n", ":1: expected cells between commas, got a header with tabs. Name it .tsv."),
        ("rows.tsv", b"text,label\nx,y\n", ":1: expected cells between tabs, got a header with commas. Name it .csv."),
        ("rows.csv", b"te\xe9xt,label\nx,y\n", ":1: expected UTF-8, or UTF-16 with a byte order mark, got byte 0xe9 at offset 2"),
        ("rows.csv", b'text,"label\nx,y\n', ":1: expected a whole cell, got a quote that is not closed"),
        ("rows.csv", "text,label\nx,y\n".encode("utf-16")[:-1], ": expected UTF-16, as its first bytes say, got truncated data"),
        ("rows.csv", "text,label\nx,y\n".encode("utf-16-le"), ":1: expected text, got a NUL byte."),
        ("rows.csv.gz", b"text,label\nx,y\n", ": expected a whole gzip file, got Not a gzipped file"),
        ("rows.csv.gz", gzip.compress(b"text,label\nx,y\n" * 999, mtime=0)[:-20], ": expected a whole gzip file, got"),
        ("rows.parquet.gz", b"PAR1", ": expected a whole gzip file, got Not a gzipped file"),
        ("rows.parquet", b"PAR1 nothing PAR1", ": expected a whole parquet file, got"),
        ("rows.parquet", b"", ": expected a whole parquet file, got"),
        ("rows.txt", b"text", ': expected a file of a known format, got the ending ".txt". Known endings: .csv,'),
        ("rows", b"text", ": expected a file of a known format, got no ending."),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(told)


def test_damage_in_the_middle_of_files_is_not_the_end_of_the_rows(tmp_path):
    whole = write(tmp_path / "rows.parquet", [{"text": f"row number {row} " * 9} for row in range(5000)], "parquet")
    content = bytearray(whole.read_bytes())
    content[100:400] = bytes(300)
    whole.write_bytes(content)
    assert refusal(whole).startswith(": expected a whole parquet file, got")


def test_no_file_and_a_directory(tmp_path):
    assert refusal(tmp_path / "none.csv").startswith(": expected a file with examples, got no such file.")
    assert refusal(tmp_path).startswith(": expected a file with examples, got a directory.")


def test_parquet_with_two_columns_of_one_name(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"]), path)
    assert refusal(path).startswith(': expected columns whose names differ, got "text" twice.')


def test_cells_become_text():
    row = row_of({"a": 1, "b": True, "c": 2.0, "d": 0.5, "e": None, "f": float("nan"), "g": [1, "é"], 7: "x"}, "here")
    assert row.values == {"a": "1", "b": "1", "c": "2", "d": "0.5", "e": "", "f": "", "g": '[1, "é"]', "7": "x"}
    assert row.nested == {"g"}


@pytest.mark.slow
def test_rows_stream_in_constant_memory(tmp_path):
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    for path, rows in ((small, 2_000), (large, 20_000)):
        path.write_text("text,label\n" + "a fine film with a long review,positive\n" * rows)
    assert _peak(large) < 1.2 * _peak(small)


def _peak(path):
    tracemalloc.start()
    try:
        assert sum(1 for _ in table_of(path).rows) > 1000
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=60)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_whatever_is_written_is_read(tmp_path_factory, values, form):
    rows = [{"one": one, "two": two} for one, two in values]
    path = write(tmp_path_factory.mktemp("rows") / f"rows.{form}", rows, form)
    assert found(path) == ([(where, row) for (where, _), row in zip(found(path)[0], rows, strict=True)], [])


@settings(max_examples=80)
@given(st.binary(max_size=80), st.sampled_from(["rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet", "rows.csv.gz"]))
def test_no_bytes_end_in_anything_but_rows_and_data_errors(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    try:
        rows, errors = found(path)
    except DataError as error:
        assert len(str(error).split("\n")) == 1
    else:
        assert rows or errors
