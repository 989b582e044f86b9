"""The command `export-onnx`: arguments → one call. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewtune.cli.flags import Overwrite
from fewtune.cli.terminal import say


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="export-onnx")(export)


def export(
    model: Annotated[Path, typer.Argument(help="A folder that `fewtune fit` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a folder that answers with onnxruntime and tokenizers alone: graph, tokenizer, script; checked equal."""
    from fewtune import artifact, portable

    artifact.read_manifest(model)
    portable.export(artifact.load_one(model, device="cpu"), out, overwrite=overwrite, say=say)
    typer.echo(f"{model} → {out}: python {out}/{portable.SCRIPT} < texts.txt")
