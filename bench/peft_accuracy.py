"""What each way of tuning is worth: accuracy, share of weights trained, bytes of an artifact, seconds. Finished runs are not repeated.

Four parts: `head` (an encoder with a head: few labels and 1,000 rows), `cloze` (label words), `domain` (tested on other domains than
trained on) and `resource` (from 16 rows to all). Every delta is trained with its own default learning rate, never chosen on test rows.

    python bench/peft_accuracy.py
    python bench/peft_accuracy.py --part head --methods lora full --limit-seconds 600
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import DEFAULT_SHARED, FIRST, RESULTS, DataSet, guarded, heading, table, write
from runs import PROMPTS, append, code_hash, figures, finished, key_of, spread, task_of

from fewtune import artifact
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.data.example import Example, Split
from fewtune.data.sampling import capped
from fewtune.deltas import presets
from fewtune.deltas.delta import Delta
from fewtune.errors import FewtuneError
from fewtune.model import DEFAULT_LENGTH, TunedModel
from fewtune.readout.calibration import Uncalibrated
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.recipe import Recipe
from fewtune.strategies import STRATEGIES
from fewtune.strategies.supervised import default_steps
from fewtune.train.fit import FitOptions, Session

# Kept beside the page, for it takes hours and is gone on with on other days and machines.
RAW = RESULTS / "peft_accuracy.jsonl"
SPECS: Mapping[str, str] = {
    **{"full": "subset", "lora": "lora", "dora": "lora:dora=true", "houlsby": "houlsby", "pfeiffer": "pfeiffer"},
    **{"parallel": "parallel", "adapter": "pfeiffer", "ia3": "ia3", "biases": "bitfit", "prefix": "prefix"},
    **{"soft-prompt": "soft-prompt", "head-only": ""},
}
"""Method → deltas, as the flag names them."""
EVERY = ("full", "lora", "dora", "houlsby", "pfeiffer", "parallel", "ia3", "biases", "prefix", "soft-prompt", "head-only")
ALL = 0
"""The size that means all rows."""


@dataclass(frozen=True)
class Part:
    """Data sets × sizes × seeds × methods on one backbone. A size is (`k` rows a class, or 0; `rows` in all, 0 for as many as `k` says);
    `length` is the most tokens of a text, 0 for the default."""

    title: str
    backbone: str
    cloze: bool
    data: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    others: bool = False
    length: int = 0


DOMAINS = ("mr", "amazon_kitchen", "amazon_electronics", "amazon_books")
FEW, MANY = ((16, 0),), ((0, 1000),)
PARTS: Mapping[str, tuple[Part, ...]] = {
    "head": (
        Part("Head, 16 rows a class", "minilm-l6", False, ("sst2", "trec", "agnews", "snips", "cr"), FEW, (13, 21, 42), EVERY),
        Part("Head, 1,000 rows", "minilm-l6", False, ("sst2", "trec", "agnews"), MANY, (13, 21), EVERY),
    ),
    "cloze": (
        Part(
            "Label words, 16 rows a class",
            "smollm2-135m",
            True,
            ("sst2", "trec"),
            FEW,
            (13, 21, 42),
            ("full", "lora", "adapter", "prefix", "soft-prompt", "ia3", "biases"),
        ),
    ),
    # Reviews of several hundred words: their beginnings do, and halve the time.
    "domain": (Part("Other domains, 1,000 rows, 128 tokens", "minilm-l6", False, DOMAINS, MANY, (13, 21), EVERY, others=True, length=128),),
    "resource": (
        Part(
            "From few to all rows",
            "minilm-l6",
            False,
            ("sst2", "agnews"),
            ((0, 16), (0, 64), (0, 256), (0, 1024), (0, ALL)),
            (13, 21),
            ("full", "lora", "adapter", "prefix"),
        ),
    ),
}


@dataclass(frozen=True)
class Job:
    """One run: trained on `k` rows a class or on `rows` rows of `data`, tested on the first `test_rows` of it and of the `others`."""

    part: str
    backbone: str
    cloze: bool
    data: str
    k: int
    rows: int
    seed: int
    method: str
    test_rows: int
    others: tuple[str, ...] = ()
    length: int = 0

    def facts(self) -> dict[str, Any]:
        """What a finished run is known by: not the part that asked for it, nor a length that is the default."""
        return {name: value for name, value in asdict(replace(self, part="")).items() if name != "length" or value}


def jobs(name: str, part: Part, options: argparse.Namespace) -> Iterator[Job]:
    """The runs of a part: all methods of a seed before the next seed, so that a table that is cut short compares like with like."""
    for seed, data, (k, rows), method in itertools.product(part.seeds, part.data, part.sizes, part.methods):
        if method in options.methods and data in (options.data or part.data) and seed in (options.seeds or part.seeds):
            others = tuple(other for other in part.data if other != data) if part.others else ()
            count = rows if k or rows else options.most
            yield Job(name, part.backbone, part.cloze, data, k, count, seed, method, options.test_rows, others, part.length)


def deltas_of(method: str) -> tuple[Delta, ...]:
    """What a method installs."""
    return presets.read(SPECS[method], "method") if SPECS[method] else ()


def steps_of(rows: int, labels: int) -> int:
    """fewtune's default, but no less than three passes over the rows in steps of 8."""
    return max(default_steps(rows, labels), rows * 3 // 8)


def train_rows(job: Job, dataset: DataSet) -> tuple[Example, ...]:
    """The rows to learn from: those of the splits for K a class, else a draw by the seed."""
    if job.k:
        return dataset.shots(job.k, seed=job.seed)
    drawn = capped({job.data: dataset.train}, job.rows or len(dataset.train), seed=job.seed)
    return tuple(example for _, example in drawn)


def recipe_of(job: Job, dataset: DataSet, rows: int) -> Recipe:
    """The recipe that a job runs, in float32."""
    return Recipe(
        task_of(dataset, PROMPTS.get(job.data) if job.cloze else None),
        backbone=job.backbone,
        deltas=deltas_of(job.method),
        readout=Cloze() if job.cloze else Head(),
        calibration=None if job.cloze else Uncalibrated(),
        fit=FitOptions(steps=steps_of(rows, len(dataset.labels()))),
        max_length=job.length or DEFAULT_LENGTH,
        precision="float32",
        seed=job.seed,
    )


# One run


def run(job: Job, recipe: Recipe, train: tuple[Example, ...], datasets: Mapping[str, DataSet], backbone: Backbone) -> dict[str, Any]:
    """Tune and measure; a method that the backbone cannot carry gives the reason instead."""
    clock, processor = time.perf_counter(), time.process_time()
    try:
        model = STRATEGIES.member("supervised")().run(recipe, Split(train=train), backbone, session=Session())
    except FewtuneError as error:
        return {"refused": str(error), "train_rows": len(train)}
    took = {"fit_seconds": time.perf_counter() - clock, "fit_processor_seconds": time.process_time() - processor}
    try:
        tests = {name: _tested(model, datasets[name], job.test_rows) for name in (job.data, *job.others)}
        return {"train_rows": len(train), "steps": recipe.fit.steps, **took, **_size(model), **tests[job.data], "tests": tests}
    finally:
        model.remove()


def _tested(model: TunedModel, dataset: DataSet, rows: int) -> dict[str, Any]:
    return figures(model, dataset.first(rows))


def _size(model: TunedModel) -> dict[str, Any]:
    """The share of the backbone's weights that was trained, the head aside, and the bytes of what an artifact holds."""
    held = [tensor for state in artifact.tensors(model).values() for tensor in state.values()]
    return {
        "share_trained": sum(delta.trained_parameters for delta in model.deltas) / model.backbone.parameters,
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in held),
    }


