"""Up the stack, and out as soon as a row is done; who is done is computed no further. Knows exits and the climb; no texts, no training.

    block ► block ► exit ─► done? ─► rows that are leave the batch
                      └───► the rest go on in a smaller one ► block ► … ► the model's own readout

Dimensions: B rows of the batch, N those of one model that are still there, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone, Output
from fewtune.backbone.climb import Climb
from fewtune.exits.exits import Exits, mended, rows_of, state
from fewtune.prompt.batch import Batch
from fewtune.readout.calibration import Calibrator
from fewtune.readout.readout import Reader


@dataclass(frozen=True)
class Left:
    """Uncalibrated scores_BC, and after how many steps of the stack each row left, layers_B."""

    scores_BC: Tensor
    layers_B: Tensor


@dataclass(frozen=True)
class Through:
    """One model's way out of the stack; without exits its rows go to the end."""

    reader: Reader
    calibrator: Calibrator
    exits: Exits | None = None


@dataclass
class _Rows:
    """The rows of one model that are still there: their numbers in the batch, and where they are in the climb."""

    through: Through
    batch: Batch
    numbers_N: Tensor
    places_N: Tensor
    scores: list[Tensor] = field(default_factory=list)

    def seen(self, climb: Climb, backbone: Backbone, *, last: bool) -> Output:
        """These rows' states; after the final norm at the end."""
        hidden_BTD, first_BD = climb.hidden_BTD, climb.first_BD
        if len(self.places_N) < len(climb):
            hidden_BTD, first_BD = hidden_BTD[self.places_N], first_BD[self.places_N]
        return Output(backbone.norm(hidden_BTD), backbone.norm(first_BD)) if last else Output(hidden_BTD, first_BD)

    def done(self, number: int, climb: Climb, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """(done_N, scores_NC of exit `number`)."""
        exits = self.through.exits
        assert exits is not None
        read_ND = state(backbone, self.seen(climb, backbone, last=False), self.batch, exits.place)
        self.scores.append(exits.scores(number, read_ND))
        answers_LNC = exits.answers(torch.stack(self.scores))
        return exits.judge.done(mended(answers_LNC, self.through.calibrator), read_ND), answers_LNC[-1]

    def keep(self, rows_N: Tensor) -> None:
        """Go on with these."""
        self.batch, self.numbers_N, self.places_N = rows_of(self.batch, rows_N), self.numbers_N[rows_N], self.places_N[rows_N]
        self.scores = [scores_NC[rows_N] for scores_NC in self.scores]


@torch.inference_mode()
def leave(backbone: Backbone, batch: Batch, through: Through, *, compact: bool = True) -> Left:
    """Answer each row at the first exit at which it is done, or at the end.

    With `compact` rows that are done leave the batch at once; else it goes on whole until the last of them is done.
    """
    (left,) = leave_mixed(backbone, batch, [(through, batch, torch.arange(len(batch), device=batch.ids_BT.device))], compact=compact)
    return left


@torch.inference_mode()
def leave_mixed(
    backbone: Backbone,
    batch: Batch,
    parts: Sequence[tuple[Through, Batch, Tensor]],
    *,
    route_B: Tensor | None = None,
    compact: bool = True,
) -> list[Left]:
    """`leave` for the rows of several models in one batch, each with exits of its own.

    A part is a model's way out, its rows as it collates them (as wide as `batch`), and their numbers in `batch`. What each part's
    rows get is what they would get alone.
    """
    climb = backbone.climb(batch.ids_BT, batch.mask_BT, batch.types_BT, route_B=route_B)
    rows = [_Rows(through, own, torch.arange(len(own), device=numbers_N.device), numbers_N) for through, own, numbers_N in parts]
    depth = backbone.depth  # counts blocks each time it is asked
    left = [_empty(one, depth) for one in rows]
    while climb.step < depth and any(len(one.numbers_N) for one in rows):
        climb.up()
        if climb.step < depth:
            _let_out(backbone, climb, rows, left, compact=compact)
    for one, out in zip(rows, left, strict=True):
        if len(one.numbers_N):
            with backbone.routing.of(None if climb.route_B is None else climb.route_B[one.places_N]):
                out.scores_BC[one.numbers_N] = one.through.reader.scores(one.seen(climb, backbone, last=True), one.batch).float()
    return left


def _empty(rows: _Rows, depth: int) -> Left:
    size, candidates, device = len(rows.numbers_N), len(rows.through.calibrator.bias_C), rows.numbers_N.device
    return Left(torch.zeros(size, candidates, device=device), torch.full((size,), depth, device=device))


def _let_out(backbone: Backbone, climb: Climb, rows: Sequence[_Rows], left: Sequence[Left], *, compact: bool) -> None:
    """Ask the exits after this step, write down what done rows answer, and go on with the others."""
    any_left = False
    for one, out in zip(rows, left, strict=True):
        exits = one.through.exits
        if exits is None or not exits.on or climb.step not in exits.layers or not len(one.numbers_N):
            continue
        done_N, scores_NC = one.done(exits.layers.index(climb.step), climb, backbone)
        if bool(done_N.any()):
            out.scores_BC[one.numbers_N[done_N]] = scores_NC[done_N].float()
            out.layers_B[one.numbers_N[done_N]] = climb.step
            one.keep((~done_N).nonzero()[:, 0])
            any_left = True
    staying = sorted(place for one in rows for place in one.places_N.tolist())
    if any_left and compact and staying:
        _close_up(climb, rows, staying)


def _close_up(climb: Climb, rows: Sequence[_Rows], staying: Sequence[int]) -> None:
    """Take the rows that are done out of the climb, and say where the others are now."""
    kept_N = torch.tensor(staying, device=rows[0].places_N.device)
    climb.keep(kept_N)
    for one in rows:
        one.places_N = torch.searchsorted(kept_N, one.places_N)
