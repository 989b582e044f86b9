"""The exception tree: one line each, in the user's hands or another process's."""

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune import errors

TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FewtuneError)]
INPUT = {"DataError", "SpecError", "TaskError", "ArtifactError", "BackboneError", "MissingExtraError"}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"[A-Z]\w+Error|Interrupted", (errors.__doc__ or "").split("\n\n")[1])
    assert len(TREE) == 10
    assert sorted(drawn) == sorted(kind.__name__ for kind in TREE)


def test_what_the_user_got_wrong_is_an_input_error() -> None:
    assert {kind.__name__ for kind in TREE if issubclass(kind, errors.InputError)} == INPUT | {"InputError"}


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_says_where_expected_got_and_fix(kind: type[errors.FewtuneError]) -> None:
    error = kind(expected="a label", got="none", where="reviews.csv:17", fix="Label the row.")
    assert str(error) == "reviews.csv:17: expected a label, got none. Label the row."
    assert (error.expected, error.got, error.where, error.fix) == ("a label", "none", "reviews.csv:17", "Label the row.")


@given(st.lists(st.text(alphabet="ab\n "), min_size=4, max_size=4))
def test_is_one_line(answers: list[str]) -> None:
    expected, got, where, fix = answers
    assert "\n" not in str(errors.DataError(expected=expected, got=got, where=where, fix=fix))


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_survives_a_trip_between_processes(kind: type[errors.FewtuneError]) -> None:
    error = kind(expected="a", got="b", where="c", fix="d")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert vars(back) == vars(error)


def test_answers_are_named() -> None:
    with pytest.raises(TypeError):
        errors.DataError("a", "b", "c", "d")  # type: ignore[misc]
