"""The command `search`: arguments → one call. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewtune.cli import flags, terminal
from fewtune.cli.flags import (
    AsJson,
    BackboneName,
    Device,
    Label,
    Labels,
    MaxLength,
    Overwrite,
    Precision,
    Search,
    Seed,
    SkipBadRows,
    TaskFile,
    Template,
    Text,
    Words,
)
from fewtune.cli.terminal import print_json, say


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(search)


def search(
    train: Annotated[Path, typer.Argument(help="Labelled rows: csv, tsv, jsonl or parquet, also .gz.")],
    search: Search = None,
    out: Annotated[Path | None, typer.Option("--out", help="The task file (TOML) to write what is found to.")] = None,
    text: Text = None,
    label: Label = None,
    labels: Labels = None,
    task: TaskFile = None,
    template: Template = None,
    words: Words = None,
    backbone: BackboneName = "smollm2-135m",
    max_length: MaxLength = 256,
    precision: Precision = "auto",
    device: Device = None,
    seed: Seed = 42,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Propose templates and label words and tune nothing, for a task file to edit. `fit --search` finds and judges them by itself."""
    from fewtune import job
    from fewtune.settings import Settings

    settings = Settings(
        backbones=(backbone,),
        search=flags.searches(search or ["templates", "words"]),
        max_length=max_length,
        precision=precision,
        device=device,
        seed=seed,
    )
    with terminal.progress_bar() as progress:
        found = job.search_files(
            flags.source(train, text, label, skip_bad_rows),
            out,
            task=flags.task(task),
            settings=settings,
            labels=flags.listed(labels),
            templates=flags.templates(template),
            words=flags.words(words),
            overwrite=overwrite,
            say=say,
            progress=progress,
        )
    if as_json:
        print_json({"task": [*found.values()][-1].task.to_dict(), "search": {name: one.to_dict() for name, one in found.items()}})
        return
    for name, one in found.items():
        terminal.show_found(name, one)
    if out:
        say(f"{train} → {out}")
