"""The members of PET: patterns on PLMs, each tuned on rows of its own, asked, and taken out again, and teachers from elsewhere. Knows
no student.

So all members share a PLM in memory, and what is left of one are its deltas' answers. Dimensions: M members, N rows, C candidates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import text_of
from fewtune.errors import DataError, TaskError
from fewtune.model import TunedModel
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.prompt.library import candidates
from fewtune.recipe import Recipe, reads_pool
from fewtune.strategies import rungs
from fewtune.strategies.strategy import Strategy
from fewtune.strategies.supervised import Supervised
from fewtune.strategies.zeroshot import ZeroShot
from fewtune.tasks.task import Task
from fewtune.train.cache import StateCache
from fewtune.train.fit import Session, read_whole, write_whole

Words = Literal["averaged", "each"]
_PIECE = 500
"""Rows are labelled in pieces of so many, so that it can be said after the first how long the rest will take, and each can be kept."""


@dataclass(frozen=True)
class Member:
    """One pattern on one PLM, tuned unless its strategy is another; `pool` are unlabelled rows, if its recipe does something with them."""

    name: str
    recipe: Recipe
    backbone: Backbone
    strategy: Strategy = field(default_factory=Supervised)
    pool: tuple[Example, ...] = ()

    def runs(self, strategy: Strategy, recipe: Recipe, backbone: Backbone) -> bool:
        """Whether it does just this."""
        return backbone is self.backbone and (strategy, recipe) == (self.strategy, self.recipe)

    def answers(self, train: Sequence[Example], rows: Sequence[Example], session: Session) -> Tensor:
        """log_NC of `rows` by a model tuned on `train`, or by the PLM alone where there is nothing to learn from.

        Kept beside the checkpoints piece by piece, so that a job that was killed goes on behind the last one. The cache of frozen states
        is its own: how rows are batched there, and so the last digits, must not depend on who was asked before, or where.
        """
        kept = _kept(session)
        if kept is not None and len(kept) == len(rows):
            return kept
        session = replace(session, cache=StateCache())
        strategy, recipe = (self.strategy, self.recipe) if train else (ZeroShot(), replace(self.recipe, deltas=(), demonstrations=None))
        model = strategy.run(recipe, Split(train=tuple(train), unlabeled=self.pool), self.backbone, session=session)
        try:
            return _labelled(model, rows, kept, self.name, session)
        finally:
            model.remove()


@dataclass(frozen=True)
class Heard:
    """A teacher from elsewhere, by what it has said of each text: shares of the candidates, in their order; of some `repeatedly`."""

    name: str
    said: Mapping[tuple[str, ...], tuple[float, ...]]
    repeatedly: int = 0

    @classmethod
    def of(cls, taught: Sequence[Example], labels: Sequence[str]) -> Heard:
        """The teacher who said the `shares` of these examples; of a text that stands several times the mean of what was said."""
        each: dict[tuple[str, ...], list[Mapping[str, float]]] = {}
        for one in taught:
            each.setdefault(text_of(one), []).append(one.shares or {})
        said = {text: tuple(fmean(shares.get(label, 0.0) for shares in own) for label in labels) for text, own in each.items()}
        return cls(f"a teacher of {len(said):,} rows", said, sum(len(own) > 1 for own in each.values()))

    def answers(self, train: Sequence[Example], rows: Sequence[Example], session: Session) -> Tensor:
        """log_NC of `rows`; not a number where it has said nothing. It learns nothing from `train`."""
        del train, session
        candidates = len(next(iter(self.said.values())))
        nothing = (float("nan"),) * candidates
        return (
            torch.tensor([self.said.get(text_of(row), nothing) for row in rows], dtype=torch.float64)
            .reshape(-1, candidates)
            .clamp(min=1e-3)
            .log()
        )


def members_of(
    contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, patterns: int, words: Words, shown: bool
) -> tuple[Member, ...]:
    """Each pattern on each PLM that reads a word, of the library `patterns` if the task names none; other PLMs once, for a pattern says
    nothing to them. Where a label has several words these are averaged, or `each` makes a verbalizer, and a member, of its own.

    With `shown`, autoregressive PLMs are also shown labelled rows, the first pattern untuned, where there is room for them. Without
    labelled rows nobody learns anything. Raises `DataError` if nobody is left.
    """
    found: list[Member] = []
    for recipe, backbone in contestants:
        if recipe.readout.needs_slot:
            tuned = _patterns(recipe, backbone, patterns, words)
            found += [*tuned, *(_shown(tuned[0], split) if shown and split.train else ())]
        elif split.train:
            found.append(Member(backbone.name, recipe, backbone))
    if not found:
        fix = "Label some rows, or name a PLM that has an LM head."
        raise DataError(expected="labelled rows, or a PLM that answers without", got="neither", where="strategy pet", fix=fix)
    # Where members are asked in other processes, a pool that none of them reads would travel with each.
    return tuple(replace(one, pool=split.unlabeled) if reads_pool(one.recipe.adapt, one.recipe.calibration) else one for one in found)


def _patterns(recipe: Recipe, backbone: Backbone, patterns: int, words: Words) -> list[Member]:
    """Each pattern with each verbalizer. The first of the library is what is asked by default: its recipe is the one that was given."""
    task, texts = recipe.task, recipe.task.templates or candidates(recipe.task, causal=backbone.causal)[:patterns]
    found = []
    for number, text in enumerate(dict.fromkeys(texts)):
        pattern = recipe if number == 0 and not task.templates else replace(recipe, task=replace(task, templates=(text,)))
        name = f"{backbone.name} {text!r}"
        if words == "averaged":
            found.append(Member(name, pattern, backbone))
            continue
        for verbalizer in verbalizers(task):
            own = replace(pattern, task=replace(pattern.task, words=verbalizer))
            found.append(Member(f"{name} {'/'.join(word for (word,) in verbalizer.values())}", own, backbone))
    return found


def verbalizers(task: Task) -> list[dict[str, tuple[str, ...]]]:
    """A verbalizer of each label's first word, one of their second, and so on; raises `TaskError` unless all labels have as many.

    >>> verbalizers(Task(labels=("no", "yes"), words={"no": ("bad", "dull"), "yes": ("good", "great")}))
    [{'no': ('bad',), 'yes': ('good',)}, {'no': ('dull',), 'yes': ('great',)}]
    """
    counts = {label: len(task.words.get(label, ())) for label in task.labels}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        got = ", ".join(f"{label} {count}" for label, count in counts.items())
        fix = "Name as many words of each label with --words, or leave words=each out."
        raise TaskError(expected="as many words of each label", got=got, where="strategy pet", fix=fix)
    return [{label: (task.words[label][place],) for label in task.labels} for place in range(counts[task.labels[0]])]


def _shown(first: Member, split: Split) -> list[Member]:
    """A member of the same pattern that is shown labelled rows instead of tuned on them, if there is room for it."""
    shown = Demonstrations(similar=1, draws=1)
    recipe = replace(first.recipe, deltas=(), search=(), adapt=(), demonstrations=shown)
    alone = first.recipe.demonstrations is None and not first.recipe.readout.reverses and first.backbone.causal
    if not alone or not rungs.fits(recipe, first.backbone, split):
        return []
    return [Member(f"{first.name} in-context", recipe, first.backbone, ZeroShot())]


@dataclass(frozen=True)
class Asked:
    """A member that learns from `train` and answers `rows`: a piece of a job that needs nothing of the others."""

    member: Member
    train: Sequence[Example]
    rows: Sequence[Example]
    session: Session

    def __call__(self) -> Tensor:
        """log_NC of the rows."""
        return self.member.answers(self.train, self.rows, self.session)

    def kept(self) -> Tensor | None:
        """log_NC of all rows that an earlier run of the same job has kept."""
        found = _kept(self.session)
        return None if found is None or len(found) < len(self.rows) else found

    def keep(self, found_NC: Tensor) -> None:
        """Keep log_NC that was made elsewhere."""
        _keep(found_NC, self.session)


@dataclass(frozen=True)
class Round:
    """What all members are asked at once: each learns from its own of the `sets`, and answers `rows`."""

    sets: Sequence[Sequence[Example]]
    rows: Sequence[Example]
    session: Session

    def asked(self, members: Sequence[Member | Heard]) -> list[Asked]:
        """The members who have something to do for it."""
        return [
            Asked(member, own, self.rows, self.session.child(f"member-{number + 1}", told=number > 0))
            for number, (member, own) in enumerate(zip(members, self.sets, strict=True))
            if isinstance(member, Member)
        ]


def answered(members: Sequence[Member | Heard], rounds: Sequence[Round], session: Session) -> list[Tensor]:
    """log_MNC of each round: what each member says of its rows. All rounds are handed out together."""
    found = iter(session.spread([asked for one in rounds for asked in one.asked(members)], session.say))
    return [
        torch.stack(
            [
                next(found) if isinstance(member, Member) else member.answers(own, one.rows, one.session)
                for member, own in zip(members, one.sets, strict=True)
            ]
        )
        for one in rounds
    ]


def _labelled(model: TunedModel, rows: Sequence[Example], kept: Tensor | None, name: str, session: Session) -> Tensor:
    """log_NC of the rows, each piece kept as soon as it is there; those of the first rows that are `kept` are not asked for again."""
    begun, found = time.perf_counter(), [] if kept is None else [kept]
    for start in range(sum(map(len, found)), len(rows), _PIECE):
        found.append(model.log_probabilities(rows[start : start + _PIECE]))
        _keep(torch.cat(found), session)
        end = min(len(rows), start + _PIECE)
        session.progress(f"label ({name})", end, len(rows), float("nan"))
        if not session.told:
            session.say(_speed(end - start, time.perf_counter() - begun, len(rows) - end))
            session = replace(session, told=True)
    return torch.cat(found)


def _speed(rows: int, seconds: float, left: int) -> str:
    """How fast rows were labelled, and how long the others will take.

    >>> _speed(500, 10.0, 1500), _speed(24, 0.5, 0)
    ('Labelled 500 rows, 50.0 a second; 1,500 more take about 30 s.', 'Labelled 24 rows, 48.0 a second.')
    """
    more = f"; {left:,} more take about {seconds * left / rows:.0f} s" if left else ""
    return f"Labelled {rows:,} rows, {rows / seconds:,.1f} a second{more}."


def _kept(session: Session) -> Tensor | None:
    """The answers that an earlier run of the same job has kept, of the first rows or of all."""
    about, tensors = read_whole(session.beside("answers"), session)
    return tensors["log_NC"] if tensors and about.get("key") == session.key else None


def _keep(found_NC: Tensor, session: Session) -> None:
    path = session.beside("answers")
    if path is not None:
        write_whole(path, {"log_NC": found_NC.contiguous()}, {"key": session.key})
