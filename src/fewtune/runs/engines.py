"""`--engine local|ray`: by what a command's parts are done. Knows the flags, not what is done."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from fewtune.errors import SpecError
from fewtune.runs import on_ray
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
