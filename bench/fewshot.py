"""Accuracy with few labels: data sets × shots × seeds × configurations, one table. Finished runs are kept and not repeated.

Templates and label words were fixed before any test label was read, and are the same for every configuration.

    python bench/fewshot.py --data sst2 --k 8 --seeds 13 21 42 --rows 500

Defaults are settled on training rows that no run has learned from, and no test row is read:

    python bench/fewshot.py --judge train --rows 200 --out bench/results/defaults.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import DEFAULT_SHARED, FIRST, RESULTS, DataSet, heading, table, write
from runs import append, code_hash, figures, finished, key_of, prompt_of, spread, task_of

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.data.example import Example, Split
from fewtune.data.sampling import capped
from fewtune.deltas.delta import Delta
from fewtune.deltas.lora import LoRA
from fewtune.deltas.subset import Subset
from fewtune.errors import FewtuneError
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.readout.calibration import Calibration, Contextual, Temperature, Uncalibrated
from fewtune.readout.head import Head
from fewtune.readout.readout import Readout
from fewtune.recipe import DEFAULT_BACKBONE, Recipe
from fewtune.settings import readout_of
from fewtune.strategies import STRATEGIES
from fewtune.train.fit import Session

RAW = RESULTS / "raw" / "fewshot.jsonl"


@dataclass(frozen=True)
class Configuration:
    """What is compared: everything of a recipe but the task, the backbone and the seed."""

    strategy: str = "supervised"
    deltas: tuple[Delta, ...] = ()
    readout: Readout | None = None
    calibration: Calibration | None = None
    demonstrations: Demonstrations | None = None

    @property
    def learns(self) -> bool:
        """Whether labelled rows are used at all, so that shots and seeds make a difference."""
        return self.strategy != "zeroshot" or self.demonstrations is not None


_DEFAULT = Configuration(deltas=(LoRA(top=1 / 3),))
CONFIGURATIONS: Mapping[str, Configuration] = {
    "zeroshot": Configuration("zeroshot", calibration=Uncalibrated()),
    "zeroshot-calibrated": Configuration("zeroshot", calibration=Contextual()),
    "default": _DEFAULT,
    "default-uncalibrated": replace(_DEFAULT, calibration=Uncalibrated()),
    "default-temperature": replace(_DEFAULT, calibration=Temperature()),
    "in-context": Configuration("zeroshot", calibration=Contextual(), demonstrations=Demonstrations(similar=1)),
    "demonstrations": replace(_DEFAULT, demonstrations=Demonstrations()),
    "lora-all": Configuration(deltas=(LoRA(),)),
    "norms": Configuration(deltas=(Subset("norms"),)),
    "head": Configuration(readout=Head()),
    "head-lora": Configuration(deltas=(LoRA(top=1 / 3),), readout=Head()),
    "finetune": Configuration(deltas=(Subset("all"),), readout=Head()),
}


@dataclass(frozen=True)
class Job:
    """One run; `k` and `seed` are 0 where nothing is learned, `rows` 0 means all test rows."""

    data: str
    configuration: str
    k: int
    seed: int
    rows: int
    backbone: str
    judge: str = "test"


def jobs(options: argparse.Namespace) -> list[Job]:
    """The runs asked for, each once."""
    asked = itertools.product(options.data, options.k, options.configurations, options.seeds)
    return list(dict.fromkeys(_job(*each, options) for each in asked))


def _job(data: str, k: int, configuration: str, seed: int, options: argparse.Namespace) -> Job:
    learns = CONFIGURATIONS[configuration].learns
    return Job(data, configuration, k if learns else 0, seed if learns else 0, options.rows, options.backbone, options.judge)


def judging(job: Job, dataset: DataSet, train: Sequence[Example]) -> tuple[Example, ...]:
    """The first test rows; or training rows, the same for all, without those that are learned from."""
    if job.judge == "test":
        return dataset.first(job.rows)
    seen = {tuple(example.fields.values()) for example in train}
    drawn = capped({job.data: dataset.train}, job.rows or len(dataset.train), seed=0)
    return tuple(example for _, example in drawn if tuple(example.fields.values()) not in seen)


def recipe_of(job: Job, dataset: DataSet, backbone: Backbone) -> Recipe:
    """The recipe that a job runs; the readout is fewtune's default unless the configuration names one."""
    task, chosen = task_of(dataset, prompt_of(job.data, backbone)), CONFIGURATIONS[job.configuration]
    return Recipe(
        task,
        backbone=job.backbone,
        deltas=chosen.deltas,
        readout=chosen.readout or readout_of(task, backbone),
        calibration=chosen.calibration,
        demonstrations=chosen.demonstrations,
        seed=job.seed,
    )


