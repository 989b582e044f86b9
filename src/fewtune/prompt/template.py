"""Template text ↔ a tuple of parts, parsed once and never evaluated; rendering an example gives a Prompt.

Knows fields by name; no tokenizer, no model, no label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fewtune import registry
from fewtune.errors import TaskError


@dataclass(frozen=True)
class Text:
    """Words of the template itself."""

    text: str


@dataclass(frozen=True)
class Field:
    """A place for one of the example's texts."""

    name: str


@dataclass(frozen=True)
class Slot:
    """The place where the answer is read. `lead` are the spaces before it: they belong to the word that is read there."""

    lead: str = ""


@dataclass(frozen=True)
class Sep:
    """The tokenizer's own separator between segments; a new line for autoregressive models."""


Part = Text | Field | Slot | Sep


@dataclass(frozen=True)
class Piece:
    """Rendered text; `field` names the field it came from, if it did, and only then may it be shortened."""

    text: str
    field: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One example in one template."""

    pieces: tuple[Piece | Slot | Sep, ...]

    def text(self, word: str = "___") -> str:
        """As a person would read it, with `word` in the slot."""
        return "".join(_shown(piece, word) for piece in self.pieces)

    def filled(self, word: str) -> Prompt:
        """The same with `word` in place of the slot, as plain text."""
        return Prompt(tuple(Piece(piece.lead + word) if isinstance(piece, Slot) else piece for piece in self.pieces))


def _shown(piece: Piece | Slot | Sep, word: str) -> str:
    if isinstance(piece, Piece):
        return piece.text
    return piece.lead + word if isinstance(piece, Slot) else "\n"


@dataclass(frozen=True)
class Template:
    """Parts in order, with at most one slot.

    >>> str(Template.parse("Review: {text} It was {slot}."))
    'Review: {text} It was {slot}.'
    """

    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str, where: str = "template") -> Template:
        """Read `{field}`, `{slot}`, `{sep}` and the literal braces `{{` and `}}`; raises `TaskError` with the position."""
        parts = tuple(_join(_scan(text, where)))
        if sum(isinstance(part, Slot) for part in parts) > 1:
            raise TaskError(expected="one {slot}", got="several", where=where, fix="Keep the one where the answer is read.")
        return cls(parts)

    def __str__(self) -> str:
        return "".join(map(_printed, self.parts))

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are named, each once, in order."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def slot(self) -> Slot | None:
        """The slot, if there is one."""
        return next((part for part in self.parts if isinstance(part, Slot)), None)

    @property
    def lead(self) -> str:
        """The spaces before the slot, if there is one with some."""
        return self.slot.lead if self.slot else ""

    @property
    def open(self) -> bool:
        """Whether nothing stands behind the slot."""
        return bool(self.parts) and isinstance(self.parts[-1], Slot)

    @property
    def behind(self) -> tuple[str, ...]:
        """The fields that stand behind the slot."""
        start = next((number for number, part in enumerate(self.parts) if isinstance(part, Slot)), len(self.parts))
        return Template(self.parts[start:]).names

    def check(self, fields: Sequence[str], *, slot: bool, reverses: bool = False, where: str = "template") -> None:
        """Raise `TaskError` for a field that is not among `fields`, for none at all, for a slot that is needed and missing, or, where the
        prompt `reverses`, for no field behind the slot."""
        for name in self.names:
            if name not in fields:
                raise TaskError(expected="a field of the task", got=f"{{{name}}}", where=where, fix=registry.nearest(name, fields))
        if not self.names:
            fix = f"Add one of {', '.join(f'{{{name}}}' for name in fields)}."
            raise TaskError(expected="a field of the task", got="none", where=where, fix=fix)
        if slot and self.slot is None:
            raise TaskError(expected="{slot}", got="none", where=where, fix="Add {slot} where the answer is to be read.")
        if reverses and not self.behind:
            fix = f'Put the slot first, as in "Label: {{slot}} Text: {{{fields[0]}}}", or take another --readout.'
            raise TaskError(expected="a field behind {slot}, for the text is read there", got="none", where=where, fix=fix)

    def render(self, fields: Mapping[str, str]) -> Prompt:
        """Put the texts into their places, without white space around them; raises `TaskError` if one is missing."""
        return Prompt(tuple(_rendered(part, fields) for part in self.parts))


def _rendered(part: Part, fields: Mapping[str, str]) -> Piece | Slot | Sep:
    if isinstance(part, Text):
        return Piece(part.text)
    if not isinstance(part, Field):
        return part
    if part.name not in fields:
        fix = registry.nearest(part.name, fields) if fields else "Give the field."
        raise TaskError(expected=f'the field "{part.name}"', got="none", where="template", fix=fix)
    return Piece(fields[part.name].strip(), part.name)


def _printed(part: Part) -> str:
    if isinstance(part, Text):
        return literal(part.text)
    if isinstance(part, Field):
        return f"{{{part.name}}}"
    return f"{part.lead}{{slot}}" if isinstance(part, Slot) else "{sep}"


def literal(text: str) -> str:
    """Text in which braces stand for themselves when a template is parsed.

    >>> literal("{x}")
    '{{x}}'
    """
    return text.replace("{", "{{").replace("}", "}}")


def _scan(text: str, where: str) -> Iterator[Part]:
    position = 0
    while position < len(text):
        if text[position : position + 2] in ("{{", "}}"):
            yield Text(text[position])
            position += 2
        elif text[position] == "{":
            end = text.find("}", position)
            name = text[position + 1 : end] if end > 0 else ""
            if not name.strip() or "{" in name:
                raise _unreadable(text, position, where)
            yield _named(name)
            position = end + 1
        elif text[position] == "}":
            raise _unreadable(text, position, where)
        else:
            yield Text(text[position])
            position += 1


def _named(name: str) -> Part:
    """A field is named verbatim, for a column's name may begin or end with a space."""
    reserved: dict[str, Part] = {"slot": Slot(), "sep": Sep()}
    return reserved.get(name.strip(), Field(name))


def _unreadable(text: str, position: int, where: str) -> TaskError:
    return TaskError(
        expected="{name} in braces",
        got=f"{text[position : position + 12]!r} at character {position + 1}",
        where=where,
        fix="Write {{ or }} for a brace that stands for itself.",
    )


def _join(parts: Iterator[Part]) -> Iterator[Part]:
    """Adjacent text becomes one part; spaces before a slot go to the slot."""
    text = ""
    for part in parts:
        if isinstance(part, Text):
            text += part.text
            continue
        if isinstance(part, Slot):
            kept = text.rstrip(" ")
            text, part = kept, Slot(text[len(kept) :])
        if text:
            yield Text(text)
        text = ""
        yield part
    if text:
        yield Text(text)
