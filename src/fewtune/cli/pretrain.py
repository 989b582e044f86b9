"""The commands `pretrain`, `score` and `complete`: arguments → one call each. Holds no logic; nothing heavy is imported before one runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fewtune.cli import flags, terminal
from fewtune.cli.flags import (
    AsJson,
    BackboneName,
    BatchSize,
    Device,
    Engine,
    Overwrite,
    Precision,
    RayAddress,
    Seed,
    SkipBadRows,
    Text,
    Workers,
)
from fewtune.cli.terminal import print_json, print_lines, say
from fewtune.errors import SpecError


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (pretrain, score, complete):
        app.command()(command)


def pretrain(
    corpus: Annotated[list[Path], typer.Argument(help="Plain text files (UTF-8), of any size, also .gz.")],
    out: Annotated[Path, typer.Option("--out", help="The model folder to write; --backbone takes it.")],
    objective: Annotated[
        Literal["mlm", "clm"] | None, typer.Option("--objective", help="mlm: masked tokens (BERT); clm: each next token (Llama).")
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="The PLM to go on with; without it a new one is made.")] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", help="A folder that low-rank updates of the PLM were written to: they go on, with the same --delta."),
    ] = None,
    size: Annotated[str, typer.Option("--size", help="Of a new model: tiny, mini or small.")] = "tiny",
    vocabulary: Annotated[
        int, typer.Option("--vocabulary", min=300, help="Of a new model: the most pieces its tokenizer learns.")
    ] = 16_384,
    shared: Annotated[bool, typer.Option("--shared", help="Of a new model: one block for all layers, narrow embeddings (ALBERT).")] = False,
    delta: Annotated[
        list[str] | None, typer.Option("--delta", help="Train low-rank updates (lora:rank=16 …) instead of all weights; may repeat.")
    ] = None,
    masked: Annotated[float, typer.Option("--masked", help="The share of the tokens that an mlm learns to predict.")] = 0.15,
    whole_words: Annotated[bool, typer.Option("--whole-words", help="Mask words instead of tokens.")] = False,
    documents: Annotated[
        Literal["blank", "lines"], typer.Option("--documents", help="A document ends at an empty line, or with each line.")
    ] = "blank",
    length: Annotated[int, typer.Option("--length", help="Tokens in a block.")] = 128,
    held_out: Annotated[float, typer.Option("--held-out", help="The share of the blocks that only measures, 1024 at most.")] = 0.01,
    points: Annotated[int, typer.Option("--points", help="How often the held-out blocks are judged.")] = 10,
    epochs: Annotated[float, typer.Option("--epochs", help="Times over the corpus, unless --steps are given.")] = 1.0,
    steps: Annotated[int | None, typer.Option("--steps", min=0)] = None,
    batch_size: BatchSize = 32,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="A step takes the mean gradient of so many batches.")] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help="By default 1e-3 for random weights and low-rank updates, 1e-4 for trained weights."),
    ] = None,
    precision: Precision = "auto",
    device: Device = None,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    engine: Engine = "local",
    workers: Workers = 1,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Learn the language of text files: a new model and its tokenizer, or a PLM that goes on. Writes a Hugging Face model folder."""
    from fewtune.pretraining import Corpus, Start
    from fewtune.runs import engines
    from fewtune.strategies.pretrain import Pretraining
    from fewtune.train.fit import FitOptions
    from fewtune.train.world import joined

    with joined() as world, terminal.progress_bar(shown=world.first) as progress:
        made = engines.learn(
            engine,
            ray_address,
            workers,
            Corpus(tuple(corpus), documents, length, held_out),
            out,
            Start(backbone, objective, size, vocabulary, shared, device, start),
            Pretraining(
                deltas=flags.deltas(delta or ()),
                masked=masked,
                whole_words=whole_words,
                epochs=epochs,
                points=points,
                precision=precision,
                fit=FitOptions(steps=steps, learning_rate=learning_rate, batch_size=batch_size, accumulate=accumulate, average=0.0),
                seed=seed,
            ),
            overwrite=overwrite,
            say=say if world.first else _quiet,
            progress=progress,
            world=world,
        )
    if world.first:
        _show(made.to_dict(), out, as_json)


def _quiet(line: str) -> None:
    """The first of several processes speaks for all."""


def _show(result: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    last, rate = result["curve"][-1], result["tokens_per_second"]
    print_lines(
        {
            "loss, held out": f"{last['held_out']:.3f} (perplexity {last['perplexity']:.1f})",
            "trained parameters": f"{result['trained_parameters']:,} of {result['parameters']:,}",
            **({"tokens a second": f"{rate:,.0f}"} if rate else {}),
            "model": f"{out} ({result['bytes']['model']:,} bytes; its card is {out}/README.md)",
        }
    )


def score(
    file: Annotated[Path, typer.Argument(help="Texts: csv, tsv, jsonl or parquet, also .gz.")],
    backbone: BackboneName = "smollm2-135m",
    text: Text = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="csv, tsv or jsonl, also .gz; standard output if left out.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="csv, tsv or jsonl, for standard output.")] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """How likely a PLM finds each text: the input's columns, then tokens, log_probability and perplexity.

    Autoregressive PLMs tell it exactly, masked ones by hiding one token after another (pseudo-log-likelihood).
    """
    from fewtune.perplexity import score_files

    target = None if as_json and not out else out or sys.stdout
    with terminal.counter("rows") as advance:
        found = score_files(
            flags.source(file, text, None, skip_bad_rows),
            target,
            backbone=backbone,
            form=form,
            overwrite=overwrite,
            batch_size=batch_size,
            device=device,
            say=say,
            progress=advance,
        )
    if as_json:
        print_json(found.to_dict())
        return
    whole, kind = found.whole, "perplexity" if found.exact else "pseudo-perplexity"
    figures = (f"{each:.{places}f}" if each is not None else "–" for each, places in ((whole.perplexity, 2), (whole.bits_per_byte, 3)))
    say(f"{whole.tokens:,} tokens in {len(found.rows):,} texts: {kind} {', '.join(figures)} bits a byte.")


def complete(
    text: Annotated[str, typer.Argument(help=r"The beginning of a text; or, for a masked PLM, one with [MASK] in it. \n is a new line.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="A catalogue name, a model folder, or a hub id; by default minilm-l6-mlm for a text with [MASK], else smollm2-135m.",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many tokens are shown.")] = 10,
    tokens: Annotated[int, typer.Option("--tokens", min=0, help="Go on with the text, so many tokens at most.")] = 0,
    draw: Annotated[bool, typer.Option("--draw", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", help="Of drawing: below 1 nearer to the likeliest.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw among the likeliest tokens that hold this share.")] = 1.0,
    seed: Seed = 42,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """What a PLM would write: the next tokens and their probabilities, words for each [MASK], or the text going on (--tokens)."""
    from fewtune import completion
    from fewtune.plm import load

    if not tokens and (draw, temperature, top_p) != (False, 1.0, 1.0):
        fix = "Say how many tokens may be drawn, or leave it out."
        raise SpecError(expected="--tokens", got="none", where="--draw, --temperature and --top-p", fix=fix)
    (given,) = flags.templates([text])
    how = completion.Writing(tokens, draw, temperature, top_p, seed) if tokens else None
    found = completion.complete(load(backbone or completion.usual(given), device=device, say=say), given, top=top, how=how)
    if as_json:
        print_json(found.to_dict())
    else:
        terminal.show_completion(found)
