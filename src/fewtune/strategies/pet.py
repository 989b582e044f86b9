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
from fewtune.recipe import Recipe
from fewtune.registry import Plain
from fewtune.routes import Routes
from fewtune.strategies import ladder
from fewtune.strategies.folds import FOLDS
from fewtune.strategies.ladder import Judged
from fewtune.strategies.school import Lessons, School
from fewtune.strategies.verdict import Verdict
from fewtune.tasks import kind_of
from fewtune.tasks.metrics import with_interval
from fewtune.train.fit import Session

LEAST = 200
"""A pool of fewer rows is no reason to learn from it by default."""
SHIFTED = 0.72
"""A pool that lies farther from the labelled rows than so (`teachers.shift`) is not learned from; docs/defaults.md has the runs."""


@dataclass(frozen=True)
class Pet(Lessons):
    """Teachers on many prompts and PLMs, and a student, with the fields of `Lessons`.

    With `guard` the student is kept only if it is not worse than the best way without unlabelled rows, on labelled rows that neither has
    seen, `judged` of the unlabelled rows standing for the pool there, and only if the pool looks like the labelled rows. It may be worse
    by `margin` standard errors, for it is small and fast; with 0, not at all.
    """

    guard: bool = True
    margin: float = 1.0
    judged: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        registry.check_ranges(self, self.name, {"judged": self.judged >= 1, "margin": self.margin >= 0})

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
        if audit is None:
            return self._made(school, split, session)
        session.say(_audited(audit))
        model = self._made(school, split, session)
        return replace(model, about={**model.about, "pet": {**model.about.get("pet", {}), "audit": audit}})

    def _made(self, school: School, split: Split, session: Session) -> TunedModel | Routes:
        judging = replace(split, train=distinct(split.train))
        if lacking := kind_of(school.task).lacking(school.task, judging.train, FOLDS):
            session.say(f"No estimate and no guard: they need {lacking}. The student is kept as it is.")
            return school.student(split.train, school.untested, session)
        if not self.guard:
            session.say("No estimate and no guard: the student is kept as it is.")
            return school.student(split.train, school.mixes(judging, session), session)
        far = school.shift(judging.train)
        if far > SHIFTED:
            session.say(f"The unlabelled rows do not look like the labelled ones (shift {far:.2f}, at most {SHIFTED}): not learned from.")
            model = ladder.climb(school.contestants, split, session=session)
            return replace(model, about={**model.about, "pet": {"kept": False, "shift": far}})
        judged = self._judged(school, judging, session)
        model = ladder.finished(judged, split, session)
        guard = {"kept": judged.kept == len(judged.rungs) - 1, "shift": far}
        return replace(model, about={**model.about, "pet": {**model.about.get("pet", {}), **guard}})

    def _judged(self, school: School, judging: Split, session: Session) -> Judged:
        """The rungs of the ladder, and the student as the last one, which is preferred."""
        sample = school.sample(self.judged)
        session.say(f"Judging the members on {len(judging.train)} labelled rows, in {FOLDS} folds; each labels {len(sample)} others there.")
        unseen = school.unseen(judging, sample, session)
        if self.generations:
            session.say(f"{len(unseen.mixes) - 1} of {self.generations} generations are kept.")
        tempered, known = school.recipe.calibration is None, school.known(unseen)
        others = ladder.judge(ladder.rungs_of(school.contestants, judging), judging, session, tempered=tempered, known=known)
        session.say(f"Judging the student, {school.learner.name}, in the same folds.")
        log_NC = school.unseen_student(judging, sample, unseen, session)
        student = Verdict.of(log_NC, school.task, judging.train, seed=school.recipe.seed, tempered=tempered)
        return others.beside(school.rung(unseen.mixes), student, margin=self.margin)


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
