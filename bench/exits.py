"""Early exit by the clock: seconds with exits against the same model without, at several batch sizes, in one run.

Each model is tuned on some training rows; exits are added with other training rows, and a promise of points lost, which reads their labels,
or of agreement, which does not. The test rows measure only: no threshold, step or layer is chosen by them. All ways of a model answer the
same texts in turn, round by round, so that whatever else the machine does falls on all of them. Texts are tokenised beforehand.

    python bench/exits.py
    python bench/exits.py --models minilm-l6 --data sst2 --rows 1000 --rounds 2

What is finished is kept line by line (`--lines`); tuned models, checkpoints and what layers show of rows in a folder (`--tuned`), so the
script may be stopped at any time; the page is written anew after each line.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, heading, table, write
from runs import PROMPTS, append, code_hash, finished, key_of, task_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewtune import artifact, early, job
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.climb import Climb
from fewtune.backbone.load import load
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive
from fewtune.deltas import DELTAS
from fewtune.exits import CRITERIA
from fewtune.exits.cascade import Through, leave
from fewtune.exits.promise import Promise
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch
from fewtune.readout import READOUTS
from fewtune.strategies.exits import AddExits
from fewtune.tasks import kind_of
from fewtune.train.fit import FitOptions, Session

DATA = ("sst2", "agnews", "snips", "sms_spam", "imdb")


@dataclass(frozen=True)
class Way:
    """How a model is tuned: on up to `rows` of the training rows that are left (0: all), `passes` times."""

    readout: str
    delta: str
    rows: int
    passes: int


WAYS: Mapping[str, Way] = {"minilm-l6": Way("head", "lora", 0, 3), "smollm2-135m": Way("cloze", "lora", 2000, 1)}
SIZE = 16
"""Rows of a training step."""
CRITERION, OTHERS = "confidence", ("entropy", "patience")
FULL, WHOLE, AGREE = "full", "not compacted", "confidence, agreeing"
SEED = 13


def drawn(data: DataSet, way: Way, options: argparse.Namespace) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(rows to tune on, other training rows), drawn by the seed; the latter are at most a third of them."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(derive(SEED, data.name))).tolist()
    others = min(options.pool, len(order) // 3)
    tuned = order[others:][: options.rows or way.rows or None]
    return tuple(data.train[row] for row in tuned), tuple(data.train[row] for row in order[:others])


def place(backbone: Backbone, data: DataSet, train: Sequence[Example], options: argparse.Namespace) -> Path:
    """The folder of the model that exits are put into."""
    folder: Path = options.tuned / f"{backbone.name}-{data.name}-{len(train)}-{_steps(backbone, train, options)}-{options.max_length}"
    return folder


def _steps(backbone: Backbone, train: Sequence[Example], options: argparse.Namespace) -> int:
    steps: int = options.steps or WAYS[backbone.name].passes * len(train) // SIZE
    return steps


def tuned(backbone: Backbone, data: DataSet, train: Sequence[Example], options: argparse.Namespace) -> TunedModel:
    """The model that exits are put into, tuned once."""
    way, folder = WAYS[backbone.name], place(backbone, data, train, options)
    if folder.exists():
        return artifact.load(folder, backbone=backbone)
    settings = job.Settings(
        strategy="supervised",
        deltas=(DELTAS.from_text(way.delta),),
        readout=READOUTS.from_text(way.readout),
        fit=FitOptions(steps=_steps(backbone, train, options), batch_size=SIZE),
        max_length=options.max_length,
        seed=SEED,
    )
    task = task_of(data, PROMPTS.get(data.name) if backbone.causal else None)
    work = folder.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    session = Session(work, key=folder.name, every_seconds=60, say=print)
    model = job.tune(task, Split(train=tuple(train)), backbone, settings, session=session)
    artifact.save(model, folder)
    shutil.rmtree(work)
    shutil.rmtree(folder.with_suffix(".read"), ignore_errors=True)  # of a model before it
    return model


def ways_out(
    model: TunedModel, train: Sequence[Example], pool: Sequence[Example], folder: Path, options: argparse.Namespace
) -> dict[str, TunedModel]:
    """The model with exits under each criterion and promise, which learn from what it was tuned on, too; it stays as it is, so rows are
    read once, and what is read lies beside its `folder` until all is measured."""

    def read(model: TunedModel, rows: Sequence[Example], layers: Sequence[int]) -> early.Seen:
        file = folder.with_suffix(".read") / f"{derive(len(layers), *(str(row.fields) for row in rows))}.safetensors"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            save_file(vars(early.seen(model, rows, layers)), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        return early.Seen(**load_file(file))

    drop, agree = Promise("drop", options.drop), Promise("agree", options.agree)
    found = {}
    for name, criterion, promise in (*((one, one, drop) for one in (CRITERION, *OTHERS)), (AGREE, CRITERION, agree)):
        adding = AddExits(criterion=CRITERIA.from_text(criterion), promise=promise, seed=SEED)
        found[name] = adding.run(model, pool, taught=train, read=read, session=Session(say=print))
    return found


def runners(model: TunedModel, out: Mapping[str, TunedModel]) -> dict[str, Callable[[Batch], tuple[Tensor, Tensor]]]:
    """Name → what answers a batch: (scores_BC, layers_B)."""

    def full(batch: Batch) -> tuple[Tensor, Tensor]:
        return model.batch_scores(batch), torch.full((len(batch),), model.backbone.depth)

    def early_out(one: TunedModel, *, compact: bool) -> Callable[[Batch], tuple[Tensor, Tensor]]:
        def run(batch: Batch) -> tuple[Tensor, Tensor]:
            left = leave(one.backbone, batch, Through(one.reader, one.calibrator, one.exits), compact=compact)
            return left.scores_BC, left.layers_B

        return run

    kept = {name: one for name, one in out.items() if one.exits is not None and one.exits.on}
    found = {FULL: full, **{name: early_out(one, compact=True) for name, one in kept.items()}}
    return {**found, WHOLE: early_out(kept[CRITERION], compact=False)} if CRITERION in kept else found


def batched(model: TunedModel, texts: Sequence[Example], size: int) -> list[Batch]:
    """Texts of like length together, tokenised."""
    rows = model.asking.rows(texts, 0)
    return [model.asking.collate([rows[index] for index in indices], 0) for indices in model.asking.buckets(rows, 0, size=size)]


def timed(run: Callable[[Batch], object], batches: Sequence[Batch]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for batch in batches:
            run(batch)
    return time.perf_counter() - clock, time.process_time() - processor


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(model: TunedModel, out: Mapping[str, TunedModel], test: Sequence[Example], options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy, agreement and mean layer on all test rows; seconds on the first of them, batch size by batch size."""
    kind, scores = kind_of(model.task), {name: one.scored(test) for name, one in {FULL: model, **out}.items()}
    full_NC, _ = scores[FULL]
    found: dict[str, Any] = {}
    for name, (scores_NC, layers_N) in scores.items():
        one = out.get(name, model)
        exits = one.exits
        agree = 1.0 if exits is None else float(early.agree(one, exits, scores_NC, full_NC).double().mean())
        found[name] = {
            "accuracy": kind.ratio(model.task, test, one.likely(scores_NC).numpy()).value,
            "agreement": agree,
            "mean_layer": float(layers_N.double().mean()),
            "kept": exits is None or exits.on,
            "shares": {str(layer): float((layers_N == layer).double().mean()) for layer in sorted(set(layers_N.tolist()))},
        }
    with threads(options.threads):
        by_size = {str(size): times(model, out, test[: options.texts], size, options) for size in options.batch_sizes}
    return {"ways": found, "times": by_size}


