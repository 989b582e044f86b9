"""Rows of unlike lengths in one padded pass against turns of like length (`fewtune.backbone.turns`), side by side: the first labelled rows
of real sets, read, and trained on with LoRA.

    python bench/turns.py
    python bench/turns.py --data sst2 --costs 32 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, heading, table, write
from runs import PROMPTS, task_of

from fewtune.backbone import turns
from fewtune.backbone.backbone import Precision
from fewtune.backbone.load import load
from fewtune.deltas.lora import LoRA
from fewtune.model import TunedModel
from fewtune.readout import READOUTS

MODELS = {"minilm-l6": ("similarity", 16), "smollm2-135m": ("cloze", 8)}
"""What reads the states, and how many rows are in a batch: as a fit does it by default with eight rows of each of two labels."""
NEVER = 10**9


def measured(model: TunedModel, data: DataSet, options: argparse.Namespace, *, train: bool) -> list[str]:
    """A line of the table."""
    rows = model.asking.rows(data.shots(8, seed=13), 0)[: MODELS[model.backbone.name][1]]
    batch = model.asking.collate(rows, 0)

    def run() -> None:
        with torch.set_grad_enabled(train):
            found = model.output(batch).hidden_BTD * batch.mask_BT[..., None]
            if train:
                found.square().mean().backward()  # type: ignore[no-untyped-call]

    seconds, counts = taken(run, (NEVER, *options.costs), options.rounds), []
    for cost in options.costs:
        with patch.object(turns, "TURN", cost):
            counts.append(len(turns.by_length(batch.mask_BT)) or 1)
    ratios = [statistics.median(here / there for here, there in zip(seconds[cost], seconds[NEVER], strict=True)) for cost in options.costs]
    shown = [f"{ratio:.2f} ({count})" for ratio, count in zip(ratios, counts, strict=True)]
    what = "trained on" if train else "read"
    size = f"{len(rows)} × {batch.ids_BT.shape[1]}"
    share = int(batch.mask_BT.sum()) / batch.mask_BT.numel()
    return [model.backbone.name, model.backbone.precision, data.name, what, size, f"{share:.2f}", *shown]


def taken(run: Callable[[], None], costs: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Seconds of processor time of each round; costs take turns, after one round that is not counted."""
    found: dict[int, list[float]] = {cost: [] for cost in costs}
    for number in range(rounds + 1):
        for cost in costs:
            with patch.object(turns, "TURN", cost):
                start = time.process_time()
                run()
            if number:
                found[cost].append(time.process_time() - start)
    return found


def lines(options: argparse.Namespace) -> list[list[str]]:
    """The table."""
    found = []
    for name in options.models:
        backbone, readout = load(name, say=print), READOUTS.from_text(MODELS[name][0])
        for data in (DataSet(options.shared, one) for one in options.data):
            task = task_of(data, PROMPTS.get(data.name) if readout.needs_slot else None)
            for precision in options.precisions:
                with backbone.as_precision(precision):
                    for train in (False, True):
                        model = TunedModel.assemble(backbone, task, readout)
                        if train:
                            model.deltas = (LoRA().install(backbone, generator=torch.Generator().manual_seed(0)),)
                        found.append(measured(model, data, options, train=train))
                        model.remove()
                        print(*found[-1], flush=True)
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Padding against turns of like length.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--data", nargs="+", default=["sst2", "cr", "trec", "agnews"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=get_args(Precision))
    parser.add_argument("--costs", nargs="+", type=int, default=[128, 64, 32, 16], help="what a turn is taken to cost, in tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "turns.md")
    return parser.parse_args(arguments)


def page(options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file."""
    facts = (
        f"- Eight labelled rows a class, seed 13; the first {' or '.join(str(size) for _, size in MODELS.values())} of them are one batch",
        "",
        "*Share*: the tokens that are not padding. Then processor time over that of one padded pass, the median of "
        f"{options.rounds} rounds after one that is not counted, and in brackets in how many turns the batch was run, by what a turn "
        f"is taken to cost in tokens. {turns.TURN} is what fewtune takes it to cost.",
    )
    columns = ("PLM", "precision", "data", "batch is", "rows × tokens", "share", *(f"{cost}" for cost in options.costs))
    text = heading("Turns of like length against padding", "bench/turns.py", arguments) + "\n".join(facts)
    return text + "\n\n" + table(columns, lines(options)) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    return guarded(lambda: write(options.out, page(options, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