# The tables


COLUMNS = ("method", "data", "trained on", "share trained", "bytes", "accuracy", "processor s", "seeds")


def rows_of(asked: Sequence[Job], results: Mapping[Job, Mapping[str, Any]]) -> list[list[str]]:
    """One row for each method, data set and size; what is not finished yet is said to be missing."""
    groups: dict[tuple[str, int, int, str], list[Job]] = {}
    for job in asked:
        groups.setdefault((job.data, job.k, job.rows, job.method), []).append(job)
    return [_row(group, [results[job] for job in group if job in results]) for group in groups.values()]


def _row(group: Sequence[Job], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    job = group[0]
    size = f"{job.k} a class" if job.k else f"{job.rows:,} rows" if job.rows else "all rows"
    start = [job.method, job.data, size]
    if not runs:
        return [*start, "–", "–", "missing", "–", f"0 of {len(group)}"]
    if refused := [run["refused"] for run in runs if "refused" in run]:
        return [*start, "–", "–", "refused: " + " ".join(refused[0].split()), "–", f"{len(runs)} of {len(group)}"]
    return [
        *start,
        f"{100 * runs[0]['share_trained']:.3g} %",
        f"{runs[0]['bytes']:,}",
        _accuracy(job, runs),
        f"{statistics.mean(run['fit_processor_seconds'] for run in runs):.0f}",
        f"{len(runs)} of {len(group)}",
    ]


def _accuracy(job: Job, runs: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over the seeds; with other domains, on the one trained on and on each other, and the others' mean."""

    def on(name: str) -> list[float]:
        return [run["tests"][name]["metrics"]["accuracy"]["value"] for run in runs]

    if not job.others:
        return spread(on(job.data))
    means = [statistics.mean(values) for values in zip(*map(on, job.others), strict=True)]
    each = ", ".join(f"{name} {spread(on(name))}" for name in job.others)
    return f"{spread(on(job.data))}; others {spread(means)} ({each})"


def averages(part: Part, asked: Sequence[Job], results: Mapping[Job, Mapping[str, Any]]) -> list[list[str]]:
    """Each method's mean over all runs of the part that every method has finished, with the mean over the other domains."""
    done = [job for job in asked if "metrics" in results.get(job, {})]
    places = {(job.data, job.k, job.rows, job.seed): set[str]() for job in done}
    for job in done:
        places[job.data, job.k, job.rows, job.seed].add(job.method)
    methods = [method for method in part.methods if any(job.method == method for job in done)]
    common = {place for place, found in places.items() if found == set(methods)}
    rows = []
    for method in methods:
        mine = [job for job in done if job.method == method and (job.data, job.k, job.rows, job.seed) in common]
        if mine:
            own = statistics.mean(results[job]["metrics"]["accuracy"]["value"] for job in mine)
            tests = [results[job]["tests"][name]["metrics"]["accuracy"]["value"] for job in mine for name in job.others]
            others = f"{100 * statistics.mean(tests):.1f}" if tests else "–"
            rows.append([method, f"{100 * own:.1f}", others, str(len(mine))])
    return rows


def page(options: argparse.Namespace, results: Mapping[Job, Mapping[str, Any]], arguments: Sequence[str]) -> str:
    """The results file."""
    codes = ", ".join(dict.fromkeys(result["code"] for result in results.values()))
    facts = (
        f"- Tested on {options.test_rows or 'all'} test rows ({FIRST}); float32; code: {codes or 'none yet'} (hash of its sources)",
        "- Steps of 8 rows: fewtune's default, at least three passes over the rows; every delta with its own default learning rate",
        "",
        "Accuracy in percent, mean ± sample deviation over the seeds, which choose the training rows and all that is random. *Share "
        "trained*: of the backbone's weights, the head aside; *bytes*: of the numbers in an artifact, the head with them. *adapter* "
        "is *pfeiffer*.",
    )
    parts = [heading("Accuracy of the ways of tuning", "bench/peft_accuracy.py", arguments) + "\n".join(facts)]
    for name in options.part:
        for part in PARTS[name]:
            asked = list(jobs(name, part, options))
            missing = sum(job not in results for job in asked)
            state = f"{missing} of {len(asked)} runs are still missing." if missing else f"All {len(asked)} runs are there."
            parts += [f"## {part.title} ({part.backbone})", state, table(COLUMNS, rows_of(asked, results))]
            if means := averages(part, asked, results):
                columns = ("method", "mean accuracy", "mean on other domains", "runs")
                parts += ["Over the runs that every method has finished:", table(columns, means)]
    return "\n\n".join(parts) + "\n"


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Accuracy, share trained, bytes and seconds of every way of tuning; resumable.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--methods", nargs="+", default=list(SPECS), choices=list(SPECS))
    parser.add_argument("--data", nargs="+", help="these data sets only")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds only")
    parser.add_argument("--test-rows", type=int, default=500, help="the first test rows only; 0 for all")
    parser.add_argument("--most", type=int, default=4096, help="what “all rows” is cut to; 0 for all there are")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further run after so long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--older", action="store_true", help="take finished runs of earlier code too; the page lists the codes")
    parser.add_argument("--out", type=Path, default=RESULTS / "peft_accuracy.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run what is not finished; the page is written anew after each run, so that a run may be stopped."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    return guarded(lambda: run_all(options, arguments))


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Take what is finished, then run the rest, part by part."""
    bench = Runs(options)
    asked = [job for name in options.part for part in PARTS[name] for job in jobs(name, part, options)]
    results = {job: found for job in asked if (found := bench.known(job))}
    write(options.out, page(options, results, arguments))
    for job in [job for job in asked if job not in results]:
        if time.perf_counter() - bench.begun > options.limit_seconds:
            break
        results[job] = bench.run(job)
        write(options.out, page(options, results, arguments))
        print(
            f"[{len(results)}/{len(asked)}] {job.part} {job.data} k={job.k} rows={job.rows} seed={job.seed}:",
            *_short(results[job]),
            flush=True,
        )
    print(f"{len(asked) - len(results)} of {len(asked)} runs are still missing.")


def _short(result: Mapping[str, Any]) -> tuple[str, ...]:
    if "refused" in result:
        return result["method"], "refused"
    return result["method"], f"{100 * result['metrics']['accuracy']['value']:.1f}", f"{result['fit_seconds']:.0f} s"


class Runs:
    """The finished runs, and what is loaded once for those that are not."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begun, self.code, self.finished = options, time.perf_counter(), code_hash(), finished(RAW)
        self.datasets: dict[str, DataSet] = {}
        self.backbones: dict[str, Backbone] = {}

    def known(self, job: Job) -> dict[str, Any] | None:
        """The result of a job if it is there, from this code or, if that is wanted, from an earlier one."""
        found = self.finished.get(self._prepared(job)[0])
        return found if found and (self.options.older or found["code"] == self.code) else None

    def run(self, job: Job) -> dict[str, Any]:
        """Run a job and keep its result."""
        key, recipe, train = self._prepared(job)
        figures_of_it = run(job, recipe, train, self.datasets, self._backbone(job.backbone))
        result = {"key": key, "code": self.code, "recipe": recipe.to_dict(), **asdict(job), **figures_of_it}
        append(RAW, result)
        return result

    def _prepared(self, job: Job) -> tuple[str, Recipe, tuple[Example, ...]]:
        for name in (job.data, *job.others):
            self.datasets.setdefault(name, DataSet(self.options.shared, name))
        train = train_rows(job, self.datasets[job.data])
        recipe = recipe_of(job, self.datasets[job.data], len(train))
        # What a recipe spells out changes with the code, which is told apart by its hash.
        facts = {"job": job.facts(), "deltas": SPECS[job.method], "steps": recipe.fit.steps}
        for name in (job.data, *job.others):
            facts |= self.datasets[name].cut(job.test_rows)
        return key_of(facts, self._backbone(job.backbone)), recipe, train

    def _backbone(self, name: str) -> Backbone:
        if name not in self.backbones:
            self.backbones[name] = load(name, say=print)
        return self.backbones[name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
