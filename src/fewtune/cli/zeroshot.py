"""The command `zeroshot`: arguments → one call. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fewtune.cli import flags, terminal
from fewtune.cli.flags import (
    AsJson,
    BatchSize,
    Describe,
    Device,
    Kind,
    Label,
    Labels,
    MaxLength,
    Overwrite,
    Precision,
    SkipBadRows,
    TaskFile,
    Template,
    Text,
    Words,
)
from fewtune.cli.terminal import print_json, say


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(zeroshot)


def zeroshot(
    file: Annotated[Path, typer.Argument(help="Texts: csv, tsv, jsonl or parquet, also .gz.")],
    kind: Kind = "classification",
    labels: Labels = None,
    describe: Describe = None,
    template: Template = None,
    words: Words = None,
    task: TaskFile = None,
    text: Text = None,
    label: Label = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone",
            help="A catalogue name, a model folder, or a hub id. Several answer side by side: by default smollm2-135m and minilm-l6, the "
            "first alone with a template or readout.",
        ),
    ] = None,
    readout: Annotated[
        list[str] | None,
        typer.Option(
            "--readout",
            help="cloze, likelihood, channel or similarity (cosine of text and label): one for each --backbone, or for all; by default "
            "what suits the PLM.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help="contextual (the default, but none with channel), pmi, prior (no label more probable in the mean than another) or none.",
        ),
    ] = None,
    unlabeled: Annotated[Path | None, typer.Option("--unlabeled", help="Rows for --calibration prior, which they choose.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where answers go; standard output if left out.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="csv, tsv or jsonl, for standard output.")] = None,
    batch_size: BatchSize = 32,
    max_length: MaxLength = 256,
    precision: Precision = "auto",
    device: Device = None,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Answer without training. Where the file has a label column, --json measures the answers instead of writing them."""
    from fewtune import answering
    from fewtune.readout import CALIBRATIONS, READOUTS
    from fewtune.settings import Settings, routes

    chosen = calibration or ("prior" if unlabeled else None)
    source = flags.source(file, text, label, skip_bad_rows)
    ways = [
        Settings(
            backbones=(name,) if backbone else (),
            strategy="zeroshot",
            readout=own,
            calibration=None if chosen in (None, "auto") else CALIBRATIONS.from_text(chosen, "--calibration"),
            max_length=max_length,
            precision=precision,
            device=device,
        )
        for name, own in routes(backbone or [""], [READOUTS.from_text(one, "--readout") for one in readout or ()])
    ]
    model, seconds = answering.zeroshot_model(
        source,
        task=flags.task(task, describe),
        ways=ways,
        kind=kind,
        labels=flags.listed(labels),
        templates=flags.templates(template),
        words=flags.words(words),
        description=describe or "",
        unlabeled=None if unlabeled is None else flags.source(unlabeled, text, None, skip_bad_rows),
        say=say,
    )
    if out or not as_json:
        with terminal.counter("rows") as advance:
            answering.predict_files(
                model,
                source,
                out or sys.stdout,
                form=form,
                overwrite=overwrite,
                batch_size=batch_size,
                say=say,
                progress=advance,
            )
    if as_json:
        print_json(answering.measured(model, source, seconds, batch_size=batch_size, say=say))
