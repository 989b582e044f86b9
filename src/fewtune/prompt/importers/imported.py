"""What an import gives, and what every notation needs for it: lines, fields, literal values, notes. Knows no notation."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewtune.errors import TaskError
from fewtune.prompt.template import Template
from fewtune.tasks.task import RESERVED, Task

Note = tuple[str, str]  # where it holds, and the sentence


@dataclass(frozen=True)
class Imported:
    """Templates and label words in fewtune's own form; `notes` say what was left out or is not quite the same.

    `labels` are empty where the notation names none.
    """

    name: str = ""
    templates: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def task(self, labels: Sequence[str] = ()) -> Task:
        """A task of it; `labels` rename those that were read, in order. Raises `TaskError` when there are none, or another number."""
        named = tuple(labels) or self.labels
        if not named:
            raise TaskError(expected="labels", got="none in the templates", where=self.name, fix="Name them with --labels.")
        if self.labels and len(named) != len(self.labels):
            got = f"{len(named)} for {', '.join(self.labels)}"
            raise TaskError(expected=f"{len(self.labels)} labels", got=got, where="--labels", fix="Name each, in their order.")
        names = tuple(dict.fromkeys(name for text in self.templates for name in Template.parse(text).names))
        words = {new: self.words[old] for old, new in zip(self.labels, named, strict=False) if old in self.words}
        return Task(named, names or ("text",), self.templates, words, name=self.name or "task")


def refusal(got: str, where: str, fix: str, expected: str = "what a template can hold") -> TaskError:
    """The error for what cannot be carried over."""
    return TaskError(expected=expected, got=got, where=where, fix=fix)


def lines(text: str, where: str) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, with its place in front."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{where}:{number}", line.rstrip("\r")


def placed(name: str, where: str) -> str:
    """The place of a field in a template; raises `TaskError` for a name that a template cannot have."""
    if not name.strip() or name.strip() in RESERVED or set(name) & set("{}"):
        raise refusal(f"the field {name!r}", where, "Rename it.", "a field with a name of its own")
    return f"{{{name}}}"


def checked(text: str, where: str) -> str:
    """The template as it is stored; raises `TaskError` unless it has a field and one slot."""
    template = Template.parse(text, where)
    template.check(template.names or ("text",), slot=True, where=where)
    return str(template)


def value(text: str, where: str) -> Any:
    """The value of a literal (strings, numbers, lists, dictionaries, sets); raises `TaskError` for anything else, and runs nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that Python does not know
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise refusal(_short(text), where, "Code is never run; write the value itself.", "plain values") from None


def word_lists(found: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Label words out of a dictionary of a word, or a list of words, for each label; raises `TaskError` when it is none."""
    if not isinstance(found, dict) or not found:
        raise refusal(_short(str(found)), where, "For example {'0': 'terrible', '1': 'great'}.", "words for each label")
    words: dict[str, tuple[str, ...]] = {}
    for label, given in found.items():
        listed = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else ()
        if not isinstance(label, str | int) or not str(label).strip() or str(label) in words:
            raise refusal(_short(repr(label)), where, "Give each label a name of its own.", "a label")
        if not listed or not all(isinstance(word, str) and word.strip() for word in listed):
            raise refusal(_short(repr(given)), where, "Write a word, or a list of words.", f'words for "{label}"')
        words[str(label)] = tuple(dict.fromkeys(word.strip() for word in listed))
    return words


def gathered(notes: Iterable[Note]) -> tuple[str, ...]:
    """Each sentence once, with the first place where it holds and the number of others."""
    places: dict[str, dict[str, None]] = {}
    for where, sentence in notes:
        places.setdefault(sentence, {})[where] = None
    return tuple(f"{next(iter(at))}{f' and {len(at) - 1} more' if len(at) > 1 else ''}: {said}" for said, at in places.items())


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
