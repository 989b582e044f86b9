"""Which rows of one set stand in another, whatever their case, punctuation and columns. Knows texts; no file, no task.

A pair whose one text is long enough to be known again overlaps with whatever else holds that text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fewtune.data.example import Example

_ENOUGH = 6  # words of a text that says of itself where it comes from; shorter ones are many rows' own
_WORD = re.compile(r"\w+")


def normalised(text: str) -> str:
    """The words of a text in small letters, with one space between them.

    >>> normalised("A dull,  lifeless MESS .")
    'a dull lifeless mess'
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def found_in(rows: Sequence[Example], others: Mapping[str, Iterable[Example]]) -> dict[int, str]:
    """The numbers of the `rows` that stand in one of the `others`, each with the name of the first that holds it."""
    holder: dict[str, str] = {}
    for name, examples in others.items():
        for example in examples:
            for key in _keys(example):
                holder.setdefault(key, name)
    held = ((number, next((holder[key] for key in _keys(row) if key in holder), None)) for number, row in enumerate(rows))
    return {number: name for number, name in held if name is not None}


def _keys(example: Example) -> Iterator[str]:
    """By what an example is known again: all its words in any order of its texts, and each of its longer texts."""
    texts = [text for text in map(normalised, example.fields.values()) if text]
    yield " | ".join(sorted(texts))
    yield from (text for text in texts if text.count(" ") + 1 >= _ENOUGH)
