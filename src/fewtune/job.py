"""The main job as a straight line: data → task → recipe → strategy → artifact. Knows every part and computes nothing itself.

The command line and the Python interface both call it; it prints nothing.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO, overload

import torch

from fewtune import artifact, registry
from fewtune.backbone.backbone import Backbone
from fewtune.data import readers
from fewtune.data.example import Example, Prediction, Split
from fewtune.data.teacher import read as read_teacher
from fewtune.data.writers import check_place, open_writer, write_text
from fewtune.deltas.delta import Delta
from fewtune.errors import DataError, SpecError
from fewtune.evaluation import Evaluation, evaluate, evaluate_routes
from fewtune.folders import check_target
from fewtune.model import DEFAULT_LENGTH, Tally, TunedModel
from fewtune.plm import load as load_backbone
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.prompt.search import Found, Search
from fewtune.readout.calibration import Calibration, Calibrator
from fewtune.readout.prior import PriorMatching
from fewtune.readout.readout import Readout
from fewtune.recipe import DEFAULT_BACKBONE, Recipe
from fewtune.routes import Routes
from fewtune.settings import PETS, Settings, beside_each_other, method, recipe_of, routes, suited, with_pool, without_slot
from fewtune.strategies import adapting, searching
from fewtune.strategies.strategy import Joint
from fewtune.strategies.zeroshot import side_by_side
from fewtune.tasks import KINDS, kind_of
from fewtune.tasks.task import Task
from fewtune.train.adapt import Adaptation
from fewtune.train.fit import FitOptions, Progress, Session, Spread, in_turn

Say = Callable[[str], None]
KIND = "classification"


def _silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Source:
    """Where examples come from, and which columns of it are read (guessed where nothing is named)."""

    data: object
    text: tuple[str, ...] = ()
    label: str | None = None
    skip_bad_rows: bool = False


@dataclass(frozen=True)
class Fitted:
    """A fit's results: the model, what was measured on the test rows if there were any, seconds by part, and the folder."""

    model: TunedModel
    seconds: Mapping[str, float]
    evaluation: Evaluation | None = None
    folder: Path | None = None

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        size = sum(path.stat().st_size for path in self.folder.iterdir()) if self.folder else None
        return {
            "model": None if self.folder is None else str(self.folder),
            "method": self.model.about["method"],
            "trained_parameters": self.model.trained_parameters,
            "backbone_parameters": self.model.backbone.parameters,
            "estimate": self.model.about.get("estimate"),
            **{name: self.model.about[name] for name in ("search", "pet") if name in self.model.about},
            "seconds": dict(self.seconds),
            "bytes": {"model": size},
            **({} if self.evaluation is None else self.evaluation.to_dict()),
        }


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
    options: FitOptions | None = None,
    max_length: int = DEFAULT_LENGTH,
    seed: int = 42,
) -> TunedModel:
    """Tune a model on labelled examples: a list, a frame, a data set or a path; None where PET is to start from none.

    Of several PLMs the rows choose one, as they do between the usual two where none is named. `unlabeled` texts are learned from if there
    are enough; the rows of a `teacher` have labels from elsewhere, hard or soft (`fewtune.data.teacher.read`).

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
    pool = () if unlabeled is None else readers.read(unlabeled, text=task.fields, labeled=False, written=kind_of(task).written).examples
    taught = () if teacher is None else read_teacher(teacher, text=task.fields, labels=task.labels)
    settings = suited(task, with_pool(task, settings, len(pool), _silent, taught=bool(taught)))
    loaded, *beside = (load_backbone(one) if isinstance(one, str) else one for one in named or settings.judged)
    rows = () if train is None else _labeled(train, task)
    return tune(task, Split(train=rows, unlabeled=pool, taught=taught), loaded, settings, session=Session(), beside=beside)


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
    return _untuned(task, Split(unlabeled=pool), loaded, ways, Session())


def _untuned(task: Task, split: Split, backbones: Sequence[Backbone], ways: Sequence[Settings], session: Session) -> TunedModel | Routes:
    """The model of the one way, or those of several side by side; each has its own PLM."""
    models = [tune(task, split, backbone, way, session=session) for backbone, way in zip(backbones, ways, strict=True)]
    return models[0] if len(models) == 1 else side_by_side(models, ways[0].calibration, split)


def tune(
    task: Task, split: Split, backbone: Backbone, settings: Settings, *, session: Session, beside: Sequence[Backbone] = ()
) -> TunedModel:
    """Settle the task and the recipe and run its strategy; the model knows how it was made (`about`).

    `beside` are those of `settings.beside`.
    """
    task, note = kind_of(task).settled(task, split.train)
    if note:
        session.say(note)
    contestants = adapting.able([(recipe_of(task, one, settings), one) for one in (backbone, *beside)], split, session)
    recipe = contestants[0][0]
    if isinstance(settings.spec, Joint) and beside:
        model = settings.spec.over([(without_slot(own), one) for own, one in contestants], split, session=session)
    else:
        model = settings.spec.run(recipe, split, backbone, session=session)
    made = Recipe.from_dict(model.about["recipe"]) if "recipe" in model.about else recipe
    about = {
        "method": method(made, model.about.get("kept", settings.way)),
        "rows": len(split.train),
        "strategy": settings.way,
        "recipe": recipe.to_dict(),
    }
    return replace(model, about={**about, **model.about})


def task_of(
    reading: readers.Reading,
    *,
    kind: str = KIND,
    labels: Sequence[str],
    templates: Sequence[str],
    words: Mapping[str, tuple[str, ...]],
    description: str = "",
) -> Task:
    """A task from what the data shows: the columns' names and the labels that occur."""
    spec = KINDS.from_text(kind, "--kind")
    return Task(
        labels=tuple(labels) or spec.labels(reading.examples),
        fields=reading.columns.text,
        templates=tuple(templates),
        words=words,
        label_name=(reading.columns.label or "label") if spec.offered == "task" else "answer",
        kind=kind,
        description=description,
    )


