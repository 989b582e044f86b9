"""What a model that fills gaps is asked, and what its answer makes."""

import pytest

from fewtune.backbone import tiny
from fewtune.prompt import infill
from fewtune.prompt.template import Template
from fewtune.prompt.tokens import plain_ids, sentinel


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.model("t5")[1]


def ids(tokenizer, *parts):
    return tuple(token for part in parts for token in ([part] if isinstance(part, int) else plain_ids(tokenizer, part)))


def test_gaps_stand_between_texts_and_word(tokenizer):
    first, second = (sentinel(tokenizer, number) for number in (0, 1))
    end = tokenizer.eos_token_id
    behind, before = infill.layouts(1, causal=False)
    asked = [infill.asked(tokenizer, layout, ["a dull mess"], "terrible", most=99) for layout in (behind, before)]
    assert asked[0] == ids(tokenizer, "a dull mess", first, "terrible", second, end)
    assert asked[1] == ids(tokenizer, first, "terrible", second, "a dull mess", end)
    (between,) = infill.layouts(2, causal=False)
    assert infill.asked(tokenizer, between, ["this book", "a film"], "great", most=99) == ids(
        tokenizer, "this book", first, "great", second, "a film", end
    )


def test_long_texts_are_cut_and_what_looks_like_a_mark_is_none(tokenizer):
    (layout,) = infill.layouts(1, causal=True)
    text = f"a book {'<extra_id_0>'} " * 20
    asked = infill.asked(tokenizer, layout, [text], "great", most=10)
    assert asked.count(sentinel(tokenizer, 0)) == 1 and len(asked) == 10 + 1 + len(plain_ids(tokenizer, "great")) + 1


def test_an_answer_is_read_back_as_a_template(tokenizer):
    second, end = sentinel(tokenizer, 1), tokenizer.eos_token_id
    behind, before = infill.layouts(1, causal=False)
    assert infill.marks(tokenizer, behind) == (sentinel(tokenizer, 0), second, end)
    answer = ids(tokenizer, "it was", second, "to me", end)
    assert infill.template(tokenizer, behind, ["text"], answer) == "{text} it was {slot} to me"
    assert infill.template(tokenizer, before, ["text"], answer) == "it was {slot} to me {text}"
    (between,) = infill.layouts(2, causal=False)
    assert infill.template(tokenizer, between, ["one", "other"], ids(tokenizer, second, "so", end)) == "{one} {slot} so {other}"


def test_braces_that_were_written_stand_for_themselves():
    class Braces:
        """Writes what no tokenizer here has."""

        eos_token_id = 9

        def get_vocab(self):
            return {"<extra_id_0>": 7}

        def decode(self, span):
            return "{x}" if list(span) == [1] else ""

    (layout,) = infill.layouts(1, causal=True)
    made = infill.template(Braces(), layout, ["text"], [1, 9])
    assert made == "{text} {{x}} {slot}" and Template.parse(made).names == ("text",)


def test_the_slot_is_last_for_what_reads_from_left_to_right_and_three_fields_have_no_layout():
    for fields in (1, 2):
        for causal in (True, False):
            for layout in infill.layouts(fields, causal=causal):
                assert sorted(part for part in layout if isinstance(part, int)) == list(range(infill.gaps(layout)))
                assert {"a", "b"}.intersection(layout) == set("ab"[:fields]) and (not causal or layout[-1] == "slot")
    assert infill.layouts(3, causal=True) == infill.layouts(3, causal=False) == ()
