"""`fewtune predict --engine ray`: a file is labelled by many processes, each with a model of its own, and written in order. Knows no Ray.

Rows go in the windows in which a model here takes them, so they are batched alike and answered alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from fewtune import answering, artifact
from fewtune.data.example import Example, Prediction
from fewtune.data.files import Row
from fewtune.folders import MANIFEST
from fewtune.model import WINDOW, Tally
from fewtune.runs import on_ray
from fewtune.runs.worker import one_thread
from fewtune.sources import Rows, Say, Source
from fewtune.tasks.task import Task


@dataclass(frozen=True)
class Labelled:
    """What a model says of the rows of a window, and how many of them were shortened."""

    answers: tuple[Prediction, ...]
    shortened: int


class Labeller:
    """One process' model, from the files of its artifact, which need not be on every machine."""

    def __init__(self, files: Mapping[str, bytes], device: str | None, batch_size: int) -> None:
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            self.model, self.batch_size = artifact.load(folder, device=device), batch_size

    def __call__(self, examples: Sequence[Example]) -> Labelled:
        """One thread, as with every engine."""
        tally = Tally()
        with one_thread():
            answers = tuple(self.model.stream(examples, batch_size=self.batch_size, tally=tally))
        return Labelled(answers, tally.shortened)


def windows(rows: Rows) -> Iterator[tuple[Example, ...]]:
    """The rows of a file in windows, in order."""
    examples = (example for _, example in rows.read())
    while window := tuple(itertools.islice(examples, WINDOW)):
        yield window


def predict_files(
    folder: Path,
    source: Source,
    target: Path | TextIO,
    *,
    form: str | None,
    overwrite: bool,
    batch_size: int,
    device: str | None,
    ray_address: str | None,
    say: Say,
    progress: Callable[[int], None],
) -> Tally:
    """The same file as `answering.predict_files` writes with one thread; memory does not grow with its rows."""
    manifest = artifact.read_manifest(folder)
    tally, rows = Tally(), Rows.of(source, Task.from_dict(manifest["task"], "task"), say)
    read = partial(windows, replace(rows, path=rows.path.absolute()))
    files = {name: (folder / name).read_bytes() for name in (MANIFEST, *manifest["files"])}

    def answers() -> Iterator[Prediction]:
        for labelled in on_ray.stream(read, partial(Labeller, files, device, batch_size), device=device, address=ray_address):
            tally.rows += len(labelled.answers)
            tally.shortened += labelled.shortened
            yield from labelled.answers

    def answered(read: Iterator[tuple[Row, Example]]) -> Iterator[tuple[Row, Prediction]]:
        return zip((row for row, _ in read), answers(), strict=True)

    answering.write_answers(rows, answered, target, form=form, overwrite=overwrite, say=say, progress=progress)
    return tally