def read(source: Source, *, labeled: bool, task: Task | None, kind: str = KIND, say: Say = _silent) -> readers.Reading:
    """Examples of a source, with the task's fields where a task is given; `kind` is what will be asked where none is."""
    text = source.text or (task.fields if task else ())
    reading = readers.read(
        source.data,
        text=text,
        label=source.label,
        labeled=labeled,
        known=(task.labels or None) if task and labeled else None,
        written=KINDS.from_text(task.kind if task else kind, "--kind").written,
        skip_bad_rows=source.skip_bad_rows,
    )
    for note in reading.notes:
        say(note)
    if task is None or reading.columns.text == task.fields:
        return reading
    return replace(reading, examples=tuple(_renamed(example, reading.columns.text, task.fields) for example in reading.examples))


def _taught(source: Source, task: Task) -> tuple[Example, ...]:
    """The rows of a teacher's file, with the task's fields."""
    found = read_teacher(source.data, text=source.text or task.fields, labels=task.labels, label=source.label)
    return tuple(_renamed(example, tuple(example.fields), task.fields) for example in found)


def _renamed(example: Example, columns: Sequence[str], fields: Sequence[str]) -> Example:
    """Columns that --text names stand for the task's fields, in order."""
    if len(columns) != len(fields):
        raise DataError(
            expected=f"{len(fields)} columns for {', '.join(fields)}", got=", ".join(columns), where="--text", fix="Name as many columns."
        )
    return replace(example, fields={name: example.fields[column] for name, column in zip(fields, columns, strict=True)})


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
    say: Say = _silent,
    progress: Progress = lambda what, done, steps, loss: None,
    spread: Spread = in_turn,
) -> Fitted:
    """`fewtune fit`: read, tune, save to `out`, measure on the test rows. A fit that was killed goes on where it was.

    Without labelled rows, unlabelled ones and the labels' names are enough for PET, whose members can be `spread` over processes.
    """
    check_target(out, overwrite=overwrite)
    first = read(train or _enough_alone(unlabeled, settings, task, labels), labeled=train is not None, task=task, kind=kind, say=say)
    task = task or task_of(first, kind=kind, labels=labels, templates=templates, words=words or {}, description=description)
    # Everything that can be wrong with the input is found before the first minute of work.
    tested = read(test, labeled=True, task=task, say=say).examples if test else ()
    rows, pool = (first.examples, ()) if train else ((), first.examples)
    if train and unlabeled:
        pool = read(unlabeled, labeled=False, task=task, say=say).examples
    taught = _taught(teacher, task) if teacher else ()
    settings = suited(task, with_pool(task, settings, len(pool), say, taught=bool(taught)))
    if spread is not in_turn and settings.way not in PETS:
        fix = "Leave --engine out, or choose --strategy pet or ipet."
        raise SpecError(expected="a strategy whose parts can be spread", got=settings.way, where="--engine", fix=fix)
    start = time.perf_counter()
    backbone, *beside = (load_backbone(name, device=settings.device, say=say) for name in settings.judged)
    split = Split(train=rows, unlabeled=pool, taught=taught)
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


