"""What a model answers to the rows of a file, and how well: `predict`, `evaluate` and `zeroshot` as straight lines. It prints nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from fewtune import artifact, early, registry
from fewtune.data import readers
from fewtune.data.example import Example, Prediction, Split
from fewtune.data.writers import open_writer
from fewtune.errors import DataError, SpecError
from fewtune.evaluation import Evaluation, evaluate
from fewtune.exits.monitor import Monitor
from fewtune.job import untuned
from fewtune.model import Tally, TunedModel
from fewtune.plm import load as load_backbone
from fewtune.readout.calibration import Calibrator
from fewtune.routes import Routes
from fewtune.settings import Settings, beside_each_other
from fewtune.sources import KIND, Rows, Say, Source, read, silent, task_of
from fewtune.tasks import kind_of
from fewtune.tasks.task import Task
from fewtune.train.fit import Session


def evaluate_files(
    folder: Path, test: Source, *, batch_size: int = 32, device: str | None = None, say: Say = silent
) -> tuple[TunedModel | Routes, Evaluation, dict[str, float]]:
    """`fewtune evaluate`: the model, what was measured, and seconds to load and to predict."""
    artifact.read_manifest(folder)
    start = time.perf_counter()
    model = artifact.load(folder, device=device)
    loaded = time.perf_counter() - start
    reading = read(test, labeled=True, task=model.task, say=say)
    evaluation = evaluate(model, reading.examples, batch_size=batch_size)
    return model, evaluation, {"load": loaded, "predict": evaluation.seconds}


def predict_files(
    model: TunedModel | Routes,
    source: Source,
    target: Path | TextIO,
    *,
    form: str | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    watch: float | None = None,
    say: Say = silent,
    progress: Callable[[int], None] = lambda rows: None,
) -> Tally:
    """`fewtune predict`: one answer a row, in order, streamed; memory does not grow with the file.

    Of a model with exits the share `watch` of the rows also goes to the end, and what is no longer as it was is said; raises `SpecError`
    for a model without.
    """
    tally, rows = Tally(), Rows.of(source, model.task, say)
    answer, monitor = model.stream, None
    if watch is not None:
        if isinstance(model, Routes) or model.exits is None:
            fix = "Add them with fewtune exits, or leave --watch out."
            raise SpecError(expected="a model with exits", got="one without", where="--watch", fix=fix)
        monitor = Monitor.of(model.exits.about, sample=watch)
        answer = partial(early.watched, model, monitor=monitor)

    def answered(read: Iterator[tuple[readers.Row, Example]]) -> Iterator[tuple[readers.Row, Prediction]]:
        here, again = itertools.tee(read)
        answers = answer((example for _, example in here), batch_size=batch_size, tally=tally)
        return zip((row for row, _ in again), answers, strict=True)

    write_answers(rows, answered, target, form=form, overwrite=overwrite, say=say, progress=progress)
    for line in (str(monitor), *monitor.flags()) if monitor else ():
        say(line)
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
    say: Say = silent,
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
    model = untuned(task, Split(unlabeled=pool), [loaded[way.backbone] for way in ways], ways, Session(say=say))
    return model, {"load": time.perf_counter() - start}


def measured(
    model: TunedModel | Routes, source: Source, seconds: Mapping[str, float], *, batch_size: int = 32, say: Say = silent
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
            model = model.settled(task)
            say(note or "A label names its candidate by its text.")
        evaluation = evaluate(model, reading.examples, batch_size=batch_size)
        seconds = {**seconds, "predict": evaluation.seconds}
        return {"method": model.about["method"], "seconds": seconds, **evaluation.to_dict()}
    examples, start = read(source, labeled=False, task=model.task, say=say).examples, time.perf_counter()
    answers = _answers(model, examples, batch_size)
    return {
        "method": model.about["method"],
        "seconds": {**seconds, "predict": time.perf_counter() - start},
        "rows": len(examples),
        **answers,
    }


def _answers(model: TunedModel | Routes, examples: Sequence[Example], batch_size: int) -> dict[str, registry.Plain]:
    if isinstance(model, TunedModel):
        return {"answers": _plain(model.predict(examples, batch_size=batch_size))}
    each = model.each(examples, batch_size=batch_size)
    bare = [one.calibrated(Calibrator.identity(len(one.task.labels))) for one in model.models]
    alone = [
        {"backbone": one.backbone.name, "method": one.about["method"], "answers": _plain(one.answers(examples, log_NC))}
        for one, log_NC in zip(bare, each, strict=True)
    ]
    return {"answers": _plain(model.answers(examples, model.mixed(each))), "routes": alone}


def _plain(answers: Sequence[Prediction]) -> list[registry.Plain]:
    return [{"label": answer.label, "probability": answer.probability} for answer in answers]
