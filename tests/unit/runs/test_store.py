"""Results are read back as they were given, whatever a crash or another process does in between."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewtune
from fewtune.errors import DataError
from fewtune.runs.store import Result, Store
from fewtune.tasks.metrics import Interval, Ratio


def result(key, **more):
    return Result(key, "reviews", "lora", 8, 13, metrics={"accuracy": Interval(0.1 + 0.2, 0.25, 1 / 3)}, right="0101", **more)


def test_results_are_read_back(tmp_path):
    store = Store(tmp_path / "out.jsonl")
    assert store.load() == {}
    given = {"a": result("a"), "b": Result("b", "reviews", "zeroshot", None, 42, failed="näh: nothing\nat all")}
    for one in given.values():
        store.append(one)
    assert store.load() == given
    assert [json.loads(line)["key"] for line in store.path.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize(
    "ratio",
    [
        Ratio("accuracy", np.array([0.0, 1.0, 1.0]), np.ones(3)),
        Ratio("mae", np.array([0.0, 1 / 3, 2.5]), np.ones(3), most=4),
        Ratio("micro_f1", np.array([2.0, 0.0]), np.array([3.0, 0.0])),
    ],
)
def test_what_rows_add_to_a_metric_is_read_back(tmp_path, ratio):
    store = Store(tmp_path / "out.jsonl")
    store.append(Result("a", "reviews", "lora", None, 13).having(ratio))
    found = store.load()["a"]
    assert (found.metric, found.right) == (ratio.metric, "011" if ratio.metric == "accuracy" else "")
    assert found.ratio.over_N.tolist() == ratio.over_N.tolist() and found.ratio.under_N.tolist() == ratio.under_N.tolist()


def test_the_first_of_two_results_counts(tmp_path):
    store = Store(tmp_path / "out.jsonl")
    store.append(result("a", seconds=1.0))
    store.append(result("a", seconds=2.0))
    assert store.load()["a"].seconds == 1.0


@settings(max_examples=40)
@given(cut=st.integers(min_value=0, max_value=10**6), long=st.booleans())
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_takes_more(tmp_path_factory, cut, long):
    store = Store(tmp_path_factory.mktemp("cut") / "out.jsonl")
    wide = "1" * 9000 if long else ""  # longer than what is searched at once
    for key in "abc":
        store.append(Result(key, "reviews", "lora", 8, 13, right=wide))
    whole = store.path.read_bytes()
    kept = whole[: cut % (len(whole) + 1)]
    store.path.write_bytes(kept)
    lines = kept.count(b"\n")
    assert list(store.load()) == list("abc")[:lines]
    store.append(result("d"))
    assert list(store.load()) == [*list("abc")[:lines], "d"]
    assert store.path.read_bytes().startswith(b"".join(kept.splitlines(keepends=True)[:lines]))


@pytest.mark.parametrize("line", ["review,sentiment", "[1, 2]", "3", '{"key": "a"}', '{"key": 3, "other": 4}'])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, line):
    store = Store(tmp_path / "out.jsonl")
    store.append(result("a"))
    with open(store.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"out\.jsonl:2: expected a result"):
        store.load()


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="expected a file for results"):
        Store(tmp_path / "nowhere" / "out.jsonl").append(result("a"))
    with pytest.raises(DataError, match="expected a file for results"):
        Store(tmp_path).load()


WRITER = """
import sys
from pathlib import Path
from fewtune.runs.store import Result, Store
for number in range(25):
    Store(Path(sys.argv[1])).append(Result(f"{sys.argv[2]}-{number}", "reviews", "lora", 8, 13, right="01" * 3000))
"""


@pytest.mark.slow
def test_several_processes_write_to_one_file(tmp_path):
    source = str(Path(fewtune.__file__).parents[1])
    command = [sys.executable, "-c", WRITER, tmp_path / "out.jsonl"]
    writers = [subprocess.Popen([*command, name], env={**os.environ, "PYTHONPATH": source}) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert set(Store(tmp_path / "out.jsonl").load()) == {f"{name}-{number}" for name in "abc" for number in range(25)}
