"""Members that label unlabelled rows together, generation by generation, and a student that learns from these labels.

What is done, without a decision whether it was worth it: that is `pet.py`. Dimensions: M members, N rows, C candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewtune import estimate, registry
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive, pool
from fewtune.deltas.delta import Delta
from fewtune.deltas.lora import LoRA
from fewtune.model import TunedModel
from fewtune.readout.calibration import Uncalibrated
from fewtune.readout.head import Head
from fewtune.readout.mixing import Mix, stacked
from fewtune.readout.sentences import Sentences
from fewtune.recipe import Recipe
from fewtune.strategies.folds import FOLDS, parts_of
from fewtune.strategies.ladder import settled
from fewtune.strategies.lessons import Lessons
from fewtune.strategies.members import Heard, Member, Round, answered, members_of
from fewtune.strategies.rungs import Rung
from fewtune.strategies.supervised import Supervised
from fewtune.strategies.teachers import grown, likeliest, shift
from fewtune.tasks import check_one_label, kind_of
from fewtune.tasks.task import Task
from fewtune.train.fit import FitOptions, Session

STUDENT_DELTAS: tuple[Delta, ...] = (LoRA(rank=16, sites=("query", "key", "value", "ffn_in", "ffn_out")),)
STUDENT_BATCH, STUDENT_PASSES = 16, 3
_LOOKED_AT = 500


@dataclass(frozen=True)
class Unseen:
    """What the folds say: how the members of each generation that is kept are mixed, what each fold's mix calls the pool's rows, and
    log_MNC of the labelled rows by members of the first generation."""

    mixes: tuple[Mix, ...]
    shares: tuple[Tensor, ...]
    log_MNC: Tensor


@dataclass(frozen=True)
class School:
    """The members, what they label, and who learns from it.

    `contestants` are the PLMs with the recipes of members and rungs, whose precision is settled; in `recipe`, the first, it is as asked.
    """

    spec: Lessons
    members: tuple[Member | Heard, ...]
    pool: tuple[Example, ...]
    learner: Backbone
    recipe: Recipe
    contestants: Sequence[tuple[Recipe, Backbone]]

    @classmethod
    def of(cls, spec: Lessons, contestants: Sequence[tuple[Recipe, Backbone]], split: Split, session: Session) -> School:
        """The members on all these PLMs, and the rows of the pool that are learned from.

        Raises `DataError` without unlabelled rows, `TaskError` for a kind of task whose answers are not right or wrong.
        """
        recipe = contestants[0][0]
        kind = kind_of(recipe.task)
        check_one_label(recipe.task, f"strategy {spec.name}", "Choose --strategy supervised.")
        if split.train:
            kind.check(recipe.task, split.train, "fit")
        heard = _heard(split.taught, recipe.task, session)
        chosen = spec.drawn(split, recipe.seed)
        contestants = settled(contestants, split)
        own = members_of(contestants, split, patterns=spec.patterns, words=spec.words, shown=spec.shown) if spec.patterns else ()
        members: tuple[Member | Heard, ...] = (*own, *heard)
        names = "; ".join(member.name for member in members)
        session.say(f"{_counted(len(members), 'member')}: {names}. {_counted(len(chosen), 'unlabelled row')}.")
        return cls(spec, members, chosen, spec.learner([backbone for _, backbone in contestants]), recipe, contestants)

    @property
    def task(self) -> Task:
        """What all of them answer."""
        return self.recipe.task

    def lacking(self, train: Sequence[Example]) -> str | None:
        """What labelled rows lack so that some of them can be held out; None where nothing is lacking."""
        return kind_of(self.task).lacking(self.task, train, FOLDS)

    def sample(self, count: int) -> tuple[Example, ...]:
        """Rows from all over the pool, whose file may be sorted."""
        return pool(self.pool, count, seed=self.recipe.seed, without=())

    def shift(self, known: Sequence[Example]) -> float | None:
        """`teachers.shift` of the pool, by the student's PLM; None where fewer than two labelled texts say how near they lie."""
        if len(known) < 2:
            return None
        embed, looked_at = Sentences(self.learner), self.sample(_LOOKED_AT)
        return shift(*(embed([" ".join(row.fields.values()) for row in rows]).double().numpy() for rows in (known, looked_at)))

    def audit(self, labeled: Sequence[Example]) -> dict[str, registry.Plain] | None:
        """How often the teacher from elsewhere is right on labelled rows, as far as it has said something of them."""
        heard = [member for member in self.members if isinstance(member, Heard)]
        if not heard:
            return None
        said_NC = heard[0].answers((), labeled, Session())
        right = [
            labeled[row].label == self.task.labels[int(said_NC[row].argmax())] for row in (~said_NC.isnan()).all(1).nonzero()[:, 0].tolist()
        ]
        return {"rows": len(right), "accuracy": estimate.accuracy(sum(right) / len(right), len(right)).to_dict() if right else None}

    def unseen(self, judging: Split, sample: Sequence[Example], session: Session) -> Unseen:
        """Fold by fold: what the members of each generation say of labelled rows that they have not seen, and of `sample`.

        As many generations are kept as are none worse than the one before; without a sample there is but the first.
        """
        parts = parts_of(self.recipe, judging.train)
        targets_N = torch.tensor(kind_of(self.task).targets(self.task, judging.train))
        trains = [tuple(judging.train[index] for index in kept) for kept, _ in parts]
        right_MN = self._untuned(judging.train)
        own_weights, weights = [self._weights(right_MN[:, list(kept)]) for kept, _ in parts], self._weights(right_MN)
        generations = self.spec.generations if sample else 0
        sets: list[list[Sequence[Example]]] = [[train] * len(self.members) for train in trains]
        mixes: list[Mix] = []
        shares: list[Tensor] = []
        losses: list[Tensor] = []
        for generation in range(generations + 1):
            rounds = [
                Round(
                    sets[number],
                    (*sample, *(judging.train[index] for index in held)),
                    session.child(f"fold-{number + 1}.generation-{generation}", told=number > 0 or generation > 0),
                )
                for number, (_, held) in enumerate(parts)
            ]
            given = answered(self.members, rounds, session)
            log_MNC = torch.zeros(len(self.members), *targets_N.shape, len(self.task.labels), dtype=torch.float64)
            for (_, held), found_MNC in zip(parts, given, strict=True):
                log_MNC[:, list(held)] = found_MNC[:, len(sample) :]
            own = [self._mix(log_MNC[:, list(kept)], targets_N[list(kept)], one) for (kept, _), one in zip(parts, own_weights, strict=True)]
            merged = [mix(found) for mix, found in zip(own, given, strict=True)]
            losses.append(_losses(merged, [held for _, held in parts], targets_N, len(sample)))
            if generation == 0:
                first_MNC = log_MNC
            elif not estimate.alike(torch.stack(losses[-2:], 1).numpy())[1]:
                break
            mixes.append(self._mix(log_MNC, targets_N, weights))
            shares = [shares_NC[: len(sample)] for shares_NC in merged]
            if generation < generations:
                sets = [
                    self._next_sets(train, sample, found[:, : len(sample)], mix, generation + 1)
                    for train, found, mix in zip(trains, given, own, strict=True)
                ]
        return Unseen(tuple(mixes), tuple(shares), first_MNC)

    def mixes(self, judging: Split, session: Session) -> tuple[Mix, ...]:
        """The mix of all generations where nobody judges them: by folds only where these decide it, and can."""
        if self.spec.merge == "stacked" and not self.lacking(judging.train):
            (mix,) = self.unseen(judging, (), session).mixes
        else:
            mix = self._fixed(self._weights(self._untuned(judging.train)))
        return (mix,) * (self.spec.generations + 1)

    def known(self, unseen: Unseen) -> Callable[[Rung], Tensor | None]:
        """What members have said already in the place of a rung that tunes as they do."""

        def said(rung: Rung) -> Tensor | None:
            for number, member in enumerate(self.members):
                if isinstance(member, Member) and member.runs(rung.strategy, rung.recipe, rung.backbone):
                    return unseen.log_MNC[number]
            return None

        return said

    def unseen_student(self, judging: Split, sample: Sequence[Example], unseen: Unseen, session: Session) -> Tensor:
        """log_NC of each labelled row by a student that has not seen it, nor had teachers that have."""
        parts = parts_of(self.recipe, judging.train)
        log_NC = torch.zeros(len(judging.train), len(self.task.labels), dtype=torch.float64)
        for number, ((kept, held), shares_NC) in enumerate(zip(parts, unseen.shares, strict=True)):
            train = [judging.train[index] for index in kept]
            student = self.taught(train, sample, shares_NC, session.child(f"student-fold-{number + 1}", told=number > 0))
            log_NC[list(held)] = student.log_probabilities([judging.train[index] for index in held])
            student.remove()
        return log_NC

    def rung(self, mixes: Sequence[Mix]) -> Rung:
        """The student as a rung beside those of the ladder."""
        return Rung(f"student ({self.learner.name})", _Lesson(self, tuple(mixes)), self._student_recipe(len(self.pool)), self.learner)

    def student(self, train: Sequence[Example], mixes: Sequence[Mix], session: Session) -> TunedModel:
        """All three steps: tune the members, label the rows, teach the student; the first two for each generation's mix."""
        self._say_begin(train, session)
        sets: list[Sequence[Example]] = [train] * len(self.members)
        for generation, mix in enumerate(mixes):
            part = session.child(f"generation-{generation}", told=generation > 0)
            (log_MNC,) = answered(self.members, [Round(sets, self.pool, part)], session)
            if generation + 1 < len(mixes):
                sets = self._next_sets(train, self.pool, log_MNC, mix, generation + 1)
                self._say_generation(train, sets, generation + 1, session)
        shares_NC = mix(log_MNC)
        self._say_labels(shares_NC, session)
        session.say(f"Step 3 of 3: the student, {self.learner.name}.")
        model = self.taught(train, self.pool, shares_NC, session.child("student"))
        about = self.about(mixes)
        recipe = self._student_recipe(len(self.pool)).to_dict()
        return replace(model, about={**model.about, "pet": about, "recipe": recipe, "kept": "pet"})

    def _say_begin(self, train: Sequence[Example], session: Session) -> None:
        """What the members will do, if there are any beside a teacher from elsewhere."""
        count = sum(isinstance(member, Member) for member in self.members)
        each = f"each labels {_counted(len(self.pool), 'row')}"
        if count:
            session.say(f"Steps 1 and 2 of 3: {_counted(count, 'member')}, {'tuned' if train else 'not tuned'}; {each}.")

    def _say_generation(self, train: Sequence[Example], sets: Sequence[Sequence[Example]], generation: int, session: Session) -> None:
        """How many rows the members of a generation learn from, and what they do without."""
        own = [rows[len(train) :] for member, rows in zip(self.members, sets, strict=True) if isinstance(member, Member)]
        if not own:
            return
        least, most, asked = min(map(len, own)), max(map(len, own)), self._asked(train, generation)
        rows = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        why = "the pool has no more" if asked > len(self.pool) else "no more are found of some labels"
        short = f", not from {asked:,}: {why}" if least < asked else ""
        session.say(f"Generation {generation} learns from {rows} of these rows beside the labelled ones{short}.")
        found = {row.label for rows_of_one in own for row in rows_of_one}
        if missing := [label for label in self.task.labels if label not in found]:
            session.say(f"Generation {generation} has no row of {', '.join(missing)} beside the labelled ones.")
        if generation == 1 and len(self.members) == 1:
            session.say("There is a single member, so it learns from what it said itself.")

    def _asked(self, train: Sequence[Example], generation: int) -> int:
        """How many rows a member of a generation is to learn from beside the labelled ones."""
        if not train:
            return len(self.task.labels) * round(self.spec.first * self.spec.growth ** (generation - 1))
        return round(len(train) * (self.spec.growth**generation - 1))

    def about(self, mixes: Sequence[Mix] = ()) -> dict[str, registry.Plain]:
        """Who labels how many rows and, where it is known, how each is heard in the last generation."""
        members: list[dict[str, registry.Plain]] = [{"name": member.name} for member in self.members]
        if not mixes:
            return {"members": members, "rows": len(self.pool)}
        heard = zip(members, mixes[-1].weights_M, mixes[-1].temperatures_M, strict=True)
        members = [{**one, "weight": weight, "temperature": warm} for one, weight, warm in heard]
        return {"members": members, "rows": len(self.pool), "generations": len(mixes) - 1}

    def _say_labels(self, shares_NC: Tensor, session: Session) -> None:
        counts_C = shares_NC.argmax(1).bincount(minlength=len(self.task.labels)).tolist()
        session.say("Labelled: " + ", ".join(f"{label} {count:,}" for label, count in zip(self.task.labels, counts_C, strict=True)) + ".")
        if missing := [label for label, count in zip(self.task.labels, counts_C, strict=True) if not count]:
            session.say(f"No row is most probably {', '.join(missing)}: that is learned from labelled rows and smaller shares only.")

    def _mix(self, log_MNC: Tensor, targets_N: Tensor, weights: Sequence[float]) -> Mix:
        """The mix that `merge` wants, given what members say of rows that they have not seen."""
        return stacked(log_MNC, targets_N) if self.spec.merge == "stacked" else self._fixed(weights)

    def _fixed(self, weights: Sequence[float]) -> Mix:
        """The mix of the papers, members as they are."""
        return replace(Mix.equal(len(weights), logits=self.spec.merge in ("logits", "weighted")), weights_M=tuple(weights))

    def _weights(self, right_MN: Tensor) -> list[float]:
        """Each member's accuracy before tuning; who can say nothing gets the mean of the others."""
        known_M = right_MN.mean(1).clamp(min=1e-3)
        weights: list[float] = torch.where(known_M.isnan(), known_M.nanmean(), known_M).nan_to_num(1.0).tolist()
        return weights

    def _untuned(self, train: Sequence[Example]) -> Tensor:
        """right_MN, with `weighted` whether the PLM alone is right on each row by each member's pattern, and not a number of those that
        read no word; else all members count as right."""
        right_MN = torch.ones(len(self.members), len(train), dtype=torch.float64)
        if self.spec.merge != "weighted" or not train:
            return right_MN
        targets_N, known = torch.tensor(kind_of(self.task).targets(self.task, train)), dict[str, Tensor]()
        for number, member in enumerate(self.members):
            right_MN[number] = float("nan")
            if isinstance(member, Member) and member.recipe.readout.needs_slot:
                plain = replace(member.recipe, deltas=(), adapt=(), demonstrations=None)
                key = registry.key_of([member.backbone.name, plain.to_dict()])
                if key not in known:  # a pattern that is also shown rows is asked once
                    known[key] = (replace(member, recipe=plain).answers((), train, Session()).argmax(1) == targets_N).double()
                right_MN[number] = known[key]
        return right_MN

    def _next_sets(
        self, train: Sequence[Example], rows: Sequence[Example], log_MNC: Tensor, mix: Mix, generation: int
    ) -> list[Sequence[Example]]:
        """What each member of a generation learns from, by what those of the one before say of `rows`."""
        return [self.grown(train, rows, log_MNC, mix, number, generation) for number in range(len(self.members))]

    def grown(
        self, train: Sequence[Example], rows: Sequence[Example], log_MNC: Tensor, mix: Mix, number: int, generation: int
    ) -> Sequence[Example]:
        """The training set of member `number` for a generation: the labelled rows, and rows that some of the other members are sure of.

        With a single member there are no others, and it learns from itself.
        """
        others = [other for other in range(len(log_MNC)) if other != number] or [number]
        random = np.random.default_rng(derive(self.recipe.seed, "others", number, generation))
        some = max(1, round(self.spec.share * len(others)))
        chosen = sorted(random.choice(others, some, replace=False).tolist())
        shares_NC = mix.only(chosen)(log_MNC[chosen])
        said = (~shares_NC.isnan().any(1)).nonzero()[:, 0].tolist()
        rows, shares_NC = [rows[row] for row in said], shares_NC[said]
        if not train:
            drawn = likeliest(shares_NC, max(1, min(self._asked(train, generation), len(rows)) // len(self.task.labels)))
        else:
            counts = Counter(example.label for example in train)
            size = min(len(rows), self._asked(train, generation))
            seed = derive(self.recipe.seed, "grown", number, generation)
            drawn = grown(shares_NC, [counts[label] for label in self.task.labels], size, seed=seed)
        return (*train, *(replace(rows[row], label=self.task.labels[label]) for row, label in drawn))

    def _student_recipe(self, rows: int) -> Recipe:
        steps = max(40, STUDENT_PASSES * rows // STUDENT_BATCH)
        return Recipe(
            task=replace(self.task, templates=(), words={}),
            backbone=self.learner.name,
            deltas=STUDENT_DELTAS,
            readout=Head(),
            calibration=Uncalibrated(),
            fit=FitOptions(steps=steps, batch_size=STUDENT_BATCH),
            max_length=self.recipe.max_length,
            precision=self.recipe.precision,
            seed=derive(self.recipe.seed, "student"),
        )

    def taught(self, train: Sequence[Example], rows: Sequence[Example], shares_NC: Tensor, session: Session) -> TunedModel:
        """A student of soft labels, beside the labelled rows by their own if that is wanted."""
        labels = self.task.labels
        soft = [replace(row, shares=dict(zip(labels, own, strict=True))) for row, own in zip(rows, shares_NC.tolist(), strict=True)]
        learned = Split(train=(*(train if self.spec.gold else ()), *soft))
        return Supervised(self.spec.temperature).run(self._student_recipe(len(rows)), learned, self.learner, session=session)


@dataclass(frozen=True)
class _Lesson:
    """The student as a strategy, once it is decided how its teachers are mixed."""

    school: School
    mixes: tuple[Mix, ...]

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """The student of all members."""
        del recipe, backbone
        return self.school.student(split.train, self.mixes, session)


def _counted(count: int, what: str) -> str:
    """So many of them, as a person says it."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def _heard(taught: Sequence[Example], task: Task, session: Session) -> tuple[Heard, ...]:
    """The teacher from elsewhere, if there is one."""
    if not taught:
        return ()
    teacher = Heard.of(taught, task.labels)
    if teacher.repeatedly:
        many = _counted(teacher.repeatedly, "text")
        session.say(f"The teacher speaks of {many} more than once: the mean of what it says is heard.")
    return (teacher,)


def _losses(merged: Sequence[Tensor], held: Sequence[Sequence[int]], targets_N: Tensor, skipped: int) -> Tensor:
    """losses_N of the labelled rows, which stand behind the first `skipped` of each fold's rows."""
    losses_N = torch.zeros(len(targets_N), dtype=torch.float64)
    for shares_NC, rows in zip(merged, held, strict=True):
        own_N = targets_N[list(rows)]
        losses_N[list(rows)] = -shares_NC[skipped:].gather(1, own_N[:, None])[:, 0].log()
    return losses_N
