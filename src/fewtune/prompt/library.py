"""Templates to try: a small library for each kind of task and number of fields, and paraphrases of the user's. Knows a task, no model.

In the library `{a}`, `{b}` are the fields, `{A}`, `{B}` their names as cues, `{f}` the first field's name in running text, `{L}` and `{l}`
that of the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fewtune.prompt.defaults import cue, templates_of
from fewtune.prompt.template import Field, Slot, Template, literal
from fewtune.tasks.task import Task

LIBRARY: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    "classification": {
        1: (
            "{A}: {a}\n{L}: {slot}",
            "{a}\n{L}: {slot}",
            "{A}: {a}\nQuestion: What is the {l} of this {f}?\nAnswer: {slot}",
            "What is the {l} of the following {f}?\n{a}\nAnswer: {slot}",
            "{a} It was {slot}",  # Gao et al. 2021, table 1; the slot is followed by a full stop where a model can see it
            "{a} All in all, it was {slot}",  # Schick & Schütze 2021, section 4, Yelp
            "{a}\nIn summary, the {l} is {slot}",
            "{a} This is {slot}",
            "{a}\nCategory: {slot}",  # section 4, AG's News
            "{slot}: {a}",
            "{a} ({slot})",
            "[ {L}: {slot} ] {a}",
        ),
        2: (
            "{A}: {a}\n{B}: {b}\n{L}: {slot}",
            "{a}\n{b}\n{L}: {slot}",
            "{A}: {a}\n{B}: {b}\nQuestion: What is the {l}?\nAnswer: {slot}",
            "{a}\nQuestion: {b}\nAnswer: {slot}",
            '"{a}"\n"{b}"\n{L}: {slot}',
            "{a} {b} This is {slot}",
            "{a}? {slot}, {b}",  # Schick & Schütze 2021, section 4, MNLI; Gao et al. 2021, table 1
            '"{a}"? {slot}, "{b}"',
            "{a} {slot}, {b}",
        ),
    },
}
"""For autoregressive models only those count that end with the slot."""


def candidates(task: Task, *, causal: bool, proposed: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Templates for the task: those that it has (or the default) first, then what was `proposed`, paraphrases and the library's in turn,
    each once.

    A model that sees what follows the slot is shown a full stop there: without one, a full stop is what it would put in the slot.
    """
    given = task.templates or templates_of(task, slot=True)
    made = (
        *_in_turn(proposed, paraphrases(given[0], task), library(task)),
        *(text for one in given[1:] for text in paraphrases(one, task)),
    )
    ending = "" if causal else "."
    ended = (text + ending if text.endswith("{slot}") else text for text in made)
    return tuple(dict.fromkeys((*given, *(text for text in ended if not causal or text.endswith("{slot}")))))


def _in_turn(*series: tuple[str, ...]) -> Iterator[str]:
    longest = max(map(len, series))
    return (one[place] for place in range(longest) for one in series if place < len(one))


def library(task: Task) -> tuple[str, ...]:
    """The library's templates for a task of this kind and number of fields, with its names in them; none where there are none."""
    names = dict(zip("ab", task.fields, strict=False))
    parts = {place: f"{{{name}}}" for place, name in names.items()}
    cues = {place.upper(): literal(cue(name)) for place, name in names.items()}
    words = {"f": literal(cue(task.fields[0]).lower()), "L": literal(cue(task.label_name)), "l": _spoken(task), "slot": "{slot}"}
    listed = LIBRARY.get(task.kind, {}).get(len(task.fields), ())
    return tuple(text.format(**parts, **cues, **words) for text in listed)


def paraphrases(text: str, task: Task) -> tuple[str, ...]:
    """The same question in other words: without cues, on one line or several, with another cue or a question before the slot.

    Where a field follows the slot only the line breaks are changed, for the rest would be another question.

    >>> paraphrases("Review: {text} It was {slot}", Task(labels=("good", "bad"), label_name="mood"))[:2]
    ('Review: {text}\\nIt was {slot}', '{text} It was {slot}')
    """
    parts = Template.parse(text).parts
    last = max(place for place, part in enumerate(parts) if isinstance(part, Field))
    slot = next(place for place, part in enumerate(parts) if isinstance(part, Slot))
    if slot < last:
        return tuple(one for one in (text.replace("\n", " "),) if one != text)
    body, tail = str(Template(parts[: last + 1])), str(Template(parts[last + 1 :]))
    bare = "\n".join(f"{{{name}}}" for name in Template.parse(text).names)
    made = (
        body.replace("\n", " ") + " " + tail.lstrip() if "\n" in text else f"{body}\n{tail.lstrip()}",
        bare + tail,
        f"{body}\nAnswer: {{slot}}",
        f"{body}\nQuestion: What is the {_spoken(task)}?\nAnswer: {{slot}}",
        f"What is the {_spoken(task)}?\n{text}",
    )
    return tuple(dict.fromkeys(one for one in made if one != text))


def _spoken(task: Task) -> str:
    return literal(cue(task.label_name).lower())
