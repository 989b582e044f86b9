"""A task as plain data (fields, labels, label words, templates; a TOML file) and the contract of a task kind. Knows no model."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fewtune import registry
from fewtune.data.example import Example
from fewtune.errors import TaskError

RESERVED = ("slot", "sep")


@dataclass(frozen=True)
class Task:
    """What is asked of a text. A new task is a value of this type, a new task *kind* is a file of code.

    `fields` are the names that templates may use, `label_name` is the cue for the answer in default templates.
    Empty `templates` and `words` stand for the defaults of `fewtune.prompt.defaults`.
    """

    labels: tuple[str, ...]
    fields: tuple[str, ...] = ("text",)
    templates: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_name: str = "label"
    name: str = "task"
    kind: str = "classification"

    def __post_init__(self) -> None:
        _unique(self.labels, "labels")
        _unique(self.fields, "fields")
        for name in self.fields:
            if name in RESERVED:
                raise TaskError(
                    expected="a field with a name of its own",
                    got=f'"{name}"',
                    where="task.fields",
                    fix=f"{{{name}}} has a meaning in templates; rename the column.",
                )
        for label in self.words:
            if label not in self.labels:
                raise TaskError(
                    expected="words for a label of the task",
                    got=f'"{label}"',
                    where="task.words",
                    fix=registry.nearest(label, self.labels),
                )

    @classmethod
    def classification(
        cls,
        labels: Sequence[str],
        *,
        template: str | None = None,
        templates: Sequence[str] = (),
        words: Mapping[str, Sequence[str] | str] | None = None,
        fields: Sequence[str] = ("text",),
        label_name: str = "label",
        name: str = "task",
    ) -> Task:
        """A task with a closed set of labels; `template` is short for one entry of `templates`."""
        listed = {label: (given,) if isinstance(given, str) else tuple(given) for label, given in (words or {}).items()}
        return cls(
            labels=tuple(labels),
            fields=tuple(fields),
            templates=(template, *templates) if template is not None else tuple(templates),
            words=listed,
            label_name=label_name,
            name=name,
        )

    @classmethod
    def load(cls, path: str | Path) -> Task:
        """Read a task from a TOML file; raises `TaskError` when it is not one."""
        where = str(path)
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TaskError(expected="a task file", got="no such file", where=where, fix="Check the path.") from None
        except OSError as error:
            raise TaskError(expected="a task file", got=error.strerror or "none", where=where, fix="Check the path.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise TaskError(expected="TOML", got=str(error), where=where, fix="Mend the file; docs/design.md shows a task.") from None
        return cls.from_dict(data, where)

    @classmethod
    def from_dict(cls, data: Mapping[str, registry.Plain], where: str = "task") -> Task:
        """The task that `to_dict` wrote, or a TOML file holds; one template or word may stand without its list."""
        shaped = dict(data)
        if "template" in shaped and "templates" in shaped:
            raise TaskError(expected="template or templates", got="both", where=where, fix="List every template under templates.")
        given = shaped.pop("template", shaped.get("templates", []))
        shaped["templates"] = [given] if isinstance(given, str) else given
        if isinstance(shaped.get("words"), Mapping):
            shaped["words"] = {label: [given] if isinstance(given, str) else given for label, given in shaped["words"].items()}
        return registry.from_dict(cls, shaped, where)

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return registry.to_dict(self)

    def to_toml(self) -> str:
        """The text of a task file, which `load` reads back as an equal task; raises `TaskError` for half of a surrogate pair."""
        lines = [f"{name} = {_toml(getattr(self, name))}" for name in ("name", "kind", "labels", "fields", "label_name", "templates")]
        words = [f"{_toml(label)} = {_toml(words)}" for label, words in self.words.items()]
        return "\n".join([*lines, *(["", "[words]", *words] if words else []), ""])


def _toml(value: str | tuple[str, ...]) -> str:
    if not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskError(expected="text", got=f"half of a surrogate pair in {ascii(value[:40])}", where="task", fix="Remove it.")
    # TOML's escapes are those of JSON, and one character more must be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _unique(names: Sequence[str], what: str) -> None:
    if not names or len(set(names)) < len(names) or any(not name.strip() for name in names):
        raise TaskError(
            expected=f"{what} that are named and differ",
            got=", ".join(map(repr, names)) or "none",
            where=f"task.{what}",
            fix="Give each a name of its own.",
        )


class TaskKind(Protocol):
    """What a kind of task decides: whether examples fit, what the numbers to learn are, what scores mean."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the measures that fit the kind, the main one first."""
        ...

    def check(self, task: Task, examples: Sequence[Example], where: str) -> None:
        """Raise `DataError` when the labelled `examples` do not fit the task."""
        ...

    def targets(self, task: Task, examples: Sequence[Example]) -> list[int]:
        """The index of each example's answer among the candidates."""
        ...

    def answers(self, task: Task, probabilities: Sequence[Sequence[float]]) -> list[str]:
        """The answer in words for each row of probabilities over the candidates."""
        ...
