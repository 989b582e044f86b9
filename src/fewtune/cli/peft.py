"""The commands `import-peft` and `export-peft`: arguments → one call each. Holds no logic; nothing heavy is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewtune.cli import flags
from fewtune.cli.flags import AsJson, BackboneName, Device, MaxLength, Overwrite, Template, Words
from fewtune.cli.terminal import print_json, say

Labels = Annotated[str, typer.Option("--labels", help="The labels, separated by commas, in the order of the classifier's rows.")]
Fields = Annotated[list[str] | None, typer.Option("--text", help="Name of the text, by default text; repeat for a pair.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(import_peft)
    app.command()(export_peft)


def import_peft(
    folder: Annotated[Path, typer.Argument(help="A PEFT adapter's folder, with adapter_config.json.")],
    backbone: BackboneName,
    labels: Labels,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    text: Fields = None,
    template: Template = None,
    words: Words = None,
    max_length: MaxLength = 256,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a model of a Hugging Face PEFT folder (LoRA, DoRA, IA3, prompt or prefix tuning), with the classifier that it holds."""
    from fewtune import exchange
    from fewtune.tasks.task import Task

    task = Task(flags.listed(labels), tuple(text or ("text",)), flags.templates(template), flags.words(words))
    model = exchange.import_files(folder, out, task, backbone=backbone, max_length=max_length, device=device, overwrite=overwrite, say=say)
    if as_json:
        method, trained = model.about["method"], model.trained_parameters
        print_json({"model": str(out), "method": method, "trained_parameters": trained, "labels": task.labels})
    else:
        typer.echo(f"{model.about['method']} → {out}")


def export_peft(
    model: Annotated[Path, typer.Argument(help="A folder that `fewtune fit` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The PEFT folder to write.")],
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as a Hugging Face PEFT folder; what PEFT has no place for is said, or refused."""
    from fewtune import artifact, exchange

    artifact.read_manifest(model)
    exchange.export_peft(artifact.load_one(model, device=device), out, overwrite=overwrite, say=say)
    typer.echo(f"{model} → {out}")
