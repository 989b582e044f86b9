"""fewtune against SetFit with few labels: contrastive tuning on the same sentence encoder, and what `fit` does by default.

For each data set and seed one after the other, with the same rows and threads: contrastive tuning, frozen embeddings, SetFit in its own
virtual environment, and the default, whose ladder judges the usual PLMs or those given. SetFit is trained with its
defaults; fewtune with its own. Loading PLMs is not counted. Finished runs are not repeated.

    bench/setfit_env.sh
    python bench/contrastive.py --backbone minilm-l6
    python bench/contrastive.py --backbone mpnet-base --plms smollm2-135m mpnet-base
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from machine import DEFAULT_SHARED, FIRST, RESULTS, DataSet, guarded, heading, table, write
from runs import PROMPTS, append, code_hash, finished, key_of, spread, task_of

from fewtune import job
from fewtune.backbone import catalogue
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.data.example import Example, Split
from fewtune.readout import READOUTS
from fewtune.settings import Settings
from fewtune.tasks.task import Task
from fewtune.train.fit import Session

# Kept beside the page, for it takes hours and is gone on with on other days and machines.
RAW = RESULTS / "contrastive.jsonl"
HERE = Path(__file__).parent
PYTHON = HERE / "setfit.venv" / "bin" / "python"
SIDES = ("setfit", "contrastive", "frozen", "default")
USUAL = (Settings().backbone, *Settings().beside)
SETS = ("sst2", "cr", "trec", "agnews", "snips", "tweeteval_offensive")


# One run


def own(
    side: str, task: Task, train: Sequence[Example], test: Sequence[Example], backbones: Sequence[Backbone], seed: int
) -> dict[str, Any]:
    """One of fewtune's sides: seconds of the whole fit, how many test rows are right, and what was kept."""
    settings = Settings(seed=seed)
    if side != "default":
        deltas = () if side == "frozen" else None
        readout = READOUTS.from_text("similarity")
        settings = Settings(strategy="supervised", deltas=deltas, readout=readout, precision="float32", seed=seed)
    first, *beside = backbones
    clock, processor = time.perf_counter(), time.process_time()
    model = job.tune(task, Split(train=tuple(train)), first, settings, session=Session(), beside=beside)
    took = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
    try:
        accuracy = _share([answer.label for answer in model.predict(test)], test)
        kept = {name: model.about[name] for name in ("kept", "estimate", "rungs") if name in model.about}
        return {**took, "accuracy": accuracy, **kept, "predict": time.process_time() - processor - took["processor"]}
    finally:
        model.remove()


class Peer:
    """SetFit in a process that stays up, so that importing is not counted."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
        command = [str(PYTHON), str(HERE / "setfit_peer.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)

    def run(self, labels: Sequence[str], train: Sequence[Example], test: Sequence[Example], *, seed: int) -> dict[str, Any]:
        """The peer's side on single texts."""
        asked = {
            "folder": str(self.folder),
            "threads": self.threads,
            "seed": seed,
            "labels": list(labels),
            "texts": [_text(example) for example in train],
            "targets": [labels.index(example.label or "") for example in train],
            "test": [_text(example) for example in test],
        }
        result = json.loads(self._ask(json.dumps(asked)))
        answers = [labels[answer] for answer in result.pop("answers")]
        return {**result, "accuracy": _share(answers, test)}

    def _ask(self, line: str) -> str:
        inbox, outbox = _open(self.process.stdin), _open(self.process.stdout)
        inbox.write(line + "\n")
        inbox.flush()
        answer = outbox.readline()
        if not answer:
            raise SystemExit("SetFit stopped; try bench/setfit.venv/bin/python bench/setfit_peer.py by hand.")
        return answer


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _text(example: Example) -> str:
    return "\n".join(example.fields.values())


def _share(answers: Sequence[str], test: Sequence[Example]) -> float:
    return statistics.mean(answer == example.label for answer, example in zip(answers, test, strict=True))


# The page


