"""The command `export-lm-eval`: arguments → one call. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewtune.cli.flags import Device, Label, Overwrite, Text
from fewtune.cli.terminal import say


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="export-lm-eval")(export)


def export(
    model: Annotated[Path, typer.Argument(help="A folder that `fewtune fit` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    test: Annotated[Path | None, typer.Option("--test", help="Labelled rows that measure, as the harness' task reads them.")] = None,
    text: Text = None,
    label: Label = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a folder that EleutherAI's lm-evaluation-harness runs: the model, its own task, and a script."""
    from fewtune import artifact, sources
    from fewtune.harness import export as harness

    artifact.read_manifest(model)
    loaded = artifact.load_one(model, device=device)
    source = None if test is None else sources.Source(test, tuple(text or ()), label)
    examples = () if source is None else sources.read(source, labeled=True, task=loaded.task, say=say).examples
    names = harness.export(loaded, out, examples=examples, overwrite=overwrite, say=say)
    typer.echo(f"{model} → {out}: python {out}/run.py {' '.join(names)}")
