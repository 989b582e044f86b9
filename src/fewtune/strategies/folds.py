"""Labelled rows that a model has not seen: parted into folds, each read by a model that was made without it. Knows no way of making one.

Dimensions: N examples, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive, folds
from fewtune.model import TunedModel
from fewtune.readout.readout import widened
from fewtune.recipe import Recipe
from fewtune.strategies.strategy import Strategy
from fewtune.tasks import kind_of
from fewtune.tasks.task import Task
from fewtune.train.fit import Session

FOLDS = 4


def provisional(task: Task) -> Task:
    """The task with something usual in the place of what only rows not seen can choose."""
    return kind_of(task).decided(task, (), np.zeros((0, len(task.labels))))


def groups(task: Task, examples: Sequence[Example]) -> list[str]:
    """What folds balance."""
    return kind_of(task).groups(task, examples, max(1, len(examples) // FOLDS))


def parts_of(recipe: Recipe, examples: Sequence[Example], number: int = 0) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """The folds of labelled rows, the same for whoever holds rows of a job out: indices to learn from and indices held out.

    `number` tells apart partings where rows are parted more than once.
    """
    seed = derive(recipe.seed, "folds", *([number] if number else []))
    return folds(examples, FOLDS, seed=seed, groups=groups(recipe.task, examples))


def out_of_fold(
    strategy: Strategy,
    recipe: Recipe,
    split: Split,
    backbone: Backbone,
    session: Session,
    *,
    read: Callable[[TunedModel, Sequence[Example]], Tensor],
) -> Tensor:
    """What `read` gives for each labelled row, in order, from a model that `strategy` made without it."""
    *_, (_, found) = fold_by_fold(strategy, recipe, split, backbone, session, read=read)
    return found


def fold_by_fold(
    strategy: Strategy,
    recipe: Recipe,
    split: Split,
    backbone: Backbone,
    session: Session,
    *,
    read: Callable[[TunedModel, Sequence[Example]], Tensor],
) -> Iterator[tuple[list[int], Tensor]]:
    """After each fold the rows that were held out so far, in order, and what `read` gives for them; after the last one all."""
    found: dict[int, Tensor] = {}
    if recipe.deltas or recipe.readout.learning_rate:
        session.say(f"{FOLDS} folds, each like the first:")
    for number, (kept, held) in enumerate(parts_of(recipe, split.train)):
        part = replace(split, train=tuple(split.train[index] for index in kept))
        model = strategy.run(recipe, part, backbone, session=session.child(f"fold-{number + 1}", told=number > 0))
        found |= zip(held, read(model, [split.train[index] for index in held]), strict=True)
        model.remove()
        rows = sorted(found)
        most = max(len(found[row]) for row in rows)
        yield rows, torch.stack([widened(found[row][None], most)[0] for row in rows])
