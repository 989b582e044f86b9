"""What each way of tuning is worth: accuracy, share of weights trained, bytes of an artifact, seconds. Finished runs are not repeated.

Four parts: `head` (an encoder with a head: few labels and 1,000 rows), `cloze` (label words), `domain` (tested on other domains than
trained on) and `resource` (from 16 rows to all). Every delta is trained with its own default learning rate, never chosen on test rows.

    python bench/peft_accuracy.py
    python bench/peft_accuracy.py --part head --methods lora full --limit-seconds 600
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accuracy_page import page
from accuracy_plan import PARTS, SPECS, Job, jobs
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, write
from runs import PROMPTS, append, code_hash, figures, finished, key_of, task_of

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
