"""Templates: text ↔ parts both ways, refusals that name the place, and rendering."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.errors import TaskError
from fewtune.prompt.template import Field, Piece, Sep, Slot, Template, Text, literal

letters = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="{}"), min_size=1, max_size=6).filter(
    lambda name: name.strip() not in ("", "slot", "sep")
)
places = st.one_of(names.map(lambda name: f"{{{name}}}"), st.just("{sep}"))


@st.composite
def written(draw):
    """The text of a template that is valid: literal text, places, and at most one slot."""
    items = draw(st.lists(st.one_of(letters.map(literal), places), max_size=8))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), "{slot}")
    return "".join(items)


@st.composite
def built(draw):
    """A template as parsing gives it: no empty or adjacent text, and spaces before the slot in its lead."""
    parts, slot = [], False
    for kind in draw(st.lists(st.sampled_from([Text, Field, Sep, Slot]), max_size=8)):
        if kind is Text and not (parts and isinstance(parts[-1], Text)):
            parts.append(Text(draw(letters.filter(bool))))
        elif kind is Field:
            parts.append(Field(draw(names)))
        elif kind is Sep:
            parts.append(Sep())
        elif kind is Slot and not slot:
            if parts and isinstance(parts[-1], Text) and not (kept := parts[-1].text.rstrip(" ")):
                parts.pop()
            elif parts and isinstance(parts[-1], Text):
                parts[-1] = Text(kept)
            parts.append(Slot(" " * draw(st.integers(0, 3))))
            slot = True
    return Template(tuple(parts))


@pytest.mark.slow
@settings(max_examples=300)
@given(written())
def test_printing_what_was_parsed_gives_the_text_again(text):
    assert str(Template.parse(text)) == text


@pytest.mark.slow
@settings(max_examples=300)
@given(built())
def test_parsing_what_was_printed_gives_the_template_again(template):
    assert Template.parse(str(template)) == template


@settings(max_examples=300)
@given(st.text("{}ab slot\n", max_size=20))
def test_any_text_is_parsed_or_refused_in_one_line(text):
    try:
        template = Template.parse(text)
    except TaskError as error:
        assert "\n" not in str(error)
    else:
        assert Template.parse(str(template)) == template


@settings(max_examples=200)
@given(letters)
def test_literal_text_is_itself_and_reads_no_field(text):
    template = Template.parse(literal(text))
    assert template.names == () and template.slot is None
    assert "".join(piece.text for piece in template.render({}).pieces) == text


def test_parts_by_hand():
    template = Template.parse("{{Review}}: {text}{sep}{other} {text}\nIt was  {slot}, or {{}}.")
    assert template.parts == (
        Text("{Review}: "),
        Field("text"),
        Sep(),
        Field("other"),
        Text(" "),
        Field("text"),
        Text("\nIt was"),
        Slot("  "),
        Text(", or {}."),
    )
    assert template.names == ("text", "other") and template.slot == Slot("  ")


def test_a_new_line_before_the_slot_stays_text():
    assert Template.parse("{text}\n{slot}").parts == (Field("text"), Text("\n"), Slot(""))


def test_names_are_verbatim_and_nothing_is_evaluated():
    template = Template.parse("{my text }{a.__class__}{b!r}{c:>10}{0}{ slot }")
    assert template.names == ("my text ", "a.__class__", "b!r", "c:>10", "0") and template.slot == Slot()
    with pytest.raises(TaskError, match=r"a field of the task, got \{a\.__class__\}"):
        Template.parse("{a.__class__}").check(("a",), slot=False)


@pytest.mark.parametrize(
    ("text", "character"),
    [("{text", 1), ("ab{}", 3), ("ab{  }", 3), ("a}b", 2), ("{a{b}", 1), ("{", 1), ("ok {text} }", 11), ("{{{", 3), ("{text}}", 7)],
)
def test_unreadable_braces_are_refused_with_their_place(text, character):
    with pytest.raises(TaskError, match=rf"here: expected \{{name\}} in braces, got .* at character {character}\. Write {{{{ or }}}}"):
        Template.parse(text, "here")


def test_two_slots_are_refused():
    with pytest.raises(TaskError, match=r"here: expected one \{slot\}, got several"):
        Template.parse("{slot} and { slot}", "here")


def test_what_does_not_fit_the_task_is_refused_by_name():
    check = Template.parse("{txet} {slot}").check
    with pytest.raises(
        TaskError, match=r'template 2: expected a field of the task, got \{txet\}\. Did you mean "text"\? Known: text, title\.'
    ):
        check(("text", "title"), slot=True, where="template 2")
    with pytest.raises(TaskError, match=r"expected \{slot\}, got none\. Add \{slot\}"):
        Template.parse("{text}").check(("text",), slot=True)
    with pytest.raises(TaskError, match=r"expected a field of the task, got none\. Add one of \{text\}, \{title\}\."):
        Template.parse("Is it {slot}").check(("text", "title"), slot=True)
    Template.parse("{text}").check(("text",), slot=False)
    Template.parse("{text} {slot}").check(("text", "title"), slot=True)
    Template.parse("{text} {slot}").check(("text",), slot=False)


def test_rendering_puts_texts_in_place_and_keeps_their_names():
    prompt = Template.parse("Review: {text}{sep}{title} It was {slot}.").render({"text": " good\n", "title": "{text} {slot}", "more": "x"})
    assert prompt.pieces == (
        Piece("Review: "),
        Piece("good", "text"),
        Sep(),
        Piece("{text} {slot}", "title"),
        Piece(" It was"),
        Slot(" "),
        Piece("."),
    )
    assert prompt.text("great") == "Review: good\n{text} {slot} It was great."
    assert prompt.text() == "Review: good\n{text} {slot} It was ___."


def test_a_filled_prompt_has_the_word_as_text_of_the_template():
    prompt = Template.parse("{text} It was {slot}.").render({"text": "good"})
    assert prompt.filled("great").pieces == (Piece("good", "text"), Piece(" It was"), Piece(" great"), Piece("."))
    assert prompt.filled("great").text() == prompt.text("great")


def test_a_missing_field_is_refused_with_the_nearest():
    with pytest.raises(TaskError, match='expected the field "text", got none. Did you mean "texts"'):
        Template.parse("{text}").render({"texts": "a"})
    with pytest.raises(TaskError, match='expected the field "text", got none. Give the field.'):
        Template.parse("{text}").render({})
