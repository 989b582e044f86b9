"""A task as plain data (fields, labels, label words, templates; a TOML file) and the contract of a task kind. Knows no model."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from numpy.typing import NDArray

from fewtune import registry
from fewtune.data.example import Example
from fewtune.data.readers import Written
from fewtune.errors import TaskError
from fewtune.tasks.metrics import Measures, Ratio

RESERVED = ("slot", "sep")
Offered = Literal["task", "row", "none"]


@dataclass(frozen=True)
class Task:
    """What is asked of a text. A new task is a value of this type, a new task *kind* is a file of code.

    `fields` are the names that templates may use, `label_name` is the cue for the answer in default templates. `description` says in
    plain language what is asked, `descriptions` what a text of each label is like; a sentence each, and none is needed.
    Empty `templates` and `words` stand for the defaults of `fewtune.prompt.defaults`. `kind` is written as flags have it:
    `regression:low=0,high=5`; it says whether there are labels (`TaskKind.offered`).
    """

    labels: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("text",)
    templates: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_name: str = "label"
    name: str = "task"
    kind: str = "classification"
    description: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_labels(self)
        _unique(self.fields, "fields")
        for name in self.fields:
            if name in RESERVED:
                raise TaskError(
                    expected="a field with a name of its own",
                    got=f'"{name}"',
                    where="task.fields",
                    fix=f"{{{name}}} has a meaning in templates; rename the column.",
                )
        for what, given in (("words", self.words), ("descriptions", self.descriptions)):
            for label in given:
                if label not in self.labels:
                    raise TaskError(
                        expected=f"{what} for a label of the task",
                        got=f'"{label}"',
                        where=f"task.{what}",
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
        description: str = "",
        descriptions: Mapping[str, str] | None = None,
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
            description=description,
            descriptions=descriptions or {},
        )

    @classmethod
    def regression(
        cls,
        *,
        low: float | None = None,
        high: float | None = None,
        poles: tuple[str, str] = ("low", "high"),
        template: str | None = None,
        templates: Sequence[str] = (),
        words: Mapping[str, Sequence[str] | str] | None = None,
        fields: Sequence[str] = ("text",),
        label_name: str = "score",
        name: str = "task",
        description: str = "",
    ) -> Task:
        """A task whose answer is a number from `low` to `high`; what is not given is the least and the greatest value of the labelled rows.

        `poles` name the two ends, the low one first; `words` are theirs.
        """
        closed = cls.classification(
            poles,
            template=template,
            templates=templates,
            words=words,
            fields=fields,
            label_name=label_name,
            name=name,
            description=description,
        )
        return replace(closed, kind=_kind({"name": "regression", "low": low, "high": high}))

    @classmethod
    def multilabel(
        cls,
        labels: Sequence[str],
        *,
        separator: str = "|",
        threshold: float | None = None,
        template: str | None = None,
        templates: Sequence[str] = (),
        fields: Sequence[str] = ("text",),
        label_name: str = "label",
        name: str = "task",
    ) -> Task:
        """A task whose answer is any number of labels, none included, written with `separator` between them.

        A label is answered where its probability reaches `threshold`; `None` leaves that to the labelled rows.
        """
        closed = cls.classification(labels, template=template, templates=templates, fields=fields, label_name=label_name, name=name)
        given = None if separator == "|" else separator
        return replace(closed, kind=_kind({"name": "multilabel", "separator": given, "threshold": threshold}))

    @classmethod
    def choice(
        cls,
        candidates: str | Sequence[str] = "choices",
        *,
        label: str | None = None,
        separator: str = "|",
        template: str | None = None,
        templates: Sequence[str] = (),
        fields: Sequence[str] = ("question",),
        label_name: str = "answer",
        name: str = "task",
    ) -> Task:
        """A task whose candidates differ from row to row: `Example.candidates`, or what stands in the column `candidates` (a list, or
        texts with `separator` between them) or in several such columns, one in each.

        `label` says how a label names a candidate: by its `text`, its `column`, or its place, being what the first one is called (`0`, `1`,
        `A`); `None` leaves that to the labelled rows.
        """
        listed = [candidates] if isinstance(candidates, str) else list(candidates)
        kind = _kind({"name": "choice", "candidates": listed, "separator": None if separator == "|" else separator, "label": label})
        given = (template, *templates) if template is not None else tuple(templates)
        return cls(fields=tuple(fields), templates=given, label_name=label_name, name=name, kind=kind)

    @classmethod
    def generation(
        cls,
        *,
        stop: Sequence[str] = ("\n",),
        max_tokens: int = 32,
        template: str | None = None,
        fields: Sequence[str] = ("text",),
        label_name: str = "answer",
        name: str = "task",
        description: str = "",
    ) -> Task:
        """A task whose answer is free text of at most `max_tokens` tokens, which ends before any of `stop`, or where the PLM ends it."""
        return cls(
            fields=tuple(fields),
            templates=() if template is None else (template,),
            label_name=label_name,
            name=name,
            kind=_kind({"name": "generation", "stop": [text.replace("\\", "\\\\") for text in stop], "max_tokens": max_tokens}),
            description=description,
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
        """The task that `to_dict` wrote, or a TOML file holds; one template or word may stand without its list, a kind as a table."""
        shaped = dict(data)
        if isinstance(shaped.get("kind"), Mapping):
            shaped["kind"] = _kind(shaped["kind"])
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
        names = ("name", "kind", *(["description"] if self.description else []), "labels", "fields", "label_name", "templates")
        lines = [f"{name} = {_toml(getattr(self, name))}" for name in names]
        return "\n".join([*lines, *_table("words", self.words), *_table("descriptions", self.descriptions), ""])


def _table(name: str, entries: Mapping[str, str | tuple[str, ...]]) -> list[str]:
    return ["", f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in entries.items())] if entries else []


def _toml(value: str | tuple[str, ...]) -> str:
    if not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskError(expected="text", got=f"half of a surrogate pair in {ascii(value[:40])}", where="task", fix="Remove it.")
    # TOML's escapes are those of JSON, and one character more must be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _kind(data: Mapping[str, registry.Plain]) -> str:
    """A kind's name and fields as flags have them; a field that is `None` is left out, and in a list what a flag cannot hold is escaped.

    >>> _kind({"name": "regression", "low": 0, "high": 5})
    'regression:low=0,high=5'
    """
    given = {key: list(map(_escaped, value)) if isinstance(value, list | tuple) else value for key, value in data.items()}
    fields = ",".join(f"{key}={registry.spoken(value)}" for key, value in given.items() if key != "name" and value is not None)
    return f"{data.get('name', '')}:{fields}" if fields else str(data.get("name", ""))


def _escaped(value: registry.Plain) -> str:
    """With commas, pluses, line ends and white space at the edges written as `fewtune.tasks.generation` reads them."""
    text, marks = str(value), {"\n": r"\n", "\t": r"\t"}
    edges = len(text) - len(text.lstrip()), len(text.rstrip())
    return "".join(
        marks.get(one) or (f"\\u{ord(one):04x}" if one in ",+" or not edges[0] <= place < edges[1] else one)
        for place, one in enumerate(text)
    )


def _check_labels(task: Task) -> None:
    """Raise `TaskError` for labels that are not named or not distinct, and for any in a task whose kind has none."""
    from fewtune.tasks import KINDS  # the table of kinds knows tasks; here a task asks its own kind

    if KINDS.member(task.kind.partition(":")[0].strip(), "task.kind").offered == "task":
        _unique(task.labels, "labels")
    elif task.labels:
        fix = "Leave the labels out: rows have candidates of their own, or the answer is free."
        raise TaskError(expected=f"no labels, for kind {task.kind}", got=", ".join(task.labels), where="task.labels", fix=fix)


def candidates_of(task: Task, example: Example) -> tuple[str, ...]:
    """What the row is answered from: the task's labels, or the row's own candidates; none where the answer is free text."""
    return task.labels or example.candidates or ()


def _unique(names: Sequence[str], what: str) -> None:
    if not names or len(set(names)) < len(names) or any(not name.strip() for name in names):
        raise TaskError(
            expected=f"{what} that are named and differ",
            got=", ".join(map(repr, names)) or "none",
            where=f"task.{what}",
            fix="Give each a name of its own.",
        )


class TaskKind(Protocol):
    """What a kind of task decides: how labels are written, whether examples fit, what the numbers to learn are, what scores mean.

    A frozen dataclass; its fields are what a task says beside its labels. Where each row has candidates of its own, scores have a column
    for each place up to that of the most candidates, and probabilities are 0 where a row has fewer.
    """

    offered: ClassVar[Offered]
    """Who offers the candidates: the task, whose labels they are; each row its own (`Example.candidates`), and the task has no labels;
    or nobody, for the answer is free text."""
    paired: ClassVar[bool]
    """Whether two rows either share a label or do not, so that a readout may learn from pairs of them."""
    estimated: ClassVar[str]
    """The metric that is estimated, and by which methods are held against each other: `ratio` says what each row adds to it."""
    independent: ClassVar[bool]
    """Whether each candidate is judged for itself (a sigmoid of its score) or against the others (softmax)."""

    @property
    def undecided(self) -> bool:
        """Whether answers need a figure that rows not seen must choose."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the measures that fit the kind, the main one first."""
        ...

    @property
    def written(self) -> Written:
        """How a row's label is written."""
        ...

    def labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The labels of a task of which only rows are known; none where the kind has none."""
        ...

    def settled(self, task: Task, examples: Sequence[Example]) -> tuple[Task, str | None]:
        """The task with what it left to the labelled rows, and a sentence for the user if there is something to say.

        Raises `TaskError` or `DataError` where the rows cannot settle it.
        """
        ...

    def decided(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Task:
        """The task with that figure, from labelled rows and what models that had not seen them found probable; a usual one without rows."""
        ...

    def check(self, task: Task, examples: Sequence[Example], where: str) -> None:
        """Raise `DataError` when the labelled `examples` do not fit the task."""
        ...

    def targets(self, task: Task, examples: Sequence[Example]) -> list[int] | list[list[float]] | list[list[bool]]:
        """What scores are to learn, a row each: the index of the answer among the candidates, a probability for each, or a yes or no
        for each.

        `fewtune.train.losses.cross_entropy` is the loss of all three forms.
        """
        ...

    def answers(self, task: Task, examples: Sequence[Example], probabilities: Sequence[Sequence[float]]) -> list[str]:
        """The answer in words to each of the examples, from probabilities over the candidates."""
        ...

    def confidence(self, task: Task, probabilities: Sequence[float]) -> float | None:
        """How probable the answer to one row is; None where an answer has no probability of its own."""
        ...

    def measure(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Measures:
        """The `metrics` of labelled examples, with their intervals."""
        ...

    def ratio(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Ratio:
        """What the answer to each labelled example adds to the metric `estimated`."""
        ...

    def lacking(self, task: Task, examples: Sequence[Example], folds: int) -> str | None:
        """What the labelled rows would need to have so that some can be held out, in `folds` parts, to judge by; None if they have it."""
        ...

    def groups(self, task: Task, examples: Sequence[Example], quantiles: int) -> list[str]:
        """What draws of rows balance over: each row's label, or which of so many quantiles its value lies in."""
        ...

    def drawn(self, task: Task, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """Of what each row is a shot: its label, its half of the values, or all of its labels."""
        ...

    def described(self, task: Task) -> str:
        """A sentence on what is answered."""
        ...


class NothingOpen:
    """What kinds share whose tasks leave nothing to the labelled rows."""

    def settled(self, task: Task, examples: Sequence[Example]) -> tuple[Task, str | None]:
        """The task as it is."""
        del examples
        return task, None

    def decided(self, task: Task, examples: Sequence[Example], probabilities_NC: NDArray[Any]) -> Task:
        """The task as it is: nothing is left to decide."""
        del examples, probabilities_NC
        return task
