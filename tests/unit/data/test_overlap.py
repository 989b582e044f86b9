"""Texts that stand on both sides are found whatever their case, punctuation and columns; short ones only as whole rows."""

from hypothesis import given
from hypothesis import strategies as st

from fewtune.data.example import Example
from fewtune.data.overlap import found_in, normalised


def rows(*texts):
    return [Example({"a": one, "b": other} if other else {"text": one}) for one, other in texts]


LONG = "The quick brown fox jumps over the dog."


def test_case_punctuation_and_columns_do_not_hide_a_text():
    tested = rows(("the QUICK brown fox , jumps over the dog", None), ("Yes!", None), ("another text of more than six words", None))
    others = {"one": rows(("unrelated", None)), "two": rows((LONG, "yes"))}
    assert found_in(tested, others) == {0: "two"}


def test_a_short_text_counts_only_as_a_whole_row():
    assert found_in(rows(("great fun", None)), {"pairs": rows(("great fun", "a film"))}) == {}
    assert found_in(rows(("great fun", None)), {"texts": rows(("Great fun.", None))}) == {0: "texts"}
    assert found_in(rows(("a film", "great fun")), {"pairs": rows(("great fun", "A film!"))}) == {0: "pairs"}


@given(st.text(), st.text())
def test_normalising_twice_is_normalising_once(one, other):
    assert normalised(normalised(one)) == normalised(one)
    assert (normalised(one) == normalised(other)) == (normalised(one).split() == normalised(other).split())


@given(st.lists(st.text(alphabet="ab ", min_size=1).filter(str.strip), min_size=1, max_size=6))
def test_every_row_of_a_set_is_found_in_it(texts):
    given_rows = rows(*((text, None) for text in texts))
    assert found_in(given_rows, {"itself": given_rows}) == dict.fromkeys(range(len(texts)), "itself")
