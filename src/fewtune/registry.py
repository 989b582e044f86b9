"""Names ↔ frozen dataclasses: tables of what can be swapped, and values to and from plain dicts. Knows no member of any table."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, Literal, TypeVar

from fewtune.errors import SpecError

T = TypeVar("T")
Plain = Any  # what JSON and TOML can hold: None, bool, int, float, str, list, dict


def key_of(facts: Plain) -> str:
    """What names these facts and no others: the SHA-256 of their JSON, in hexadecimal; the order in a dict says nothing.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the known names, the nearest first if one is near.

    >>> nearest("lorra", ["lora", "subset"])
    'Did you mean "lora"? Known: lora, subset.'
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Known: {', '.join(names)}."


@dataclass(frozen=True)
class Table(Generic[T]):
    """What can be chosen by name: `kind` is the noun for messages, `members` maps each name to a frozen dataclass."""

    kind: str
    members: Mapping[str, type[T]]

    def __iter__(self) -> typing.Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def name_of(self, value: T) -> str:
        """The name under which the type of `value` is listed."""
        for name, member in self.members.items():
            if type(value) is member:
                return name
        raise SpecError(
            expected=f"a {self.kind} that is listed",
            got=type(value).__name__,
            where=self.kind,
            fix=f"Known: {', '.join(self.members)}.",
        )

    def member(self, name: str, where: str = "") -> type[T]:
        """The dataclass called `name`; an unknown name fails with the known ones and the nearest."""
        if name not in self.members:
            raise SpecError(
                expected=f"the name of a {self.kind}",
                got=f'"{name}"',
                where=where or self.kind,
                fix=nearest(name, self.members),
            )
        return self.members[name]

    def to_dict(self, value: T) -> dict[str, Plain]:
        """`value` as plain data, its name under "name"."""
        return {"name": self.name_of(value), **to_dict(value)}

    def from_dict(self, data: Mapping[str, Plain], where: str = "") -> T:
        """The value that `to_dict` wrote; errors carry the key path."""
        where = where or self.kind
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise SpecError(expected='a table with a "name"', got=repr(data), where=where, fix=f"Known: {', '.join(self.members)}.")
        fields = {key: value for key, value in data.items() if key != "name"}
        return from_dict(self.member(data["name"], where), fields, where)

    def from_text(self, text: str, where: str = "") -> T:
        """The value that a flag names: `name` or `name:field=value,field=a+b`.

        A `+` separates the items of a list.
        """
        where = where or self.kind
        name, _, rest = text.partition(":")
        return from_text(self.member(name.strip(), where), rest, f"{where} {name}")

    def to_text(self, value: T) -> str:
        """What `from_text` reads as `value`: its name, and the fields that are not as they are by default."""
        plain = zip(dataclasses.fields(value), to_dict(value).items(), strict=True)  # type: ignore[arg-type]
        fields = [f"{name}={spoken(given)}" for field, (name, given) in plain if given != _plain(field.default)]
        return f"{self.name_of(value)}:{','.join(fields)}" if fields else self.name_of(value)


def from_text(kind: type[T], text: str, where: str) -> T:
    """The dataclass `kind` from `field=value,field=a+b`; a `+` separates the items of a list."""
    fields: dict[str, Plain] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise SpecError(expected="field=value", got=f'"{part}"', where=where, fix=_fields_of(kind))
        if key.strip() in fields:
            raise SpecError(expected="each field once", got=f'"{key.strip()}" twice', where=where, fix="Keep one of the two.")
        fields[key.strip()] = value.strip()
    return from_dict(kind, fields, where)


def spoken(value: Plain) -> str:
    """A field's value as flags have it.

    >>> spoken(["query", "value"]), spoken(None), spoken(True), spoken(1 / 3)
    ('query+value', 'none', 'true', '1/3')
    """
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, float) and len(str(value)) > 8:
        ratio = Fraction(value).limit_denominator(100)
        return str(ratio) if float(ratio) == value else str(value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def check_ranges(value: Any, where: str, holds: Mapping[str, tuple[bool, str]]) -> None:
    """Raise `SpecError` for the first field of `value` of which it does not hold that it is in its range; that is given in words, too."""
    for name, (fits, expected) in holds.items():
        if not fits:
            raise SpecError(expected=expected, got=repr(getattr(value, name)), where=f"{where}.{name}", fix="Change the value.")


def _fields_of(kind: type) -> str:
    names = [field.name for field in dataclasses.fields(kind)]
    return f"Its fields: {', '.join(names)}." if names else "It has no fields."


def to_dict(value: Any) -> dict[str, Plain]:
    """A dataclass as plain data: nested dataclasses become dicts, tuples become lists."""
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _plain(value: Any) -> Plain:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def from_dict(kind: type[T], data: Mapping[str, Plain], where: str) -> T:
    """Build the dataclass `kind` from plain data; unknown fields and wrong types are refused by key path.

    Text is read as the field's type, so that flags and TOML files share this door.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            raise SpecError(expected="a known field", got=f'"{key}"', where=where, fix=nearest(key, names) if names else _fields_of(kind))
    values = {key: _read(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    missing = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SpecError(expected=f'the field "{missing[0]}"', got="nothing", where=where, fix=_fields_of(kind))
    return kind(**values)


def _read(hint: Any, value: Plain, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise SpecError(expected="one of the choices", got=repr(value), where=where, fix=nearest(str(value), map(str, arguments)))
    read = _reader(hint, value)
    if read is None:
        raise SpecError(expected=_spell(hint), got=repr(value), where=where, fix="See docs/design.md for its form.")
    return read(hint, value, where)


def _reader(hint: Any, value: Plain) -> Callable[[Any, Plain, str], Any] | None:
    """The function that reads `value` as `hint`, if the two go together."""
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _read_tuple if isinstance(value, str | list | tuple) else None
    if origin is not None:
        return _read_mapping if isinstance(value, Mapping) else None
    if dataclasses.is_dataclass(hint):
        return from_dict if isinstance(value, Mapping) else None
    return _read_scalar if hint in _SCALARS else None


def _read_tuple(hint: Any, value: Plain, where: str) -> tuple[Any, ...]:
    items = value.split("+") if isinstance(value, str) else value
    return tuple(_read(typing.get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(items))


def _read_mapping(hint: Any, value: Plain, where: str) -> dict[str, Any]:
    return {key: _read(typing.get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}


def _read_union(choices: tuple[Any, ...], value: Plain, where: str) -> Any:
    if type(None) in choices and (value is None or value == "none"):
        return None
    error: SpecError | None = None
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _read(choice, value, where)
        except SpecError as caught:
            error = caught
    raise error or SpecError(expected="a value", got=repr(value), where=where, fix="")


_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _spell(hint: Any) -> str:
    return _SCALARS.get(hint, str(hint)) if isinstance(hint, type) else str(hint)


def _read_scalar(hint: type, value: Plain, where: str) -> Any:
    fix = "Write the value in that form."
    refused = SpecError(expected=_SCALARS[hint], got=repr(value), where=where, fix=fix)
    if hint is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif isinstance(value, bool):
        raise refused
    elif hint in (int, float) and isinstance(value, str | int | float):
        try:
            ratio = hint is float and isinstance(value, str) and "/" in value
            number = float(Fraction(str(value))) if ratio else hint(value)
        except (ValueError, OverflowError, ZeroDivisionError):
            raise refused from None
        if hint is int and isinstance(value, float) and number != value:
            raise refused
        return number
    if isinstance(value, hint):
        return value
    raise refused
