"""The options that mean the same in every command, and how what they say is read. Loads nothing heavy and knows no command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fewtune.errors import SpecError

if TYPE_CHECKING:
    from fewtune.deltas.delta import Delta
    from fewtune.prompt.search import Search as SearchSpec
    from fewtune.sources import Source
    from fewtune.tasks.task import Task
    from fewtune.train.adapt import Adaptation

Text = Annotated[list[str] | None, typer.Option("--text", help="Column of the text; repeat for a pair.")]
Label = Annotated[str | None, typer.Option("--label", help="Column of the label.")]
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        help="classification, regression (a number; regression:low=0,high=5), multilabel (any labels, a|b in a cell) or choice (candidates "
        "of each row's own; choice:candidates=text_b+text_c).",
    ),
]
Labels = Annotated[str | None, typer.Option("--labels", help="The labels, separated by commas.")]
Template = Annotated[
    list[str] | None,
    typer.Option("--template", help=r'"Review: {text}\nSentiment: {slot}"; \n is a new line. Repeat to average several.'),
]
Describe = Annotated[
    str | None,
    typer.Option("--describe", help='What is asked, in plain language; it stands before the templates: "Is the review positive?"'),
]
Words = Annotated[str | None, typer.Option("--words", help="Label words: positive=great|good,negative=terrible.")]
TaskFile = Annotated[Path | None, typer.Option("--task", help="A task file (TOML).")]
BackboneNames = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        help="A catalogue name, a model folder, or a hub id. May repeat: they answer side by side unless one of them is better; by default "
        "smollm2-135m and minilm-l6.",
    ),
]
BackboneName = Annotated[str, typer.Option("--backbone", help="A name of the catalogue, a model folder, or a hub id.")]
Readout = Annotated[
    str | None,
    typer.Option(
        "--readout",
        help="cloze, likelihood, channel, head or similarity; by default cloze or likelihood where there is an LM head, else similarity.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option("--calibration", help="none, contextual, pmi, temperature or prior (from unlabelled rows); by default what helps."),
]
Demonstrations = Annotated[
    str | None,
    typer.Option(
        "--demonstrations",
        help="Labelled rows shown in each prompt: per_label=1,similar=0.5,draws=4 …; fields left out are as by default.",
    ),
]
Search = Annotated[
    list[str] | None,
    typer.Option(
        "--search",
        help="words or templates, both by repeating: found with the labelled rows; words:by=ratio, templates:keep=4, "
        "templates:infill=<folder of a T5> …",
    ),
]
Adapt = Annotated[
    list[str] | None,
    typer.Option(
        "--adapt",
        help="What is learned of the language of --unlabeled: tapt (before tuning), auxiliary (in its steps); tapt:steps=200 … May repeat.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1)]
MaxLength = Annotated[int, typer.Option("--max-length", min=8, help="Tokens; longer texts are shortened, templates never.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1)]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 …")]
Precision = Annotated[Literal["auto", "float32", "bfloat16"], typer.Option("--precision")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at the target.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Drop rows that cannot be used, and count them.")]
Engine = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="Here, one part after another, or on Ray, one on each processor.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="So many processes of Ray take each step together.")]
RayAddress = Annotated[str | None, typer.Option("--ray-address", help="A Ray cluster; without it a Ray of this machine is started.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def source(path: Path, text: list[str] | None, label: str | None, skip_bad_rows: bool) -> Source:
    """The file and the columns that are read of it."""
    from fewtune.sources import Source

    return Source(path, tuple(text or ()), label, skip_bad_rows)


def task(path: Path | None, describe: str | None = None) -> Task | None:
    """What `--task` names; what `--describe` says takes the place of its description."""
    from fewtune.tasks.task import Task

    if path is None:
        return None
    found = Task.load(path)
    return replace(found, description=describe) if describe else found


def listed(text: str | None) -> tuple[str, ...]:
    """What commas separate.

    >>> listed("negative, positive")
    ('negative', 'positive')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def templates(given: list[str] | None) -> tuple[str, ...]:
    """A shell hands over a backslash and an n where a new line is meant."""
    return tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in given or ())


def deltas(given: Sequence[str]) -> tuple[Delta, ...]:
    """What `--delta` names, presets among them."""
    from fewtune.deltas import presets

    return tuple(one for item in given for one in presets.read(item))


def searches(given: list[str] | None) -> tuple[SearchSpec, ...]:
    """What `--search` names."""
    from fewtune.prompt.search import SEARCHES

    return tuple(SEARCHES.from_text(item, "--search") for item in given or ())


def adaptations(given: list[str] | None) -> tuple[Adaptation, ...]:
    """What `--adapt` names."""
    from fewtune.train.adapt import ADAPTATIONS

    return tuple(ADAPTATIONS.from_text(item, "--adapt") for item in given or ())


def words(text: str | None) -> dict[str, tuple[str, ...]]:
    """Label words.

    >>> words("positive=great|good")
    {'positive': ('great', 'good')}
    """
    found: dict[str, tuple[str, ...]] = {}
    for part in (text or "").split(",") if text else ():
        label, equals, named = part.partition("=")
        if not equals or not label.strip():
            raise SpecError(
                expected="label=word|word", got=f'"{part}"', where="--words", fix="For example positive=great|good,negative=terrible."
            )
        found[label.strip()] = tuple(word.strip() for word in named.split("|"))
    return found
