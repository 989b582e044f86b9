"""Choose labelled examples to be shown beside a prompt: which, how many of each label, in which order. Knows examples and, where they are
asked for, sentence embeddings; no token and no model.

Gao et al. 2021 (LM-BFF), section 6: one example of each label, drawn anew for each query and epoch (6.1), from the most similar half of
the label's examples (6.2); scores are averaged over several draws at inference. Brown et al. 2020: in-context learning.

Dimensions: Q queries, N labelled examples, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor

from fewtune import registry
from fewtune.data.example import Example
from fewtune.data.sampling import derive, distinct
from fewtune.errors import SpecError, TaskError
from fewtune.tasks.task import Task

Embed = Callable[[Sequence[str]], Tensor]
"""Texts → their embeddings (rows, D), of unit length."""
_Text = tuple[str, ...]


@dataclass(frozen=True)
class Demonstrations:
    """`per_label` examples of each label, drawn from the share `similar` of the label's examples that are most like the query (1: from
    all), by the cosine of their embeddings by `encoder`, a sentence encoder. Answers are the mean over `draws` draws.

    They stand in the `order` of the labels, in a `random` one, or with the `nearest` next to the query. All together may take `budget`
    tokens, beside those of the prompt itself: LM-BFF doubles the length (its `double_demo`), and so does this at the usual
    `max_length` of 256. Where the PLM has no place for that, they get half of what it has at the most.

    One example of each label, half of them, and labels in order are LM-BFF's choices. Its 16 draws (4 on large sets) cost as many times
    the seconds of a prediction; the default is 4. With `similar=1` all queries see the same examples in a draw, whose keys and values
    autoregressive models compute once, and no sentence encoder is needed.
    """

    per_label: int = 1
    similar: float = 0.5
    draws: int = 4
    order: Literal["labels", "random", "nearest"] = "labels"
    budget: int = 256
    encoder: str = "minilm-l6"

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("per_label", self.per_label >= 1, "at least 1"),
            ("similar", 0 < self.similar <= 1, "above 0 and at most 1"),
            ("draws", self.draws >= 1, "at least 1"),
            ("budget", self.budget >= 1, "at least 1"),
        ):
            if not holds:
                got = repr(getattr(self, name))
                raise SpecError(expected=expected, got=got, where=f"demonstrations.{name}", fix="Change the value.")

    @property
    def compares(self) -> bool:
        """Whether texts have to be compared, which needs the sentence encoder."""
        return self.similar < 1 or self.order == "nearest"

    def of(self, examples: Sequence[Example], task: Task, *, seed: int, in_front: bool, embed: Embed | None = None) -> Demonstrated:
        """Ready to be drawn from labelled examples, a text that stands twice counting once; `in_front` says on which side of the query
        they will stand. Raises `TaskError` for an example whose label is none of the task's.
        """
        for example in examples:
            if example.label not in task.labels:
                fix = "Demonstrations show one label of the task for each text."
                raise TaskError(expected="a label of the task", got=repr(example.label), where=example.where or "demonstrations", fix=fix)
        return Demonstrated(self, distinct(examples), task, seed, in_front, embed)


def read(given: registry.Plain, where: str) -> Demonstrations | None:
    """What a flag says as text (`per_label=1,similar=0.5`) or a file as a table; None where nothing or `none` is said."""
    if given is None or given == "none":
        return None
    if isinstance(given, Mapping):
        return registry.from_dict(Demonstrations, given, where)
    return registry.from_text(Demonstrations, str(given), where)


@dataclass(frozen=True)
class Demonstrated:
    """Labelled examples that are drawn from. Every draw is a pure function of (examples, seed, query, number of the draw).

    No query is shown itself, wherever it came from: an example with its text, white space and case aside, is left out. Each label gets
    as many examples as any other: `per_label`, or as many as the rarest has. So where the query was the only example of its label, none
    is shown at all, for a label that is missing would tell which one is right.
    """

    spec: Demonstrations
    examples: tuple[Example, ...]
    task: Task
    seed: int
    in_front: bool
    embed: Embed | None = field(default=None, compare=False)

    @cached_property
    def members(self) -> Mapping[str, list[int]]:
        """The numbers of each label's examples, in the order of the labels; labels without any are left out."""
        found = {label: [number for number, one in enumerate(self.examples) if one.label == label] for label in self.task.labels}
        return {label: numbers for label, numbers in found.items() if numbers}

    @property
    def most(self) -> int:
        """How many examples of each label are shown at the most."""
        return min(self.spec.per_label, *map(len, self.members.values()))

    @cached_property
    def texts(self) -> list[_Text]:
        """What each example says, in a form in which equal texts are equal."""
        return [self._said(example) for example in self.examples]

    @cached_property
    def embeddings_ND(self) -> Tensor:
        """Those of the examples."""
        return self._embedded(self.examples)

    def similarity(self, queries: Sequence[Example]) -> Tensor | None:
        """The cosine of each query and each example, similarity_QN; None where nothing is compared."""
        return self._embedded(queries) @ self.embeddings_ND.T if self.spec.compares else None

    def draw(self, queries: Sequence[Example], number: int, similarity_QN: Tensor | None) -> list[tuple[int, ...]]:
        """The numbers of the examples that each query is shown in draw `number`, in reading order.

        One order is drawn for all queries, so that they are shown the same examples as far as that is possible.
        """
        order = self._order("draw", number)
        return [self._chosen(query, order, row) for query, row in zip(queries, _rows(similarity_QN, len(queries)), strict=True)]

    def epoch(self, queries: Sequence[Example], number: int, similarity_QN: Tensor | None) -> list[tuple[int, ...]]:
        """The same in training: in epoch `number` each query has a draw of its own."""
        orders = [self._order("epoch", number, query) for query in range(len(queries))]
        similarity = _rows(similarity_QN, len(queries))
        return [self._chosen(query, order, row) for query, order, row in zip(queries, orders, similarity, strict=True)]

    def _order(self, *names: str | int) -> list[int]:
        """How early each example comes."""
        order: list[int] = np.random.default_rng(derive(self.seed, "demonstrations", *names)).permutation(len(self.examples)).tolist()
        return order

    def _chosen(self, query: Example, order: Sequence[int], similarity_N: Sequence[float]) -> tuple[int, ...]:
        said = self._said(query)
        left = {label: [one for one in numbers if self.texts[one] != said] for label, numbers in self.members.items()}
        count = min(self.spec.per_label, *map(len, left.values())) if left else 0
        chosen: list[int] = []
        for numbers in left.values() if count else ():
            near = nearest(numbers, similarity_N, max(count, int(self.spec.similar * len(numbers))))
            chosen += sorted(near, key=order.__getitem__)[:count]
        return self._in_order(chosen, order, similarity_N)

    def _in_order(self, chosen: list[int], order: Sequence[int], similarity_N: Sequence[float]) -> tuple[int, ...]:
        if self.spec.order == "random":
            return tuple(sorted(chosen, key=order.__getitem__))
        if self.spec.order == "nearest":
            outwards = nearest(chosen, similarity_N, len(chosen))
            return tuple(reversed(outwards)) if self.in_front else tuple(outwards)
        return tuple(chosen)

    def _said(self, example: Example) -> _Text:
        return tuple(" ".join(example.fields[name].split()).casefold() for name in self.task.fields)

    def _embedded(self, examples: Sequence[Example]) -> Tensor:
        # Pairs are compared as one text, as in LM-BFF.
        texts = [" ".join(example.fields[name].strip() for name in self.task.fields) for example in examples]
        if self.embed is None:
            raise SpecError(
                expected="embeddings", got="none", where="demonstrations.similar", fix="Give an `embed` function, or take similar=1."
            )
        return self.embed(texts)


def _rows(similarity_QN: Tensor | None, queries: int) -> list[list[float]]:
    return [[] for _ in range(queries)] if similarity_QN is None else similarity_QN.tolist()


def nearest(numbers: Sequence[int], similarity_N: Sequence[float], count: int) -> list[int]:
    """The `count` most similar of `numbers`, the most similar first, of equals the first; all of them where nothing was compared.

    >>> nearest([0, 2, 3], [0.1, 0.9, 0.7, 0.4], 2)
    [2, 3]
    """
    if not len(similarity_N):
        return list(numbers)
    return sorted(numbers, key=lambda number: -similarity_N[number])[:count]
