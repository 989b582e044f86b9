"""PET's files of label words: a pattern's number on a line of its own, then lines of `label word word`.

Source of the notation: the verbalizer files of Schick & Schütze 2021. PET's patterns are Python code, which is not read.
"""

from __future__ import annotations

import re

from fewtune.prompt.importers.imported import Imported, gathered, lines, refusal

SIGN = re.compile(r"\A\s*[0-9]+[ \t\r]*\n")
_PATTERNS = "PET writes its patterns in Python code, which is not read: add templates."
_OTHERS = "The words of other patterns differ from the first one's and are left out."


def read(text: str, where: str) -> Imported:
    """The label words of the first pattern; raises `TaskError` for a line that has no pattern, no words, or a label that was there."""
    patterns: dict[str, dict[str, tuple[str, ...]]] = {}
    current: dict[str, tuple[str, ...]] | None = None
    for place, line in lines(text, where):
        label, *words = line.split()
        if not words and label.isdigit():
            current = patterns.setdefault(label, {})
        elif current is None:
            raise refusal(f"{line[:40]!r}", place, "Begin with a line that holds 0.", "the number of a pattern")
        elif not words or label in current:
            raise refusal(f"{line[:40]!r}", place, "Write each label once, with its words behind it.", "a label and its words")
        else:
            current[label] = tuple(dict.fromkeys(words))
    first = next(iter(patterns.values()), {})
    if not first:
        raise refusal("none", where, "Write lines of a label and its words.", "label words")
    others = [_OTHERS] if any(other != first for other in patterns.values()) else []
    return Imported("", (), first, tuple(first), gathered((where, note) for note in (_PATTERNS, *others)))
