"""Training steps per second and peak memory: fewtune against peft, method by method, side by side in one run.

After each step of fewtune's own loop the peer takes one, so that whatever else the machine does meanwhile falls on both. A round is one
pass over the rows; the first is warm-up. The peak of memory is that of a process of its own for each side.

    python bench/peft_step.py
    python bench/peft_step.py --models minilm-l6 --methods lora --rounds 1 --no-memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from duel import Duel, Watch, alone, duel
from machine import DEFAULT_SHARED, RESULTS, DataSet, forget_peak, guarded, heading, peak_bytes, table, versions, write
from runs import append, code_hash, finished
from sides import Setting

from fewtune.backbone import catalogue
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.backbone.quiet import quiet
from fewtune.data.example import Example
from fewtune.deltas import DELTAS

RAW = RESULTS / "peft_step.jsonl"
BASE = "bert-base"
MODELS = (BASE, "minilm-l6", "smollm2-135m")
METHODS = ("lora", "dora", "ia3", "prefix", "soft-prompt", "full")
COMPARISONS = ("alike", "used", "cached")
REQUIRED = {"alike": 1.0, "used": 1.5, "cached": 4.0}
PADDED = {None: "alike", 0: "longest"}
TITLES = {
    "alike": "Everything alike",
    "used": "As used",
    "cached": "Cached: LoRA in the top third, passes after the first",
}
ABOUT = {
    "alike": """The same batches, padded to the longest row of each; the same modules in all blocks; for encoders a head on the mean of
the states, for the autoregressive model the label words' logits at the slot; AdamW, clipping at 1.0. The dropout of frozen blocks is
off on both sides. The losses of the first batch are compared before any step. *Floor*: the share of a step's processor time that its
bare matrix products take (forward, gradients of the states from the first trained block on, gradients of the weights where all are
trained), measured in between on the model's own weights.""",
    "used": """fewtune: the `supervised` strategy with its defaults (rows of like length together, no dropout in frozen blocks, logits at
the slot for the label words only, weights averaged over the second half of the steps). peft: batches in random order, padded to 128
tokens or to their longest row, dropout as the model's config has it, peft's default places; encoders with their pooler and classifier,
the autoregressive model with the loss on the label's token and logits at every token. *full* is plain transformers.""",
    "cached": """fewtune keeps the states below the first trained block, filled once before the first step, which is not counted. peft has
the same blocks. *alike*: the same batches and the same readout; by arithmetic at most twice as fast, for a forward through all blocks
and a way back through a third (4/3) stand against a third each way (2/3). The others are as used, with `layers_to_transform`.""",
}


def settings(options: argparse.Namespace) -> list[Setting]:
    """The rows of the tables."""
    found = []
    for comparison in options.comparisons:
        for model in options.models:
            for method in [method for method in options.methods if comparison != "cached" or method == "lora"]:
                lengths = {"alike": [None], "used": [128, 0], "cached": [None, 0, 128]}[comparison]
                found += [Setting(comparison, model, method, length) for length in lengths]
    return found


@contextmanager
def folder_of(model: str) -> Iterator[str]:
    """The model's folder: one of the catalogue, or a BERT of the usual size with random weights and the vocabulary of minilm-l6."""
    if model != BASE:
        yield str(catalogue.locate(model))
        return
    with tempfile.TemporaryDirectory() as folder, quiet():
        torch.manual_seed(13)
        transformers.AutoModel.from_config(transformers.BertConfig(architectures=["BertModel"])).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(str(catalogue.locate("minilm-l6"))).save_pretrained(folder)
        yield folder


# Memory


def memory_of(setting: Setting, side: str, folder: str, options: argparse.Namespace) -> float:
    """The peak of one side's memory while it trains, in MiB, in a process of its own."""
    asked = json.dumps({"setting": asdict(setting), "side": side, "folder": folder})
    command = [sys.executable, __file__, "--child", asked, "--shared", str(options.shared), "--k", str(options.k)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{setting}, {side}: {done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1]) / 1024**2


def child(options: argparse.Namespace) -> None:
    """What such a process does: train one side for a round and print its peak."""
    asked = json.loads(options.child)
    setting = Setting(**asked["setting"])
    turns = alone(setting, asked["folder"], load(asked["folder"]), rows_of(options), own=asked["side"] == "own")
    forget_peak()
    turns()
    print(peak_bytes())


def rows_of(options: argparse.Namespace) -> tuple[Example, ...]:
    """The texts."""
    return DataSet(options.shared, "sst2").shots(options.k, seed=13)


# The page


COLUMNS = (
    *("model", "method", "peft pads to", "trained, fewtune", "trained, peft", "fewtune, steps/s", "peft, steps/s"),
    *("ratio", "least–most", "ratio by the clock", "floor, fewtune", "floor, peft", "MiB, fewtune", "MiB, peft", "losses differ by"),
)


@dataclass(frozen=True)
class Line:
    """One row of a table; `memory` is nothing where it was not asked for, `code` the hash of the package's sources."""

    duel: Duel
    memory: tuple[float, float] | None
    code: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Line:
        """The row that `asdict` wrote."""
        given = record["duel"]
        watches = {name: Watch(**given[name]) for name in ("own", "peer", "floor")}
        found = Duel(**{**given, **watches, "setting": Setting(**given["setting"])})
        return cls(found, record["memory"], record["code"])

    def cells(self) -> list[str]:
        """What stands in it."""
        duel, setting = self.duel, self.duel.setting
        ratios, clocks = duel.ratios("processor"), duel.ratios("clock")
        return [
            *(setting.model, setting.method, str(PADDED.get(setting.length, setting.length))),
            *(f"{count:,}" for count in duel.trained),
            *(f"{speed:.2f}" for speed in (duel.own.speed(), duel.peer.speed())),
            *(f"**{middle(ratios):.2f}**", f"{min(ratios):.2f}–{max(ratios):.2f}", f"{middle(clocks):.2f}"),
            *([f"{100 * share:.0f} %" for share in duel.floor_shares()] if duel.floor.times else ["–", "–"]),
            *([f"{size:.0f}" for size in self.memory] if self.memory else ["–", "–"]),
            "–" if duel.difference is None else f"{duel.difference:.0e}",
        ]


