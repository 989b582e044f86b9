"""How honest the estimate is: drawn splits of a few rows, `fit`'s estimate from these alone, and the accuracy on many test rows.

Three ways: `frozen` (embeddings of an encoder and a logistic regression), `contrastive` (what `fit` does with an encoder: frozen or tuned,
chosen by the rows) and `cloze` (what it does with an autoregressive PLM). Beside them *best on held-out*: the accuracy of the best
rung on the same held-out rows, which is what is reported by those who choose and do not correct for it. Finished runs are not repeated.
What the frozen blocks make of the test rows is computed once for all splits.

    python bench/estimate.py
    python bench/estimate.py --ways frozen --splits 10 --limit-seconds 600
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, heading, table, write
from runs import PROMPTS, append, code_hash, finished, key_of, task_of
from torch import Tensor

from fewtune import estimate, job
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.data.example import Example, Split
from fewtune.data.sampling import capped, shots
from fewtune.evaluation import evaluate
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch
from fewtune.readout.similarity import Similarity
from fewtune.train.fit import Session

# Kept beside the page, for it takes hours and is gone on with on other days and machines.
RAW = RESULTS / "estimate.jsonl"
SETS = ("sst2", "agnews", "yelp_short", "mr", "cr")


@dataclass(frozen=True)
class Way:
    """A backbone, what is settled of the method (float32 where that says nothing), and how many splits are drawn."""

    backbone: str
    settings: Mapping[str, Any]
    splits: int


WAYS: Mapping[str, Way] = {
    "frozen": Way("minilm-l6", {"readout": Similarity(), "deltas": ()}, 40),
    "contrastive": Way("minilm-l6", {}, 40),
    "cloze": Way("smollm2-135m", {"precision": "auto"}, 5),
}


@dataclass(frozen=True)
class Job:
    """One split: `k` rows a label of `data`, drawn by `seed`."""

    way: str
    data: str
    k: int
    seed: int
    test_rows: int


def run(wanted: Job, shared: Path, backbone: Backbone) -> dict[str, Any]:
    """The estimate of a fit on the split, and what the model is worth on the test rows; the fit does not see them."""
    dataset, way = _dataset(shared, wanted.data), WAYS[wanted.way]
    train = shots(dataset.train, wanted.k, seed=wanted.seed)
    settings = job.Settings(strategy="ladder", seed=wanted.seed, **{"precision": "float32", **way.settings})
    clock = time.perf_counter()
    task = task_of(dataset, PROMPTS.get(wanted.data) if wanted.way == "cloze" else None)
    model = job.tune(task, Split(train=train), backbone, settings, session=Session())
    seconds = time.perf_counter() - clock
    try:
        measured = accuracy(model, tested(shared, wanted.data, wanted.test_rows), wanted.data)
    finally:
        model.remove()
    about = model.about
    return {
        **{"estimate": about["estimate"], "rungs": about["rungs"], "kept": about["kept"], "rows": len(train)},
        **{"accuracy": measured, "seconds": seconds},
    }


@cache
def _dataset(shared: Path, name: str) -> DataSet:
    return DataSet(shared, name)


@cache
def tested(shared: Path, name: str, count: int) -> tuple[Example, ...]:
    """The test rows, the same for all splits."""
    return tuple(example for _, example in capped({name: _dataset(shared, name).test}, count, seed=0))


Read = list[tuple[list[int], Batch, Tensor]]
"""Batches of test rows with their numbers, and the states below_BTD that the first block that is tuned is given."""
_READ: dict[tuple[str, int], Read] = {}


def accuracy(model: TunedModel, test: Sequence[Example], name: str) -> float:
    """The share of test rows that are right; below the first tuned block a model that embeds texts reads those of `name` once."""
    if model.readout.needs_slot:
        return evaluate(model, test).measures.metrics["accuracy"].value
    place = name, model.first_block
    if place not in _READ:
        _READ[place] = list(_read(model, test))
    scores_NC = torch.zeros(len(test), len(model.task.labels))
    for numbers, batch, below_BTD in _READ[place]:
        with torch.inference_mode():
            scores_NC[numbers] = model.batch_scores(batch, below_BTD)
    answers = model.answers(test, scores_NC)
    return statistics.mean(answer.label == example.label for answer, example in zip(answers, test, strict=True))


def _read(model: TunedModel, test: Sequence[Example]) -> Iterator[tuple[list[int], Batch, Tensor]]:
    rows = model.asking.rows(test, 0)
    for numbers in model.asking.buckets(rows, 0, size=32):
        batch = model.asking.collate([rows[number] for number in numbers], 0)
        with torch.inference_mode():
            yield numbers, batch, model.below(batch)


# The table

COLUMNS = (
    "way",
    "data",
    "splits",
    "test accuracy",
    "estimate",
    "off by",
    "off by, each",
    "covered",
    "best on held-out",
    "off by",
    "covered",
)


@dataclass(frozen=True)
class Reported:
    """A figure that a way reports of itself, with its 90 % interval, and what the test rows say."""

    value: float
    low: float
    high: float
    accuracy: float

    @property
    def error(self) -> float:
        """How much too high it is."""
        return self.value - self.accuracy

    @property
    def covers(self) -> bool:
        """Whether the interval holds the test accuracy."""
        return self.low <= self.accuracy <= self.high


def reported(result: Mapping[str, Any]) -> tuple[Reported, Reported]:
    """What `fit` reports, and what is reported where the best on the held-out rows is taken at its word."""
    own, best = result["estimate"], max(rung["accuracy"] for rung in result["rungs"])
    naive = estimate.accuracy(best, result["rows"])
    return (
        Reported(own["value"], own["low"], own["high"], result["accuracy"]),
        Reported(naive.value, naive.low, naive.high, result["accuracy"]),
    )


def row_of(way: str, data: str, results: Sequence[Mapping[str, Any]], asked: int) -> list[str]:
    """One row of the table; `data` may be all sets."""
    state = f"{len(results)}" if len(results) == asked else f"{len(results)} of {asked}"
    if not results:
        return [way, data, state, *["–"] * 8]
    own, naive = zip(*map(reported, results), strict=True)
    return [
        *(way, data, state),
        f"{100 * statistics.mean(one.accuracy for one in own):.1f}",
        f"{100 * statistics.mean(one.value for one in own):.1f}",
        f"{100 * statistics.mean(one.error for one in own):+.1f}",
        f"{100 * statistics.mean(abs(one.error) for one in own):.1f}",
        f"**{100 * statistics.mean(one.covers for one in own):.0f} %**",
        f"{100 * statistics.mean(one.value for one in naive):.1f}",
        f"{100 * statistics.mean(one.error for one in naive):+.1f}",
        f"{100 * statistics.mean(one.covers for one in naive):.0f} %",
    ]


def page(options: argparse.Namespace, asked: Sequence[Job], results: Mapping[Job, Mapping[str, Any]], arguments: Sequence[str]) -> str:
    """The results file."""
    rows = []
    for way in options.ways:
        for data in options.data:
            mine = [one for one in asked if (one.way, one.data) == (way, data)]
            rows.append(row_of(way, data, [results[one] for one in mine if one in results], len(mine)))
        mine = [one for one in asked if one.way == way]
        rows.append(row_of(way, "all", [results[one] for one in mine if one in results], len(mine)))
    codes = ", ".join(dict.fromkeys(result["code"] for result in results.values()))
    facts = (
        f"- {options.k} rows a label, drawn anew for each split; {options.test_rows} test rows, the same for all",
        f"- Code: {codes or 'none yet'} (hash of its sources)",
        "",
        "In percent, means over the splits. *Off by*: estimate less test accuracy; *each*: without its sign, split by split, which on so "
        "few rows is mostly chance. *Covered*: the share of splits whose 90 % interval holds the test accuracy (asked: 85 to 95 %; the "
        "mean is asked to be off by less than 2 points). *Best on held-out*: the best rung's own accuracy on the same held-out rows, "
        "uncorrected.",
    )
    return heading("Estimate against test", "bench/estimate.py", arguments) + "\n".join(facts) + "\n\n" + table(COLUMNS, rows) + "\n"


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Coverage of the estimate's interval over drawn splits; resumable.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--data", nargs="+", default=list(SETS))
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--splits", type=int, help="so many at most")
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further run after so long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--older", action="store_true", help="take finished runs of earlier code too; the page lists the codes")
    parser.add_argument("--out", type=Path, default=RESULTS / "estimate.md")
    return parser.parse_args(arguments)


def jobs(options: argparse.Namespace) -> list[Job]:
    """All splits of a way, set after set within each draw, so that a table that is cut short has all sets."""
    found = []
    for way in options.ways:
        splits = min(WAYS[way].splits, options.splits or WAYS[way].splits)
        found += [Job(way, data, options.k, seed, options.test_rows) for seed, data in itertools.product(range(splits), options.data)]
    return found


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Run what is not finished; the page is written anew after each run."""
    begun, code, known, backbones = time.perf_counter(), code_hash(), finished(RAW), dict[str, Backbone]()
    for way in options.ways:
        name = WAYS[way].backbone
        backbones[name] = backbones.get(name) or load(name, say=print)
    asked = jobs(options)
    keys = {one: key_of({**asdict(one), "settings": repr(WAYS[one.way].settings)}, backbones[WAYS[one.way].backbone]) for one in asked}
    results = {one: known[key] for one, key in keys.items() if key in known and (options.older or known[key]["code"] == code)}
    for one in asked:
        if one in results:
            continue
        if time.perf_counter() - begun > options.limit_seconds:
            break
        results[one] = {"key": keys[one], "code": code, **asdict(one), **run(one, options.shared, backbones[WAYS[one.way].backbone])}
        append(RAW, results[one])
        write(options.out, page(options, asked, results, arguments))
        own = results[one]["estimate"]
        print(
            f"[{len(results)}/{len(asked)}] {one.way} {one.data} {one.seed}: estimate {100 * own['value']:.1f} "
            f"({100 * own['low']:.1f}–{100 * own['high']:.1f}), test {100 * results[one]['accuracy']:.1f}, {results[one]['seconds']:.0f} s",
            flush=True,
        )
    write(options.out, page(options, asked, results, arguments))


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    return guarded(lambda: run_all(options, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
