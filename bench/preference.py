"""Frozen embeddings or contrastive tuning, where the labelled rows can hardly tell them apart: which of the two should go without proof?
Many draws of eight rows a class; both are judged on these as `fit` judges them, and on other training rows. No test row is looked at.

The figures behind the order of the two rungs in `fewtune.strategies.ladder`.

    python bench/preference.py
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, heading, table, write
from runs import drawn, right, task_of

from fewtune import estimate, job
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.plm import load
from fewtune.readout import READOUTS
from fewtune.settings import Settings, recipe_of
from fewtune.strategies.ladder import judge
from fewtune.strategies.rungs import rungs_of
from fewtune.train.fit import Session

SETS = ("sst2", "cr", "trec", "agnews", "snips", "tweeteval_offensive")
RULES: Mapping[str, Sequence[int]] = {"frozen unless tuned is better": (0, 1), "tuned unless frozen is better": (1, 0)}
"""Whose proof is asked for: the order in which the two, frozen and tuned, stand."""


@dataclass(frozen=True)
class Draw:
    """What the labelled rows say (losses of both, row by row), and how often each is right on other rows: frozen, tuned."""

    data: str
    losses_N2: np.ndarray
    accuracy: tuple[float, float]

    def kept(self, order: Sequence[int]) -> float:
        """The accuracy of the one that is kept, if they stand in this order."""
        return self.accuracy[order[estimate.simplest(self.losses_N2[:, order])]]


def draw(name: str, seed: int, backbone: Backbone, options: argparse.Namespace) -> Draw:
    """One draw of a set's training rows."""
    data = DataSet(options.shared, name)
    rows, others = drawn(data, options.k, options.rows, seed=seed)
    task = task_of(data, None)
    similarity = READOUTS.from_text("similarity")
    settings = [Settings(strategy="supervised", readout=similarity, deltas=deltas, seed=seed) for deltas in ((), None)]
    recipe = recipe_of(task, backbone, settings[1])
    judged = judge(rungs_of([(recipe, backbone)], Split(train=rows)), Split(train=rows), Session(), tempered=True)
    at = [next(number for number, rung in enumerate(judged.rungs) if bool(rung.recipe.deltas) == tuned) for tuned in (False, True)]
    accuracy = [right(job.tune(task, Split(train=rows), backbone, one, session=Session()), others) for one in settings]
    return Draw(name, judged.losses_NM[:, at], (accuracy[0], accuracy[1]))


def page(draws: Sequence[Draw], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file."""
    rows = []
    for name in (*options.data, "all"):
        own = [one for one in draws if name in (one.data, "all")]
        if own:
            figures = (
                [one.accuracy[0] for one in own],
                [one.accuracy[1] for one in own],
                *([d.kept(o) for d in own] for o in RULES.values()),
            )
            rows.append([name, str(len(own)), *(f"{100 * statistics.fmean(values):.1f}" for values in figures)])
    first, second = ([one.kept(order) for one in draws] for order in RULES.values())
    differ = [100 * (after - before) for before, after in zip(first, second, strict=True) if before != after]
    found = "The rules never differ."
    if len(differ) > 1:
        error = statistics.stdev(differ) / len(differ) ** 0.5
        found = (
            f"Where the rules differ ({len(differ)} of {len(draws)} draws), the second gives {statistics.fmean(differ):+.1f} points "
            f"(standard error {error:.1f})."
        )
    facts = (
        f"- minilm-l6; {options.k} labelled rows a class, drawn {options.draws} times; accuracy in percent on {options.rows} other "
        "training rows\n"
        "- *better*: by more than a standard error of the loss on rows not seen, as `fit` judges"
    )
    parts = [heading("Frozen embeddings or tuned", "bench/preference.py", arguments) + facts]
    return "\n\n".join([*parts, table(("data", "draws", "frozen", "tuned", *RULES), rows), found]) + "\n"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Frozen embeddings or contrastive tuning, where labelled rows can hardly tell.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--data", nargs="+", default=list(SETS))
    parser.add_argument("--k", type=int, default=8, help="labelled rows a class")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--rows", type=int, default=300, help="other training rows that judge")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "preference.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """All draws; the page is written anew after each."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    return guarded(lambda: _run(options, arguments))


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    backbone, draws = load("minilm-l6", say=print), list[Draw]()
    for seed, name in itertools.product(range(1, options.draws + 1), options.data):
        draws.append(draw(name, seed, backbone, options))
        print(name, seed, *(f"{100 * value:.1f}" for value in draws[-1].accuracy), flush=True)
        write(options.out, page(draws, options, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
