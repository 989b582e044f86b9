"""A job file → jobs: each cell of data × shots × methods × seeds, and each different job once, under a key that names all that decides it.

Reads data and knows of a backbone what its fingerprints say; runs nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from fewtune import job as main
from fewtune import registry, sources
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import shots as draw
from fewtune.runs.jobfile import DataSet, JobFile
from fewtune.settings import PETS, Settings, recipe_of, suited, with_pool
from fewtune.sources import Source
from fewtune.tasks import kind_of
from fewtune.tasks.task import Task

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One method on one draw of one data set. `key` is the same exactly where everything is that its figures depend on."""

    key: str
    data: str
    method: str
    shots: int | None
    seed: int
    task: Task
    split: Split
    settings: Settings


@dataclass(frozen=True)
class Cell:
    """A place of the table, the keys of its jobs in the order of the seeds, and the metric that methods are compared by."""

    data: str
    shots: int | None
    method: str
    keys: tuple[str, ...]
    metric: str = "accuracy"


@dataclass(frozen=True)
class Grid:
    """`jobs` has each job once, those of the same backbones together; `cells` may share jobs."""

    jobs: tuple[Job, ...]
    cells: tuple[Cell, ...]


def plan(file: JobFile, backbones: Callable[[Sequence[str]], Sequence[Backbone]], say: Say) -> Grid:
    """Read the data, draw, and key every job.

    Raises `InputError` for data that cannot be read or have too few rows, and for a PLM that cannot be loaded.
    """
    jobs: dict[str, Job] = {}
    cells: dict[tuple[str, int | None, str], list[str]] = {}
    read = {name: _read(data, file.folder, say) for name, data in file.data.items()}
    for names in dict.fromkeys(settings.judged for settings in file.methods.values()):
        for job in _jobs(file, read, backbones(names), names):
            jobs.setdefault(job.key, job)
            cells.setdefault((job.data, job.shots, job.method), []).append(job.key)
    places = ((data, shots, method) for data in file.data for shots in file.shots for method in file.methods)
    metrics = {name: kind_of(task).estimated for name, (task, _) in read.items()}
    return Grid(tuple(jobs.values()), tuple(Cell(*place, tuple(cells[place]), metrics[place[0]]) for place in places))


def _jobs(file: JobFile, read: dict[str, tuple[Task, Split]], backbones: Sequence[Backbone], names: Sequence[str]) -> Iterator[Job]:
    """Every job of the methods on these backbones, seed after seed within each cell."""
    methods = {method: settings for method, settings in file.methods.items() if settings.judged == names}
    for data, (task, whole) in read.items():
        for shots in file.shots:
            for seed in file.seeds:
                drawn = whole if shots is None else replace(whole, train=_shots(task, whole.train, shots, seed))
                for method, settings in methods.items():
                    split, seeded = _of(settings, drawn, seed)
                    seeded = suited(task, with_pool(task, seeded, split, lambda line: None))
                    yield Job(key_of(task, split, seeded, backbones[: len(seeded.judged)]), data, method, shots, seed, task, split, seeded)


def _shots(task: Task, train: tuple[Example, ...], shots: int, seed: int) -> tuple[Example, ...]:
    """So many rows of each label; of a regression so many on either side of the median, of several labels at least so many of each."""
    return draw(train, shots, seed=seed, groups=kind_of(task).drawn(task, train))


def _of(settings: Settings, drawn: Split, seed: int) -> tuple[Split, Settings]:
    """What a method is given: without training, a search or demonstrations neither labelled rows nor a seed: one job for all draws; what a
    teacher says only where it is learned from."""
    if settings.strategy is not None and settings.way not in PETS:
        drawn = replace(drawn, taught=())
    if settings.way == "zeroshot" and settings.demonstrations is None and not settings.search:
        return replace(drawn, train=()), settings
    return drawn, replace(settings, seed=seed)


def _read(data: DataSet, folder: Path, say: Say) -> tuple[Task, Split]:
    """The task of a data set and all its rows, as `fewtune fit` would read them."""

    def source(name: str, label: str | None = data.label) -> Source:
        return Source(folder / name, data.text, label)

    task = None if data.task is None else Task.load(folder / data.task)
    reading = sources.read(source(data.train), labeled=True, task=task, kind=data.kind, say=say)
    task = task or sources.task_of(reading, kind=data.kind, labels=data.labels, templates=data.template, words=data.words)
    test = sources.read(source(data.test), labeled=True, task=task, say=say).examples
    pool = sources.read(source(data.unlabeled, None), labeled=False, task=task, say=say).examples if data.unlabeled else ()
    taught = sources.teacher_rows(source(data.teacher, None), task, say) if data.teacher else ()
    return task, Split(reading.examples, pool, test, taught)


def key_of(task: Task, split: Split, settings: Settings, backbones: Sequence[Backbone]) -> str:
    """sha256 over the recipe for each PLM, the rows, the code, and the PLMs by what they are, not by what they are called."""
    facts = [
        [replace(recipe_of(task, one, settings), backbone=one.fingerprint).to_dict() for one in backbones],
        settings.strategy or settings.way,
        [main.plain_rows(part) for part in (split.train, split.unlabeled, split.test, split.taught)],
        [one.tokenizer_fingerprint for one in backbones],
        str(backbones[0].device),
        code_version(),
    ]
    return registry.key_of(facts)


@cache
def code_version() -> str:
    """Which code computes: the sources of this package, and the versions of what it computes with."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{digest.hexdigest()} torch {torch.__version__} transformers {importlib.metadata.version('transformers')}"
