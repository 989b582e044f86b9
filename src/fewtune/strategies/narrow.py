"""Fewer heads and neurons: score them on labelled rows, cut those that matter least, let the rest learn what the whole model answers.

    whole model ─► scores ─► the least are cut ─► distillation ─► narrower model
                     ▲                                 │
                     └──────── `rounds` times ─────────┘

Knows formulas and the order of things; what is cut is `fewtune.strategies.narrower`, what is learned then `fewtune.strategies.distill`.

Dimensions: B rows of a batch, T tokens, N numbers of a state, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtune import registry
from fewtune.backbone import trim
from fewtune.backbone.bank import Edit
from fewtune.data.example import Example, Split
from fewtune.deltas.int8 import Int8
from fewtune.deltas.narrow import Narrow, chosen
from fewtune.errors import DataError, SpecError
from fewtune.model import TunedModel
from fewtune.plm import BackboneName
from fewtune.strategies.distill import Distill, Teaching, check
from fewtune.strategies.narrower import Plan
from fewtune.strategies.student import Trained
from fewtune.strategies.supervised import epoch_rows
from fewtune.strategies.zeroshot import targets
from fewtune.train.fit import Session

Scores = dict[tuple[str, int], Tensor]
"""(part, block) → scores_U."""


@dataclass(frozen=True)
class Narrowing:
    """Of all blocks' heads the share `heads` remains, of the neurons of their feed-forward parts the share `ffn`.

    What goes is what matters least for the loss of labelled rows (Michel et al. 2019), in equal parts in each of `rounds`, after which
    the model recovers by distillation: its matrices and the whole one's deltas learn (`trained` "all"), or the deltas alone. Rows are seen
    `passes` times, in 200 steps at least, unless `steps` are named, in all rounds together.
    """

    heads: float = 0.5
    ffn: float = 0.5
    rounds: int = 1
    temperature: float = 2.0
    gold: float = 0.5
    hidden: float = 0.0
    trained: Trained = "all"
    passes: int = 3
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = 16
    seed: int = 42

    def __post_init__(self) -> None:
        registry.check_ranges(self, "narrow", {"rounds": (self.rounds >= 1, "at least 1")})
        self.recovery(1)
        self.delta(self.heads, self.ffn)

    def recovery(self, rows: int) -> Distill:
        """What is learned in a round on so many rows."""
        whole = Distill(
            temperature=self.temperature,
            gold=self.gold,
            hidden=self.hidden,
            passes=self.passes,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return replace(whole, steps=-(-whole.steps_for(rows) // self.rounds))

    def delta(self, heads: float, ffn: float) -> Narrow:
        """The delta that keeps these shares."""
        return Narrow(heads, ffn, trained=self.trained == "all")

    def run(self, model: TunedModel, split: Split, *, session: Session) -> TunedModel:
        """The narrower model, on a PLM of its own; raises `InputError` for what cannot be done to it, `Interrupted` after Ctrl-C."""
        check((model,), split, "narrow")
        if self.trained == "all" and any(isinstance(one.delta, Int8) for one in model.deltas):
            fix = "Make it narrower first: --by narrow --by int8; or let its deltas alone learn: narrow:trained=deltas."
            raise SpecError(expected="matrices that can be trained", got="some in eight bits", where="narrow", fix=fix)
        if not split.train:
            fix = "Give them with --data: they tell which heads and neurons matter."
            raise DataError(expected="labelled rows", got="none", where="narrow", fix=fix)
        parts, left, made = self.delta(self.heads, self.ffn).parts, {"heads": 1.0, "ffn": 1.0}, model
        whole = _counts(model, parts)
        learner = BackboneName.of(model.backbone).load("narrow", device=str(model.backbone.device))
        for number in range(1, self.rounds + 1):
            session.say(f"Heads and neurons are scored on {len(split.train):,} rows.")
            left = {part: 1 - (1 - getattr(self, part)) * number / self.rounds for part in parts}
            now = _counts(made, parts)
            kept = chosen(importance(made, split.train, parts), {part: round(left[part] * whole[part]) / now[part] for part in parts})
            plan = Plan.of(made, kept, self.delta(left.get("heads", 1.0), left.get("ffn", 1.0)))
            if made is not model:
                made.remove()
            made = plan.on(learner)
            session.say(_spoken(made, kept, now))
            self._recover(model, made, split, session.child(f"round-{number}"))
        return made

    def _recover(self, model: TunedModel, made: TunedModel, split: Split, session: Session) -> None:
        rows = len(split.train) + len(split.unlabeled) + len(split.taught)
        try:
            Teaching.of(self.recovery(rows), (model,), made, split, session).learn(session)
        except BaseException:
            made.remove()
            raise


def importance(model: TunedModel, rows: Sequence[Example], parts: Sequence[str], *, batch_size: int = 16) -> Scores:
    """scores_U of each part and block: the mean over labelled rows of |dL/dm|, m being a factor before what is read of the unit, which is 1
    (Michel et al. 2019, section 4.1; for neurons Molchanov et al. 2017, eq. 8): to first order, how much the row's loss changes without it.
    """
    aims = targets(model, tuple(rows)).to(model.backbone.device)
    bias_C = model.calibrator.bias.float().to(model.backbone.device)
    gates = {
        (part, block): Gate(*trim.reader(model.backbone, part, block)) for part in parts for block in range(len(model.backbone.blocks))
    }
    undo = [model.backbone.edit(gate.path, gate) for gate in gates.values()]
    total: Scores = {}
    try:
        for template, encoded in enumerate(epoch_rows(model, tuple(rows))(0)):
            for indices in model.asking.buckets(encoded, template, size=batch_size):
                batch = model.asking.collate([encoded[index] for index in indices], template)
                with model.backbone.together():
                    loss = model.reader.loss(model.output(batch), batch, aims[indices], bias_C) * len(indices)
                for key, change_U in _changes(loss, gates).items():
                    total[key] = total.get(key, torch.zeros_like(change_U)) + change_U
    finally:
        for step in reversed(undo):
            step()
    return {key: (sum_U / (len(rows) * len(model.asked.templates))).cpu() for key, sum_U in total.items()}


def _changes(loss: Tensor, gates: dict[tuple[str, int], Gate]) -> Scores:
    """The sum over a batch's rows of |dL/dm|; a block that ran several times (ALBERT) has as many factors, which are one."""
    flat = [(key, factor_BU) for key, gate in gates.items() for factor_BU in gate.taken()]
    grads = torch.autograd.grad(loss, [factor_BU for _, factor_BU in flat])
    found: Scores = {}
    for (key, _), grad_BU in zip(flat, grads, strict=True):
        found[key] = found.get(key, torch.zeros_like(grad_BU)) + grad_BU
    return {key: grad_BU.abs().sum(0) for key, grad_BU in found.items()}


