"""`--engine local|ray`: by what a command's parts are done. Knows the flags, not what is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, TypeVar

from fewtune import answering, artifact, course
from fewtune.backbone.load import default_device
from fewtune.collection import Collection
from fewtune.course import Course, Taught
from fewtune.errors import SpecError
from fewtune.model import Tally
from fewtune.pretraining import Corpus, Pretrained, Start, pretrain_files
from fewtune.runs import labelling, on_ray
from fewtune.sources import Say, Source
from fewtune.strategies.pretrain import Pretraining
from fewtune.train.fit import Spread, in_turn
from fewtune.train.world import World

T = TypeVar("T")
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
    _check_workers(engine, ray_address, workers)
    if engine == "local":
        return course.teach(found, out, wanted, **options)
    work = partial(course.teach, found, out.absolute(), wanted, overwrite=options["overwrite"])
    return replace(_on_ray(work, ray_address, workers, wanted.device, options["say"]), folder=out)


def learn(
    engine: Name, ray_address: str | None, workers: int, texts: Corpus, out: Path, start: Start, spec: Pretraining, **options: Any
) -> Pretrained:
    """`pretraining.pretrain_files` in so many processes of Ray, or in this one and those that torchrun has started beside it.

    Raises as `teach` does.
    """
    _check_workers(engine, ray_address, workers)
    if engine == "local":
        return pretrain_files(texts, out, start=start, spec=spec, **options)
    there = replace(texts, paths=tuple(path.absolute() for path in texts.paths))
    work = partial(pretrain_files, there, out.absolute(), start=start, spec=spec, overwrite=options["overwrite"])
    return replace(_on_ray(work, ray_address, workers, start.device, options["say"]), folder=out)


def _check_workers(engine: Name, ray_address: str | None, workers: int) -> None:
    check(engine, ray_address)
    if engine == "local" and workers > 1:
        fix = f"Add --engine ray, or start it with: torchrun --nproc-per-node {workers} -m fewtune …"
        raise SpecError(expected="--engine ray", got="--engine local", where="--workers", fix=fix)


def _on_ray(work: Callable[..., T], ray_address: str | None, workers: int, device: str | None, say: Say) -> T:
    """What the first worker made; what it had to say is said when all is done."""
    gpus = (device or default_device()).startswith("cuda")
    made, lines = on_ray.together(partial(_telling, work), workers, address=ray_address, gpus=gpus)
    for line in lines:
        say(line)
    return made


def _telling(work: Callable[..., T], world: World) -> tuple[T, list[str]]:
    """What came of it, and what was said."""
    lines: list[str] = []
    return work(world=world, say=lines.append), lines


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
