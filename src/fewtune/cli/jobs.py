"""The commands of the main job, `fit`, `predict`, `evaluate`, and what looks at a method or a model, `params`, `inspect`: arguments → one
call each. Holds no logic; nothing heavy is imported before one runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewtune.cli import terminal
from fewtune.cli.flags import (
    Adapt,
    AsJson,
    BackboneName,
    BackboneNames,
    BatchSize,
    Calibration,
    Demonstrations,
    Describe,
    Device,
    Engine,
    Kind,
    Label,
    Labels,
    MaxLength,
    Overwrite,
    Precision,
    RayAddress,
    Readout,
    Search,
    Seed,
    SkipBadRows,
    TaskFile,
    Template,
    Text,
    Words,
)
from fewtune.cli.flags import adaptations as _adaptations
from fewtune.cli.flags import deltas as _deltas
from fewtune.cli.flags import listed as _list
from fewtune.cli.flags import searches as _searches
from fewtune.cli.flags import source as _source
from fewtune.cli.flags import task as _task
from fewtune.cli.flags import templates as _templates
from fewtune.cli.flags import words as _words
from fewtune.cli.terminal import print_json, print_lines, say

if TYPE_CHECKING:
    from fewtune.readout.readout import Readout as ReadoutSpec


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (fit, predict, evaluate, params, inspect):
        app.command()(command)


def fit(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    train: Annotated[
        Path | None, typer.Argument(help="Labelled rows: csv, tsv, jsonl or parquet, also .gz. None: --strategy ipet, from --unlabeled.")
    ] = None,
    text: Text = None,
    label: Label = None,
    kind: Kind = "classification",
    labels: Labels = None,
    unlabeled: Annotated[Path | None, typer.Option("--unlabeled", help="Rows without labels.")] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Rows with labels from elsewhere: a label (and its probability), or a column of each.")
    ] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Labelled rows that only measure.")] = None,
    task: TaskFile = None,
    template: Template = None,
    words: Words = None,
    describe: Describe = None,
    backbone: BackboneNames = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            help="ladder, supervised, zeroshot, pet or ipet (pet:merge=logits). Default: pet with enough --unlabeled rows, else ladder.",
        ),
    ] = None,
    delta: Annotated[
        list[str] | None, typer.Option("--delta", help="lora, lora:rank=4,sites=ffn_in+ffn_out, adapter, ia3, houlsby …")
    ] = None,
    readout: Readout = None,
    calibration: Calibration = None,
    demonstrations: Demonstrations = None,
    search: Search = None,
    adapt: Adapt = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            help="The folder of a saved model that this one goes on from: its task unless another is named, its PLM, its deltas, and its "
            "readout where the labels are the same.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=0)] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate")] = None,
    batch_size: BatchSize = 8,
    max_length: MaxLength = 256,
    precision: Precision = "auto",
    device: Device = None,
    seed: Seed = 42,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model on a few labelled rows and write it to a folder."""
    from fewtune import job
    from fewtune.estimate import Estimate, spoken
    from fewtune.prompt.demonstrations import read
    from fewtune.runs import engines
    from fewtune.settings import Settings, started
    from fewtune.train.fit import FitOptions

    settings = Settings(
        backbones=tuple(backbone or ()),
        strategy=strategy,
        deltas=None if delta is None else _deltas(delta),
        readout=_readout(readout),
        calibration=_calibration(calibration),
        demonstrations=read(demonstrations, "--demonstrations"),
        search=_searches(search),
        adapt=_adaptations(adapt),
        fit=FitOptions(steps=steps, learning_rate=learning_rate, batch_size=batch_size),
        max_length=max_length,
        precision=precision,
        device=device,
        seed=seed,
    )
    settings = settings if start is None else started(settings, start)
    with engines.spread(engine, ray_address) as spread, terminal.progress_bar() as progress:
        fitted = job.fit_files(
            None if train is None else _source(train, text, label, skip_bad_rows),
            out,
            task=_task(task, describe),
            settings=settings,
            kind=kind,
            labels=_list(labels),
            templates=_templates(template),
            words=_words(words),
            description=describe or "",
            unlabeled=None if unlabeled is None else _source(unlabeled, text, None, skip_bad_rows),
            teacher=None if teacher is None else _source(teacher, text, None, skip_bad_rows),
            test=None if test is None else _source(test, text, label, skip_bad_rows),
            overwrite=overwrite,
            say=say,
            progress=progress,
            spread=spread,
        )
    result = fitted.to_dict()
    if as_json:
        print_json(result)
        return
    print_lines(
        {
            "method": result["method"],
            "trained parameters": f"{result['trained_parameters']:,}"
            f" ({result['trained_parameters'] / result['backbone_parameters']:.3%} of {result['backbone_parameters']:,})",
            **({"estimate": spoken(Estimate(**result["estimate"]))} if result["estimate"] else {}),
            "seconds": ", ".join(f"{name} {value:.1f}" for name, value in fitted.seconds.items()),
            "model": f"{out} ({result['bytes']['model']:,} bytes; its card is {out}/README.md)",
        }
    )
    if fitted.evaluation:
        terminal.show_evaluation(fitted.evaluation)


