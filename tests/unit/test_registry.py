"""Tables of names, and dataclasses to and from plain data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewtune.deltas import DELTAS
from fewtune.deltas.lora import LoRA
from fewtune.errors import SpecError
from fewtune.registry import Table, from_dict, nearest, to_dict


class Shape:
    """What the table of these tests lists."""


@dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0
    label: str | None = None


@dataclass(frozen=True)
class Square(Shape):
    sides: tuple[int, ...] = (1,)
    look: Literal["plain", "dotted"] = "plain"
    filled: bool = False
    depth: int = 0


@dataclass(frozen=True)
class Point(Shape):
    pass


@dataclass(frozen=True)
class Drawing:
    title: str
    circle: Circle = field(default_factory=Circle)
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    limit: int | float | None = None


SHAPES: Table[Shape] = Table("shape", {"circle": Circle, "square": Square, "point": Point})


def refused(call: Any, *arguments: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        call(*arguments)
    return caught.value


def test_nearest_lists_all_and_puts_a_near_one_first() -> None:
    assert nearest("sqare", SHAPES) == 'Did you mean "square"? Known: circle, square, point.'
    assert nearest("xyz", SHAPES) == "Known: circle, square, point."


def test_a_table_is_iterated_by_name() -> None:
    assert list(SHAPES) == ["circle", "square", "point"]
    assert len(SHAPES) == 3


def test_name_of_asks_for_the_very_type() -> None:
    @dataclass(frozen=True)
    class Ring(Circle):
        pass

    assert SHAPES.name_of(Circle()) == "circle"
    assert "Ring" in str(refused(SHAPES.name_of, Ring()))


def test_an_unknown_name_fails_with_the_nearest() -> None:
    error = refused(SHAPES.member, "circel", "recipe.shapes[1]")
    assert error.where == "recipe.shapes[1]"
    assert 'Did you mean "circle"?' in error.fix


def drawings() -> st.SearchStrategy[Drawing]:
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    circles = st.builds(Circle, numbers, st.none() | st.text().filter(lambda text: text != "none"))
    weights = st.dictionaries(st.text(), st.lists(numbers).map(tuple), max_size=3)
    return st.builds(Drawing, st.text(), circles, weights, st.none() | st.integers())


@pytest.mark.slow
@given(drawings())
def test_plain_data_goes_through_json_and_back(drawing: Drawing) -> None:
    assert from_dict(Drawing, json.loads(json.dumps(to_dict(drawing))), "drawing") == drawing


@given(st.builds(Square, st.lists(st.integers()).map(tuple), st.sampled_from(["plain", "dotted"]), st.booleans(), st.integers()))
def test_a_table_writes_the_name_and_reads_it_back(square: Square) -> None:
    written = SHAPES.to_dict(square)
    assert written["name"] == "square"
    assert SHAPES.from_dict(json.loads(json.dumps(written))) == square


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("circle", Circle()),
        ("circle:radius=2", Circle(2.0)),
        ("circle:radius=1e-3,label=a=b", Circle(0.001, "a=b")),
        ("circle:label=none", Circle()),
        (" square : sides=1+2+3 , look=dotted", Square((1, 2, 3), "dotted")),
        ("square:filled=True,depth=-4", Square(filled=True, depth=-4)),
        ("point:", Point()),
    ],
)
def test_a_flag_names_a_value(text: str, value: Shape) -> None:
    assert SHAPES.from_text(text) == value


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("squar", "--shape", 'Did you mean "square"?'),
        ("hexagon", "--shape", "Known: circle, square, point."),
        ("circle:2", "--shape circle", "radius, label"),
        ("circle:radus=2", "--shape circle", 'Did you mean "radius"?'),
        ("circle:radius=wide", "--shape circle.radius", "a number"),
        ("square:depth=1.5", "--shape square.depth", "a whole number"),
        ("square:sides=1+x", "--shape square.sides[1]", "a whole number"),
        ("square:look=doted", "--shape square.look", 'Did you mean "dotted"?'),
        ("square:filled=yes", "--shape square.filled", "true or false"),
        ("circle:radius=2,radius=3", "--shape circle", "twice"),
        ("point:x=1", "--shape point", "It has no fields."),
    ],
)
def test_a_wrong_flag_is_refused_at_its_key(text: str, where: str, words: str) -> None:
    error = refused(SHAPES.from_text, text, "--shape")
    assert error.where == where
    assert words in str(error)


@pytest.mark.parametrize("data", [{}, {"name": 3}, {"radius": 2}, "circle", ["circle"], None])
def test_a_table_needs_a_name(data: Any) -> None:
    assert '"name"' in str(refused(SHAPES.from_dict, data))


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({}, "drawing"),
        ({"title": "a", "titel": "b"}, "drawing"),
        ({"title": 3}, "drawing.title"),
        ({"title": ["a"]}, "drawing.title"),
        ({"title": "a", "circle": {"radius": "x"}}, "drawing.circle.radius"),
        ({"title": "a", "circle": {"radius": True}}, "drawing.circle.radius"),
        ({"title": "a", "circle": 3}, "drawing.circle"),
        ({"title": "a", "weights": {"w": [1, "x"]}}, "drawing.weights.w[1]"),
        ({"title": "a", "weights": [1]}, "drawing.weights"),
        ({"title": "a", "limit": "x"}, "drawing.limit"),
        ({"title": "a", "limit": float("inf")}, None),
    ],
)
def test_wrong_plain_data_is_refused_by_key_path(data: dict[str, Any], where: str | None) -> None:
    if where is None:
        assert from_dict(Drawing, data, "drawing").limit == float("inf")
    else:
        assert refused(from_dict, Drawing, data, "drawing").where == where


def test_a_whole_number_is_read_only_from_whole_numbers() -> None:
    assert from_dict(Square, {"depth": 3.0}, "square").depth == 3
    for wrong in (3.5, float("inf"), float("nan"), True, "3.0", None, [3]):
        assert refused(from_dict, Square, {"depth": wrong}, "square").where == "square.depth"


def test_what_may_be_absent_is_written_none() -> None:
    assert from_dict(Circle, {"label": "none"}, "circle").label is None
    assert from_dict(Circle, {"label": None}, "circle").label is None
    assert from_dict(Circle, {"label": "null"}, "circle").label == "null"


def test_a_share_may_be_written_as_a_ratio():
    lora = DELTAS.from_text("lora:top=1/3,alpha=2.5")
    assert lora.top == 1 / 3 and lora.alpha == 2.5
    assert DELTAS.to_text(lora) == "lora:alpha=2.5,top=1/3"
    for wrong in ("1/0", "1/3/2", "a/b"):
        with pytest.raises(SpecError, match="a number"):
            DELTAS.from_text(f"lora:top={wrong}")


@given(st.floats(1e-3, 1, exclude_min=True))
def test_any_number_that_is_written_is_read_again(top):
    assert DELTAS.from_text(DELTAS.to_text(LoRA(top=top))).top == top
