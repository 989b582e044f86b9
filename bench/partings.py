"""How much wider than independent rows an interval of rows held out in folds has to be: many draws of a few training rows, each parted into
folds once and several times, against the accuracy on the training rows that were not drawn. No test row is looked at.

The figures behind `fewtune.estimate.widened`: a regression on frozen embeddings of minilm-l6, which is all that can be drawn hundreds of
times here.

    python bench/partings.py
    python bench/partings.py --draws 50 --data sst2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, heading, table, write
from torch import Tensor

from fewtune import estimate
from fewtune.data.example import Example
from fewtune.data.sampling import folds, shots, spread
from fewtune.readout.sentences import lazily
from fewtune.readout.similarity import logistic
from fewtune.strategies.folds import FOLDS

SETS = (("sst2", 8), ("sst2", 16), ("sst2", 64), ("mr", 4), ("mr", 16), ("yelp_short", 16), ("agnews", 16), ("trec", 8))
"""(data, labelled rows a class)"""
PARTINGS = (1, 5)
MOST = 2500
COLUMNS = ("data", "K", "partings", "accuracy", "estimate off by", "variance over that of independent rows", "covered", "covered, widened")


class Rows:
    """Training rows and their embeddings."""

    def __init__(self, shared: Path, name: str) -> None:
        data = DataSet(shared, name)
        self.examples = spread(data.train, MOST)
        self.embeddings_ND: Tensor = lazily("minilm-l6")([" ".join(one.fields.values()) for one in self.examples])
        self.labels = data.labels()
        self.targets_N = torch.tensor([self.labels.index(one.label or "") for one in self.examples])

    def right(self, learn: Sequence[int], ask: Sequence[int]) -> Tensor:
        """Whether each of the rows `ask` is right by a regression on the rows `learn`."""
        weight_CD, bias_C = logistic(self.embeddings_ND[learn], self.targets_N[learn], candidates=len(self.labels), strength=1.0)
        return ((self.embeddings_ND[ask].double() @ weight_CD.T + bias_C).argmax(1) == self.targets_N[ask]).double()


def held_out(rows: Rows, drawn: Sequence[int], examples: Sequence[Example], seed: int) -> float:
    """The accuracy of the rows `drawn`, each by those of the other folds."""
    right = [rows.right([drawn[one] for one in kept], [drawn[one] for one in held]) for kept, held in folds(examples, FOLDS, seed=seed)]
    return float(torch.cat(right).mean())


def measured(rows: Rows, k: int, draws: int) -> list[list[str]]:
    """A line of the table for each number of partings."""
    places = {id(one): place for place, one in enumerate(rows.examples)}
    truth, found = [], {count: list[float]() for count in PARTINGS}
    for draw in range(draws):
        examples = shots(rows.examples, k, seed=draw)
        drawn = [places[id(one)] for one in examples]
        left = sorted(set(range(len(rows.examples))) - set(drawn))
        truth.append(float(rows.right(drawn, left).mean()))
        each = [held_out(rows, drawn, examples, draw * max(PARTINGS) + number) for number in range(max(PARTINGS))]
        for count in PARTINGS:
            found[count].append(float(np.mean(each[:count])))
    return [_line(np.array(truth), np.array(values), k * len(rows.labels), count) for count, values in found.items()]


def _line(truth: np.ndarray, values: np.ndarray, rows: int, partings: int) -> list[str]:
    independent = truth.mean() * (1 - truth.mean()) / rows
    covered = [
        np.mean(
            [
                (own := estimate.accuracy(value, rows, widened=by)).low <= right <= own.high
                for value, right in zip(values, truth, strict=True)
            ]
        )
        for by in (1.0, estimate.widened(partings))
    ]
    return [
        str(partings),
        f"{100 * truth.mean():.1f}",
        f"{100 * (values - truth).mean():+.1f}",
        f"{(values - truth).var() / independent:.2f}",
        *(f"{100 * share:.0f} %" for share in covered),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="How much wider the interval of rows held out in folds has to be.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/")
    parser.add_argument("--data", nargs="+", help="these data sets only")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "partings.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    return guarded(lambda: _run(options, arguments))


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    lines, held = [], dict[str, Rows]()
    for name, k in SETS:
        if name in (options.data or [name]):
            held[name] = held.get(name) or Rows(options.shared, name)
            lines += [[name, str(k), *line] for line in measured(held[name], k, options.draws)]
            print(*lines[-len(PARTINGS) :], sep="\n", flush=True)
    facts = (
        f"- {options.draws} draws of K training rows a class; accuracy on the others of {MOST:,} training rows, spread over the file; "
        f"{FOLDS} folds, intervals of {estimate.LEVEL:.0%}",
        "- A regression on frozen embeddings of minilm-l6",
        "",
        "*Covered*: the share of draws whose interval holds the accuracy, as if rows were independent, and with their variance widened as "
        "`fewtune.estimate.widened` says.",
    )
    text = heading("Rows held out in folds are not independent", "bench/partings.py", arguments) + "\n".join(facts)
    write(options.out, text + "\n\n" + table(COLUMNS, lines) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
