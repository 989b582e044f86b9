"""Rows per second of fewtune's scoring engine against lm-evaluation-harness: the same PLM, the same requests in text, the same precision.

Zero-shot, and with eight fixed demonstrations in front. The harness runs in an environment of its own (`bench/lm_eval_env.sh`), one process
with the model loaded, with the batch size that is fastest on the first requests of each setting. Either side gets a setting's requests in
one call, tokenising included. It stops if the answers are not the same to the last row.

    python bench/scoring.py
    python bench/scoring.py --sets sst2 --rows 20 --rows-shown 5
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import DEFAULT_SHARED, RESULTS, ROOT, forget_peak, guarded, heading, peak_bytes, table, write

from fewtune.backbone.load import load
from fewtune.harness.answers import Answers

PEER = ROOT / "bench" / "lm_eval.venv" / "bin" / "python"
SHOWN = 8
TOLERANCE = 1e-3  # sums of log-probabilities in float32
Row = Mapping[str, str]


@dataclass(frozen=True)
class Asked:
    """How rows of a set are asked: the context, what may follow it, and which of these is right."""

    context: Callable[[Row], str]
    continuations: Callable[[Row], Sequence[str]]
    right: Callable[[Row], int]

    def whole(self, row: Row) -> str:
        """The row with its right continuation, as it is shown to others."""
        return self.context(row) + self.continuations(row)[self.right(row)]


def labelled(context: Callable[[Row], str], words: Mapping[str, str]) -> Asked:
    """The same continuations for every row."""
    return Asked(context, lambda _: [f" {word}" for word in words.values()], lambda row: list(words).index(row["label"]))


def _copa(row: Row) -> str:
    return f"{row['text_a'].rstrip('.')} {'so' if row['question'] == 'effect' else 'because'}"


SETS: Mapping[str, Asked] = {
    "sst2": labelled(lambda row: f"Review: {row['text']}\nSentiment:", {"negative": "negative", "positive": "positive"}),
    "rte": labelled(
        lambda row: f"{row['text_a']}\nQuestion: {row['text_b']} Yes or no?\nAnswer:", {"entailment": "yes", "not entailment": "no"}
    ),
    "agnews": labelled(
        lambda row: f"Article: {row['text']}\nTopic:",
        {"world": "world politics", "sports": "sports", "business": "business", "science and technology": "science and technology"},
    ),
    "trec": labelled(
        lambda row: f"Question: {row['text']}\nThe answer is",
        {
            **{"abbreviation": "an abbreviation", "entity": "a thing", "description": "a description"},
            **{"human": "the name of a person", "location": "the name of a place", "number": "a number"},
        },
    ),
    "fewglue_copa": Asked(
        _copa,
        lambda row: [f" {row[name][0].lower()}{row[name][1:]}" for name in ("text_b", "text_c")],
        lambda row: ("choice1", "choice2").index(row["label"]),
    ),
}
"""The first two have words of one token, of which the harness, too, needs one pass for all."""


@dataclass(frozen=True)
class Setting:
    """A set with so many demonstrations in front of each of its rows."""

    name: str
    shown: int
    rows: tuple[Row, ...]
    front: str

    @property
    def asked(self) -> Asked:
        return SETS[self.name]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every (context, continuation), row after row."""
        return [(self.front + self.asked.context(row), one) for row in self.rows for one in self.asked.continuations(row)]

    def answers(self, totals: Sequence[float]) -> list[int]:
        """The likeliest continuation of each row."""
        rest = iter(totals)
        scores = [[next(rest) for _ in self.asked.continuations(row)] for row in self.rows]
        return [max(range(len(own)), key=own.__getitem__) for own in scores]

    def accuracy(self, answers: Sequence[int]) -> float:
        return statistics.mean(answer == self.asked.right(row) for answer, row in zip(answers, self.rows, strict=True))


@dataclass(frozen=True)
class Outcome:
    """One setting on both sides; `peer` and `own` have seconds, processor, peak and answers."""

    setting: Setting
    peer: Mapping[str, Any]
    own: Mapping[str, Any]

    def ratio(self, kind: str) -> float:
        """How many times as many rows a second."""
        return float(self.peer[kind] / self.own[kind])

    @property
    def difference(self) -> float:
        return max(abs(mine[0] - theirs[0]) for mine, theirs in zip(self.own["answers"], self.peer["answers"], strict=True))

    def check(self) -> None:
        """Raise `SystemExit` if the two do not answer alike."""
        mine, theirs = (self.setting.answers([total for total, _ in side["answers"]]) for side in (self.own, self.peer))
        if mine != theirs or self.difference > TOLERANCE:
            different = sum(one != other for one, other in zip(mine, theirs, strict=True))
            raise SystemExit(f"{self.setting.name}: {different} rows differ, scores by {self.difference:.1e}")


