"""The main job as a straight line: data → task → recipe → strategy → artifact. Knows every part and computes nothing itself.

The command line and the Python interface both call it; it prints nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import torch

from fewtune import artifact, registry
from fewtune.backbone.backbone import Backbone
from fewtune.data import readers
from fewtune.data.example import Example, Split
from fewtune.data.sampling import others
from fewtune.data.writers import check_place, write_text
from fewtune.deltas.delta import Delta
from fewtune.errors import DataError, SpecError
from fewtune.evaluation import Evaluation, evaluate
from fewtune.folders import check_target
from fewtune.model import DEFAULT_LENGTH, TunedModel
from fewtune.plm import load as load_backbone
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.prompt.search import Found, Search
from fewtune.readout.calibration import Calibration
from fewtune.readout.prior import PriorMatching
from fewtune.readout.readout import Readout
from fewtune.recipe import DEFAULT_BACKBONE, Recipe
from fewtune.routes import Routes
from fewtune.settings import PETS, Settings, method, recipe_of, routes, started, suited, with_pool, without_slot
from fewtune.sources import KIND, Say, Source, read, silent, task_of, teacher_rows
from fewtune.strategies import adapting, searching
from fewtune.strategies.strategy import Joint
from fewtune.strategies.zeroshot import side_by_side
from fewtune.tasks import kind_of
from fewtune.tasks.task import Task
from fewtune.train.adapt import Adaptation
from fewtune.train.fit import FitOptions, Progress, Session, Spread, in_turn


@dataclass(frozen=True)
class Fitted:
    """A fit's results: the model, what was measured on the test rows if there were any, seconds by part, and the folder."""

    model: TunedModel | Routes
    seconds: Mapping[str, float]
    evaluation: Evaluation | None = None
    folder: Path | None = None

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) if self.folder else None
        return {
            "model": None if self.folder is None else str(self.folder),
            "method": self.model.about["method"],
            "trained_parameters": self.model.trained_parameters,
            "backbone_parameters": self.model.backbone_parameters,
            "estimate": self.model.about.get("estimate"),
            **{name: self.model.about[name] for name in ("search", "pet") if name in self.model.about},
            "seconds": dict(self.seconds),
            "bytes": {"model": size},
            **({} if self.evaluation is None else self.evaluation.to_dict()),
        }


@overload
def fit(
    task: Task,
    train: object,
    *,
    unlabeled: object = ...,
    teacher: object = ...,
    backbone: str | Backbone,
    strategy: str | None = ...,
    deltas: Sequence[Delta] | None = ...,
    readout: Readout | None = ...,
    calibration: Calibration | None = ...,
    demonstrations: Demonstrations | None = ...,
    search: Sequence[Search] = ...,
    adapt: Sequence[Adaptation] = ...,
    start: str | Path | None = ...,
    options: FitOptions | None = ...,
    max_length: int = ...,
    seed: int = ...,
) -> TunedModel: ...


@overload
def fit(
    task: Task,
    train: object,
    *,
    unlabeled: object = ...,
    teacher: object = ...,
    backbone: Sequence[str | Backbone] = ...,
    strategy: str | None = ...,
    deltas: Sequence[Delta] | None = ...,
    readout: Readout | None = ...,
    calibration: Calibration | None = ...,
    demonstrations: Demonstrations | None = ...,
    search: Sequence[Search] = ...,
    adapt: Sequence[Adaptation] = ...,
    start: str | Path | None = ...,
    options: FitOptions | None = ...,
    max_length: int = ...,
    seed: int = ...,
) -> TunedModel | Routes: ...


