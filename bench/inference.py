"""Seconds per 1,000 texts: what each method costs when a tuned model answers, against the backbone without any.

All methods of a model answer the same texts in turn, round by round, so that whatever else the machine does falls on all of them. The
weights are drawn at random: what they are makes no difference to the time, and lets merged and unmerged answers be compared.

    python bench/inference.py
    python bench/inference.py --models minilm-l6 --methods merged unmerged --rounds 1
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, heading, table, write
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.data.example import Example
from fewtune.deltas import DELTAS
from fewtune.errors import FewtuneError
from fewtune.model import TunedModel
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.tasks.task import Task

MODELS = ("minilm-l6", "smollm2-135m")
BASE, MERGED = "base", "merged"
SPECS: Mapping[str, str] = {
    **{BASE: "", MERGED: "lora", "unmerged": "lora", "adapter": "adapter"},
    **{"prefix": "prefix:length=20", "soft-prompt": "soft-prompt:length=20"},
}
"""Method → fewtune's delta."""
TITLES = {BASE: "backbone alone", MERGED: "LoRA, merged", "unmerged": "LoRA, unmerged"}
TEMPLATE = "Review: {text}\nSentiment: {slot}"
TOLERANCE = 1e-3  # merged and unmerged answers, as logarithms of probabilities
DEVIATION = 0.02


@dataclass
class Times:
    """What each round took of one method: seconds by the clock and of the processor."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


@dataclass
class Course:
    """All methods of one model on the same texts; `difference` is that of merged and unmerged log-probabilities."""

    model: str
    texts: int
    batch_size: int
    times: dict[str, Times]
    weights: dict[str, int] = field(default_factory=dict)
    difference: float | None = None

    def per_thousand(self, method: str) -> float:
        """Seconds of the processor for 1,000 texts, in the median round."""
        return statistics.median(self.times[method].processor) * 1000 / self.texts

    def ratios(self, method: str, kind: str) -> list[float]:
        """The method's time over the backbone's alone, round by round."""
        mine, base = (getattr(self.times[name], kind) for name in (method, BASE))
        return [took / alone for took, alone in zip(mine, base, strict=True)]


def measure(backbone: Backbone, texts: Sequence[Example], batch_size: int, options: argparse.Namespace) -> Course:
    """Every method in turn, after one round of warm-up; raises `SystemExit` if merging changes the answers."""
    task = Task.classification(("negative", "positive"), template=TEMPLATE if backbone.causal else None)
    model = TunedModel.assemble(backbone, task, Cloze() if backbone.causal else Head(), seed=13)
    course = Course(backbone.name, len(texts), batch_size, {method: Times() for method in options.methods})
    answers: dict[str, Tensor] = {}
    for number in range(options.rounds + 1):
        for method in options.methods:
            with torch.inference_mode():
                clock, processor, answers[method] = _answer(model, method, texts, batch_size, course)
            if number:
                course.times[method].clock.append(clock)
                course.times[method].processor.append(processor)
    if {MERGED, "unmerged"} <= answers.keys():
        course.difference = (answers[MERGED] - answers["unmerged"]).abs().max().item()
        if course.difference > TOLERANCE:
            raise SystemExit(f"{backbone.name}: merged and unmerged answers differ by {course.difference:.1e}")
    return course


def _answer(model: TunedModel, method: str, texts: Sequence[Example], batch_size: int, course: Course) -> tuple[float, float, Tensor]:
    """(seconds by the clock, seconds of the processor, log-probabilities); the method is taken out again."""
    tuned, undo = _tuned(model, method)
    course.weights[method] = tuned.deltas[0].stored_parameters if tuned.deltas else 0
    try:
        clock, processor = time.perf_counter(), time.process_time()
        answers_NC = tuned.probabilities(texts, batch_size=batch_size)
        return time.perf_counter() - clock, time.process_time() - processor, answers_NC.log()
    finally:
        undo()
        tuned.remove()


def _tuned(model: TunedModel, method: str) -> tuple[TunedModel, Callable[[], None]]:
    """The model with the method, its weights drawn anew, always the same; merged where that is the method."""
    if method == BASE:
        return model, lambda: None
    generator = torch.Generator().manual_seed(13)
    delta = DELTAS.from_text(SPECS[method], method).install(model.backbone, generator=generator)
    for name, weight in sorted(delta.weights.items()):
        if name.endswith("lora_B"):
            weight.data = torch.randn(weight.shape, generator=generator) * DEVIATION
    return replace(model, deltas=(delta,)), delta.merge() if method == MERGED else lambda: None


# The page


COLUMNS = ("model", "batch", "method", "weights stored", "s per 1,000 texts", "ratio to the backbone", "least–most", "ratio by the clock")


def rows_of(courses: Sequence[Course]) -> list[list[str]]:
    """The rows of the table."""
    rows = []
    for course in courses:
        for method in course.times:
            ratios = course.ratios(method, "processor")
            rows.append(
                [
                    *(course.model, str(course.batch_size), TITLES.get(method, method), f"{course.weights[method]:,}"),
                    f"{course.per_thousand(method):.1f}",
                    f"**{statistics.median(ratios):.2f}**",
                    f"{min(ratios):.2f}–{max(ratios):.2f}",
                    f"{statistics.median(course.ratios(method, 'clock')):.2f}",
                ]
            )
    return rows


def page(courses: Sequence[Course], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file."""
    differences = [f"{course.model} {course.difference:.0e}" for course in courses if course.difference is not None]
    parts = [
        heading("Seconds per 1,000 texts", "bench/inference.py", arguments)
        + f"- Texts: the first {options.texts} test rows of SST-2 a round, {options.rounds} rounds after one of warm-up, float32\n"
        "- LoRA of rank 8 on query and value; adapters of 64 units behind the feed-forward blocks; 20 vectors of prefix and soft prompt; "
        "encoders with a head, the autoregressive model with label words",
        "Seconds are those of the processor, tokenising included, in the median round. Ratios are taken round by round (median, "
        "least–most); the one by the clock holds for this machine as busy as it was.",
        table(COLUMNS, rows_of(courses)),
    ]
    if differences:
        parts.append(f"Greatest difference between merged and unmerged LoRA in a log-probability: {', '.join(differences)}.")
    return "\n\n".join(parts) + "\n"


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Seconds per 1,000 texts, method by method.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names of the catalogue, or folders")
    parser.add_argument("--methods", nargs="+", default=list(SPECS), choices=list(SPECS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=96, help="texts a round")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "inference.md")
    options = parser.parse_args(arguments)
    options.methods = list(dict.fromkeys([BASE, *options.methods]))
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure each model at each batch size; the table is written anew after each."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    courses: list[Course] = []
    try:
        texts = DataSet(options.shared, "sst2").rows("test")[: options.texts]
        for name in options.models:
            backbone = load(name, say=print)
            for batch_size in options.batch_sizes:
                courses.append(measure(backbone, texts, batch_size, options))
                write(options.out, page(courses, options, arguments))
                print(table(COLUMNS, rows_of(courses[-1:])), flush=True)
    except FewtuneError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
