"""The command `compare`: arguments → one call. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewtune.cli import terminal
from fewtune.cli.flags import AsJson, Engine, RayAddress
from fewtune.cli.terminal import print_json, say

Limit = Annotated[float | None, typer.Option("--limit-seconds", min=0, help="Start no job after that time; what is done is kept.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(compare)


def compare(
    jobs: Annotated[Path, typer.Argument(help="A job file (TOML): data, methods, shots, seeds.")],
    engine: Engine = "local",
    ray_address: RayAddress = None,
    limit_seconds: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on data sets over shots and seeds: one table, with tests against the first method. Goes on where it was stopped."""
    from fewtune.runs.compare import compare as run

    with terminal.jobs_bar() as progress:
        found = run(jobs, engine=engine, ray_address=ray_address, limit_seconds=limit_seconds, say=say, progress=progress)
    if as_json:
        print_json(found.to_dict())
    else:
        terminal.show_comparison(found)
    found.check()
