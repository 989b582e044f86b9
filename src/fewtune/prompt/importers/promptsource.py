"""promptsource's YAML files: templates in Jinja, input and target parted by `|||`, and the choices of an answer.

Source of the notation: promptsource's API and README (Bach et al. 2022). The YAML is composed into a tree of texts and no further, so no
tag is ever acted on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml  # type: ignore[import-untyped]

from fewtune.errors import TaskError
from fewtune.prompt.importers import jinja
from fewtune.prompt.importers.imported import Imported, Note, checked, gathered, refusal

SIGN = re.compile(r"!Template\b|^\s*[\"']?(?:jinja|templates)[\"']?\s*:", re.MULTILINE)
_LABELS = "Labels are the places among the answer choices, counted from 0, as in the data."
_JOINED = "Input and target are joined by a space."


@dataclass(frozen=True)
class _Entry:
    """One template of the file; `where` is the line of its text."""

    name: str
    jinja: str
    choices: tuple[str, ...]
    where: str


_ReadIn = tuple[_Entry, str]


def read(text: str, where: str) -> Imported:
    """The templates that share the most frequent answer choices; what is left out is in the notes, with the reason.

    Raises `TaskError` for what is not YAML, and with the first reason when no template is left.
    """
    root = _tree(text, where)
    first, *others = _groups(root, where, notes := list[Note]())
    for entry, _ in (member for group in others for member in group):
        notes.append((entry.where, f'"{entry.name}" is left out: its answer choices are others ({", ".join(entry.choices)}).'))
    return _imported(root, first, [(where, _LABELS), (where, _JOINED), *notes])


def read_all(text: str, where: str) -> tuple[Imported, ...]:
    """All templates, those that share their answer choices together, the most frequent ones first; raises as `read` does."""
    root, notes = _tree(text, where), list[Note]()
    groups = _groups(root, where, notes)
    return tuple(_imported(root, group, notes if group is groups[0] else []) for group in groups)


def _groups(root: yaml.Node | None, where: str, notes: list[Note]) -> list[list[_ReadIn]]:
    """Templates by their answer choices; what cannot be carried over goes to `notes`."""
    found: dict[tuple[str, ...], list[_ReadIn]] = {}
    for entry in _entries(root, where):
        if read_in := _read_in(entry, notes):
            found.setdefault(entry.choices, []).append(read_in)
    if not found:
        raise _none(notes, where)
    return sorted(found.values(), key=len, reverse=True)


def _imported(root: yaml.Node | None, group: list[_ReadIn], notes: list[Note]) -> Imported:
    words = {str(number): (choice,) for number, choice in enumerate(group[0][0].choices)}
    name = "/".join(filter(None, (_plain(root, "dataset"), _plain(root, "subset"))))
    return Imported(name, tuple(dict.fromkeys(template for _, template in group)), words, tuple(words), gathered(notes))


def _none(notes: list[Note], where: str) -> TaskError:
    place, reason = notes[0] if notes else (where, "no template at all")
    return TaskError(expected="a template that can be carried over", got=reason.rstrip("."), where=place, fix="Rewrite it by hand.")


def _tree(text: str, where: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, IndexError, RecursionError) as error:
        raise TaskError(expected="YAML", got=str(error)[:200] or "none", where=where, fix="Mend the file.") from None


def _entries(root: yaml.Node | None, where: str) -> Iterator[_Entry]:
    listed = _at(root, "templates")
    nodes = [node for _, node in listed.value] if isinstance(listed, yaml.MappingNode) else [root]
    for node in nodes:
        source = _at(node, "jinja")
        if isinstance(source, yaml.ScalarNode):
            place = f"{where}:{source.start_mark.line + 1}"
            yield _Entry(_plain(node, "name") or "template", source.value, _choices(node), place)


def _choices(node: yaml.Node | None) -> tuple[str, ...]:
    given = _at(node, "answer_choices")
    if isinstance(given, yaml.SequenceNode):
        return tuple(item.value.strip() for item in given.value if isinstance(item, yaml.ScalarNode))
    text = _plain(node, "answer_choices")
    return tuple(choice.strip() for choice in text.split("|||")) if text else ()


def _read_in(entry: _Entry, notes: list[Note]) -> _ReadIn | None:
    try:
        return entry, _template(entry)
    except TaskError as error:
        notes.append((error.where, f'"{entry.name}" is left out: expected {error.expected}, got {error.got}.'))
        return None


def _template(entry: _Entry) -> str:
    choices, where = entry.choices, entry.where
    if len(set(choices)) < 2 or len(set(choices)) < len(choices) or not all(choices) or any("{{" in choice for choice in choices):
        raise refusal(", ".join(choices) or "none", where, "Write them out.", "answer choices that differ and are the same for every row")
    halves = entry.jinja.split("|||")
    if len(halves) != 2:
        raise refusal(f"{len(halves) - 1} of them", where, "Write input ||| target.", "one |||")
    asked, answered = (
        jinja.text_of(half, choices, where, target=target).strip() for half, target in zip(halves, (False, True), strict=True)
    )
    return checked(f"{asked} {answered}", where)


def _at(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if isinstance(name, yaml.ScalarNode) and name.value == key), None)


def _plain(node: yaml.Node | None, key: str) -> str:
    found = _at(node, key)
    return found.value if isinstance(found, yaml.ScalarNode) and not found.tag.endswith(":null") else ""