# One run


def run(job: Job, recipe: Recipe, dataset: DataSet, backbone: Backbone) -> dict[str, Any]:
    """Tune and measure; gives the figures as plain data and leaves the backbone as it was."""
    train = dataset.shots(job.k, seed=job.seed) if job.k else ()
    test = judging(job, dataset, train)
    notes: list[str] = []
    start = time.perf_counter()
    strategy = STRATEGIES.member(CONFIGURATIONS[job.configuration].strategy)()
    model = strategy.run(recipe, Split(train=train), backbone, session=Session(say=notes.append))
    seconds = time.perf_counter() - start
    try:
        return {"notes": notes, "train_rows": len(train), "fit_seconds": seconds, **figures(model, test)}
    finally:
        model.remove()


# The table


COLUMNS = (
    "data",
    "K",
    "configuration",
    "accuracy",
    "macro-F1",
    "ECE",
    "trained",
    "fit, s",
    "rows/s",
    "accuracy of each seed (95 % interval)",
)


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row for each data set, K and configuration: mean ± sample deviation over seeds, and every run with its interval."""
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["data"], result["k"], result["configuration"]), []).append(result)
    return [[data, str(k or "–"), configuration, *_summary(runs)] for (data, k, configuration), runs in groups.items()]


def _summary(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    speed = statistics.mean(run["test_rows"] / run["predict_seconds"] for run in runs)
    return [
        *(spread([run["metrics"][name]["value"] for run in runs]) for name in ("accuracy", "macro_f1", "ece")),
        f"{runs[0]['trained_parameters']:,}",
        f"{statistics.mean(run['fit_seconds'] for run in runs):.0f}",
        f"{speed:.0f}",
        "; ".join(f"{run['seed'] or 'all'}: {_interval(run['metrics']['accuracy'])}" for run in runs),
    ]


def _interval(metric: Mapping[str, float]) -> str:
    return f"{100 * metric['value']:.1f} ({100 * metric['low']:.1f}–{100 * metric['high']:.1f})"


def page(
    results: Sequence[Mapping[str, Any]],
    arguments: Sequence[str],
    *,
    title: str = "Accuracy with few labels",
    script: str = "bench/fewshot.py",
) -> str:
    """The results file."""
    counts = ", ".join(dict.fromkeys(f"{result['data']} {result['test_rows']}" for result in results))
    prompts = {run["data"]: run["recipe"]["task"]["templates"] for run in results}
    judged = {result["judge"] for result in results}
    facts = [
        f"- PLM: {_all(results, 'backbone')}; precision: {_all(results, 'precision')}; threads: {_all(results, 'threads')}",
        f"- {f'Test rows ({FIRST})' if judged == {'test'} else 'Training rows that judge'}: {counts}",
        *(f"- Template of {name}: `{json.dumps(text, ensure_ascii=False)}`" for name, texts in prompts.items() for text in texts),
        f"- Code: {_all(results, 'code')} (hash of the package's sources)",
        "",
        "K is the number of labelled rows a class. Figures in percent: mean ± sample standard deviation over the seeds, which "
        "choose the labelled rows and all that is random. ECE is the expected calibration error.",
    ]
    parts = [heading(title, script, arguments) + "\n".join(facts), _table(results), *required(results)]
    return "\n\n".join(parts) + "\n"


def _all(results: Sequence[Mapping[str, Any]], name: str) -> str:
    return ", ".join(dict.fromkeys(str(result[name]) for result in results))


def required(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is asked of LoRA prompt tuning on the first 500 test rows of sst2, with what came of each way; only what has all of its runs."""
    asked = {"data": "sst2", "backbone": DEFAULT_BACKBONE, "rows": 500, "judge": "test"}
    fitting = [result for result in results if asked.items() <= result.items()]
    accuracy = {(run["configuration"], run["k"], run["seed"]): 100 * run["metrics"]["accuracy"]["value"] for run in fitting}
    ways = {way: [(way, 8, seed) for seed in (13, 21, 42)] for way in ("default", "demonstrations")}
    ways = {way: runs for way, runs in ways.items() if set(runs) <= accuracy.keys()}
    calibrated = accuracy.get(("zeroshot-calibrated", 0, 0))
    if calibrated is None or not ways:
        return []
    means = {way: statistics.mean(accuracy[run] for run in runs) for way, runs in ways.items()}
    return [
        f"Required of zero-shot calibrated: at least 82.0; {_verdict(calibrated, 82)}.",
        "Required of K=8, mean of seeds 13, 21, 42: at least 84.0 and not below zero-shot. "
        + " ".join(f"{way}: {_verdict(mean, max(84, calibrated))}." for way, mean in means.items()),
    ]


