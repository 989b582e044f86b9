"""OpenPrompt's notation: `{"placeholder": "text_a"} It was {"mask"}.` A line is a template.

Source of the notation: OpenPrompt's documentation of templates (Ding et al. 2022). What stands in braces is read as a literal,
never evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fewtune.prompt.importers.imported import Imported, Note, checked, gathered, lines, placed, refusal, value
from fewtune.prompt.template import literal

_KINDS = ("placeholder", "meta", "mask", "soft", "text", "special")
SIGN = re.compile(r"\{\s*[\"'](?:" + "|".join(_KINDS) + r")[\"']\s*[,:}]")
_BRACES = re.compile(r"\{(?:\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^{}\"'])*\}", re.DOTALL)


def read(text: str, where: str) -> Imported:
    """A template for each line; raises `TaskError` for `post_processing`, soft tokens without words, and whatever else is not text."""
    notes: list[Note] = []
    templates = [_template(line, place, notes) for place, line in lines(text, where)]
    return Imported("", tuple(dict.fromkeys(templates)), notes=gathered(notes))


def _template(line: str, where: str, notes: list[Note]) -> str:
    written, position = "", 0
    while position < len(line):
        if line[position] != "{":
            end = line.find("{", position) if "{" in line[position:] else len(line)
            written += literal(re.sub(r"^ +| +$", " ", line[position:end]))
        else:
            braces = _BRACES.match(line, position)
            if braces is None:
                raise refusal(f"{line[position : position + 20]!r}", where, "Close the brace.", "a dictionary in braces")
            end = braces.end()
            written += _piece(_dictionary(braces[0], where), where, notes, first=not written, last=not line[end:].strip())
        position = end
    return checked(written.rstrip(" "), where)


def _dictionary(text: str, where: str) -> dict[Any, Any]:
    if re.search(r"[\"']post_processing[\"']", text):
        fix = "Take it out: code is never run, and white space around a field goes away without it."
        raise refusal("post_processing", where, fix)
    found = value(text, where)
    values = dict.fromkeys(found) if isinstance(found, set) else found
    kinds = [key for key in values if key in _KINDS]
    if len(kinds) != 1 or set(values) - {"shortenable", *kinds}:
        fix = f"Use one of {', '.join(_KINDS)}, with no more than shortenable beside it."
        raise refusal(text, where, fix, "a dictionary that templates can have")
    return dict(values)


def _piece(values: Mapping[Any, Any], where: str, notes: list[Note], *, first: bool, last: bool) -> str:
    kind = next(key for key in values if key in _KINDS)
    given = values[kind]
    if "shortenable" in values and bool(values["shortenable"]) != (kind in ("placeholder", "meta")):
        notes.append((where, "shortenable is left out: fields are shortened where a row is too long, words are not."))
    if kind == "mask":
        return "{slot}"
    if not isinstance(given, str):
        fix = "--delta soft-prompt trains vectors; a template holds words." if kind == "soft" else "Write a text in quotes."
        raise refusal(repr(dict(values)), where, fix, f"a text for {kind}")
    if kind in ("placeholder", "meta"):
        return placed(given, where)
    if kind == "special":
        return _special(given, where, first=first, last=last)
    if kind == "soft":
        notes.append((where, "The words of soft tokens are kept as plain words, which are not trained."))
    return literal(given)


def _special(name: str, where: str, *, first: bool, last: bool) -> str:
    """What the tokenizer puts around a text by itself is left to it."""
    if (name == "<cls>" and first) or (name in ("<sep>", "<eos>") and last):
        return ""
    if name == "<sep>":
        return "{sep}"
    raise refusal(f'{{"special": "{name}"}}', where, "Known: <sep>; <cls> at the front; <eos> at the end.")
