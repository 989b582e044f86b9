"""`--engine local|ray`: by what a command's parts are done. Knows the flags, not what is done."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from fewtune import answering, artifact, course
from fewtune.backbone.load import default_device
from fewtune.collection import Collection
from fewtune.course import Course, Taught
from fewtune.errors import SpecError
from fewtune.model import Tally
from fewtune.runs import labelling, on_ray
from fewtune.sources import Source
from fewtune.train.fit import Spread, in_turn
from fewtune.train.world import World

Name = Literal["local", "ray"]


def check(engine: Name, ray_address: str | None) -> None:
    """Raise `SpecError` for an address without Ray, `MissingExtraError` where Ray is wanted and not installed."""
    if ray_address is not None and engine != "ray":
        raise SpecError(expected="--engine ray", got=f"--engine {engine}", where="--ray-address", fix="Add --engine ray.")
    if engine == "ray":
        on_ray.require()


def spread(engine: Name, ray_address: str | None) -> AbstractContextManager[Spread]:
    """What does the parts of a fit that need nothing of one another; raises as `check` does."""
    check(engine, ray_address)
    return on_ray.spread(ray_address) if engine == "ray" else nullcontext(in_turn)


def teach(engine: Name, ray_address: str | None, workers: int, found: Collection, out: Path, wanted: Course, **options: Any) -> Taught:
    """`course.teach` in so many processes of Ray, or in this one and those that torchrun has started beside it.

    Raises as `check` does, and `SpecError` for several workers without Ray.
    """
    check(engine, ray_address)
    if engine == "local":
        if workers > 1:
            fix = f"Add --engine ray, or start it with: torchrun --nproc-per-node {workers} -m fewtune …"
            raise SpecError(expected="--engine ray", got="--engine local", where="--workers", fix=fix)
        return course.teach(found, out, wanted, **options)
    plain = {name: option for name, option in options.items() if name == "overwrite"}
    gpus = (wanted.device or default_device()).startswith("cuda")
    taught, lines = on_ray.together(partial(_telling, found, out.absolute(), wanted, **plain), workers, address=ray_address, gpus=gpus)
    for line in lines:
        options["say"](line)
    return replace(taught, folder=out)


def _telling(found: Collection, out: Path, wanted: Course, world: World, **options: Any) -> tuple[Taught, list[str]]:
    """What came of it, and what was said."""
    lines: list[str] = []
    return course.teach(found, out, wanted, world=world, say=lines.append, **options), lines


class Predict(Protocol):
    """What `answering.predict_files` does, with its model."""

    def __call__(self, source: Source, target: Path | TextIO, **options: Any) -> Tally:
        """Answer a file's rows."""
        ...


def predict(engine: Name, ray_address: str | None, folder: Path, device: str | None, watch: float | None = None) -> Predict:
    """What answers a file by the artifact in `folder`, which is loaded here or by each of Ray's actors.

    Raises as `check` does, and `SpecError` where exits are to be watched by Ray: each actor would see a part of the rows.
    """
    check(engine, ray_address)
    if engine == "ray":
        if watch is not None:
            raise SpecError(expected="--engine local", got="--engine ray", where="--watch", fix="Watch a part of the rows here.")
        return partial(labelling.predict_files, folder, device=device, ray_address=ray_address)
    return partial(answering.predict_files, artifact.load(folder, device=device), watch=watch)