def fit(
    task: Task,
    train: object,
    *,
    unlabeled: object = None,
    teacher: object = None,
    backbone: str | Backbone | Sequence[str | Backbone] = (),
    strategy: str | None = None,
    deltas: Sequence[Delta] | None = None,
    readout: Readout | None = None,
    calibration: Calibration | None = None,
    demonstrations: Demonstrations | None = None,
    search: Sequence[Search] = (),
    adapt: Sequence[Adaptation] = (),
    start: str | Path | None = None,
    options: FitOptions | None = None,
    max_length: int = DEFAULT_LENGTH,
    seed: int = 42,
) -> TunedModel | Routes:
    """Tune a model on labelled examples: a list, a frame, a data set or a path; None where PET is to start from none.

    Of several PLMs, as of the usual two where none is named, one way of each answers side by side, unless the rows say that one alone is
    better. `unlabeled` texts are learned from if there are enough; the rows of a `teacher` have labels from elsewhere, hard or soft
    (`fewtune.data.teacher.read`). `start` is the folder of a saved model, whose deltas are tuned further, and its readout where the
    labels are the same.

    Raises `fewtune.errors.InputError` for data, a task or settings that do not fit together.
    """
    named = [backbone] if isinstance(backbone, str | Backbone) else backbone
    settings = Settings(
        backbones=tuple(one if isinstance(one, str) else one.name for one in named),
        strategy=strategy,
        deltas=None if deltas is None else tuple(deltas),
        readout=readout,
        calibration=calibration,
        demonstrations=demonstrations,
        search=tuple(search),
        adapt=tuple(adapt),
        fit=options or FitOptions(),
        max_length=max_length,
        seed=seed,
    )
    settings = settings if start is None else started(settings, start)
    pool = () if unlabeled is None else readers.read(unlabeled, text=task.fields, labeled=False, written=kind_of(task).written).examples
    taught = () if teacher is None else teacher_rows(Source(teacher), task)
    split = Split(train=() if train is None else _labeled(train, task), unlabeled=pool, taught=taught)
    settings = suited(task, with_pool(task, settings, split, silent))
    wanted = {one if isinstance(one, str) else one.name: one for one in named} or {name: name for name in settings.judged}
    loaded, *beside = (load_backbone(one) if isinstance(one, str) else one for one in wanted.values())
    return tune(task, split, loaded, settings, session=Session(), beside=beside)


def _labeled(train: object, task: Task) -> tuple[Example, ...]:
    return readers.read(train, text=task.fields, labeled=True, known=task.labels or None, written=kind_of(task).written).examples


@overload
def zeroshot(
    task: Task,
    *,
    backbone: str | Backbone = ...,
    readout: Readout | None = ...,
    calibration: Calibration | None = ...,
    unlabeled: object = ...,
) -> TunedModel: ...


@overload
def zeroshot(
    task: Task,
    *,
    backbone: list[str | Backbone] | list[str] | list[Backbone],
    readout: Readout | Sequence[Readout] | None = ...,
    calibration: Calibration | None = ...,
    unlabeled: object = ...,
) -> Routes: ...


def zeroshot(
    task: Task,
    *,
    backbone: str | Backbone | list[str | Backbone] | list[str] | list[Backbone] = DEFAULT_BACKBONE,
    readout: Readout | Sequence[Readout] | None = None,
    calibration: Calibration | None = None,
    unlabeled: object = None,
) -> TunedModel | Routes:
    """A model that answers without any labelled example; of a list of PLMs all answer side by side, each by its `readout`.

    Calibrated with content-free inputs unless told otherwise, or where a readout scores the texts; with `unlabeled` texts so that no label
    is more probable in their mean than another.
    """
    listed = [backbone] if isinstance(backbone, str | Backbone) else list(backbone)
    loaded = [load_backbone(one) if isinstance(one, str) else one for one in listed]
    readouts = [] if readout is None else list(readout) if isinstance(readout, Sequence) else [readout]
    pool = () if unlabeled is None else readers.read(unlabeled, text=task.fields, labeled=False).examples
    usual = PriorMatching() if pool else None
    ways = [
        Settings((name,), strategy="zeroshot", readout=own, calibration=calibration or usual)
        for name, own in routes([one.name for one in loaded], readouts)
    ]
    return untuned(task, Split(unlabeled=pool), loaded, ways, Session())


