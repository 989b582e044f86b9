"""What is asked when the user gave only data: templates from the columns' names, words from the labels' names, letters where
names cannot be told apart. Knows a task and a tokenizer, no model."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fewtune.errors import TaskError
from fewtune.prompt.template import Template, literal
from fewtune.prompt.verbalizer import Verbalizer, WholeWords, WordIds
from fewtune.tasks.task import Task


@dataclass(frozen=True)
class Asked:
    """Templates with the label words' ids for each (none for a head), and sentences for the user.

    `fills` are what stands in the slot of a demonstration: each label's first word.
    """

    templates: tuple[Template, ...]
    words: tuple[WordIds, ...] | tuple[WholeWords, ...] = ()
    notes: tuple[str, ...] = ()
    fills: tuple[str, ...] = ()


def resolve(task: Task, tokenizer: Any, *, slot: bool, whole: bool = False, reverses: bool = False, seq2seq: bool = False) -> Asked:
    """Settle templates and words for one tokenizer; `slot` says whether there is a word, `whole` whether all of its tokens count,
    `reverses` whether the texts come after it, `seq2seq` whether a decoder writes it.

    Raises `TaskError` for a template that does not fit the task and for given words that cannot be told apart.
    """
    templates, verbalizer = _settled(task, slot=slot, reverses=reverses)
    if not slot or not task.labels:
        return Asked(templates)
    if whole:
        words = tuple(verbalizer.whole(tokenizer, lead=lead(template, seq2seq=seq2seq)) for template in templates)
        return Asked(templates, words, fills=verbalizer.firsts)
    try:
        return _asked(templates, verbalizer, tokenizer, seq2seq=seq2seq)
    except TaskError:
        if task.words:
            raise
    return _with_codes(task, templates, tokenizer, seq2seq=seq2seq)


def lead(template: Template, *, seq2seq: bool) -> str | None:
    """What stands before a word in the slot: the template's spaces, or None where a decoder begins with the word."""
    return None if seq2seq and template.open else template.lead


def _settled(task: Task, *, slot: bool, reverses: bool = False) -> tuple[tuple[Template, ...], Verbalizer]:
    """The templates and words that a task has, or those that its names make."""
    texts = task.templates or templates_of(task, slot=slot, reverses=reverses)
    before = introduction(task) if slot else ""
    templates = tuple(Template.parse(before + text, f"template {number + 1}") for number, text in enumerate(texts))
    for number, template in enumerate(templates):
        template.check(task.fields, slot=slot, reverses=reverses, where=f"template {number + 1}")
    return templates, Verbalizer({label: task.words.get(label, (spoken(label),)) for label in task.labels})


def single_tokens(task: Task, tokenizer: Any, *, seq2seq: bool = False) -> bool:
    """Whether each label word is one token of its own behind every template, so that one token tells the labels apart."""
    templates, verbalizer = _settled(task, slot=True)
    try:
        words = [verbalizer.whole(tokenizer, lead=lead(template, seq2seq=seq2seq)) for template in templates]
    except TaskError:
        return True  # whatever is wrong is said when the words are read
    return all(len(word) == 1 for found in words for candidate in found.ids for word in candidate)


def _asked(templates: tuple[Template, ...], verbalizer: Verbalizer, tokenizer: Any, *, seq2seq: bool) -> Asked:
    words = tuple(verbalizer.ids(tokenizer, lead=lead(template, seq2seq=seq2seq)) for template in templates)
    return Asked(templates, words, tuple(dict.fromkeys(note for ids in words for note in ids.notes)), verbalizer.firsts)


def templates_of(task: Task, *, slot: bool, reverses: bool = False) -> tuple[str, ...]:
    """What is asked where the task has no template: each field after its cue, then the label's; the fields alone where no word is read.

    With `reverses` the label's line comes first. A task without labels asks for an answer, unless its cue has another name.
    """
    if not slot:
        return ("{sep}".join(f"{{{name}}}" for name in task.fields),)
    lines = [f"{literal(cue(name))}: {{{name}}}" for name in task.fields]
    asked = task.label_name if task.labels or task.label_name != "label" else "answer"
    answer = f"{literal(cue(asked))}: {{slot}}"
    return ("\n".join([answer, *lines] if reverses else [*lines, answer]),)


