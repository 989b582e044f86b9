"""`fewtune multitask` as a straight line: a folder of tasks → a mixture → trained deltas → a folder that stands for a better PLM.

Knows every part and computes nothing itself; it prints nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from fewtune import collection, held_out, plm, registry
from fewtune.backbone.backbone import Backbone
from fewtune.collection import Collection, Lesson, Overlap
from fewtune.data.example import Example
from fewtune.deltas import DELTAS
from fewtune.deltas.delta import Delta
from fewtune.deltas.lora import LoRA
from fewtune.folders import check_target
from fewtune.held_out import Array, Score
from fewtune.job import plain_rows
from fewtune.model import DEFAULT_LENGTH
from fewtune.precision import Wanted
from fewtune.readout import CALIBRATIONS
from fewtune.readout.calibration import Calibration
from fewtune.recipe import DEFAULT_BACKBONE
from fewtune.strategies import multitask
from fewtune.strategies.multitask import MultiTask
from fewtune.train.fit import FitOptions, Progress, Session
from fewtune.train.world import ALONE, World

Say = Callable[[str], None]
DELTA = LoRA(rank=16, sites=("query", "value", "ffn_in", "ffn_out"), top=1 / 2)
"""What is trained where nothing is named: many tasks need more room than one."""


def _silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Course:
    """What the user said and left open."""

    backbone: str = DEFAULT_BACKBONE
    deltas: tuple[Delta, ...] = (DELTA,)
    how: MultiTask = field(default_factory=MultiTask)
    fit: FitOptions = field(default_factory=lambda: FitOptions(accumulate=4))
    calibration: Calibration | None = None
    overlap: Overlap = "drop"
    test_rows: int = 200
    max_length: int = DEFAULT_LENGTH
    precision: Wanted = "auto"
    device: str | None = None
    seed: int = 42

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for the manifest: all that decides the weights."""
        return {
            "deltas": [DELTAS.to_dict(delta) for delta in self.deltas],
            "mixture": registry.to_dict(self.how),
            "fit": registry.to_dict(self.fit),
            "calibration": None if self.calibration is None else CALIBRATIONS.to_dict(self.calibration),
            "max_length": self.max_length,
            "precision": self.precision,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Taught:
    """What came of it: the folder, and how the held-out tasks are answered before and after."""

    folder: Path
    about: Mapping[str, registry.Plain]
    trained_parameters: int
    backbone_parameters: int
    scores: tuple[Score, ...]
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return {
            "model": str(self.folder),
            "trained_parameters": self.trained_parameters,
            "backbone_parameters": self.backbone_parameters,
            **self.about,
            "seconds": dict(self.seconds),
            "bytes": {"model": sum(path.stat().st_size for path in self.folder.iterdir())},
        }


def read(folder: Path, apart: Sequence[str], course: Course, *, say: Say = _silent) -> Collection:
    """The tasks of `folder`, those that are `apart` with as many rows as are asked for; raises an `InputError` for what does not fit."""
    return _shortened(collection.read(folder, apart, overlap=course.overlap, say=say), course)


def teach(
    found: Collection,
    out: Path,
    course: Course,
    *,
    overwrite: bool = False,
    world: World = ALONE,
    say: Say = _silent,
    progress: Progress = lambda what, done, steps, loss: None,
) -> Taught:
    """Train on what is trained on, write what was learned to `out`, measure on what is held out.

    Goes on where it was killed. Of several processes the first one writes and measures. Raises an `InputError` for what does not fit.
    """
    if world.first:
        check_target(out, overwrite=overwrite, mark=plm.MANIFEST)
    begun = time.perf_counter()
    backbone = plm.load(course.backbone, device=course.device, say=say)
    multitask.settled(found.trained, backbone, course.precision)
    work = out.with_name(f".{out.name}.work")
    session = Session(work, _key(found, backbone, course), label="multitask", progress=progress, say=say, world=world)
    loaded = time.perf_counter()
    before = _answers(found.held_out, backbone, course, "before", session)
    installed = plm.install(backbone, course.deltas, seed=course.seed)
    measured = time.perf_counter()
    multitask.train(
        found.trained, installed, course.how, options=course.fit, max_length=course.max_length, seed=course.seed, session=session
    )
    trained = time.perf_counter()
    after = _answers(found.held_out, backbone, course, "after", session)
    scores = tuple(
        Score(lesson.name, tuple(task.templates[0] if task.templates else "" for task in lesson.prompts()), *rights)
        for lesson, *rights in zip(found.held_out, before, after, strict=True)
    )
    about = _about(found, course, scores)
    if world.first:
        card = _card(out, backbone, about, scores)
        plm.save(installed, out, about={**about, "course": course.to_dict()}, card=card, overwrite=overwrite)
        shutil.rmtree(work, ignore_errors=True)
    seconds = {
        "load": loaded - begun,
        "test": measured - loaded + time.perf_counter() - trained,
        "train": trained - measured,
    }
    return Taught(out, about, sum(one.trained_parameters for one in installed), backbone.parameters, scores, seconds)


def _shortened(found: Collection, course: Course) -> Collection:
    """Held-out tasks with as many rows as are asked for, spread over the file, which may be sorted."""
    return replace(found, held_out=tuple(replace(one, rows=_spread_over(one, course.test_rows)) for one in found.held_out))


def _spread_over(lesson: Lesson, count: int) -> tuple[Example, ...]:
    rows = lesson.rows
    return tuple(rows[number * len(rows) // count] for number in range(count)) if 0 < count < len(rows) else rows


def _answers(lessons: Sequence[Lesson], backbone: Backbone, course: Course, when: str, session: Session) -> list[Array]:
    """Right answers of each lesson; the first process asks, the others wait for nothing."""
    if not session.world.first:
        return [np.zeros((len(lesson.prompts()), len(lesson.rows)), dtype=bool) for lesson in lessons]
    everything, done = sum(len(lesson.prompts()) * len(lesson.rows) for lesson in lessons), 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        session.progress(f"answers {when}", done, everything, float("nan"))

    return [
        multitask.right_answers(lesson, backbone, calibration=course.calibration, max_length=course.max_length, progress=advance)
        for lesson in lessons
    ]


def _key(found: Collection, backbone: Backbone, course: Course) -> str:
    """Names everything that decides the weights."""
    lessons = [[one.name, [wording.to_dict() for wording in one.wordings], plain_rows(one.rows)] for one in found.trained]
    machine = [backbone.precision, torch.__version__, torch.get_num_threads(), str(backbone.device)]
    plain = [course.to_dict(), lessons, backbone.fingerprint, *machine]
    return registry.key_of(plain)


def _about(found: Collection, course: Course, scores: Sequence[Score]) -> dict[str, registry.Plain]:
    dropped = dict(found.dropped)
    rights = [[score.before_PN for score in scores], [score.after_PN for score in scores]]
    return {
        "trained": {one.name: {"rows": len(one.rows), "templates": len(one.prompts())} for one in found.trained},
        "held_out": {score.name: {**score.to_dict(), "dropped": dropped.get(score.name, 0)} for score in scores},
        "mean": {
            "before": held_out.mean_median(rights[0]),
            "after": held_out.mean_median(rights[1]),
            "gain": registry.to_dict(held_out.gain(scores)),
        }
        if scores
        else None,
        "seed": course.seed,
    }


def _card(out: Path, backbone: Backbone, about: Mapping[str, registry.Plain], scores: Sequence[Score]) -> str:
    """What a person reads who finds the folder."""
    lines = [
        f"# {out.name}: {backbone.name}, trained on {len(about['trained'])} tasks",
        "",
        f"Deltas on the PLM `{backbone.name}`, for tasks that it was not trained on. The folder stands for the PLM with the deltas in it:",
        "",
        "```console",
        f"fewtune zeroshot texts.csv --labels negative,positive --backbone {out.name}",
        "```",
        "",
        "| trained on | rows | templates |",
        "|---|---|---|",
        *(f"| {name} | {one['rows']:,} | {one['templates']} |" for name, one in about["trained"].items()),
    ]
    if scores:
        lines += ["", "Held out: the median accuracy over templates, not calibrated unless the manifest says so.", ""]
        lines += ["| task | rows | templates | before | after | 95 % interval of the gain |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {name} | {one['rows']:,} | {len(one['templates'])} | {one['before']['median']:.3f} | {one['after']['median']:.3f} "
            f"| {one['gain']['low']:+.3f} to {one['gain']['high']:+.3f} |"
            for name, one in about["held_out"].items()
        ]
    return "\n".join(lines) + "\n"