def untuned(task: Task, split: Split, backbones: Sequence[Backbone], ways: Sequence[Settings], session: Session) -> TunedModel | Routes:
    """The model of the one way, or those of several side by side; each has its own PLM."""
    models = [tune_one(task, split, backbone, way, session=session) for backbone, way in zip(backbones, ways, strict=True)]
    return models[0] if len(models) == 1 else side_by_side(models, ways[0].calibration, split)


def tune(
    task: Task, split: Split, backbone: Backbone, settings: Settings, *, session: Session, beside: Sequence[Backbone] = ()
) -> TunedModel | Routes:
    """Settle the task and the recipe and run its strategy; the model, or each of several side by side, knows how it was made (`about`).

    `beside` are those of `settings.beside`.
    """
    if split.taught:
        texts = others([replace(row, shares=None) for row in split.taught], without=split.unlabeled)
        split = replace(split, unlabeled=(*split.unlabeled, *texts))
    task, note = kind_of(task).settled(task, split.train)
    if note:
        session.say(note)
    contestants = adapting.able([(recipe_of(task, one, settings), one) for one in (backbone, *beside)], split, session)
    recipe = contestants[0][0]
    if isinstance(settings.spec, Joint) and beside:
        model = settings.spec.over([(without_slot(own), one) for own, one in contestants], split, session=session)
    else:
        model = settings.spec.run(recipe, split, backbone, session=session)
    if isinstance(model, TunedModel):
        return _noted(model, recipe, len(split.train), settings)
    routes = Routes.of([_noted(one, recipe, len(split.train), settings) for one in model.models], model.mix).calibrated(model.calibrator)
    return replace(routes, about={**routes.about, "rows": len(split.train), "strategy": settings.way, **model.about})


def tune_one(task: Task, split: Split, backbone: Backbone, settings: Settings, *, session: Session) -> TunedModel:
    """The same on one PLM."""
    model = tune(task, split, backbone, settings, session=session)
    assert isinstance(model, TunedModel)
    return model


def _noted(model: TunedModel, recipe: Recipe, rows: int, settings: Settings) -> TunedModel:
    """The model with what is known of how it was made, from so many `rows`; `recipe` is what was asked for."""
    made = Recipe.from_dict(model.about["recipe"]) if "recipe" in model.about else recipe
    about = {"method": method(made, model.about.get("kept", settings.way)), "rows": rows, "strategy": settings.way, **model.about}
    # What was asked for: another machine may settle on another precision.
    return replace(model, about={**about, "recipe": {**made.to_dict(), "precision": recipe.precision}})


def fit_files(
    train: Source | None,
    out: Path,
    *,
    task: Task | None,
    settings: Settings,
    kind: str = KIND,
    labels: Sequence[str] = (),
    templates: Sequence[str] = (),
    words: Mapping[str, tuple[str, ...]] | None = None,
    description: str = "",
    unlabeled: Source | None = None,
    teacher: Source | None = None,
    test: Source | None = None,
    overwrite: bool = False,
    say: Say = silent,
    progress: Progress = lambda what, done, steps, loss: None,
    spread: Spread = in_turn,
) -> Fitted:
    """`fewtune fit`: read, tune, save to `out`, measure on the test rows. A fit that was killed goes on where it was.

    Where it goes on from a saved model and nothing is said of the task, it is that one's.

    Without labelled rows, unlabelled ones and the labels' names are enough for PET, whose members can be `spread` over processes.
    """
    check_target(out, overwrite=overwrite)
    if settings.start and not (task or labels or templates or words or description or kind != KIND):
        task = artifact.read(settings.start.folder).task
    alone = train or _enough_alone(unlabeled, teacher, settings, task, labels)
    first = read(alone, labeled=train is not None, task=task, kind=kind, say=say)
    task = task or task_of(first, kind=kind, labels=labels, templates=templates, words=words or {}, description=description)
    # Everything that can be wrong with the input is found before the first minute of work.
    tested = read(test, labeled=True, task=task, say=say).examples if test else ()
    rows, pool = (first.examples, ()) if train else ((), first.examples)
    if train and unlabeled:
        pool = read(unlabeled, labeled=False, task=task, say=say).examples
    taught = teacher_rows(teacher, task, say) if teacher else ()
    split = Split(train=rows, unlabeled=pool, taught=taught)
    settings = suited(task, with_pool(task, settings, split, say))
    if spread is not in_turn and settings.way not in PETS:
        fix = "Leave --engine out, or choose --strategy pet or ipet."
        raise SpecError(expected="a strategy whose parts can be spread", got=settings.way, where="--engine", fix=fix)
    start = time.perf_counter()
    backbone, *beside = (load_backbone(name, device=settings.device, say=say) for name in settings.judged)
    loaded = time.perf_counter()
    work = out.with_name(f".{out.name}.work")
    session = Session(work, _key(task, split, (backbone, *beside), settings), progress=progress, say=say, spread=spread)
    model = tune(task, split, backbone, settings, session=session, beside=beside)
    fitted = time.perf_counter()
    artifact.save(model, out, overwrite=overwrite)
    shutil.rmtree(work, ignore_errors=True)
    evaluation = evaluate(model, tested) if tested else None
    seconds = {"load": loaded - start, "fit": fitted - loaded}
    if evaluation:
        seconds["predict"] = evaluation.seconds
    return Fitted(model, seconds, evaluation, out)