def _enough_alone(unlabeled: Source | None, settings: Settings, task: Task | None, labels: Sequence[str]) -> Source:
    """The unlabelled rows, of which alone something is to be learned; raises `DataError` where it cannot."""
    if settings.way not in PETS or unlabeled is None or not (task or labels):
        fix = "Give a file with labels; or --unlabeled, --labels and --strategy ipet, which starts from none."
        raise DataError(expected="labelled rows", got="none", where="fit", fix=fix)
    return unlabeled


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
    say: Say = _silent,
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


def evaluate_files(
    folder: Path, test: Source, *, batch_size: int = 32, device: str | None = None, say: Say = _silent
) -> tuple[TunedModel, Evaluation, dict[str, float]]:
    """`fewtune evaluate`: the model, what was measured, and seconds to load and to predict."""
    artifact.read_manifest(folder)
    start = time.perf_counter()
    model = artifact.load(folder, device=device)
    loaded = time.perf_counter() - start
    reading = read(test, labeled=True, task=model.task, say=say)
    evaluation = evaluate(model, reading.examples, batch_size=batch_size)
    return model, evaluation, {"load": loaded, "predict": evaluation.seconds}


@dataclass(frozen=True)
class Rows:
    """The rows of a file that are answered, of which `chosen` columns are read: plain data, so that another process can read the same."""

    path: Path
    columns: tuple[str, ...]
    chosen: readers.Columns
    task: Task
    skip_bad_rows: bool

    @classmethod
    def of(cls, source: Source, task: Task, say: Say = _silent) -> Rows:
        """Those of a source for a task; what is guessed is said."""
        path = Path(str(source.data))
        columns = readers.columns_of(path)
        head = list(itertools.islice(readers.rows(path, skip_bad_rows=True), 50))
        wanted = source.text or (task.fields if set(task.fields) <= set(columns) else ())
        apart = kind_of(task).written.candidates
        chosen, notes = readers.guess(columns, head, text=wanted, label=None, labeled=False, where=str(path), apart=apart)
        for note in notes:
            say(note)
        return cls(path, tuple(columns), chosen, task, source.skip_bad_rows)

    def read(self, on_skip: Callable[[DataError], None] = lambda error: None) -> Iterator[tuple[readers.Row, Example]]:
        """Each row as it stands there and as an example; raises `DataError` for one that cannot be used, unless these are skipped."""
        written = kind_of(self.task).written
        for row in readers.rows(self.path, skip_bad_rows=self.skip_bad_rows, on_skip=on_skip):
            try:
                example = readers.example_of(row, self.chosen, labeled=False, written=written)
                yield row, _renamed(example, self.chosen.text, self.task.fields)
            except DataError as error:
                if not self.skip_bad_rows:
                    raise
                on_skip(error)


def predict_files(
    model: TunedModel | Routes,
    source: Source,
    target: Path | TextIO,
    *,
    form: str | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    say: Say = _silent,
    progress: Callable[[int], None] = lambda rows: None,
) -> Tally:
    """`fewtune predict`: one answer a row, in order, streamed; memory does not grow with the file."""
    tally, rows = Tally(), Rows.of(source, model.task, say)

    def answered(read: Iterator[tuple[readers.Row, Example]]) -> Iterator[tuple[readers.Row, Prediction]]:
        here, again = itertools.tee(read)
        answers = model.stream((example for _, example in here), batch_size=batch_size, tally=tally)
        return zip((row for row, _ in again), answers, strict=True)

    write_answers(rows, answered, target, form=form, overwrite=overwrite, say=say, progress=progress)
    return tally


def write_answers(
    rows: Rows,
    answered: Callable[[Iterator[tuple[readers.Row, Example]]], Iterator[tuple[readers.Row, Prediction]]],
    target: Path | TextIO,
    *,
    form: str | None,
    overwrite: bool,
    say: Say,
    progress: Callable[[int], None],
) -> None:
    """Write what `answered` says of each of the rows; say how many could not be used."""
    skipped: list[DataError] = []
    with open_writer(target, columns=rows.columns, form=form, overwrite=overwrite) as write:
        for row, answer in answered(rows.read(skipped.append)):
            write(row.values, answer)
            progress(1)
    if skipped:
        say(f"Skipped {len(skipped)} bad rows.")


def shortened_note(tally: Tally, max_length: int) -> str | None:
    """A sentence about the rows that were too long, if there were any."""
    if not tally.shortened:
        return None
    return f"{tally.shortened} of {tally.rows} rows were shortened to fit {max_length} tokens (--max-length); templates never are."


