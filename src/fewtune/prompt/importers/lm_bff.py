"""LM-BFF's star notation: `*cls**sent_0*_It_was*mask*.*sep+*`, and its label words `{'0':'terrible','1':'great'}`.

Source of the notation: Gao et al. 2021, the comments of their data set's code. A line is a template, label words, or both with a tab
between.
"""

from __future__ import annotations

import re

from fewtune.prompt.importers.imported import Imported, Note, checked, gathered, lines, placed, refusal, value, word_lists
from fewtune.prompt.template import literal

SIGN = re.compile(r"\*(?:mask|cls|\+?sent[lu]?-?_[0-9]+)\*|\A\s*\{")
_SENTENCE = re.compile(r"(\+?)sent([lu]?)(-?)_([0-9]+)")
_SEPARATORS = ("sep", "sep+")
_CASES = {"l": "The first letter of a text is not made small.", "u": "The first letter of a text is not made a capital."}


def read(text: str, where: str) -> Imported:
    """Templates and label words, line by line; raises `TaskError` for a line that is neither and for demonstrations (`*label_i*`)."""
    templates: list[str] = []
    notes: list[Note] = []
    words: dict[str, tuple[str, ...]] = {}
    for place, line in lines(text, where):
        template, _, mapping = ("", "", line) if line.lstrip().startswith("{") else line.partition("\t")
        if template:
            templates.append(_template(template, place, notes))
        if mapping.strip():
            found = word_lists(value(mapping, place), place)
            if words and found != words:
                notes.append((place, "Other label words than the first are left out."))
            words = words or found
    return Imported("", tuple(dict.fromkeys(templates)), words, tuple(words), gathered(notes))


def _template(text: str, where: str, notes: list[Note]) -> str:
    parts = [part for part in text.split("*") if part]
    parts = parts[1:] if parts[:1] == ["cls"] else parts
    parts = parts[:-1] if parts and parts[-1] in _SEPARATORS else parts
    return checked("".join(_piece(part, where, notes) for part in parts), where)


def _piece(part: str, where: str, notes: list[Note]) -> str:
    if part == "mask":
        return " {slot}"  # its label words are the ones with a space in front
    if part in _SEPARATORS:
        return "{sep}"
    if part == "cls" or part.startswith(("label_", "labelx_")):
        raise refusal(f"*{part}*", where, "Demonstrations are no part of a template, and *cls* stands at the front only.")
    if part.startswith(("sent", "+sent")):
        return _sentence(part, where, notes)
    return literal(part.replace("_", " "))


def _sentence(part: str, where: str, notes: list[Note]) -> str:
    found = _SENTENCE.fullmatch(part)
    if not found:
        raise refusal(f"*{part}*", where, "Known: *sent_0*, *+sent_0*, *sent-_0*, *sentl_0*, *sentu_0*.")
    space, case, minus, number = found.groups()
    if case:
        notes.append((where, _CASES[case]))
    if minus:
        notes.append((where, "The last character of a text is kept."))
    return (" " if space else "") + placed(f"sent_{number}", where)