def _verdict(got: float, least: float) -> str:
    return f"got {got:.1f}, {'met' if got >= least else 'missed'}"


def _table(results: Sequence[Mapping[str, Any]]) -> str:
    return table(COLUMNS, rows_of(results))


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Accuracy with few labels: data sets × shots × seeds × configurations, one table.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--data", nargs="+", default=["sst2"])
    parser.add_argument("--k", nargs="+", type=int, default=[8], help="labelled rows a class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    basic = ["zeroshot", "zeroshot-calibrated", "default"]
    parser.add_argument("--configurations", nargs="+", default=basic, choices=list(CONFIGURATIONS))
    parser.add_argument("--rows", type=int, default=0, help="the first test rows only; 0 for all")
    parser.add_argument("--judge", default="test", choices=("test", "train"), help="train: on training rows that were not learned from")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--older", action="store_true", help="take finished runs of earlier code too; the table lists the codes")
    parser.add_argument("--out", type=Path, default=RESULTS / "fewshot.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run what is not finished, then write the table of all that was asked for."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        results = run_all(jobs(options), options)
    except FewtuneError as error:
        print(error, file=sys.stderr)
        return 2
    write(options.out, page(results, arguments))
    print("", _table(results), *required(results), sep="\n")
    return 0


def run_all(asked: Sequence[Job], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The result of each job, in order, from the finished ones where they are there."""
    backbone, code, known = load(options.backbone, say=print), code_hash(), finished(RAW)
    datasets = {name: DataSet(options.shared, name) for name in options.data}
    results: list[dict[str, Any]] = []
    for number, job in enumerate(asked):
        dataset = datasets[job.data]
        recipe = recipe_of(job, dataset, backbone)
        cut = dataset.cut(job.rows) if job.judge == "test" else {}
        key = key_of({"job": asdict(job), "recipe": recipe.to_dict(), **cut}, backbone)
        result = known.get(key)
        if result is None or (result["code"] != code and not options.older):
            result = {"key": key, "code": code, "recipe": recipe.to_dict(), **asdict(job), **run(job, recipe, dataset, backbone)}
            append(RAW, result)
        results.append(result)
        accuracy, about = _interval(result["metrics"]["accuracy"]), f"k={job.k} seed={job.seed} {result['fit_seconds']:.0f} s"
        print(f"[{number + 1}/{len(asked)}] {job.data} {job.configuration} {about}: {accuracy}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
