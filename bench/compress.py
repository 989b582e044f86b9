"""A tuned model and each way to make it smaller, side by side in one run: size on disk, peak memory, texts per second, accuracy.

All weights of a PLM are tuned with a head on the training rows; each way starts from that model and learns from the same rows. Test rows
measure only. Each smaller model and the full one answer in turn, round by round, as they are read from the disk, so that whatever else the
machine does falls on both; peak memory is that of a process of its own, which loads a model and answers.

    python bench/compress.py
    python bench/compress.py --data sst2 --most 2000 --test 500 --ways int8 distill

Finished models and figures are kept (`--work`, `--lines`) and fits go on where they were, so the script may be stopped at any time; the
page is written anew after each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, guarded, heading, peak_bytes, table, write
from runs import append, code_hash, finished, key_of, task_of

from fewtune import artifact, job, sizing
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive
from fewtune.deltas.subset import Subset
from fewtune.errors import ArtifactError, InputError
from fewtune.plm import load
from fewtune.readout.head import Head
from fewtune.strategies.compression import COMPRESSIONS
from fewtune.tasks.metrics import wilson
from fewtune.train.fit import FitOptions, Session

DATA = ("sst2", "agnews", "snips")
SEED, BATCH, PEAK = 13, 16, 256


@dataclass(frozen=True)
class Way:
    """What is done, one after another, and what is required of it: times as fast, points lost, share of the file."""

    by: tuple[str, ...]
    speed: float | None = None
    drop: float | None = None
    size: float | None = None

    def verdict(self, speed: float, drop: float, size: float) -> str:
        """What is required, and whether it is met."""
        parts = []
        if self.speed is not None:
            parts.append((f"speed ≥ {self.speed:g}", speed >= self.speed))
        if self.drop is not None:
            parts.append((f"lost ≤ {self.drop:g}", drop <= self.drop))
        if self.size is not None:
            parts.append((f"file ≤ {self.size:.0%}", size <= self.size))
        return "; ".join(f"{text}: {'met' if met else '**not met**'}" for text, met in parts)


WAYS: Mapping[str, Way] = {
    "int8": Way(("int8",), speed=1.5, drop=0.5),
    "distill": Way(("distill:layers=3",), speed=1.8, drop=2.0),
    "prune": Way(("prune:share=0.5,by=movement",), drop=1.0, size=0.6),
    "narrow": Way(("narrow",)),
    "share": Way(("share",)),
    "distill+int8": Way(("distill:layers=3", "int8")),
}


def at_hand() -> list[str]:
    """The ways whose parts are all in the table."""
    return [name for name, way in WAYS.items() if all(part.partition(":")[0] in COMPRESSIONS.members for part in way.by)]


def drawn(data: DataSet, most: int) -> tuple[Example, ...]:
    """The training rows, or so many of them, drawn by the seed."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(derive(SEED, data.name))).tolist()
    return tuple(data.train[row] for row in order[: most or None])


def there(folder: Path) -> bool:
    """Whether a whole artifact lies in `folder`."""
    try:
        artifact.read_manifest(folder)
    except ArtifactError:
        return False
    return True


def teacher(backbone: Backbone, data: DataSet, train: tuple[Example, ...], folder: Path, options: argparse.Namespace) -> Path:
    """The folder of the full model, tuned unless it is there."""
    if not there(folder):
        settings = job.Settings(
            strategy="supervised",
            deltas=(Subset("all"),),
            readout=Head(),
            fit=FitOptions(steps=steps_of(len(train), options), batch_size=BATCH),
            max_length=options.max_length,
            precision="float32",
            seed=SEED,
        )
        session = Session(folder.with_name(f"{folder.name}.steps"), folder.name, say=print)
        artifact.save(job.tune(task_of(data, None), Split(train=train), backbone, settings, session=session), folder, overwrite=True)
    return folder


def steps_of(rows: int, options: argparse.Namespace) -> int:
    """As many as it takes to see every row `--passes` times, 200 at least."""
    return max(200, round(options.passes * rows / BATCH))


def made(way: Way, full: Path, train: tuple[Example, ...], folder: Path, options: argparse.Namespace) -> Path:
    """The folder of a smaller model, made unless it is there."""
    if not there(folder):
        model = artifact.load(full)
        for number, text in enumerate(way.by):
            session = Session(folder.with_name(f"{folder.name}.steps"), folder.name, label=f"part-{number}", say=print)
            model = COMPRESSIONS.from_text(text).run(model, Split(train=train), session=session)
        artifact.save(model, folder, overwrite=True)
    return folder


def peak(folder: Path, data: str, options: argparse.Namespace) -> int:
    """The peak memory of a process that loads the model and answers some texts."""
    command = [sys.executable, __file__, "--shared", str(options.shared), "--peak", str(folder), "--data", data]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def answer_and_tell(options: argparse.Namespace) -> None:
    """What `peak` runs."""
    torch.set_num_threads(options.threads)
    model = artifact.load(options.peak)
    model.answered(DataSet(options.shared, options.data[0]).first(PEAK), batch_size=sizing.BATCH)
    print(peak_bytes())


