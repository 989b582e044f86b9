"""Draws from examples: k shots, an unlabelled pool, folds, mixtures of tasks. Pure functions of (examples, seed); no file, no model.

Every draw derives its own generator by name, so a new draw in one place never shifts another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import index

import numpy as np

from fewtune.data.example import Example
from fewtune.errors import DataError, SpecError


def derive(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for the use that `names` spell; the same in every process and on every machine.

    >>> derive(13, "order") == derive(13, "order") != derive(13, "init")
    True
    """
    spelled = json.dumps([index(seed), *(name if isinstance(name, str) else index(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(spelled.encode(), digest_size=8).digest(), "big") >> 1


def shots(examples: Sequence[Example], k: int, *, seed: int, groups: Sequence[Sequence[str]] | None = None) -> tuple[Example, ...]:
    """`k` examples of each label, in the order of the input; for one seed, fewer shots are among more shots.

    `groups`, any number of names for each example, stand in for labels: then each name has at least `k` examples, the rarest being drawn
    first, and an example without a name is not drawn. Raises `DataError` if a label has fewer than `k` examples or an example has no label.
    """
    _positive(k, "shots")
    grouped = _by_label(examples) if groups is None else _grouped_by_each(groups)
    for label, members in grouped.items():
        if len(members) < k:
            raise _too_few(f'{k} examples of label "{label}"', len(members), "Ask for fewer shots or label more rows.")
    dealt = {label: _shuffled(members, seed, "shots", label) for label, members in sorted(grouped.items(), key=lambda one: len(one[1]))}
    chosen: set[int] = set()
    for shot in range(k):  # round by round, so that fewer shots are among more
        for members in dealt.values():
            if len(chosen.intersection(members)) <= shot:
                chosen.add(next(position for position in members if position not in chosen))
    return tuple(examples[position] for position in sorted(chosen))


def pool(examples: Sequence[Example], n: int, *, seed: int, without: Sequence[Example]) -> tuple[Example, ...]:
    """Up to `n` examples without their labels, in the order of the input; for one seed, smaller pools are among larger ones.

    None has the text of an example in `without`, be its fields or its label called as they may.
    """
    _positive(n, "pool")
    taken = {text_of(example) for example in without}
    drawn = (position for position in _shuffled(range(len(examples)), seed, "pool") if text_of(examples[position]) not in taken)
    chosen = sorted(position for position, _ in zip(drawn, range(n), strict=False))
    return tuple(replace(examples[position], label=None, shares=None) for position in chosen)


def spread(examples: Sequence[Example], most: int) -> tuple[Example, ...]:
    """At most `most` examples, evenly over the file, which may be sorted by something; all of a smaller one.

    >>> [example.where for example in spread([Example({}, where=f"row {row}") for row in range(7)], 3)]
    ['row 0', 'row 2', 'row 4']
    """
    kept = min(len(examples), most)
    return tuple(examples[number * len(examples) // kept] for number in range(kept))


def folds(
    examples: Sequence[Example], n: int, *, seed: int, groups: Sequence[str] | None = None
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """`n` pairs (indices to train on, indices held out); every row is held out once, each label as evenly as can be.

    The size of what is held out differs by one row at most, and so does the number of rows of each label. `groups`, one name for each
    row, stand in for labels. Raises `DataError` for fewer than `n` rows or a row without a label, `SpecError` for fewer than two folds.
    """
    if n < 2:
        raise SpecError(expected="at least two folds", got=str(n), where="folds", fix="The usual choice is 5.")
    grouped = _by_label(examples) if groups is None else _grouped(groups)
    if len(examples) < n:
        raise _too_few(f"{n} rows for {n} folds", len(examples), "Ask for fewer folds.")
    dealt = [position for group, members in grouped.items() for position in _shuffled(members, seed, "folds", group)]
    held_out = [set(dealt[fold::n]) for fold in range(n)]
    rows = range(len(examples))
    return tuple((tuple(row for row in rows if row not in held), tuple(sorted(held))) for held in held_out)


def capped(examples_by_task: Mapping[str, Sequence[Example]], cap: int, *, seed: int) -> tuple[tuple[str, Example], ...]:
    """A mixture of tasks: (task, example) pairs, at most `cap` of each task, in the order of the input.

    The cap keeps large sets from drowning small ones (Raffel et al. 2020, section 3.5.2).
    """
    _positive(cap, "capped")
    return tuple(
        (task, examples[position])
        for task, examples in examples_by_task.items()
        for position in sorted(_shuffled(range(len(examples)), seed, "capped", task)[:cap])
    )


def rates(sizes: Sequence[int], *, cap: int, temperature: float = 1.0) -> tuple[float, ...]:
    """How often each set of a mixture is drawn from, as shares: in proportion to min(size, `cap`)^(1 / `temperature`).

    The cap keeps large sets from drowning small ones; a temperature above 1 brings all nearer to one another (Raffel et al. 2020,
    section 3.5.2). Raises `SpecError` for a cap or a temperature that is not above 0.

    >>> rates([100, 900, 100_000], cap=1000), rates([100, 900], cap=1000, temperature=2)
    ((0.05, 0.45, 0.5), (0.25, 0.75))
    """
    _positive(cap, "cap")
    if not temperature > 0:
        raise SpecError(expected="a number above 0", got=str(temperature), where="temperature", fix="1 keeps the sizes' proportions.")
    weights = [min(size, cap) ** (1 / temperature) for size in sizes]
    return tuple(weight / sum(weights) for weight in weights)


def turns(shares: Sequence[float], n: int, *, seed: int) -> tuple[tuple[int, int], ...]:
    """`n` draws of a set by its share: (which set, how many times it was drawn before). Fewer draws are the first of more."""
    drawn = np.random.default_rng(derive(seed, "turns")).choice(len(shares), size=n, p=shares).tolist()
    before = [0] * len(shares)
    found = []
    for place in drawn:
        found.append((place, before[place]))
        before[place] += 1
    return tuple(found)


def distinct(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Each text's first example, in the order of the input, so that a text that stands twice is not learned from and judged on."""
    first: dict[tuple[str, ...], Example] = {}
    for example in examples:
        first.setdefault(text_of(example), example)
    return tuple(first.values())


def others(examples: Sequence[Example], *, without: Sequence[Example]) -> tuple[Example, ...]:
    """Each text's first example, but none that has the text of an example in `without`."""
    taken = {text_of(example) for example in without}
    return tuple(example for example in distinct(examples) if text_of(example) not in taken)


def _shuffled(positions: Sequence[int], seed: int, *names: str) -> list[int]:
    order = np.random.default_rng(derive(seed, *names)).permutation(len(positions))
    return [positions[place] for place in order]


def _by_label(examples: Sequence[Example]) -> dict[str, list[int]]:
    labels: list[str] = []
    for position, example in enumerate(examples):
        if example.label is None:
            where = example.where or f"examples[{position}]"
            raise DataError(expected="a label", got="none", where=where, fix="Label the row or drop it.")
        labels.append(example.label)
    if not labels:
        raise _too_few("labelled examples", 0, "Give at least one.")
    return _grouped(labels)


def _grouped(names: Sequence[str]) -> dict[str, list[int]]:
    """The positions of each name, in the order in which names come first."""
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        groups.setdefault(name, []).append(position)
    return groups


def _grouped_by_each(names: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """The positions of each name, where a position may have several."""
    groups: dict[str, list[int]] = {}
    for position, own in enumerate(names):
        for name in dict.fromkeys(own):
            groups.setdefault(name, []).append(position)
    return groups


def text_of(example: Example) -> tuple[str, ...]:
    """The texts by which two examples are the same; what one is answered from is among them."""
    return tuple(text.strip() for text in (*example.fields.values(), *(example.candidates or ())))


def _positive(number: int, where: str) -> None:
    if number < 1:
        raise SpecError(expected="a number above 0", got=str(number), where=where, fix="Ask for at least 1.")


def _too_few(expected: str, got: int, fix: str) -> DataError:
    return DataError(expected=expected, got=str(got), where="sampling", fix=fix)