def times(
    model: TunedModel, out: Mapping[str, TunedModel], texts: Sequence[Example], size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """For each way the seconds of each round, and the mean layer of these texts; one round of warm-up."""
    batches, ways = batched(model, texts, size), runners(model, out)
    found: dict[str, Any] = {name: {"clock": [], "processor": []} for name in ways}
    for number in range(options.rounds + 1):
        for name, run in ways.items():
            clock, processor = timed(run, batches)
            if number:
                found[name]["clock"].append(clock)
                found[name]["processor"].append(processor)
    for name, run in ways.items():
        layers = torch.cat([run(batch)[1] for batch in batches])
        found[name]["mean_layer"] = float(layers.double().mean())
    return found


def before(model: TunedModel, texts: Sequence[Example], options: argparse.Namespace) -> dict[str, float]:
    """Batch size → the share of the whole model's processor time that goes by before the first layer, which no exit can save: the median
    of the rounds after one of warm-up."""
    found = {}
    for size in options.batch_sizes:
        batches, shares = batched(model, texts, size), []
        for _ in range(options.rounds + 1):
            own = [timed(run, batches)[1] for run in (lambda batch: _climb(model, batch), model.batch_scores)]
            shares.append(own[0] / own[1])
        found[str(size)] = statistics.median(shares[1:])
    return found


def _climb(model: TunedModel, batch: Batch) -> Climb:
    return model.backbone.climb(batch.ids_BT, batch.mask_BT, batch.types_BT)


# The page


def speed_up(times: Mapping[str, Any], name: str, kind: str) -> float:
    """How many times as fast as the full model: the median of the rounds' ratios."""
    return statistics.median(full / own for full, own in zip(times[FULL][kind], times[name][kind], strict=True))


Result = Mapping[str, Any]


def accuracies(results: Sequence[Result]) -> str:
    """What each way answers, and where its rows leave."""
    rows = []
    for result in results:
        facts, full = result["facts"], result["ways"][FULL]
        for name, one in result["ways"].items():
            layers = f"{one['mean_layer']:.2f} of {full['mean_layer']:.0f}" if one["kept"] else "off"
            lost = f"{100 * (full['accuracy'] - one['accuracy']):+.1f}"
            rows.append([facts["model"], facts["data"], name, f"{100 * one['accuracy']:.1f}", lost, f"{one['agreement']:.3f}", layers])
    return table(("model", "data", "way", "accuracy", "points lost", "agreement", "mean layer"), rows)


def speeds(results: Sequence[Result]) -> str:
    """Each way's speed beside what its layers alone would give."""
    rows = []
    for result in results:
        facts, depth = result["facts"], result["ways"][FULL]["mean_layer"]
        for size, times in result["times"].items():
            share = result["before"][size]
            for name in (name for name in times if name != FULL):
                ideal = 1 / (share + (1 - share) * times[name]["mean_layer"] / depth)
                processor = speed_up(times, name, "processor")
                cells = (f"{processor:.2f}", f"{speed_up(times, name, 'clock'):.2f}", f"{ideal:.2f}", f"{ideal / processor - 1:+.0%}")
                rows.append([facts["model"], facts["data"], size, name, *cells])
    return table(("model", "data", "batch", "way", "by processor time", "by the clock", "layers", "over"), rows)


def means(results: Sequence[Result], options: argparse.Namespace) -> str:
    """Over the sets; a way that is off is as fast as the model."""
    rows = []
    for model in dict.fromkeys(result["facts"]["model"] for result in results):
        own = [result for result in results if result["facts"]["model"] == model]
        for name in (CRITERION, WHOLE, *OTHERS, AGREE):
            way = CRITERION if name == WHOLE else name
            lost = statistics.mean(100 * (one["ways"][FULL]["accuracy"] - one["ways"][way]["accuracy"]) for one in own)
            timed = [[one["times"][str(size)] for one in own] for size in options.batch_sizes]
            speeds = [[speed_up(times, name, "clock") if name in times else 1.0 for times in sets] for sets in timed]
            middle = statistics.median(speeds[-1])
            rows.append([model, str(len(own)), name, f"{lost:+.2f}", *(f"{statistics.mean(each):.2f}" for each in speeds), f"{middle:.2f}"])
    sizes = [f"batches of {size}" for size in options.batch_sizes]
    return table(("model", "sets", "way", "points lost", *sizes, f"{sizes[-1]}, median of the sets"), rows)


def page(results: Sequence[Result], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file."""
    there = {(result["facts"]["model"], result["facts"]["data"]) for result in results}
    missing = [f"{name} × {data}" for name in WAYS for data in DATA if (name, data) not in there]
    parts = [
        heading("Early exits by the clock", "bench/exits.py", [one for one in arguments if one != "--page"])
        + f"- Exits from training rows that were not tuned on, half of which test the promise: {Promise('drop', options.drop)}; "
        f"`{AGREE}`, without labels: {Promise('agree', options.agree)}\n"
        f"- Accuracy on {options.test} test rows, which chose nothing\n"
        f"- Seconds on {options.texts} of them, {options.rounds} rounds after one of warm-up, all ways in turn",
        f"`{CRITERION}` is the learned predictor; `{WHOLE}` is the same where done rows stay in the batch until all are done.",
        "Means over the sets: points lost, and how many times as fast as the same model without exits, by the clock, in the median round. "
        "The mean is carried by sets that the first layers answer; the median of the sets is not.",
        means(results, options),
        "## Answers",
        accuracies(results),
        "## Speed",
        "How many times as fast as the same model without exits, in the median round. *Layers* is what the mean layer would give, the time "
        "before the first layer being measured, too, and the same for all; the last column is how much more time is taken than that.",
        speeds(results),
    ]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Early exit by the clock.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--models", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--rows", type=int, help="training rows to tune on; by default all others of minilm-l6, 2,000 of smollm2-135m")
    parser.add_argument("--pool", type=int, default=3000, help="training rows without labels, at most a third of them")
    parser.add_argument("--steps", type=int, help="by default three passes of minilm-l6, one of smollm2-135m")
    parser.add_argument("--test", type=int, default=500, help="test rows that measure; 0: all")
    parser.add_argument("--texts", type=int, default=96, help="texts a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drop", type=float, default=0.5, help="points that may be lost")
    parser.add_argument("--agree", type=float, default=0.98)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=1, help="of what is timed")
    parser.add_argument("--other-threads", type=int, default=1, help="of all that is not timed: tuning, reading, accuracies")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page of what is finished")
    parser.add_argument("--tuned", type=Path, default=RESULTS.parent / "tuned.work", help="where tuned models are kept")
    parser.add_argument("--lines", type=Path, default=RESULTS / "exits.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS / "exits.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Every model on every set that is not finished yet."""
    options = parse(arguments)
    torch.set_num_threads(options.other_threads)
    return guarded(lambda: _run(options, arguments))


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    chosen = ("rows", "pool", "steps", "test", "texts", "rounds", "drop", "agree", "max_length", "batch_sizes")
    wanted = []
    for name in options.models:
        backbone = load(name, say=print)
        for data in (DataSet(options.shared, data) for data in options.data):
            facts = {"model": name, "data": data.name, **{option: getattr(options, option) for option in chosen}}
            key = key_of(facts, backbone)
            if key not in finished(options.lines) and not options.page:
                train, pool = drawn(data, WAYS[name], options)
                model = tuned(backbone, data, train, options)
                folder = place(backbone, data, train, options)
                out = ways_out(model, train, pool, folder, options)
                result = measure(replace(model, exits=None), out, data.first(options.test), options)
                append(options.lines, {"key": key, "code": code_hash(), "facts": facts, "tuned": len(train), "pool": len(pool), **result})
                shutil.rmtree(folder.with_suffix(".read"))
                model.remove()
            own = key_of({**facts, "part": "before"}, backbone)
            if own not in finished(options.lines) and not options.page:
                model = tuned(backbone, data, drawn(data, WAYS[name], options)[0], options)
                with threads(options.threads):
                    shares = before(model, data.first(options.test)[: options.texts], options)
                append(options.lines, {"key": own, "code": code_hash(), "facts": facts, "before": shares})
                model.remove()
            wanted.append((key, own))
            done = finished(options.lines)
            results = [{**done[key], "before": done[own]["before"]} for key, own in wanted if key in done and own in done]
            with threads(options.threads):  # which the page names
                write(options.out, page(results, options, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