def measured(full: Path, small: Path, data: DataSet, options: argparse.Namespace) -> dict[str, Any]:
    """Both models' figures on test rows."""
    found = sizing.beside((full, artifact.load(full)), (small, artifact.load(small)), data.first(options.test))
    rows = len(data.first(options.test))
    return {
        "rows": rows,
        "full": {**found.full.to_dict(), "interval": interval(found.full, rows), "peak": peak(full, data.name, options)},
        "small": {**found.to_dict(), "interval": interval(found.small, rows), "peak": peak(small, data.name, options)},
    }


def interval(one: sizing.Measured, rows: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy."""
    return wilson(round(one.ratio.value * rows), rows, confidence=0.95)


# The page


def page(results: Sequence[Mapping[str, Any]], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file."""
    rows: list[list[str]] = []
    shown: set[str] = set()
    for result in results:
        data, way = result["facts"]["data"], WAYS[result["facts"]["way"]]
        if data not in shown and "full" in result:
            shown.add(data)
            rows.append([data, "full", *figures(result["full"]), "1.00", "", ""])
        if "refused" in result:
            rows.append([data, " + ".join(way.by), *[""] * 5, "", result["refused"]])
            continue
        small, drop = result["small"], result["small"]["drop"]
        file = small["bytes"]["artifact"] / result["full"]["bytes"]["artifact"]
        lost = f"{drop['value']:+.1f} ({drop['low']:+.1f} – {drop['high']:+.1f})"
        verdict = way.verdict(small["speed"], drop["value"], file)
        rows.append([data, " + ".join(way.by), *figures(small), f"{small['speed']:.2f}", lost, verdict])
    done = {(result["facts"]["data"], result["facts"]["way"]) for result in results}
    missing = [f"{way} × {data}" for way in WAYS for data in DATA if (data, way) not in done]
    parts = [
        heading("A tuned model made smaller", "bench/compress.py", arguments)
        + f"- {options.model}, a head, all weights tuned, float32; {'all' if not options.most else options.most} training rows, seen "
        f"{options.passes:g} times by the full model (200 steps of {BATCH} at least)\n"
        f"- Accuracy on {'all' if not options.test else options.test} test rows, which chose nothing, with 95 % intervals; "
        "points lost row by row\n"
        f"- Texts per second of {sizing.TEXTS} of them, {sizing.BATCH} at a time, words to answers: the median of "
        f"{sizing.ROUNDS} rounds after one of warm-up, both models in turn; times as fast: the median of the rounds' ratios",
        "*File* is the folder, *needed* that and the weights of the PLM that it does not hold, *loaded* all weights that answers are "
        "computed with, *peak* the greatest memory of a process that loads the model and answers.",
        table(
            ("data", "model", "file", "needed", "loaded", "peak", "texts/s", "accuracy", "times as fast", "points lost", "required"), rows
        ),
    ]
    if missing:
        parts.append(f"Not measured: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def figures(one: Mapping[str, Any]) -> list[str]:
    """Sizes, speed and accuracy of one model."""
    low, high = one["interval"]
    sizes = [f"{count / 1e6:.1f} MB" for count in (*(one["bytes"][name] for name in ("artifact", "needed", "loaded")), one["peak"])]
    return [*sizes, f"{one['texts_per_second']:.0f}", f"{100 * one['value']:.1f} ({100 * low:.1f} – {100 * high:.1f})"]


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="A tuned model made smaller.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--ways", nargs="+", default=at_hand(), choices=list(WAYS))
    parser.add_argument("--most", type=int, default=0, help="training rows; 0: all")
    parser.add_argument("--passes", type=float, default=2, help="how often the full model sees each row")
    parser.add_argument("--test", type=int, default=0, help="test rows that measure; 0: all")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=RESULTS / "raw" / "compress", help="where models are kept")
    parser.add_argument("--lines", type=Path, default=RESULTS / "compress.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS / "compress.md")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Every way on every set that is not finished yet."""
    options = parse(arguments)
    if options.peak is not None:
        answer_and_tell(options)
        return 0
    torch.set_num_threads(options.threads)
    return guarded(lambda: _run(options, arguments))


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    wanted: list[str] = []
    for data in (DataSet(options.shared, name) for name in options.data):
        backbone, train = load(options.model, say=print), drawn(data, options.most)
        chosen = {name: getattr(options, name) for name in ("model", "most", "passes", "max_length")}
        facts = {"data": data.name, **chosen}
        full = teacher(backbone, data, train, options.work / f"{data.name}-{key_of(facts, backbone)}", options)
        for name in options.ways:
            facts = {"data": data.name, "way": name, "by": WAYS[name].by, **chosen, "test": options.test}
            key = key_of(facts, backbone)
            wanted.append(key)
            if key not in finished(options.lines):
                print(f"{data.name}: {' + '.join(WAYS[name].by)}")
                append(options.lines, {"key": key, "code": code_hash(), "facts": facts, **_result(name, full, data, train, options)})
            done = finished(options.lines)
            write(options.out, page([done[key] for key in wanted if key in done], options, arguments))


def _result(name: str, full: Path, data: DataSet, train: tuple[Example, ...], options: argparse.Namespace) -> dict[str, Any]:
    """What is measured of a way, or why it was refused."""
    try:
        small = made(WAYS[name], full, train, full.with_name(f"{full.name}-{name}"), options)
    except InputError as error:
        return {"refused": str(error)}
    return measured(full, small, data, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
