"""The command `exits`: arguments → one call. Holds no logic; nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fewtune.cli import flags, terminal
from fewtune.cli.flags import AsJson, Device, Label, Overwrite, Seed, SkipBadRows, Text
from fewtune.cli.terminal import print_json, print_lines, say
from fewtune.errors import SpecError

if TYPE_CHECKING:
    from fewtune.exits.promise import Promise


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(exits)


def exits(
    model: Annotated[Path, typer.Argument(help="A folder that `fewtune fit` wrote.")],
    data: Annotated[Path, typer.Option("--data", help="Rows that the model was not tuned on; labels are needed for --drop only.")],
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write; the model's own if left out.")] = None,
    agree: Annotated[
        float | None, typer.Option("--agree", help="Share of inputs that get the full model's answer; 0.98 if nothing is promised.")
    ] = None,
    drop: Annotated[float | None, typer.Option("--drop", help="Points of accuracy that may be lost at most.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", help="Share of the layers that is computed at most, in the mean.")] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="How sure the promise is to hold.")] = 0.9,
    criterion: Annotated[
        str, typer.Option("--criterion", help="confidence (learned), entropy, margin (margin:by=top) or patience: what says who may leave.")
    ] = "confidence",
    training: Annotated[
        Literal["distill", "two-stage", "joint", "alternate"],
        typer.Option("--training", help="distill and two-stage leave the model as it is; all but distill learn from --train."),
    ] = "distill",
    train: Annotated[Path | None, typer.Option("--train", help="Labelled rows to learn from, such as those of fit.")] = None,
    layers: Annotated[str | None, typer.Option("--layers", help="Layers that get an exit, 2,4,6; all but the last if left out.")] = None,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Exits answer together with all before them.")] = False,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Of a value: the share of its range that counts as the same.")] = 0.05,
    text: Text = None,
    label: Label = None,
    device: Device = None,
    seed: Seed = 42,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Give a model early exits that keep a promise: easy texts are answered on an earlier layer."""
    from fewtune import exiting
    from fewtune.exits import CRITERIA
    from fewtune.strategies.exits import AddExits

    spec = AddExits(
        criterion=CRITERIA.from_text(criterion, "--criterion"),
        promise=_promise(agree, drop, budget, confidence),
        training=training,
        layers=_layers(layers),
        ensemble=ensemble,
        tolerance=tolerance,
        seed=seed,
    )
    with terminal.progress_bar() as progress:
        added = exiting.exits_files(
            model,
            flags.source(data, text, label, skip_bad_rows),
            out,
            spec=spec,
            train=None if train is None else flags.source(train, text, label, skip_bad_rows),
            device=device,
            overwrite=overwrite,
            say=say,
            progress=progress,
        )
    found = added.to_dict()
    if as_json:
        print_json(found)
        return
    agreement, rows = found["agreement"], found["rows"]
    print_lines(
        {
            "promised": found["promised"] if found["kept"] else "nothing: the exits are off",
            "shown by": f"{rows['tested']} rows: {agreement['value']:.1%} agree ({agreement['low']:.1%} – {agreement['high']:.1%})",
            "layers": f"{found['mean_layer']:.1f} of {found['depth']} in the mean; {found['left_early']:.0%} of the rows leave early",
            "exits": f"{len(found['layers'])}, {4 * found['parameters']:,} bytes; {found['method']}",
            "model": str(found["model"]),
        }
    )


def _promise(agree: float | None, drop: float | None, budget: float | None, confidence: float) -> Promise:
    from fewtune.exits.promise import Promise

    given = [(kind, value) for kind, value in (("agree", agree), ("drop", drop), ("budget", budget)) if value is not None]
    if len(given) > 1:
        got = " and ".join(f"--{kind}" for kind, _ in given)
        raise SpecError(expected="one promise", got=got, where="exits", fix="Name one of them; evaluate shows the others' figures.")
    if budget is not None:
        return Promise("budget", budget, confidence)
    return Promise("agree", 0.98 if agree is None else agree, confidence) if drop is None else Promise("drop", drop, confidence)


def _layers(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(map(int, flags.listed(text)))
    except ValueError:
        raise SpecError(expected="numbers of layers", got=text or "", where="--layers", fix="For example 2,4,6.") from None
