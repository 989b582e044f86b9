"""PET: several prompts and PLMs are tuned, label the unlabelled rows together, and a small fast student learns from these labels.

It is several `Supervised`, one labelling pass, and one more `Supervised` with soft labels; iPET repeats the first two on training sets
that grow. Source: Schick & Schütze 2021, "Exploiting Cloze Questions for Few Shot Text Classification and Natural Language Inference".
Decides whether the student is kept; what is learned from whom is `school.py`. Dimensions: N rows, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fewtune import registry
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.data.sampling import distinct
from fewtune.model import TunedModel
from fewtune.readout.mixing import Mix
from fewtune.recipe import Recipe
from fewtune.registry import Plain
from fewtune.routes import Routes
from fewtune.strategies import ladder
from fewtune.strategies.folds import FOLDS
from fewtune.strategies.ladder import Judged
from fewtune.strategies.lessons import Lessons
from fewtune.strategies.rungs import rungs_of
from fewtune.strategies.school import School
from fewtune.strategies.verdict import Verdict
from fewtune.tasks.metrics import figure, with_interval
from fewtune.train.fit import Session

LEAST = 200
"""A pool of fewer rows is no reason to learn from it by default."""
SHIFTED = 0.72
"""A pool that lies farther from the labelled rows than so (`teachers.shift`) is not learned from; docs/defaults.md has the runs."""


@dataclass(frozen=True)
class Pet(Lessons):
    """Teachers on many prompts and PLMs, and a student, with the fields of `Lessons`.

    With `guard` the student is kept only if it is not worse than the best way without unlabelled rows, on labelled rows that neither has
    seen, `judged` of the unlabelled rows standing for the pool there, and only if the pool looks like the labelled rows. Its loss may be
    worse by `margin` standard errors, for it is small and fast; with 0, not at all, and where no row can be held out it is not kept. Its
    accuracy may not be worse beyond the 90 % interval of the difference.
    """

    guard: bool = True
    margin: float = 1.0
    judged: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        registry.check_ranges(self, self.name, {"judged": (self.judged >= 1, "at least 1"), "margin": (self.margin >= 0, "at least 0")})

    def run(self, recipe: Recipe, split: Split, backbone: Backbone, *, session: Session) -> TunedModel:
        """See `over`."""
        model = self.over([(recipe, backbone)], split, session=session)
        assert isinstance(model, TunedModel)  # on the one PLM
        return model

    def over(self, contestants: Sequence[tuple[Recipe, Backbone]], split: Split, *, session: Session) -> TunedModel | Routes:
        """The student of members on all these PLMs, or the best way without unlabelled rows if that is better.

        Raises `DataError` without unlabelled rows, `TaskError` for a kind of task whose answers are not right or wrong.
        """
        school = School.of(self, contestants, split, session)
        audit = school.audit(distinct(split.train))
        if audit is not None:
            session.say(_audited(audit))
        model = self._made(school, split, session)
        known = {"asked": {"name": self.name, **registry.to_dict(self)}, **({} if audit is None else {"audit": audit})}
        return replace(model, about={**model.about, "pet": {**model.about["pet"], **known}})

    def _made(self, school: School, split: Split, session: Session) -> TunedModel | Routes:
        judging = replace(split, train=distinct(split.train))
        shift = school.shift(judging.train) if self.guard else None
        lacking = school.lacking(judging.train)
        if reason := self._refused(shift, lacking if split.train else None):
            session.say(reason)
            model = ladder.climb(school.contestants, split, session=session)
            return _noted(model, school.about(), shift, reason)
        if lacking or not self.guard:
            why = f": they need {lacking}. The" if lacking else ": the"
            session.say(f"No estimate and no guard{why} student is kept as it is.")
            return _noted(school.student(split.train, school.mixes(judging, session), session), {}, shift)
        return self._guarded(school, split, judging, shift, session)

    def _refused(self, shift: float | None, lacking: str | None) -> str | None:
        """Why the pool is not learned from at all, if it is not: it looks otherwise, or what must not be worse cannot be judged."""
        if shift is not None and shift > SHIFTED:
            return f"The unlabelled rows do not look like the labelled ones (shift {shift:.2f}, at most {SHIFTED}): not learned from."
        if self.guard and not self.margin and lacking:
            return (
                f"A student must not be worse than without unlabelled rows, and to judge it takes {lacking}: they are not learned from; "
                "--strategy pet decides otherwise."
            )
        return None

    def _guarded(self, school: School, split: Split, judging: Split, shift: float | None, session: Session) -> TunedModel | Routes:
        """The student, or the best other way where the student is worse on rows that neither has seen."""
        judged, mixes = self._judged(school, judging, session)
        reason = None if judged.kept == len(judged.rungs) - 1 else _beaten(judged)
        if reason:
            session.say(reason)
        return _noted(ladder.finished(judged, split, session), school.about(mixes), shift, reason)

    def _judged(self, school: School, judging: Split, session: Session) -> tuple[Judged, tuple[Mix, ...]]:
        """The rungs of the ladder, and the student as the last one, which is preferred; how members are mixed in each generation."""
        sample = school.sample(self.judged)
        session.say(f"Judging the members on {len(judging.train)} labelled rows, in {FOLDS} folds; each labels {len(sample)} others there.")
        unseen = school.unseen(judging, sample, session)
        if self.generations:
            session.say(f"{len(unseen.mixes) - 1} of {self.generations} generations are kept.")
        tempered, known = school.recipe.calibration is None, school.known(unseen)
        others = ladder.judge(rungs_of(school.contestants, judging), judging, session, tempered=tempered, known=known)
        session.say(f"Judging the student, {school.learner.name}, in the same folds.")
        log_NC = school.unseen_student(judging, sample, unseen, session)
        student = Verdict.of(log_NC, school.task, judging.train, seed=school.recipe.seed, tempered=tempered)
        return others.beside(school.rung(unseen.mixes), student, margin=self.margin, guarded=True), unseen.mixes


@dataclass(frozen=True)
class IPet(Pet):
    """PET in generations."""

    name: ClassVar[str] = "ipet"

    generations: int = 3


def _audited(audit: Mapping[str, Plain]) -> str:
    if not audit["rows"]:
        return "The teacher has said nothing of the labelled rows, so nothing is known of how good it is."
    value, interval = with_interval(audit["accuracy"])
    return f"The teacher is right on {value} ({interval}) of {audit['rows']} labelled rows."


def _noted(model: TunedModel | Routes, about: Mapping[str, Plain], shift: float | None, reason: str | None = None) -> TunedModel | Routes:
    """The model with what is known of PET: whether its student was kept, and else the reason."""
    pet = {**about, **model.about.get("pet", {}), "kept": reason is None}
    pet |= {} if shift is None else {"shift": shift}
    pet |= {} if reason is None else {"reason": reason}
    kept = "pet" if reason is None else model.about.get("kept", "tuned")
    return replace(model, about={**model.about, "pet": pet, "kept": kept})


def _beaten(judged: Judged) -> str:
    """That the student is worse than the way that is kept, and by how much."""
    student, other = judged.figures()[-1], judged.figures()[judged.kept]
    metric = judged.ratios_M[-1].metric
    one, two = (f"{figure(metric, each[metric])}, loss {each['loss']:.2f}" for each in (student, other))
    return f"The student is not kept: on rows not seen it is worse ({one}) than {other['name']} ({two})."