def page(results: Sequence[Mapping[str, Any]], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file; a result has a figure for each side."""
    sides = options.sides
    codes = ", ".join(dict.fromkeys(result[side]["code"] for result in results for side in sides))
    seeds = ", ".join(dict.fromkeys(str(result["seed"]) for result in results))
    facts = (
        f"- PLM: {options.backbone}, float32; {options.k} labelled rows a class; seeds {seeds}; "
        f"{options.rows or 'all'} test rows ({FIRST}); {options.threads} thread(s) on both sides",
        "- SetFit: 1.1.3 with its trainer's defaults, sentence-transformers 5.7.0, transformers 4.57.6",
        f"- Code: {codes} (hash of the package's sources)",
        "",
        "Accuracy in percent, mean ± sample deviation over the seeds; only what all sides have finished. Seconds of processor time for the "
        "whole fit, mean over the seeds; *share*: over SetFit's, the median over the runs. *default*: what `fewtune fit` does by itself "
        f"on {' and '.join(options.plms)}, with the templates of bench/runs.py, which no encoder reads.",
    )
    columns = ("data", *sides, *(f"{side}, s" for side in sides), *(f"share of {side}" for side in sides[1:]))
    rows = [_row(name, [r for r in results if r["data"] == name], sides) for name in dict.fromkeys(r["data"] for r in results)]
    rows.append(_row("mean", results, sides))
    parts = [heading("Against SetFit", "bench/contrastive.py", arguments) + "\n".join(facts), table(columns, rows)]
    if "default" in sides:
        kept = ((run["data"], str(run["seed"]), run["default"]["kept"], _estimate(run["default"])) for run in results)
        parts += ["What the ladder kept, and what it estimated from the labelled rows:"]
        parts += [table(("data", "seed", "kept", "estimate; test accuracy"), [list(row) for row in kept])]
    return "\n\n".join(parts) + "\n"


def _estimate(run: Mapping[str, Any]) -> str:
    found = run["estimate"]
    return f"{100 * found['value']:.0f} ({100 * found['low']:.0f}–{100 * found['high']:.0f}); {100 * run['accuracy']:.1f}"


def _row(name: str, runs: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> list[str]:
    def share(side: str) -> str:
        return f"{statistics.median(run[side]['processor'] / run['setfit']['processor'] for run in runs):.2f}"

    accuracies = {side: [run[side]["accuracy"] for run in runs] for side in sides}
    shown = [spread(accuracies[side]) if name != "mean" else f"{100 * statistics.mean(accuracies[side]):.1f}" for side in sides]
    seconds = [f"{statistics.mean(run[side]['processor'] for run in runs):.1f}" for side in sides]
    return [name, *shown, *seconds, *map(share, sides[1:])]


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Contrastive tuning against SetFit, side by side; resumable.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--data", nargs="+", default=list(SETS))
    parser.add_argument("--sides", nargs="+", default=list(SIDES[1:]), choices=SIDES[1:], help="what is held against SetFit")
    parser.add_argument("--plms", nargs="+", default=list(USUAL), help="the PLMs that the default judges")
    parser.add_argument("--k", type=int, default=8, help="labelled rows a class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--rows", type=int, default=1000, help="the first test rows only; 0 for all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--older", action="store_true", help="take finished runs of earlier code too; the page lists the codes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.sides = [side for side in SIDES if side == "setfit" or side in options.sides]
    return options


def main(arguments: Sequence[str]) -> int:
    """Run what is not finished; the page is written anew after each run."""
    options = parse(arguments)
    if not PYTHON.exists():
        print("SetFit's virtual environment is missing: bench/setfit_env.sh makes it.", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    options.out = options.out or RESULTS / f"contrastive-{options.backbone}.md"
    return guarded(lambda: run_all(options, arguments))


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Each data set and seed once, seed by seed, so that a page that is cut short compares like with like."""
    bench, results = Bench(options), []
    for seed, name in itertools.product(options.seeds, options.data):
        found = {side: bench.side(side, name, seed) for side in options.sides}
        results.append({"data": name, "seed": seed, **found})
        write(options.out, page(results, options, arguments))
        print(name, seed, *(f"{side} {100 * one['accuracy']:.1f} {one['processor']:.1f} s" for side, one in found.items()), flush=True)


class Bench:
    """The finished runs of each side, and the PLMs that are loaded once for those that are not."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.code, self.known = options, code_hash(), finished(RAW)
        self.datasets = {name: DataSet(options.shared, name) for name in options.data}
        self.encoder = load(options.backbone, say=print)
        self.usual = [load(name, say=print) for name in options.plms] if "default" in options.sides else []
        self.peer = Peer(catalogue.locate(options.backbone), options.threads)

    def side(self, side: str, name: str, seed: int) -> dict[str, Any]:
        """One side's run, from the finished ones if it is there. The default does not depend on the encoder that is compared."""
        backbones = self.usual if side == "default" else [self.encoder]
        facts = {"side": side, "data": name, "k": self.options.k, "seed": seed, "rows": self.options.rows, "threads": self.options.threads}
        dataset = self.datasets[name]
        facts |= dataset.cut(self.options.rows)
        key = key_of({**facts, "beside": [one.fingerprint for one in backbones[1:]]}, backbones[0])
        found = self.known.get(key)
        # SetFit does not change with fewtune's code.
        if found is None or (found["code"] != self.code and side != "setfit" and not self.options.older):
            found = {"key": key, "code": self.code, **facts, **self._run(side, dataset, backbones, seed)}
            append(RAW, found)
        return found

    def _run(self, side: str, dataset: DataSet, backbones: Sequence[Backbone], seed: int) -> dict[str, Any]:
        train, test = dataset.shots(self.options.k, seed=seed), dataset.first(self.options.rows)
        if side == "setfit":
            return self.peer.run(list(dataset.labels()), train, test, seed=seed)
        prompt = PROMPTS.get(dataset.name) if side == "default" else None
        return own(side, task_of(dataset, prompt), train, test, backbones, seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