def _enough_alone(unlabeled: Source | None, teacher: Source | None, settings: Settings, task: Task | None, labels: Sequence[str]) -> Source:
    """The unlabelled rows, of which alone something is to be learned, or a teacher's; raises `DataError` where it cannot."""
    learned = settings.way in PETS or (teacher is not None and settings.strategy is None)
    alone = unlabeled or teacher
    if not learned or alone is None or not (task or labels):
        fix = "Give a file with labels; or --labels with --teacher, or with --unlabeled and --strategy ipet, which starts from none."
        raise DataError(expected="labelled rows", got="none", where="fit", fix=fix)
    return alone


def search_files(
    train: Source,
    out: Path | None,
    *,
    task: Task | None,
    settings: Settings,
    labels: Sequence[str] = (),
    templates: Sequence[str] = (),
    words: Mapping[str, tuple[str, ...]] | None = None,
    overwrite: bool = False,
    say: Say = silent,
    progress: Progress = lambda what, done, steps, loss: None,
) -> dict[str, Found]:
    """`fewtune search`: what each of `settings.search` finds, by its name; the last one's task is written to `out`."""
    if out:
        check_place(out, overwrite)
    reading = read(train, labeled=True, task=task, say=say)
    task = task or task_of(reading, labels=labels, templates=templates, words=words or {})
    backbone = load_backbone(settings.backbone, device=settings.device, say=say)
    session = Session(progress=progress, say=say)
    found = searching.find(recipe_of(task, backbone, settings), Split(train=reading.examples), backbone, session)
    if out:
        write_text(out, [*found.values()][-1].task.to_toml(), overwrite=overwrite)
    return found


def _key(task: Task, split: Split, backbones: Sequence[Backbone], settings: Settings) -> str:
    """Names everything that decides the result, so that no other job's checkpoint is gone on with."""
    plain = [
        [recipe_of(task, backbone, settings).to_dict() for backbone in backbones],
        settings.strategy or settings.way,
        plain_rows((*split.train, *split.unlabeled, *split.taught)),
        [backbone.fingerprint for backbone in backbones],
        torch.__version__,
        torch.get_num_threads(),
        str(backbones[0].device),
    ]
    return registry.key_of(plain)


def plain_rows(examples: Sequence[Example]) -> list[list[registry.Plain]]:
    """Examples as plain data, for keys: their fields and their label, and what else they have."""
    more = ([*([dict(one.shares)] if one.shares else []), *([list(one.candidates)] if one.candidates else [])] for one in examples)
    return [[dict(one.fields), one.label, *rest] for one, rest in zip(examples, more, strict=True)]