def zeroshot_model(
    source: Source,
    *,
    task: Task | None,
    ways: Sequence[Settings],
    kind: str = KIND,
    labels: Sequence[str] = (),
    templates: Sequence[str] = (),
    words: Mapping[str, tuple[str, ...]] | None = None,
    description: str = "",
    unlabeled: Source | None = None,
    say: Say = _silent,
) -> tuple[TunedModel | Routes, dict[str, float]]:
    """`fewtune zeroshot`: a calibrated model from a description or a template alone, of several `ways` side by side, and seconds to load.

    The data's labels are not looked at; where the calibration needs texts and there are none `unlabeled`, it learns from the source's own.
    """
    pool: tuple[Example, ...] = ()
    calibration = ways[0].calibration
    if unlabeled is not None and (calibration is None or calibration.needs != "unlabeled"):
        fix = "Choose --calibration prior, or leave --unlabeled out."
        raise SpecError(expected="a calibration that learns from unlabelled rows", got="another", where="--calibration", fix=fix)
    own = unlabeled is None and calibration is not None and calibration.needs == "unlabeled"
    if task is None or own:
        reading = read(source, labeled=False, task=task)
        task = task or task_of(reading, kind=kind, labels=labels, templates=templates, words=words or {}, description=description)
        pool = reading.examples if own else ()
    if unlabeled is not None:
        pool = read(unlabeled, labeled=False, task=task, say=say).examples
    ways = [one for way in ways for one in beside_each_other(task, way)]
    start = time.perf_counter()
    loaded = {name: load_backbone(name, device=ways[0].device, say=say) for name in dict.fromkeys(way.backbone for way in ways)}
    model = _untuned(task, Split(unlabeled=pool), [loaded[way.backbone] for way in ways], ways, Session(say=say))
    return model, {"load": time.perf_counter() - start}


def measured(
    model: TunedModel | Routes, source: Source, seconds: Mapping[str, float], *, batch_size: int = 32, say: Say = _silent
) -> dict[str, registry.Plain]:
    """What `fewtune zeroshot --json` prints: metrics where the source has a label column, the answers where it has none; of several routes
    those of each, too."""
    try:
        reading = read(source, labeled=True, task=model.task, say=say)
    except DataError:
        if source.label is not None or "label" in readers.columns_of(Path(str(source.data))):
            raise
    else:
        if kind_of(model.task).offered == "row":
            task, note = kind_of(model.task).settled(model.task, reading.examples)
            model = model.settled(task) if isinstance(model, Routes) else replace(model, task=task)
            say(note or "A label names its candidate by its text.")
        return {"method": model.about["method"], **_metrics(model, reading.examples, seconds, batch_size)}
    examples, start = read(source, labeled=False, task=model.task, say=say).examples, time.perf_counter()
    answers = _answers(model, examples, batch_size)
    return {
        "method": model.about["method"],
        "seconds": {**seconds, "predict": time.perf_counter() - start},
        "rows": len(examples),
        **answers,
    }


def _metrics(
    model: TunedModel | Routes, examples: Sequence[Example], seconds: Mapping[str, float], batch_size: int
) -> dict[str, registry.Plain]:
    if isinstance(model, TunedModel):
        found, each = evaluate(model, examples, batch_size=batch_size), {}
    else:
        found, alone = evaluate_routes(model, examples, batch_size=batch_size)
        each = {"routes": [{**_named(one), **own.to_dict()} for one, own in zip(model.models, alone, strict=True)]}
    return {"seconds": {**seconds, "predict": found.seconds}, **found.to_dict(), **each}


def _answers(model: TunedModel | Routes, examples: Sequence[Example], batch_size: int) -> dict[str, registry.Plain]:
    if isinstance(model, TunedModel):
        return {"answers": _plain(model.predict(examples, batch_size=batch_size))}
    each = model.each(examples, batch_size=batch_size)
    bare = [one.calibrated(Calibrator.identity(len(one.task.labels))) for one in model.models]
    alone = [{**_named(one), "answers": _plain(one.answers(examples, log_NC))} for one, log_NC in zip(bare, each, strict=True)]
    return {"answers": _plain(model.answers(examples, torch.stack(each).mean(0))), "routes": alone}


def _named(model: TunedModel) -> dict[str, registry.Plain]:
    return {"backbone": model.backbone.name, "method": model.about["method"]}


def _plain(answers: Sequence[Prediction]) -> list[registry.Plain]:
    return [{"label": answer.label, "probability": answer.probability} for answer in answers]


def check_source(source: Source) -> None:
    """Raise `DataError` at once for a file that is not there or cannot be read, before a model is loaded for it."""
    readers.columns_of(Path(str(source.data)))
