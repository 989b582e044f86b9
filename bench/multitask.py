"""What multi-task prompted training (T0) does for tasks of kinds that were not trained on: accuracy over all of their templates, before
and after, with low-rank deltas. Finished runs are not repeated.

Three parts: `loss` chooses what is minimised, on kinds held out of the *training* side only; `held-out` and `topics` are the results, with
that loss: they hold out different kinds.

    python bench/multitask.py
    python bench/multitask.py --part held-out --seeds 42 --limit-seconds 1800
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import DEFAULT_SHARED, RESULTS, guarded, heading, table, write
from runs import append, code_hash, finished, key_of, spread
from shared_tasks import HELD_OUT, TOPICS, TRAINED, Shared

from fewtune import plm
from fewtune.backbone.backbone import Backbone
from fewtune.collection import Collection, Lesson, kept_apart
from fewtune.course import DELTA
from fewtune.data.example import Example
from fewtune.data.sampling import capped, shots
from fewtune.deltas.delta import remove_all
from fewtune.held_out import Array, Score, gain
from fewtune.held_out import spread as over_templates
from fewtune.model import TunedModel
from fewtune.readout.calibration import Contextual
from fewtune.strategies.multitask import READOUT, MultiTask, train
from fewtune.strategies.zeroshot import targets
from fewtune.train.fit import FitOptions, Session

RAW = RESULTS / "multitask.jsonl"
BACKBONE = "smollm2-135m"
JUDGING = ("intent", "paraphrase")
"""The kinds of the training side by which the loss is chosen; they are trained on afterwards."""
APART = {"loss": JUDGING, "held-out": tuple(dict.fromkeys(one.kind for one in HELD_OUT)), "topics": TOPICS}
"""Which kinds each part holds out."""
LOSSES = ("choice", "language", "both")


@dataclass(frozen=True)
class Job:
    """One training, or none with no `steps`, and the tests after it."""

    part: str
    loss: str
    steps: int
    seed: int
    accumulate: int
    train_rows: int
    test_rows: int
    length: int

    def trained(self) -> tuple[Shared, ...]:
        """What is trained on."""
        return tuple(one for one in _all(self.part) if one.kind not in APART[self.part])

    def held_out(self) -> tuple[Shared, ...]:
        """What is not."""
        return tuple(one for one in _all(self.part) if one.kind in APART[self.part])


def _all(part: str) -> tuple[Shared, ...]:
    """What a part is about; the loss is chosen without the held-out tasks."""
    return TRAINED if part == "loss" else (*TRAINED, *HELD_OUT)


def jobs(part: str, options: argparse.Namespace) -> Iterator[Job]:
    """Untrained first, then each seed."""
    sizes = (options.accumulate, options.train_rows, options.loss_rows if part == "loss" else options.test_rows, options.length)
    if part == "loss":
        yield Job(part, "none", 0, 0, *sizes)
        yield from (Job(part, loss, options.loss_steps, 42, *sizes) for loss in LOSSES)
    else:
        yield Job(part, "none", 0, 0, *sizes)
        yield from (Job(part, options.loss, options.steps, seed, *sizes) for seed in options.seeds)


# One run


def collection_of(job: Job, shared: Path) -> Collection:
    """Training rows drawn by the seed; test rows, as many of each label where there are so many, always the same."""

    def drawn(name: str, rows: Sequence[Example]) -> list[Example]:
        return [example for _, example in capped({name: rows}, job.train_rows, seed=job.seed)]

    def balanced(labels: int, rows: Sequence[Example]) -> Sequence[Example]:
        by_label = {label: [row for row in rows if row.label == label] for label in {row.label for row in rows}}
        kept = [row for own in by_label.values() for row in shots(own, min(len(own), job.test_rows // labels), seed=0)]
        return sorted(kept, key=lambda row: rows.index(row))

    trained = [one.lesson(shared, "train", partial(drawn, one.data)) for one in job.trained()]
    apart = [one.lesson(shared, "test", partial(balanced, len(one.labels))) for one in job.held_out()]
    return kept_apart(trained, apart, say=print)


def run(job: Job, found: Collection, backbone: Backbone) -> dict[str, Any]:
    """Train and test; which rows are answered right in each template, as digits."""
    backbone.precision = "float32"
    clock, processor = time.perf_counter(), time.process_time()
    installed = plm.install(backbone, [DELTA], seed=job.seed) if job.steps else ()
    try:
        losses = _train(job, found, installed) if installed else []
        trained = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
        rights = {lesson.name: tested(lesson, backbone, job.length) for lesson in found.held_out}
    finally:
        remove_all(installed)
    return {
        "train": trained,
        "losses": [round(loss, 4) for loss in losses],
        "trained_parameters": sum(delta.trained_parameters for delta in installed),
        "dropped": dict(found.dropped),
        "rows": {lesson.name: len(lesson.rows) for lesson in (*found.trained, *found.held_out)},
        "right": rights,
        "seconds": time.perf_counter() - clock,
    }


def _train(job: Job, found: Collection, installed: Any) -> list[float]:
    options = FitOptions(steps=job.steps, accumulate=job.accumulate)
    how = MultiTask(loss=job.loss)  # type: ignore[arg-type]
    return train(found.trained, installed, how, options=options, max_length=job.length, seed=job.seed, session=Session(say=print))


def tested(lesson: Lesson, backbone: Backbone, length: int) -> dict[str, list[str]]:
    """For each calibration and template a digit a row: 1 where the answer is right. One pass serves both."""
    found: dict[str, list[str]] = {"none": [], "contextual": []}
    for prompt in lesson.prompts():
        model = TunedModel.assemble(backbone, prompt, READOUT, max_length=length)
        scores_NC, targets_N = model.raw_scores(lesson.rows), targets(model, lesson.rows)
        calibrated = model.calibrated(Contextual().fit(model.content_free_scores(), None))
        for name, one in (("none", model), ("contextual", calibrated)):
            right_N = one.likely(scores_NC).argmax(1) == targets_N
            found[name].append("".join(str(int(right)) for right in right_N))
    return found


# The page


def right_of(result: Mapping[str, Any], name: str, calibration: str) -> Array:
    """right_PN of a task."""
    return np.array([[digit == "1" for digit in row] for row in result["right"][name][calibration]])


def scores_of(before: Mapping[str, Any], after: Mapping[str, Any], tasks: Sequence[Shared], calibration: str) -> list[Score]:
    """Each task before and after."""
    return [Score(one.data, (), right_of(before, one.data, calibration), right_of(after, one.data, calibration)) for one in tasks]


TITLES = {"held-out": "Held-out kinds", "topics": "Other held-out kinds"}
WHY = {"topics": "Added when the part above was measured: of most of its kinds a PLM of this size knows nothing, before or after."}
COLUMNS = ("task", "kind", "rows", "templates", "before (quartiles)", "after (quartiles)", "gain", "95 % interval", "seeds")


def rows_of(before: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], tasks: Sequence[Shared], calibration: str) -> list[list[str]]:
    """A row for each task, and the mean over them."""
    rows = [_row(before, runs, [one], calibration) for one in tasks]
    return [*rows, _row(before, runs, tasks, calibration)]


def _row(before: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], tasks: Sequence[Shared], calibration: str) -> list[str]:
    """The mean over seeds; the interval is that over rows of the seeds' mean, which is wider than each seed's mean would have it."""
    each = [scores_of(before, result, tasks, calibration) for result in runs]
    gains = [gain(scores) for scores in each]
    value, low, high = (statistics.mean(getattr(one, end) for one in gains) for end in ("value", "low", "high"))
    start = [tasks[0].data, tasks[0].kind, str(each[0][0].before_PN.shape[1]), str(len(each[0][0].before_PN))]
    if len(tasks) > 1:
        start = [f"**mean of {len(tasks)}**", "", "", ""]
    spreads = (
        _spread([over_templates(right_PN(score)) for scores in each for score in scores], len(tasks) == 1) for right_PN in (_before, _after)
    )
    by_seed = ", ".join(f"{100 * one.value:+.1f}" for one in gains)
    return [*start, *spreads, f"{100 * value:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", by_seed]


def _before(score: Score) -> Array:
    return score.before_PN


def _after(score: Score) -> Array:
    return score.after_PN


def _spread(found: Sequence[Mapping[str, float]], quartiles: bool) -> str:
    median, low, high = (100 * statistics.mean(one[name] for one in found) for name in ("median", "low", "high"))
    return f"{median:.1f} ({low:.0f}–{high:.0f})" if quartiles else f"{median:.1f}"


def page(options: argparse.Namespace, results: Mapping[Job, Mapping[str, Any]], arguments: Sequence[str]) -> str:
    """The results file."""
    codes = ", ".join(dict.fromkeys(result["code"] for result in results.values()))
    parts = [heading("Tasks never seen, after multi-task prompted training", "bench/multitask.py", arguments) + _facts(options, codes)]
    for part in options.part:
        asked = list(jobs(part, options))
        missing = sum(job not in results for job in asked)
        title = "Which loss (kinds of the training side)" if part == "loss" else f"{TITLES[part]}, loss `{options.loss}`"
        parts += [f"## {title}", f"{missing} of {len(asked)} runs are still missing." if missing else f"All {len(asked)} runs are there."]
        parts += [WHY[part]] if part in WHY else []
        before = results.get(asked[0])
        done = [job for job in asked[1:] if job in results]
        if before and done:
            parts += _loss_tables(before, done, results) if part == "loss" else _tables(before, done, results)
    return "\n\n".join(parts) + "\n"


def _facts(options: argparse.Namespace, codes: str) -> str:
    return "\n".join(
        (
            f"- {BACKBONE}, LoRA of rank {DELTA.rank} on {', '.join(DELTA.sites)} of the upper half of the blocks; float32",
            f"- Code: {codes or 'none yet'} (hash of its sources)",
            f"- {options.train_rows} training rows of each task, three or four templates; {options.steps} steps of "
            f"{options.accumulate} × 8 rows, each batch of one task and one template; texts of {options.length} tokens",
            f"- Tested on up to {options.test_rows} test rows, as many of each label where there are so many, in all templates",
            "",
            "Accuracy in percent: the median over templates with the quartiles, and the mean over seeds. A seed draws the training rows, "
            "the order, the templates and the deltas' start. The interval is a bootstrap over rows, the same ones before and after; that "
            "of several seeds is the mean of theirs. Templates were written before anything was trained, and none is left out.",
        )
    )


def _tables(before: Mapping[str, Any], done: Sequence[Job], results: Mapping[Job, Mapping[str, Any]]) -> list[str]:
    runs = [results[job] for job in done]
    seconds = spread([result["train"]["processor_seconds"] / 100 for result in runs])
    trained = ", ".join(one.data for one in done[0].trained())
    found = [f"Trained on {trained}; seeds {', '.join(str(job.seed) for job in done)}; {seconds} processor seconds of training each."]
    for name, title in (("none", "Uncalibrated, as in T0"), ("contextual", "With contextual calibration, before and after")):
        found += [f"### {title}", table(COLUMNS, rows_of(before, runs, done[0].held_out(), name))]
    return found


def _loss_tables(before: Mapping[str, Any], done: Sequence[Job], results: Mapping[Job, Mapping[str, Any]]) -> list[str]:
    tasks = done[0].held_out()
    rows = []
    for job in done:
        for name in ("none", "contextual"):
            *_, mean = rows_of(before, [results[job]], tasks, name)
            each = ", ".join(f"{one.data} {100 * over_templates(right_of(results[job], one.data, name))['median']:.1f}" for one in tasks)
            rows.append([job.loss, name, *mean[4:8], each])
    return [table(("loss", "calibration", "before", "after", "gain", "95 % interval", "each"), rows)]


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Accuracy on held-out kinds of tasks before and after multi-task training; resumable.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--part", nargs="+", default=list(APART), choices=list(APART))
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--loss", default="language", choices=LOSSES, help="of the results; by default what the first part chose")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--loss-steps", type=int, default=12)
    parser.add_argument("--loss-rows", type=int, default=42, help="of each task by which the loss is chosen")
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--train-rows", type=int, default=200, help="of each task")
    parser.add_argument("--test-rows", type=int, default=80, help="of each held-out task")
    parser.add_argument("--length", type=int, default=112, help="the most tokens of a prompt")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="start no further run after so long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--older", action="store_true", help="take finished runs of earlier code too; the page lists the codes")
    parser.add_argument("--out", type=Path, default=RESULTS / "multitask.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run what is not finished; the page is written anew after each run, so that a run may be stopped."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    return guarded(lambda: run_all(options, arguments))


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Take what is finished, then run the rest, part by part."""
    begun, code, known = time.perf_counter(), code_hash(), finished(RAW)
    backbone = plm.load(BACKBONE, say=print)
    keys = {job: key_of(asdict(job), backbone) for part in options.part for job in jobs(part, options)}
    results = {job: known[key] for job, key in keys.items() if key in known and (options.older or known[key]["code"] == code)}
    write(options.out, page(options, results, arguments))
    for job in [job for job in keys if job not in results]:
        if time.perf_counter() - begun > options.limit_seconds:
            break
        results[job] = {"key": keys[job], "code": code, **asdict(job), **run(job, collection_of(job, options.shared), backbone)}
        append(RAW, results[job])
        write(options.out, page(options, results, arguments))
        print(f"[{len(results)}/{len(keys)}] {job.part} {job.loss} seed={job.seed}: {results[job]['seconds']:.0f} s", flush=True)
    print(f"{len(keys) - len(results)} of {len(keys)} runs are still missing.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