class Gate(Edit):
    """A factor of 1 for each row and unit before what the module at `path` reads, `size` numbers of each unit."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__()
        self.path, self.size = path, size
        self.factors: list[Tensor] = []

    def before(self, inputs: Tensor) -> Tensor:
        """What is read, of states (B, T, N), with a graph from the factors on."""
        factor_BU = inputs.new_ones(len(inputs), inputs.shape[-1] // self.size, requires_grad=True)
        self.factors.append(factor_BU)
        return inputs * factor_BU.repeat_interleave(self.size, 1)[:, None]

    def taken(self) -> list[Tensor]:
        """The factors since this was asked last."""
        factors, self.factors = self.factors, []
        return factors


def _counts(model: TunedModel, parts: Sequence[str]) -> dict[str, int]:
    """How many units each part has in all blocks together."""
    blocks = range(len(model.backbone.blocks))
    return {part: sum(trim.units(model.backbone, part, block) for block in blocks) for part in parts}


def _spoken(made: TunedModel, kept: trim.Kept, before: dict[str, int]) -> str:
    names = {"heads": "heads", "ffn": "neurons"}
    counts = [f"{sum(len(own) for key, own in kept.items() if key[0] == part)} of {count} {names[part]}" for part, count in before.items()]
    return f"{' and '.join(counts)} remain in {len(made.backbone.blocks)} blocks."
