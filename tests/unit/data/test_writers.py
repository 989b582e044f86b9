"""Answers are read back as they were given; a file appears whole or not at all."""

import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.data.example import Prediction
from fewtune.data.readers import columns_of, rows
from fewtune.data.writers import ANSWERS, open_writer
from fewtune.errors import DataError

ANSWER = Prediction("pos", 0.12345678, {"pos": 0.12345678, "neg": 0.87654322}, 6)


def answered(target, *, columns=("text",), values=({"text": "fine"},), **options):
    with open_writer(target, columns=columns, **options) as write:
        for row in values:
            write(row, ANSWER)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".csv.gz", ".jsonl.gz"])
def test_files_are_read_back(tmp_path, ending):
    path = tmp_path / f"answers{ending}"
    values = [{"text": 'a "fine"\nfilm,\tè'}, {"text": ""}, {"text": "a\rb"}]
    answered(path, values=values)
    expected = [{**row, "label": "pos", "probability": "0.123457", "exit_layer": "6"} for row in values]
    assert [dict(row.values) for row in rows(path)] == expected
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("form", "cell"), [("csv", ""), ("jsonl", None)])
def test_a_value_has_no_probability(form, cell):
    stream = io.StringIO()
    with open_writer(stream, columns=("text",), form=form) as write:
        write({"text": "fine"}, Prediction("3.5", None, {"low": 0.3, "high": 0.7}, 6))
    line = stream.getvalue().splitlines()[-1]
    assert line == "fine,3.5,,6" if form == "csv" else json.loads(line)["probability"] is cell


def test_streams_take_any_format_and_stay_open():
    for form, expected in {
        None: "text,label,probability,exit_layer\nfine,pos,0.123457,6\n",
        "tsv": "text\tlabel\tprobability\texit_layer\nfine\tpos\t0.123457\t6\n",
        "jsonl": '{"text": "fine", "label": "pos", "probability": 0.123457, "exit_layer": 6}\n',
    }.items():
        stream = io.StringIO()
        answered(stream, form=form)
        assert stream.getvalue() == expected


def test_rows_reach_a_stream_one_by_one():
    stream = io.StringIO()
    with open_writer(stream, columns=["text"], form="jsonl") as write:
        write({"text": "fine"}, ANSWER)
        assert json.loads(stream.getvalue())["label"] == "pos"


def test_the_header_is_there_without_rows(tmp_path):
    answered(tmp_path / "answers.csv", values=())
    assert (tmp_path / "answers.csv").read_text() == "text,label,probability,exit_layer\n"


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_input_columns_make_room_for_the_answer(tmp_path, form):
    path = tmp_path / f"answers.{form}"
    row = {"label": "mine", "input_label": "other", "exit_layer": "0"}
    answered(path, columns=list(row), values=[row])
    assert columns_of(path) == ("input_input_label", "input_label", "input_exit_layer", *ANSWERS)
    (found,) = rows(path)
    assert tuple(found.values.values()) == ("mine", "other", "0", "pos", "0.123457", "6")


def test_a_column_that_comes_late_is_kept_or_refused(tmp_path):
    values = [{"text": "x"}, {"text": "y", "late": "z"}]
    answered(tmp_path / "a.jsonl", values=values)
    assert [row.values.get("late") for row in rows(tmp_path / "a.jsonl")] == [None, "z"]
    with pytest.raises(DataError, match='got another, "late"'):
        answered(tmp_path / "a.csv", values=values)
    assert not (tmp_path / "a.csv").exists()


def test_missing_cells_are_empty(tmp_path):
    for name in ("a.csv", "a.jsonl"):
        answered(tmp_path / name, columns=["text", "more"])
        assert next(rows(tmp_path / name)).values["more"] == ""


def test_nothing_is_left_of_a_failure(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), open_writer(path, columns=["text"], overwrite=True) as write:
        write({"text": "x"}, ANSWER)
        assert path.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_same_answers_same_bytes(tmp_path):
    for name in ("a.csv.gz", "b.csv.gz"):
        answered(tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    content = (tmp_path / "a.csv.gz").read_bytes()
    assert content[4:8] == bytes(4), "no time in the header"
    assert gzip.decompress(content).startswith(b"text,label")


def test_places_and_formats_that_are_refused(tmp_path):
    taken = tmp_path / "taken.csv"
    taken.write_text("old")
    for target, options, told in [
        (taken, {}, "expected a file that is not there yet, got one that is"),
        (tmp_path, {"form": "csv"}, "expected a file to write, got a directory"),
        (tmp_path / "no" / "a.csv", {}, "expected a folder to write into, got no folder"),
        (tmp_path / "a.txt", {}, 'expected a file of a known format, got the ending ".txt"'),
        (tmp_path / "a.parquet", {}, 'expected a format for answers, got "parquet". Known: csv, tsv, jsonl.'),
        (io.StringIO(), {"form": "jsonll"}, 'expected a format for answers, got "jsonll". Did you mean "jsonl"?'),
    ]:
        with pytest.raises(DataError, match=told.replace("?", r"\?")):
            answered(target, **options)
    assert taken.read_text() == "old"
    answered(taken, overwrite=True)
    assert taken.read_text().startswith("text,")


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=50)
@given(st.lists(text, min_size=1, max_size=4, unique=True), st.data(), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_whatever_columns_there_are_the_answer_is_under_its_name(tmp_path_factory, columns, data, form):
    row = {name: data.draw(text) for name in columns}
    path = tmp_path_factory.mktemp("answers") / f"a.{form}"
    answered(path, columns=columns, values=[row])
    (found,) = rows(path)
    assert tuple(found.values.values())[: len(columns)] == tuple(row.values())
    assert [found.values[name] for name in ANSWERS] == ["pos", "0.123457", "6"]
