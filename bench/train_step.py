"""Training steps per second: fewtune against plain transformers + peft, side by side in one run.

fewtune's own `supervised` strategy runs as it does for a user. After each of its steps the peer takes one on the very same batch,
so that both see the same rows in the same order and whatever else the machine does meanwhile.

    python bench/train_step.py
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from machine import DEFAULT_SHARED, RESULTS, DataSet, heading, table, write
from peers import IGNORED, RATE, Peer, Texts, as_used, inputs_of
from torch import Tensor

from fewtune.backbone import catalogue
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load
from fewtune.data.example import Example, Split
from fewtune.deltas.lora import LoRA
from fewtune.errors import FewtuneError
from fewtune.model import TunedModel
from fewtune.readout.calibration import Uncalibrated
from fewtune.recipe import DEFAULT_BACKBONE, Recipe
from fewtune.strategies import STRATEGIES
from fewtune.tasks.task import Task
from fewtune.train.fit import FitOptions, Session

REQUIRED = 2.5
TOLERANCE = 1e-4
TEMPLATE = "Review: {text}\nSentiment: {slot}"


@dataclass(frozen=True)
class Setting:
    """One row of the table: which share of the blocks each side tunes, and to what length the peer pads (0: its batch's longest)."""

    title: str
    top: float = 1.0
    peer_top: float = 1.0
    peer_length: int = 128
    required: float | None = None


SETTINGS = (
    Setting("LoRA in all blocks, against peft in all blocks", required=REQUIRED),
    Setting("LoRA in all blocks, against peft in all blocks that pads to the longest of each batch", peer_length=0),
    Setting("fewtune's default (top third, cached states), against peft in all blocks", top=1 / 3),
    Setting("fewtune's default, against peft in the top third", top=1 / 3, peer_top=1 / 3),
)


def label_loss(peer: Peer, inputs: dict[str, Tensor], tokens: Sequence[int]) -> float:
    """Cross-entropy over the label words only, from the logits where the answer is predicted: what fewtune minimises."""
    with torch.no_grad():
        logits_BTV = peer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    rows, places = torch.nonzero(inputs["labels"] != IGNORED, as_tuple=True)
    targets = torch.tensor([list(tokens).index(answer) for answer in inputs["labels"][rows, places].tolist()])
    return torch.nn.functional.cross_entropy(logits_BTV[rows, places - 1][:, list(tokens)], targets).item()


@dataclass(frozen=True)
class Prompts:
    """The encoded prompts, where each stands among them, and the label words' tokens in the order of the labels."""

    texts: Texts
    tokens: tuple[int, ...]

    @cached_property
    def rows(self) -> dict[tuple[int, ...], int]:
        """Prompt → its row."""
        return {prompt: row for row, prompt in enumerate(self.texts.prompts)}


@dataclass
class Duel:
    """Both sides on one setting; `seconds` and `peer_seconds` are those of the steps after the warm-up."""

    setting: Setting
    peer: Peer
    prompts: Prompts
    warmup: int
    seconds: list[float] = field(default_factory=list)
    peer_seconds: list[float] = field(default_factory=list)
    difference: float = 0.0
    seen: list[Tensor] = field(default_factory=list)
    resumed: float = 0.0

    @contextmanager
    def watching(self, backbone: Backbone) -> Iterator[None]:
        """Within it, each batch that the backbone is given is noted."""
        forward = backbone.forward

        def noting(ids_BT: Tensor, mask_BT: Tensor, *rest: Any, **options: Any) -> Any:
            self.seen = [ids_BT, mask_BT]
            return forward(ids_BT, mask_BT, *rest, **options)

        backbone.forward = noting  # type: ignore[method-assign]
        try:
            yield
        finally:
            del backbone.forward

    def after_step(self, what: str, done: int, steps: int, loss: float) -> None:
        """The peer's turn, on the batch that fewtune has just trained on."""
        seconds = time.perf_counter() - self.resumed
        prompts = [tuple(ids[:length]) for ids, length in zip(self.seen[0].tolist(), self.seen[1].sum(1).tolist(), strict=True)]
        rows = [self.prompts.rows[prompt] for prompt in prompts]
        inputs = inputs_of(self.prompts.texts, rows, length=self.setting.peer_length)
        if done == 1:
            self.difference = abs(label_loss(self.peer, inputs, self.prompts.tokens) - loss)
        start = time.perf_counter()
        self.peer.step(inputs)
        if done > self.warmup:
            self.seconds.append(seconds)
            self.peer_seconds.append(time.perf_counter() - start)
        self.resumed = time.perf_counter()

    @property
    def ratios(self) -> list[float]:
        """How many times as fast fewtune was, step by step."""
        return [peer / own for own, peer in zip(self.seconds, self.peer_seconds, strict=True)]


def prompts_of(recipe: Recipe, train: Sequence[Example], backbone: Backbone) -> Prompts:
    """Encode as fewtune does, so that both sides read the same tokens."""
    model = TunedModel.assemble(backbone, recipe.task, recipe.readout, max_length=recipe.max_length)
    tokens = tuple(itertools.chain.from_iterable(model.asked.words[0].ids))
    rows = model.asking.rows(train, 0)
    labels = tuple(recipe.task.labels.index(example.label or "") for example in train)
    answers = tuple(tokens[label] for label in labels)
    return Prompts(Texts(tuple(row.ids for row in rows), labels, answers, backbone.tokenizer.pad_token_id or 0), tokens)


def duel(setting: Setting, train: tuple[Example, ...], labels: Sequence[str], backbone: Backbone, options: argparse.Namespace) -> Duel:
    """Run both sides; raises `SystemExit` where they do not train the same numbers or do not compute the same loss."""
    task = Task.classification(labels, template=TEMPLATE)
    fit = FitOptions(steps=options.warmup + options.steps, learning_rate=RATE, batch_size=options.batch_size)
    recipe = Recipe(task, deltas=(LoRA(top=setting.top),), calibration=Uncalibrated(), fit=fit, precision="float32", seed=13)
    blocks = range(backbone.first_block(setting.peer_top), backbone.depth)
    prompts = prompts_of(recipe, train, backbone)
    peer = as_used(str(catalogue.locate(options.backbone)), "lora", prompts.texts, blocks=blocks)
    found = Duel(setting, peer, prompts, options.warmup)
    with found.watching(backbone):
        model = STRATEGIES.member("supervised")().run(recipe, Split(train=train), backbone, session=Session(progress=found.after_step))
    model.remove()
    if setting.top == setting.peer_top and model.trained_parameters != peer.trained_parameters:
        raise SystemExit(f"{setting.title}: {model.trained_parameters} trained against {peer.trained_parameters}")
    if found.difference > TOLERANCE:
        raise SystemExit(f"{setting.title}: the losses of the first batch differ by {found.difference:.1e}")
    return found


# The page


COLUMNS = ("setting", "fewtune, steps/s", "peer, steps/s", "ratio (median)", "quartiles", "least–most", "steps", "losses differ by")


def row_of(found: Duel) -> list[str]:
    """One row of the table."""
    low, _, high = statistics.quantiles(found.ratios, n=4)
    return [
        found.setting.title,
        *(f"{1 / statistics.median(seconds):.2f}" for seconds in (found.seconds, found.peer_seconds)),
        f"{statistics.median(found.ratios):.2f}",
        f"{low:.2f}–{high:.2f}",
        f"{min(found.ratios):.2f}–{max(found.ratios):.2f}",
        str(len(found.ratios)),
        f"{found.difference:.0e}",
    ]


def verdicts(duels: Sequence[Duel]) -> list[str]:
    """What is required, with what came."""
    lines = []
    for found in duels:
        if found.setting.required is not None:
            ratio = statistics.median(found.ratios)
            verdict = "met" if ratio >= found.setting.required else "missed"
            lines.append(f"Required of “{found.setting.title}”: at least {found.setting.required}; got {ratio:.2f}, {verdict}.")
    return lines


def page(duels: Sequence[Duel], lengths: Sequence[int], options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """The results file."""
    facts = [
        f"- PLM: {options.backbone}, float32 on both sides; LoRA of rank 8 on query and value; AdamW, clipping at 1.0",
        f"- Texts: {len(lengths)} rows of SST-2 in their template, {min(lengths)}–{max(lengths)} tokens, median "
        f"{statistics.median(lengths):.0f}; batches of {options.batch_size}",
    ]
    parts = [
        heading("Training steps per second", "bench/train_step.py", arguments) + "\n".join(facts),
        _HOW.format(warmup=options.warmup),
        table(COLUMNS, [row_of(found) for found in duels]),
        *verdicts(duels),
    ]
    return "\n\n".join(parts) + "\n"


_HOW = """The peer is plain transformers + peft: every batch padded to 128 tokens, logits at every token, loss on the label's token.
fewtune runs its own training loop: rows padded to the longest of their batch, logits at the slot for the label words only. Both
take the same batches in the same order, turn by turn, one step each; the ratio is taken step by step, after {warmup} steps of
warm-up. Tokenising counts for neither side, and neither does filling the cache of states, which fewtune does once before the
first step. The losses of the first batch are compared as cross-entropy over the label words, from each side's own logits."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; unknown ones end with exit code 2."""
    parser = argparse.ArgumentParser(description="Training steps per second against plain transformers + peft, side by side.")
    parser.add_argument("--shared", type=Path, default=DEFAULT_SHARED, help="the folder with data/ and splits/")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="an autoregressive PLM with q_proj and v_proj")
    parser.add_argument("--k", type=int, default=32, help="labelled rows a class")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each side in each setting")
    parser.add_argument("--warmup", type=int, default=2, choices=range(1, 10), metavar="STEPS")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--settings", nargs="+", type=int, default=list(range(len(SETTINGS))), help="which rows of the table")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "train_step.md")
    options = parser.parse_args(arguments)
    if (options.steps + options.warmup) * options.batch_size <= 2 * options.k:
        parser.error("with less than one pass over the rows fewtune keeps no states: take more --steps or a smaller --k")
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure each setting, then write the table."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        dataset = DataSet(options.shared, "sst2")
        train, labels, backbone = dataset.shots(options.k, seed=13), dataset.labels(), load(options.backbone, say=print)
        duels = [duel(SETTINGS[number], train, labels, backbone, options) for number in options.settings]
    except FewtuneError as error:
        print(error, file=sys.stderr)
        return 2
    lengths = [len(ids) for ids in duels[0].prompts.texts.prompts]
    write(options.out, page(duels, lengths, options, arguments))
    print(table(COLUMNS, [row_of(found) for found in duels]), *verdicts(duels), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