def introduction(task: Task) -> str:
    """What stands before every template in which a word is read: the task's description, on a line of its own.

    >>> introduction(Task(("ham", "spam"), description="Is the message wanted?"))
    'Is the message wanted?\\n'
    """
    described = task.description.strip()
    return f"{literal(described)}\n" if described else ""


def sentences(task: Task) -> tuple[tuple[str, ...], ...]:
    """Each label as sentences to which texts are compared: its description, or one for each of its words; with the task's description also
    followed by that.

    >>> sentences(Task(("ham", "spam"), words={"spam": ("junk",)}, descriptions={"ham": "A message from a friend."}))
    (('A message from a friend.',), ('This text is about junk.',))
    """
    asked = task.description.strip()
    found = []
    for label in task.labels:
        words = task.words.get(label, (spoken(label),))
        own = (task.descriptions[label],) if label in task.descriptions else tuple(f"This text is about {word}." for word in words)
        found.append((*own, *(f"{one} {asked}" for one in own if asked)))
    return tuple(found)


def cue(name: str) -> str:
    """A column's name as a person would write it.

    >>> cue("review_text")
    'Review text'
    """
    words = " ".join(re.split(r"[\s_\-]+", name.strip()))
    return words[:1].upper() + words[1:]


def spoken(label: str) -> str:
    """A label's name as words.

    >>> spoken("card_not-working")
    'card not working'
    """
    return " ".join(re.split(r"[\s_\-.]+", label.strip())).strip() or label


def _with_codes(task: Task, templates: tuple[Template, ...], tokenizer: Any, *, seq2seq: bool) -> Asked:
    """List the labels with letters and read the letter."""
    leads = {lead(template, seq2seq=seq2seq) for template in templates if template.slot}
    codes = _codes(len(task.labels), leads, tokenizer)
    options = "\n".join(f"{code}. {spoken(label)}" for code, label in zip(codes, task.labels, strict=True))
    listed, before = literal(f"Options:\n{options}\n"), introduction(task) if task.templates else None
    asked = tuple(_with_options(template, listed, before) for template in templates)
    verbalizer = Verbalizer({label: (code,) for label, code in zip(task.labels, codes, strict=True)})
    note = "Some label names begin with the same token, so the labels are listed with letters and the letter is read."
    settled = _asked(asked, verbalizer, tokenizer, seq2seq=seq2seq)
    return replace(settled, notes=(note, *settled.notes))


def _with_options(template: Template, options: str, before: str | None) -> Template:
    """The options stand at the beginning of a template that the user gave, behind what is `before` it, and before the last line of the
    default one."""
    text = str(template)
    start = text.rindex("\n") + 1 if before is None else len(before)
    return Template.parse(text[:start] + options + text[start:])


def _codes(count: int, leads: set[str | None], tokenizer: Any) -> tuple[str, ...]:
    codes = tuple(itertools.islice(_single_tokens(leads, tokenizer), count))
    if len(codes) < count:
        raise TaskError(
            expected="label names that differ in their first token",
            got=f"{count} labels, more than there are letters for",
            where="words",
            fix="Name words with --words, or use --readout head.",
        )
    return codes


def _single_tokens(leads: set[str | None], tokenizer: Any) -> Iterator[str]:
    """A to Z, then AA, AB …: those that are one token of their own after every lead."""
    letters = string.ascii_uppercase
    seen: set[tuple[int, ...]] = set()
    for code in itertools.chain(letters, map("".join, itertools.product(letters, letters))):
        try:
            words = [Verbalizer({"label": (code,)}).ids(tokenizer, lead=lead) for lead in sorted(leads, key=repr)]
        except TaskError:
            continue
        tokens = tuple(ids.ids[0][0] for ids in words)
        if not any(ids.notes for ids in words) and tokens not in seen:
            seen.add(tokens)
            yield code
