"""Exits of one model: a small classifier at each of some layers, and the judge that says when a row may leave. Knows states and scores; no
text, no stack, no training.

Dimensions: L exits, B rows, T tokens, C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import SpecError, TaskError
from fewtune.exits.criteria import NEVER, Criterion, Judge
from fewtune.prompt.batch import Batch
from fewtune.readout.calibration import Calibrator
from fewtune.readout.cloze import ClozeReader
from fewtune.readout.head import HeadReader, Pool, pooled
from fewtune.readout.readout import Reader
from fewtune.readout.similarity import SimilarityReader
from fewtune.readout.states import at_slot
from fewtune.registry import Plain

Place = Pool | Literal["slot"]
"""Which state of a row an exit reads: that in the slot, or one pooled as a head's is."""
_HELD = ("ids_BT", "mask_BT", "types_BT", "slot_B")


def place_of(reader: Reader) -> Place:
    """What exits read of a model that answers through `reader`: the same as it does, on an earlier layer.

    Raises `TaskError` for a readout that reads many states of a row.
    """
    if isinstance(reader, HeadReader):
        return reader.pool
    if isinstance(reader, SimilarityReader):
        return reader.spec.pool
    if isinstance(reader, ClozeReader):
        return "slot"
    raise TaskError(
        expected="a readout that reads one state of each row: head, similarity or cloze",
        got=type(reader).__name__.removesuffix("Reader").lower(),
        where="exits",
        fix="Fit the model with one of these (--readout).",
    )


@dataclass(frozen=True)
class Exits:
    """`layers` are the numbers of steps of the stack after which rows may leave, from the bottom.

    `weights` holds the classifiers, `exits.weight` (L, C, D) and `exits.bias` (L, C), and what the judge learns. An exit's scores are
    in the place of the last readout's, before calibration. With `ensemble` an exit answers with the mean log-probabilities of all exits
    so far (Sun et al. 2021). `tolerance` is the share of the range within which two values are one answer, None for labels.
    `threshold` is how sure a row must be to leave: with `NEVER` the exits are off. `about` holds plain facts for the artifact: how they
    were made and what is promised of them.
    """

    criterion: Criterion
    layers: tuple[int, ...]
    place: Place
    weights: Mapping[str, nn.Parameter]
    judge: Judge
    ensemble: bool = False
    tolerance: float | None = None
    about: Mapping[str, Plain] = field(default_factory=dict)

    @classmethod
    def install(
        cls,
        criterion: Criterion,
        layers: Sequence[int],
        *,
        backbone: Backbone,
        reader: Reader,
        candidates: int,
        ensemble: bool = False,
        tolerance: float | None = None,
        threshold: float = NEVER,
        about: Mapping[str, Plain] | None = None,
    ) -> Exits:
        """Exits that say nothing yet; raises `SpecError` for layers or a criterion that do not fit, `TaskError` for the readout."""
        wrong = [layer for layer in layers if not 0 < layer < backbone.depth]
        if wrong or not layers or sorted(set(layers)) != list(layers):
            expected = f"layers from 1 to {backbone.depth - 1}, in order"
            raise SpecError(expected=expected, got=", ".join(map(str, layers)) or "none", where="--layers", fix="Name others.")
        if tolerance is not None and not criterion.valued:
            got = type(criterion).__name__.lower()
            fix = "Choose --criterion confidence or patience."
            raise SpecError(expected="a criterion that can judge a value", got=got, where="--criterion", fix=fix)
        judge = criterion.install(exits=len(layers), width=backbone.width, threshold=threshold)
        own = {"exits.weight": (len(layers), candidates, backbone.width), "exits.bias": (len(layers), candidates)}
        weights = {**{name: nn.Parameter(torch.zeros(shape)) for name, shape in own.items()}, **judge.weights}
        for weight in weights.values():
            weight.data = weight.data.to(backbone.device)
        return cls(criterion, tuple(layers), place_of(reader), weights, judge, ensemble, tolerance, about or {})

    @property
    def threshold(self) -> float:
        """How sure a row must be to leave."""
        return self.judge.threshold

    @property
    def on(self) -> bool:
        """Whether any row may ever leave early."""
        return self.threshold < NEVER

    def at(self, threshold: float) -> Exits:
        """The same exits with another threshold."""
        return replace(self, judge=replace(self.judge, threshold=threshold))

    def off(self) -> Exits:
        """The same exits, through which no row leaves."""
        return self.at(NEVER)

    @property
    def parameters(self) -> int:
        """How many numbers they hold."""
        return sum(weight.numel() for weight in self.weights.values())

    def scores(self, number: int, state_BD: Tensor) -> Tensor:
        """scores_BC of exit `number` alone."""
        return nn.functional.linear(state_BD, self.weights["exits.weight"][number], self.weights["exits.bias"][number])

    def all_scores(self, states_BLD: Tensor) -> Tensor:
        """scores_LBC of every exit alone."""
        scores_LBC = torch.einsum("bld,lcd->lbc", states_BLD, self.weights["exits.weight"])
        return scores_LBC + self.weights["exits.bias"][:, None]

    def answer(self, scores_LBC: Tensor) -> Tensor:
        """What the last of these exits answers, scores_BC: its own, or with those of all before it."""
        return scores_LBC.log_softmax(-1).mean(0) if self.ensemble else scores_LBC[-1]

    def answers(self, scores_LBC: Tensor) -> Tensor:
        """What each exit answers, scores_LBC."""
        if not self.ensemble:
            return scores_LBC
        return torch.stack([self.answer(scores_LBC[: number + 1]) for number in range(len(scores_LBC))])

    @torch.no_grad()
    def sure(self, answers_LBC: Tensor, states_BLD: Tensor, calibrator: Calibrator) -> Tensor:
        """How sure each row is at each exit, sure_BL, whatever the threshold."""
        mended_LBC = mended(answers_LBC, calibrator)
        parts = [self.judge.sure(mended_LBC[: number + 1], states_BLD[:, number]) for number in range(len(self.layers))]
        return torch.stack(parts, 1)


def mended(scores_BC: Tensor, calibrator: Calibrator) -> Tensor:
    """Calibrated log-probabilities, up to a constant, where the scores are."""
    bias_C = torch.tensor(calibrator.bias_C, device=scores_BC.device)
    return (scores_BC.float().log_softmax(-1) - bias_C) / calibrator.temperature


def state(backbone: Backbone, output: Output, batch: Batch, place: Place) -> Tensor:
    """What an exit reads of states between two blocks, state_BD: through the final norm where the family has one."""
    if place == "slot":
        read_BD = at_slot(output, batch)
    elif place == "front" and output.first_BD is not None:
        read_BD = output.first_BD
    else:
        read_BD = pooled(output.hidden_BTD, batch.mask_BT, place)
    return backbone.norm(read_BD)


def rows_of(batch: Batch, rows_N: Tensor) -> Batch:
    """These rows of a batch, as wide as they are."""
    return replace(batch, **{name: getattr(batch, name)[rows_N] for name in _HELD if getattr(batch, name) is not None})