def middle(values: Sequence[float]) -> float:
    """The median."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def page(lines: Sequence[Line], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file."""
    parts = [
        heading("Training steps per second, against peft", "bench/peft_step.py", [item for item in arguments if item != "--finished"])
        + f"- Texts: {2 * options.k} rows of SST-2, batches of 8, float32 on both sides; rounds after the warm-up: {options.rounds}\n"
        f"- Code: {', '.join(dict.fromkeys(line.code for line in lines))} (hash of the package's sources)\n"
        f"- How busy the machine was with other work: the steps had {100 * middle([line.duel.share() for line in lines]):.0f} % of a core, "
        f"at least {100 * min(line.duel.share() for line in lines):.0f} %\n"
        f"- {BASE}: 12 blocks of width 768 with random weights, which take as long as trained ones",
        "Ratio: peft's processor time over fewtune's, round by round (median, least–most); above 1 fewtune is faster. Each side takes its "
        "steps in turn. The ratio by the clock and the steps per second hold for this machine as busy as it was. MiB: the greatest memory "
        "use of a process that trains this side alone, libraries and the mapped file of weights included, all of which fewtune has read "
        "for its fingerprint; fewtune's full fine-tuning trains a copy and keeps the frozen weights.",
    ]
    for comparison in options.comparisons:
        mine = [line for line in lines if line.duel.setting.comparison == comparison]
        if mine:
            parts += [f"## {TITLES[comparison]}", ABOUT[comparison], table(COLUMNS, [line.cells() for line in mine]), *verdicts(mine)]
    rates = [f"{line.duel.setting.model} {line.duel.rate():.0f}" for line in lines if line.duel.floor.times]
    parts += [f"Rate of the bare products in GFLOP/s, in the order of the rows: {', '.join(rates)}."] if rates else []
    return "\n\n".join(parts) + "\n"


def verdicts(lines: Sequence[Line]) -> list[str]:
    """What is asked of a comparison, with what came, for each way in which the peer pads."""
    least, found = REQUIRED[lines[0].duel.setting.comparison], []
    for length in dict.fromkeys(line.duel.setting.length for line in lines):
        mine = [line for line in lines if line.duel.setting.length == length]
        missed = [line for line in mine if middle(line.duel.ratios("processor")) < least]
        every = [line for line in missed if max(line.duel.ratios("processor")) < least]
        text = (
            f"Asked where peft pads to *{PADDED.get(length, length)}*: at least {least}. Met by {len(mine) - len(missed)} of {len(mine)}."
        )
        text += f" Below in the median: {', '.join(map(_named, missed))}." if missed else ""
        text += f" Below in every round: {', '.join(map(_named, every))}." if every else ""
        found.append(text)
    return found


def _named(line: Line) -> str:
    return f"{line.duel.setting.model} {line.duel.setting.method} {middle(line.duel.ratios('processor')):.2f}"


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Training steps per second and peak memory against peft, side by side.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--comparisons", nargs="+", default=list(COMPARISONS), choices=COMPARISONS)
    parser.add_argument("--rounds", type=int, default=5, help="measured passes over the rows, after one of warm-up")
    parser.add_argument("--k", type=int, default=16, help="labelled rows a class, of two; a batch has 8")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--finished", action="store_true", help="measure nothing more: write the page of what is finished")
    parser.add_argument("--older", action="store_true", help="take what earlier code measured, too")
    parser.add_argument("--out", type=Path, default=RESULTS / "peft_step.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.methods = [method for method in options.methods if method != "prefix" or "prefix" in DELTAS.members]
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure what is not finished; the table is written anew after each setting, so that a run may be stopped."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    return guarded(lambda: child(options) if options.child else run_all(options, arguments))


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Every setting, model by model; what is finished is not measured anew."""
    lines: dict[Setting, Line] = {}
    peaks: dict[Setting, float] = {}
    asked, known, code = settings(options), finished(RAW), code_hash()
    for model in options.models:
        with folder_of(model) as folder:
            backbone: list[Backbone] = []
            for setting in [setting for setting in asked if setting.model == model]:
                key = _key(setting, options, "" if options.older else code)
                if key in known:
                    lines[setting] = Line.of(known[key])
                elif options.finished:
                    continue
                else:
                    backbone = backbone or [load(folder)]
                    found = duel(setting, folder, backbone[0], rows_of(options), rounds=options.rounds)
                    lines[setting] = Line(found, _memory(setting, folder, peaks, options) if options.memory else None, code)
                    for name in (code, ""):
                        append(RAW, {"key": _key(setting, options, name), **asdict(lines[setting])})
                write(options.out, page([lines[setting] for setting in asked if setting in lines], options, arguments))
                print(" | ".join(lines[setting].cells()), flush=True)


def _key(setting: Setting, options: argparse.Namespace, code: str) -> str:
    return json.dumps([asdict(setting), options.rounds, options.k, options.memory, options.threads, versions(), code])


def _memory(setting: Setting, folder: str, peaks: dict[Setting, float], options: argparse.Namespace) -> tuple[float, float]:
    own = setting.own
    if own not in peaks:  # fewtune does not care how the peer pads
        peaks[own] = memory_of(own, "own", folder, options)
    return peaks[own], memory_of(setting, "peer", folder, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