def settings(options: argparse.Namespace) -> list[Setting]:
    """Every set zero-shot, and every set with demonstrations, which are the first rows of its training file."""
    return [
        Setting(
            name,
            shown,
            read(options.shared / "data" / name / "test.jsonl.gz")[: options.rows_shown if shown else options.rows],
            "".join(f"{SETS[name].whole(row)}\n\n" for row in read(options.shared / "data" / name / "train.jsonl.gz")[:shown]),
        )
        for shown in (0, SHOWN)
        for name in options.sets
    ]


def read(path: Path) -> tuple[Row, ...]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return tuple(json.loads(line) for line in file)


def measure(answers: Answers, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """fewtune's side."""
    forget_peak()
    clock, processor = time.perf_counter(), time.process_time()
    found = answers.loglikelihood(pairs)
    took = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return {**took, "peak": peak_bytes(), "answers": found}


COLUMNS = (
    *("data", "shown", "rows", "requests", "rows/s", "harness rows/s", "ratio", "ratio by the clock", "batch", "peak MiB", "harness MiB"),
    *("accuracy", "greatest difference"),
)


def rows_of(outcomes: Sequence[Outcome]) -> list[list[str]]:
    rows = []
    for one in outcomes:
        count = len(one.setting.rows)
        accuracy = one.setting.accuracy(one.setting.answers([total for total, _ in one.own["answers"]]))
        speeds = [count / side["processor"] for side in (one.own, one.peer)]
        peaks = [side["peak"] / 2**20 for side in (one.own, one.peer)]
        rows.append(
            [
                *(
                    one.setting.name,
                    str(one.setting.shown),
                    str(count),
                    str(len(one.own["answers"])),
                    f"{speeds[0]:.2f}",
                    f"{speeds[1]:.2f}",
                ),
                *(f"**{one.ratio('processor'):.1f}**", f"{one.ratio('seconds'):.1f}", str(one.peer["batch_size"])),
                *(f"{peaks[0]:.0f}", f"{peaks[1]:.0f}", f"{100 * accuracy:.1f}", f"{one.difference:.0e}"),
            ]
        )
    return rows


def page(outcomes: Sequence[Outcome], versions: Mapping[str, str], arguments: Sequence[str]) -> str:
    """The results file."""
    said = [f"{name} {number}" for name, number in versions.items()]
    means = [
        f"{'with ' + str(shown) + ' demonstrations' if shown else 'zero-shot'} {statistics.geometric_mean(ratios):.1f}"
        for shown in (0, SHOWN)
        if (ratios := [one.ratio("processor") for one in outcomes if one.setting.shown == shown])
    ]
    parts = [
        heading("Rows a second, against lm-evaluation-harness", "bench/scoring.py", arguments)
        + f"- The harness in its own environment: {', '.join(said)}; one thread on either side, float32, loading left out",
        "Rows a second are those of the processor, tokenising included. The harness has the batch size that was fastest on the first "
        "requests of a setting. All answers are the same to the last row (the script stops where they are not); differences are of summed "
        "log-probabilities.",
        table(COLUMNS, rows_of(outcomes)),
        f"Geometric mean of the ratios: {', '.join(means)}.",
    ]
    return "\n\n".join(parts) + "\n"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Rows per second against lm-evaluation-harness.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=200, help="rows of each set zero-shot")
    parser.add_argument("--rows-shown", type=int, default=50, help="rows of each set with demonstrations")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 8, 16], help="what the harness may choose from")
    parser.add_argument("--trial", type=int, default=16, help="requests by which it chooses; a quarter of them with demonstrations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "scoring.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Each setting on one side after the other; the table is written anew after each."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if not PEER.exists():
        raise SystemExit("The harness has an environment of its own: run bench/lm_eval_env.sh first.")
    answers = Answers(load(options.model, say=print))
    command = [str(PEER), str(PEER.parents[2] / "lm_eval_peer.py"), str(answers.backbone.model.config.name_or_path), str(options.threads)]
    outcomes: list[Outcome] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin and peer.stdout
        versions = json.loads(peer.stdout.readline())
        for setting in settings(options):
            job = {"pairs": setting.pairs, "batch_sizes": options.batch_sizes, "trial": options.trial // (4 if setting.shown else 1)}
            print(json.dumps(job), file=peer.stdin, flush=True)
            theirs = json.loads(peer.stdout.readline())
            outcomes.append(Outcome(setting, theirs, measure(answers, setting.pairs)))
            outcomes[-1].check()
            write(options.out, page(outcomes, versions, arguments))
            print(table(COLUMNS, rows_of(outcomes[-1:])), flush=True)
        peer.stdin.close()


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
