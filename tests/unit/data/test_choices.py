"""Candidates of each row's own, as columns have them, and which of them a label names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.data import choices
from fewtune.data.example import Example
from fewtune.data.files import row_of
from fewtune.data.readers import Written, read
from fewtune.errors import DataError

COLUMNS = ("one", "two", "three")
TEXTS = ("yes", "no", "perhaps", "never")


def labelled(labels, candidates=TEXTS[:3]):
    return [Example({}, label, f"data:{number}", candidates=candidates) for number, label in enumerate(labels, start=1)]


@pytest.mark.parametrize(
    ("values", "columns", "separator", "found"),
    [
        ({"c": ["yes", " no "]}, ("c",), "|", ("yes", "no")),
        ({"c": [1, 2.5, "a|b"]}, ("c",), "|", ("1", "2.5", "a|b")),
        ({"c": "yes | no|perhaps"}, ("c",), "|", ("yes", "no", "perhaps")),
        ({"c": "yes; no"}, ("c",), ";", ("yes", "no")),
        ({"one": "yes", "two": "no", "three": ""}, COLUMNS, "|", ("yes", "no")),
        ({"one": "a|b", "two": "no", "three": "c"}, COLUMNS, "|", ("a|b", "no", "c")),
    ],
)
def test_columns_have_them(values, columns, separator, found):
    assert choices.of_row(row_of(values, "here"), columns, separator) == found


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        ({"c": "yes"}, ("c",), 'here: expected at least two candidates, got "yes"'),
        ({"c": ""}, ("c",), "expected candidates with a text|at least two"),
        ({"c": []}, ("c",), "at least two candidates, got none"),
        ({"c": "yes|no|yes"}, ("c",), 'candidates that differ, got "yes" twice'),
        ({"c": ["yes", None]}, ("c",), "candidate 2 without"),
        ({"c": {"text": ["yes", "no"]}}, ("c",), 'a list of candidates in column "c"'),
        ({"one": "yes", "two": "", "three": "no"}, COLUMNS, "candidate 2 without"),
        ({"cc": "yes|no"}, ("c",), 'candidates in column "c", got no such column. Did you mean "cc"'),
    ],
)
def test_what_is_wrong_with_them_is_named(values, columns, message):
    with pytest.raises(DataError, match=message):
        choices.of_row(row_of(values, "here"), columns, "|")


@pytest.mark.parametrize(
    ("labels", "form"),
    [
        (["yes", "no"], "text"),
        (["one", "three"], "column"),
        (["0", "1"], "0"),
        (["1", "3"], "1"),
        (["0", "0"], "0"),
        (["choice3", "choice1"], "choice1"),
        (["C", "B"], "A"),
        (["a", "b"], "a"),
        (["yes", "no", "of course"], "text"),
        (["0", "2", "7"], "0"),
    ],
)
def test_labels_say_how_they_name_a_candidate(labels, form):
    assert choices.form_of(labelled(labels), COLUMNS) == form


def test_numbers_that_fit_two_ways_of_counting_are_not_guessed():
    with pytest.raises(DataError, match="data:1: expected labels that name candidates in one way, got some that fit 0 and 1. Say which"):
        choices.form_of(labelled(["1", "2"]), COLUMNS)
    with pytest.raises(DataError, match="some that fit text and 0"):
        choices.form_of(labelled(["1", "0"], ("1", "0")), ("c",))
    with pytest.raises(DataError, match="labels that name a candidate, got"):
        choices.form_of(labelled(["maybe"]), COLUMNS)


def test_numbers_that_mean_the_same_as_text_and_as_place_leave_no_doubt():
    assert choices.form_of(labelled(["0", "2"], ("0", "1", "2")), ("c",)) == "text"


@given(st.lists(st.tuples(st.integers(2, 4), st.integers(0, 3)), min_size=1, max_size=6), st.sampled_from(["0", "1", "choice1", "x0"]))
def test_what_is_found_is_what_was_meant(drawn, form):
    meant = [(TEXTS[:count], number % count) for count, number in drawn]
    prefix, start = choices.counting(form)
    rows = [Example({}, f"{prefix}{number + start}", candidates=own) for own, number in meant]
    try:
        found = choices.form_of(rows, ("c",))
    except DataError:
        other = [number + 2 * start - 1 for _, number in meant]
        assert all(0 <= place < len(own) for (own, _), place in zip(meant, other, strict=True)), "both fit"
        return
    assert [choices.place(row.label, row.candidates, found, ("c",)) for row in rows] == [number for _, number in meant]


def test_sources_give_examples_with_their_candidates():
    written = Written(candidates=("choices",))
    listed = [{"q": "a?", "choices": ["yes", "no"], "label": 0}, {"q": "b?", "choices": "x|y|z", "label": 2}]
    found = read(listed, labeled=True, written=written)
    assert [row.candidates for row in found.examples] == [("yes", "no"), ("x", "y", "z")] and found.columns.text == ("q",)
    assert read(list(found.examples), labeled=True, written=written).examples == found.examples
    without = read(listed, labeled=False, written=written).examples
    assert [(row.label, row.candidates) for row in without] == [(None, ("yes", "no")), (None, ("x", "y", "z"))]
    with pytest.raises(DataError, match=r'data\[1\]: expected a label that names a candidate by its place, the first one being 1, got "0"'):
        read([listed[1], listed[0]], labeled=True, written=Written(candidates=("choices",), named="1"))
