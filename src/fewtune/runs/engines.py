"""`--engine local|ray`: by what a command's parts are done. Knows the flags, not what is done."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from fewtune import artifact, job
from fewtune.errors import SpecError
from fewtune.job import Source
from fewtune.model import Tally
from fewtune.runs import labelling, on_ray
from fewtune.train.fit import Spread, in_turn

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


class Predict(Protocol):
    """What `job.predict_files` does, with its model."""

    def __call__(self, source: Source, target: Path | TextIO, **options: Any) -> Tally:
        """Answer a file's rows."""
        ...


def predict(engine: Name, ray_address: str | None, folder: Path, device: str | None) -> Predict:
    """What answers a file by the artifact in `folder`, which is loaded here or by each of Ray's actors; raises as `check` does."""
    check(engine, ray_address)
    if engine == "ray":
        return partial(labelling.predict_files, folder, device=device, ray_address=ray_address)
    return partial(job.predict_files, artifact.load(folder, device=device))
