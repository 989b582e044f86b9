"""The command `multitask`: arguments → one call. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fewtune.cli import flags, terminal
from fewtune.cli.flags import AsJson, BackboneName, BatchSize, Device, Engine, MaxLength, Overwrite, Precision, RayAddress, Seed, Workers
from fewtune.cli.terminal import print_json, say


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(multitask)


def multitask(
    tasks: Annotated[Path, typer.Argument(help="A folder: NAME.toml or NAME.yaml (promptsource), NAME.train.csv, NAME.test.csv.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it stands for the PLM in --backbone of other commands.")],
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="Tasks that are never trained on, separated by commas: rte,coref-*. They measure.")
    ] = None,
    backbone: BackboneName = "smollm2-135m",
    delta: Annotated[list[str] | None, typer.Option("--delta", help="lora, ia3, bitfit or subset (all weights); may repeat.")] = None,
    loss: Annotated[
        Literal["choice", "language", "both"],
        typer.Option("--loss", help="Choosing among the candidates, the language-model loss of the right answer (T0's), or both."),
    ] = "language",
    cap: Annotated[int, typer.Option("--cap", min=1, help="Larger tasks are drawn as if they had so many rows.")] = 1000,
    temperature: Annotated[float, typer.Option("--temperature", help="Above 1, small tasks are drawn more often.")] = 1.0,
    overlap: Annotated[
        Literal["drop", "refuse"],
        typer.Option("--overlap", help="Held-out rows whose text is trained on are dropped, or the job is refused."),
    ] = "drop",
    test_rows: Annotated[
        int, typer.Option("--test-rows", min=0, help="Rows of each held-out task, spread over its file; 0 for all.")
    ] = 200,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help="none (the default, as in T0) or contextual, for the held-out tasks.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=0)] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate")] = None,
    batch_size: BatchSize = 8,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="A step takes so many batches, each of a task and a template of its own.")
    ] = 4,
    max_length: MaxLength = 256,
    precision: Precision = "auto",
    device: Device = None,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    engine: Engine = "local",
    workers: Workers = 1,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Train a PLM on many prompted tasks, and measure on others how much better it got at what it never saw."""
    from fewtune import course
    from fewtune.deltas import presets
    from fewtune.readout import CALIBRATIONS
    from fewtune.runs import engines
    from fewtune.strategies.multitask import MultiTask
    from fewtune.train.fit import FitOptions
    from fewtune.train.world import joined

    wanted = course.Course(
        backbone=backbone,
        deltas=tuple(one for item in delta for one in presets.read(item)) if delta else (course.DELTA,),
        how=MultiTask(loss=loss, cap=cap, temperature=temperature),
        fit=FitOptions(steps=steps, learning_rate=learning_rate, batch_size=batch_size, accumulate=accumulate),
        calibration=None if calibration is None else CALIBRATIONS.from_text(calibration, "--calibration"),
        overlap=overlap,
        test_rows=test_rows,
        max_length=max_length,
        precision=precision,
        device=device,
        seed=seed,
    )
    with joined() as world, terminal.progress_bar(shown=world.first) as progress:
        speak = say if world.first else _quiet
        lessons = course.read(tasks, flags.listed(held_out), wanted, say=speak)
        options = {"overwrite": overwrite, "world": world, "say": speak, "progress": progress}
        found = engines.teach(engine, ray_address, workers, lessons, out, wanted, **options)
    if world.first:
        _show(found, as_json)


def _quiet(line: str) -> None:
    """The first of several processes speaks for all."""


def _show(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(found.to_dict())
    else:
        terminal.show_course(found)
