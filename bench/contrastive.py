"""Contrastive tuning of a sentence encoder against SetFit: accuracy and time on the same backbone and the same rows, in one run.

For each data set and seed first fewtune (tuned, then frozen embeddings), then SetFit in its own virtual environment, one after the
other with the same number of threads. SetFit is trained with its defaults; fewtune with its own. Loading the PLM is not counted for
either. Finished runs are not repeated.

    bench/setfit_env.sh
    python bench/contrastive.py --backbone minilm-l6
"""

from __future__ import annotations

import argparse
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
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, heading, table, write
from runs import append, code_hash, finished, key_of, spread, task_of

from fewtune import job
from fewtune.backbone import catalogue
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.data.example import Example, Split
from fewtune.readout import READOUTS
from fewtune.train.fit import Session

RAW = RESULTS / "raw" / "contrastive.jsonl"
HERE = Path(__file__).parent
PYTHON = HERE / "setfit.venv" / "bin" / "python"
SIDES = ("setfit", "contrastive", "frozen")
SETS = ("sst2", "cr", "trec", "agnews", "snips", "tweeteval_offensive")


# One run


def own(
    task_of_set: Any, train: Sequence[Example], test: Sequence[Example], backbone: Backbone, *, seed: int, frozen: bool
) -> dict[str, Any]:
    """fewtune's side: seconds of the whole fit, and how many test rows are right."""
    settings = job.Settings(
        strategy="supervised", deltas=() if frozen else None, readout=READOUTS.from_text("similarity"), precision="float32", seed=seed
    )
    clock, processor = time.perf_counter(), time.process_time()
    model = job.tune(task_of_set, Split(train=tuple(train)), backbone, settings, session=Session())
    took = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
    try:
        return {**took, "accuracy": _share([answer.label for answer in model.predict(test)], test)}
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
    """The results file."""
    codes = ", ".join(dict.fromkeys(result["code"] for result in results))
    seeds = ", ".join(dict.fromkeys(str(result["seed"]) for result in results))
    facts = (
        f"- PLM: {options.backbone}, float32; {options.k} labelled rows a class; seeds {seeds}; "
        f"first {options.rows or 'all'} test rows; {options.threads} thread(s) on both sides",
        "- SetFit: 1.1.3 with its trainer's defaults, sentence-transformers 5.7.0, transformers 4.57.6",
        f"- Code: {codes} (hash of the package's sources)",
        "",
        "Accuracy in percent, mean ± sample deviation over the seeds. Seconds of processor time for the whole fit, mean over the seeds; "
        "*share*: fewtune's over SetFit's, the median over the runs.",
    )
    columns = ("data", "SetFit", "contrastive", "frozen", "SetFit, s", "contrastive, s", "share", "frozen, s")
    rows = [_row(name, [r for r in results if r["data"] == name]) for name in dict.fromkeys(r["data"] for r in results)]
    rows.append(_row("mean", results))
    title = "Contrastive tuning against SetFit"
    return heading(title, "bench/contrastive.py", arguments) + "\n".join(facts) + "\n\n" + table(columns, rows) + "\n"


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    def seconds(side: str) -> float:
        return statistics.mean(run[side]["processor"] for run in runs)

    accuracies = {side: [run[side]["accuracy"] for run in runs] for side in SIDES}
    shown = [spread(accuracies[side]) if name != "mean" else f"{100 * statistics.mean(accuracies[side]):.1f}" for side in SIDES]
    share = statistics.median(run["contrastive"]["processor"] / run["setfit"]["processor"] for run in runs)
    return [name, *shown, f"{seconds('setfit'):.1f}", f"{seconds('contrastive'):.1f}", f"{share:.2f}", f"{seconds('frozen'):.1f}"]


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Contrastive tuning against SetFit, side by side; resumable.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--data", nargs="+", default=list(SETS))
    parser.add_argument("--k", type=int, default=8, help="labelled rows a class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--rows", type=int, default=1000, help="the first test rows only; 0 for all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--older", action="store_true", help="take finished runs of earlier code too; the page lists the codes")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


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
    backbone, code, known = load(options.backbone, say=print), code_hash(), finished(RAW)
    peer = Peer(catalogue.locate(options.backbone), options.threads)
    results = []
    for seed in options.seeds:
        for name in options.data:
            facts = {"data": name, "k": options.k, "seed": seed, "rows": options.rows, "threads": options.threads}
            key = key_of(facts, backbone)
            found = known.get(key)
            if found is None or (found["code"] != code and not options.older):
                found = {"key": key, "code": code, **facts, **_three(DataSet(options.shared, name), backbone, peer, seed, options)}
                append(RAW, found)
            results.append(found)
            write(options.out, page(results, options, arguments))
            print(
                name, seed, *(f"{side} {100 * found[side]['accuracy']:.1f} {found[side]['processor']:.1f} s" for side in SIDES), flush=True
            )


def _three(dataset: DataSet, backbone: Backbone, peer: Peer, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    train, test = dataset.shots(options.k, seed=seed), dataset.rows("test")[: options.rows or None]
    task = task_of(dataset, None)
    return {
        "contrastive": own(task, train, test, backbone, seed=seed, frozen=False),
        "frozen": own(task, train, test, backbone, seed=seed, frozen=True),
        "setfit": peer.run(list(dataset.labels()), train, test, seed=seed),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