def predict(
    model: Annotated[Path, typer.Argument(help="A folder that `fewtune fit` wrote.")],
    file: Annotated[Path, typer.Argument(help="Rows to answer: csv, tsv, jsonl or parquet, also .gz.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="csv, tsv or jsonl, also .gz; standard output if left out.")] = None,
    text: Text = None,
    form: Annotated[str | None, typer.Option("--format", help="csv, tsv or jsonl, for standard output.")] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch",
            min=0,
            max=1,
            help="Of a model with exits: the share of rows that also go to the end; what is no longer as it was when exits were added is "
            "said.",
        ),
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
) -> None:
    """Answer every row: the input's columns, then label, probability and exit_layer; rows stream, in order."""
    from fewtune import answering, artifact, sources
    from fewtune.runs import engines

    manifest = artifact.read_manifest(model)
    source = _source(file, text, None, skip_bad_rows)
    sources.check_source(source)
    predict_files = engines.predict(engine, ray_address, model, device, watch)
    start = time.perf_counter()
    with terminal.counter("rows") as advance:
        tally = predict_files(
            source,
            out or sys.stdout,
            form=form,
            overwrite=overwrite,
            batch_size=batch_size,
            say=say,
            progress=advance,
        )
    seconds = time.perf_counter() - start
    note = answering.shortened_note(tally, manifest["max_length"])
    if note:
        say(note)
    if out:
        say(f"{tally.rows:,} rows in {seconds:.1f} s, {tally.rows / seconds:.0f} a second → {out}")


def evaluate(
    model: Annotated[Path, typer.Argument(help="A folder that `fewtune fit` wrote.")],
    test: Annotated[Path, typer.Argument(help="Labelled rows.")],
    text: Text = None,
    label: Label = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    skip_bad_rows: SkipBadRows = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model on labelled rows: metrics with 95 % intervals, calibration error, confusion, seconds."""
    from fewtune import answering

    source = _source(test, text, label, skip_bad_rows)
    _, found, seconds = answering.evaluate_files(model, source, batch_size=batch_size, device=device, say=say)
    if as_json:
        print_json({"model": str(model), "seconds": seconds, **found.to_dict()})
        return
    terminal.show_evaluation(found)
    print_lines({"seconds": ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())})


def params(
    backbone: BackboneName = "smollm2-135m",
    delta: Annotated[list[str] | None, typer.Option("--delta", help="As for fit, several at once; without it, the usual methods.")] = None,
    readout: Readout = None,
    labels: Annotated[str, typer.Option("--labels", help="Labels, separated by commas; a head grows with them.")] = "negative,positive",
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens in each row of a step.")] = 64,
    batch_size: BatchSize = 8,
    precision: Precision = "auto",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """What a method costs before anything is tuned: numbers trained, bytes for a task and for a hundred, seconds and memory of a step."""
    from fewtune import costs
    from fewtune.plm import load

    found = costs.compare(
        load(backbone, device=device, say=say),
        {" + ".join(delta): _deltas(delta)} if delta else None,
        readout=_readout(readout),
        labels=_list(labels),
        step=costs.Step(length, batch_size),
        precision=precision,
        say=say,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        terminal.show_costs(found)


def inspect(
    model: Annotated[Path, typer.Argument(help="A folder that `fewtune fit` wrote.")],
    file: Annotated[Path, typer.Argument(help="Texts: csv, tsv, jsonl or parquet, also .gz.")],
    text: Text = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    skip_bad_rows: SkipBadRows = False,
    as_json: AsJson = False,
) -> None:
    """What tuning changed: how far each step of the stack moves, and which texts have another label than before."""
    from fewtune import inspection

    source = _source(file, text, None, skip_bad_rows)
    found = inspection.inspect_files(model, source, batch_size=batch_size, device=device, say=say)
    if as_json:
        print_json(found.to_dict())
    else:
        terminal.show_inspection(found)


def _readout(text: str | None) -> ReadoutSpec | None:
    from fewtune.readout import READOUTS

    return None if text is None else READOUTS.from_text(text, "--readout")


def _calibration(name: str | None) -> Any:
    from fewtune.readout import CALIBRATIONS

    return None if name is None or name == "auto" else CALIBRATIONS.from_text(name, "--calibration")
