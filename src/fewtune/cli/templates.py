"""The command `import-template`: arguments → one call each. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewtune.cli import flags
from fewtune.cli.flags import Labels, Overwrite
from fewtune.cli.terminal import say

Notation = Annotated[str | None, typer.Option("--notation", help="promptsource, openprompt, lm-bff or pet; recognised if left out.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(import_template)


def import_template(
    file: Annotated[Path, typer.Argument(help="Templates or label words of promptsource, OpenPrompt, LM-BFF or PET.")],
    notation: Notation = None,
    labels: Labels = None,
    out: Annotated[Path | None, typer.Option("--out", help="The task file (TOML) to write; shown if left out.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Read templates of another tool: as a task file, or shown. Nothing in them is run; what is left out is said."""
    from fewtune.data.writers import write_text
    from fewtune.prompt import importers

    found = importers.read(file, notation)
    for note in found.notes:
        say(note)
    if out:
        write_text(out, found.task(flags.listed(labels)).to_toml(), overwrite=overwrite)
        typer.echo(f"{file} → {out}")
    else:
        for template in found.templates:
            typer.echo(repr(template))
        for label, words in found.words.items():
            typer.echo(f"{label}={'|'.join(words)}")
