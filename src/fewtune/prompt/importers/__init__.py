"""The table of notations in which other tools write templates, and the one door to it.

Nothing in what is read is run or evaluated. Knows texts and files; no tokenizer, no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fewtune import registry
from fewtune.errors import TaskError
from fewtune.prompt.importers import lm_bff, openprompt, pet, promptsource
from fewtune.prompt.importers.imported import Imported


@dataclass(frozen=True)
class Notation:
    """What a text in a notation must hold to be recognised, and the function of (text, where) that reads it."""

    sign: re.Pattern[str]
    read: Callable[[str, str], Imported]


# In the order in which they are tried.
NOTATIONS: Mapping[str, Notation] = {
    "promptsource": Notation(promptsource.SIGN, promptsource.read),
    "openprompt": Notation(openprompt.SIGN, openprompt.read),
    "lm-bff": Notation(lm_bff.SIGN, lm_bff.read),
    "pet": Notation(pet.SIGN, pet.read),
}


def read(source: str | Path, notation: str | None = None) -> Imported:
    """What a text, or the file at a `Path`, holds; the notation is recognised where it is not named.

    Raises `TaskError`, with file and line, for a notation that is unknown or not recognised and for what cannot be carried over.
    """
    where = str(source) if isinstance(source, Path) else "template"
    text = _text(source) if isinstance(source, Path) else source
    found = NOTATIONS[_recognised(text, where) if notation is None else _known(notation, where)].read(text, where)
    _check_characters(found, where)
    return replace(found, name=found.name or (source.stem if isinstance(source, Path) else "task"))


def read_all(path: Path) -> tuple[Imported, ...]:
    """All that a promptsource file holds: the templates of each set of answer choices for themselves.

    Raises `TaskError`, with file and line, where nothing of it can be carried over.
    """
    found = promptsource.read_all(_text(path), str(path))
    for one in found:
        _check_characters(one, str(path))
    return tuple(replace(one, name=one.name or path.stem) for one in found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise TaskError(expected="a text file in UTF-8", got=got, where=str(path), fix="Check the path and the encoding.") from None


def _recognised(text: str, where: str) -> str:
    name = next((name for name, notation in NOTATIONS.items() if notation.sign.search(text)), None)
    if name is None:
        fix = f"Name it with --notation. Known: {', '.join(NOTATIONS)}."
        raise TaskError(expected="templates in a notation that is known", got="none that is recognised", where=where, fix=fix)
    return name


def _known(name: str, where: str) -> str:
    if name not in NOTATIONS:
        raise TaskError(expected="a notation", got=f'"{name}"', where=where, fix=registry.nearest(name, NOTATIONS))
    return name


def _check_characters(found: Imported, where: str) -> None:
    """An escape can name half of a surrogate pair, which no file and no terminal takes."""
    texts = [found.name, *found.templates, *found.labels, *(word for words in found.words.values() for word in words)]
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise TaskError(expected="text", got=f"half of a surrogate pair in {ascii(text[:40])}", where=where, fix="Remove it.")
