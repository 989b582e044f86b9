"""The part of Jinja that is text with holes → template text. There is no engine here: what is not understood is refused by name.

Understood: `{{ field }}`, `{{ field | trim }}`, `{{ "text" }}`, `{{ answer_choices[0] }}`, `{{ answer_choices | join(", ") }}`, comments,
and `-` at a bracket for white space; in the target `{{ answer_choices[label] }}`, which is the slot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fewtune.prompt.importers.imported import placed, refusal, value
from fewtune.prompt.template import literal

_STRING = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
_OPENING = re.compile(r"\{[{%#]")
_HOLE = re.compile(r"\{\{-?((?:" + _STRING + r"|[^\"'}]|\}(?!\}))*)\}\}", re.DOTALL)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_NAME = re.compile(r"([A-Za-z_]\w*)(?:\s*\|\s*trim)?")
_ONE = re.compile(r"answer_choices\s*\[\s*(?:([0-9]{1,4})|[A-Za-z_]\w*)\s*\]")
_JOIN = re.compile(r"answer_choices\s*\|\s*join\s*\(\s*(" + _STRING + r")\s*\)", re.DOTALL)
_FIX = "Only fields, quoted text, answer_choices and comments are read; write the rest out."


def text_of(source: str, choices: Sequence[str], where: str, *, target: bool) -> str:
    """Template text for a Jinja text; raises `TaskError` with the name of what is not understood. A slot is for the `target` only."""
    written, position, trimmed = "", 0, False
    while position < len(source):
        found = _OPENING.search(source, position)
        end = found.start() if found else len(source)
        plain = source[position:end]
        plain = plain.lstrip() if trimmed else plain
        mark = _mark(source, end, where) if found else ""
        # A minus takes the white space of the text beside it, not of what a hole is filled with.
        written += literal(plain.rstrip() if mark[2:3] == "-" else plain)
        position, trimmed = end + len(mark), mark[-3:-2] == "-"
        if mark.startswith("{{"):
            written += _hole(mark[2:-2].removeprefix("-").removesuffix("-").strip(), choices, where, target=target)
    return written


def _mark(source: str, start: int, where: str) -> str:
    """The whole of what opens at `start`."""
    kind = source[start : start + 2]
    if kind == "{%":
        name = re.match(r"\{%[-+]?\s*(\w*)", source[start:])
        raise refusal(f"{{% {name[1] if name else ''} %}}", where, _FIX)
    found = (_HOLE if kind == "{{" else _COMMENT).match(source, start)
    if found is None:
        raise refusal(f"{source[start : start + 20]!r}", where, "Close it.", "brackets that are closed")
    return found[0]


def _hole(expression: str, choices: Sequence[str], where: str, *, target: bool) -> str:
    if re.fullmatch(_STRING, expression, re.DOTALL):
        return literal(str(value(expression, where)))
    if joined := _JOIN.fullmatch(expression):
        return literal(str(value(joined[1], where)).join(choices))
    if one := _ONE.fullmatch(expression):
        return _choice(one, choices, where, target=target)
    name = _NAME.fullmatch(expression)
    if name is None or name[1] == "answer_choices":
        raise refusal(f"{{{{ {expression[:60]} }}}}", where, _FIX)
    return placed(name[1], where)


def _choice(found: re.Match[str], choices: Sequence[str], where: str, *, target: bool) -> str:
    number = found[1]
    if number is None and target:
        return "{slot}"
    if number is None or int(number) >= len(choices):
        raise refusal(f"{{{{ {found[0]} }}}}", where, "The answer stands behind |||, and there must be a choice of that number.")
    return literal(choices[int(number)])
