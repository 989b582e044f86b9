"""The command `compress`: arguments → one call. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewtune.cli import flags, terminal
from fewtune.cli.flags import AsJson, Device, Label, Overwrite, Seed, SkipBadRows, Text
from fewtune.cli.terminal import print_json, say
from fewtune.errors import FewtuneError

if TYPE_CHECKING:
    from fewtune.compressing import Compressed


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(compress)


def compress(
    model: Annotated[Path, typer.Argument(help="A folder that `fewtune fit` wrote.")],
    data: Annotated[Path, typer.Option("--data", help="Labelled rows: a part of them measures, the others are learned from.")],
    to: Annotated[Path, typer.Option("--to", help="The folder to write.")],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="A way: distill:layers=3, distill:backbone=NAME … Repeat to apply several one after another."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="A promise: size=0.5 (share of the bytes), speed=2, drop=1 (points lost); size=0.5,drop=1: both."),
    ] = None,
    unlabeled: Annotated[Path | None, typer.Option("--unlabeled", help="Texts without labels to learn from.")] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            "--teacher",
            help="The folder of another model of the same task, that distill learns from, too; or a file of rows with labels from "
            "elsewhere: a label (and its probability), or a column of each. May repeat.",
        ),
    ] = None,
    text: Text = None,
    label: Label = None,
    device: Device = None,
    seed: Seed = 42,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a model smaller: by the ways that are named, or by whatever of them keeps a promise on this machine."""
    from fewtune import compressing, registry

    with terminal.progress_bar() as progress:
        made = compressing.compress_files(
            model,
            flags.source(data, text, label, skip_bad_rows),
            to,
            by=tuple(compressing.way(text, seed) for text in by or ()),
            target=None if target is None else registry.from_text(compressing.Target, target, "--target"),
            unlabeled=None if unlabeled is None else flags.source(unlabeled, text, None, skip_bad_rows),
            teachers=teacher or (),
            device=device,
            seed=seed,
            overwrite=overwrite,
            say=say,
            progress=progress,
        )
    if as_json:
        print_json(made.to_dict())
    else:
        terminal.show_compressed(made)
    if made.chosen is None:
        raise _unkept(made)


def _unkept(made: Compressed) -> FewtuneError:
    fix = "Nothing was written; what was tried is kept, so a looser promise is answered at once."
    return FewtuneError(expected=f"a model that keeps {made.target}", got="none", where="compress --target", fix=fix)
