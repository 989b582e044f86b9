"""Tokens per second of pre-training: fewtune against plain transformers `Trainer`, on the same model, blocks and precision in one run.

Both start from the same random weights of a size by name and take rounds of a few steps in turn, so that whatever else the machine
does falls on both. The `Trainer` computes the LM head at every token, as its users have it, and is given the masks that fewtune drew, so
that both minimise the same loss; that is checked on the first batch. Beside them stand the bare matrix products that a step cannot do
without (`floor.py`). Texts are drawn at random: what is learned is no matter here.

    python bench/pretrain.py --rounds 3
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from floor import Products, multiply
from machine import RESULTS, heading, table, write
from torch import Tensor

from fewtune.backbone import fresh
from fewtune.backbone.backbone import Backbone
from fewtune.data.corpus import Blocks
from fewtune.strategies.pretrain import Language
from fewtune.train.fit import FitOptions, Group, Session, fit

REQUIRED = {"mlm": 2.0, "clm": 1.2}
RATE, SEED, IGNORED = 1e-3, 7, -100
NAMES = {"mlm": "masked", "clm": "autoregressive"}


class Pieces:
    """A tokenizer as large as real ones are; of a learned one nothing else would be asked here."""

    pad_token_id, bos_token_id, eos_token_id, mask_token_id = 0, None, 1, 2
    all_special_ids = (0, 1, 2)
    model_max_length = 512

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {f"piece{number}": number for number in range(self.size)}


def language(objective: str, options: argparse.Namespace) -> Language:
    """A new model and random ids, of which some words are much more frequent than others, as in texts."""
    backbone = fresh.make(objective, options.size, Pieces(options.vocabulary), length=options.length, seed=SEED)
    drawn = np.random.default_rng(SEED).zipf(1.2, options.batch_size * options.length * 64) + 2
    return Language(backbone, Blocks(np.minimum(drawn, options.vocabulary - 1).astype(np.uint16), options.length), options.batch_size, SEED)


def ours(learned: Language, steps: int) -> Callable[[int], float]:
    """Seconds of `steps` steps in fewtune's loop."""
    weights = dict(learned.backbone.model.named_parameters())
    options = FitOptions(batch_size=learned.batch_size, average=0.0)

    def run(first: int) -> float:
        begun = time.perf_counter()
        fit(
            [Group(weights, RATE)],
            lambda step: learned.at(first + step),
            learned.loss,
            steps=steps,
            options=options,
            seed=SEED,
            session=Session(),
        )
        return time.perf_counter() - begun

    return run


def labelled(learned: Language, number: int) -> dict[str, Tensor]:
    """A batch as transformers' own collators make it."""
    mask_BT, asked = learned.at(number)
    labels = asked.ids_BT.clone()
    if not learned.backbone.causal:
        labels = torch.full_like(asked.ids_BT, IGNORED).flatten()
        labels[asked.places_N] = asked.targets_N
        labels = labels.view_as(asked.ids_BT)
    return {"input_ids": asked.ids_BT, "attention_mask": mask_BT, "labels": labels}


def theirs(learned: Language, model: Any, steps: int, folder: str) -> Callable[[int], float]:
    """Seconds of `steps` steps in transformers' `Trainer`, without what it does before and after."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            times.append(time.perf_counter())

    def run(first: int) -> float:
        times.clear()
        size = learned.batch_size
        rows = [
            {name: tensor[row] for name, tensor in batch.items()}
            for batch in (labelled(learned, first + step) for step in range(steps))
            for row in range(size)
        ]
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=size,
            learning_rate=RATE,
            warmup_steps=max(1, steps // 10),
            weight_decay=0.01,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            bf16=learned.backbone.precision == "bfloat16",
        )
        Trainer(model, settings, train_dataset=rows, callbacks=[Clock()]).train()
        return times[-1] - times[0]

    return run


def floor(backbone: Backbone, options: argparse.Namespace, predictions: int) -> Callable[[], float]:
    """Seconds of the products of a step: of the blocks, and of the LM head for so many predictions."""
    pairs = Products(backbone, 0, full=True).pairs(options.batch_size, options.length)
    states_ND, logits_NV = torch.randn(predictions, backbone.width), torch.randn(predictions, backbone.vocabulary)
    weight_VD = backbone.model.get_submodule(backbone.family.decoder).weight.detach()
    pairs += [(states_ND, weight_VD.T), (logits_NV, weight_VD), (logits_NV.T, states_ND)]

    def run() -> float:
        begun = time.perf_counter()
        multiply(pairs)
        return time.perf_counter() - begun

    return run


def measured(objective: str, options: argparse.Namespace) -> list[str]:
    """A row of the table."""
    learned, copy = language(objective, options), language(objective, options)
    peer = copy.backbone.model.train()
    for module in peer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # fewtune pre-trains without
    peer.config.use_cache = False
    peer.requires_grad_(True)
    with torch.no_grad():
        apart = abs(learned.loss(learned.at(0)).item() - peer(**labelled(learned, 0)).loss.item())
    assert apart < 1e-4, f"the losses of the first batch differ by {apart}"
    count = len(learned.at(0)[1].targets_N)
    with tempfile.TemporaryDirectory() as folder:
        own, other, bare = (
            ours(learned, options.steps),
            theirs(learned, peer, options.steps, folder),
            floor(learned.backbone, options, count),
        )
        rounds = [(own(number), other(number), bare()) for number in range(0, options.steps * (options.rounds + 1), options.steps)][1:]
    tokens = options.steps * options.batch_size * options.length
    ratio = math.exp(statistics.fmean(math.log(second / first) for first, second, _ in rounds))
    rates = [tokens / statistics.median(column) for column in zip(*((one, two) for one, two, _ in rounds), strict=True)]
    share = statistics.median(options.steps * third / first for first, _, third in rounds)
    verdict = "yes" if ratio >= REQUIRED[objective] else "no"
    model = f"{learned.backbone.name}, {learned.backbone.parameters:,} weights"
    return [
        NAMES[objective],
        model,
        *(f"{rate:,.0f}" for rate in rates),
        f"{ratio:.2f}",
        f"{REQUIRED[objective]:g}",
        verdict,
        f"{share:.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", nargs="+", default=["mlm", "clm"], choices=["mlm", "clm"])
    parser.add_argument("--size", default="mini", choices=list(fresh.SIZES))
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--out", type=Path, default=RESULTS / "pretrain.md")
    options = parser.parse_args()
    rows = [measured(objective, options) for objective in options.objective]
    columns = ["objective", "model", "fewtune", "Trainer", "ratio", "required", "met", "of the time in bare products"]
    about = (
        f"Tokens per second, float32: {options.rounds} rounds of {options.steps} steps of {options.batch_size} × {options.length} tokens "
        f"on each side in turn, medians; the ratio is the geometric mean over rounds. {options.note}"
    )
    head = heading("Pre-training: tokens per second", "bench/pretrain.py", sys.argv[1:])
    write(options.out, "\n".join([head, about.strip(), "", table(columns, rows), ""]))
    print(table(columns, rows))


if __name__ == "__main__":
    main()
