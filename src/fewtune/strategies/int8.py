"""A tuned model in whole numbers of eight bits: its maps are computed with them, and what it has learned whole is stored in them.

Nothing is trained; rows, if there are any, say between what inputs of the maps lie, and their labels say nothing. Deltas that add to the
PLM's weights stay as they are, on the rounded ones; those that have weights of their own are rounded with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from fewtune import artifact, registry
from fewtune.data.example import Split
from fewtune.deltas.delta import Delta, Installed
from fewtune.deltas.int8 import Int8, Quantised, stored
from fewtune.deltas.mask import Mask
from fewtune.deltas.narrow import Narrow
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.sharing import Sharing
from fewtune.deltas.subset import Subset
from fewtune.errors import SpecError
from fewtune.model import TunedModel
from fewtune.train.fit import Session

SHAPES, OWNERS = (Shallow, Narrow), (Subset, Mask)
"""Deltas that say which layers or units there are; deltas with weights of their own."""


@dataclass(frozen=True)
class ToInt8:
    """Weights and inputs of the blocks' maps in eight bits: about a quarter of the size, and as fast as the processor is with them.

    Inputs are scaled as `measured` on up to `rows` texts, or each `token` for itself, which takes longer and knows no limits.
    """

    inputs: Literal["measured", "token"] = "measured"
    rows: int = 256

    def __post_init__(self) -> None:
        registry.check_ranges(self, "int8", {"rows": (self.rows >= 1, "at least 1")})

    def run(self, model: TunedModel, split: Split, *, session: Session) -> TunedModel:
        """The same model in eight bits, on a PLM of its own; raises `SpecError` for one that is already,
        and for one whose blocks share matrices."""
        if any(isinstance(one.delta, Int8) for one in model.deltas):
            raise SpecError(expected="a model in float32", got="one in eight bits", where="int8", fix="It is as small as this way goes.")
        if any(isinstance(one.delta, Sharing) for one in model.deltas):
            fix = "Each block would get its own in eight bits; take another way beside sharing."
            raise SpecError(expected="matrices of each block's own", got="shared ones", where="int8", fix=fix)
        whole = any(_has_matrices(one) for one in model.deltas)
        session.say(f"Rounding {'all weights' if whole else 'the weights of the PLM'} to eight bits.")
        shapes = [_shaped(one) for one in model.deltas if isinstance(one.delta, SHAPES)]
        others = [one for one in model.deltas if not isinstance(one.delta, (*SHAPES, *OWNERS) if whole else SHAPES)]
        eight = (Int8("stored"), stored(model.backbone)) if whole else (Int8("own"), {})
        made = artifact.rebuilt(model, [*shapes, eight, *((one.delta, one.state_dict()) for one in others)])
        rows = (*split.train, *split.unlabeled)[: self.rows]
        if self.inputs == "measured" and rows:
            (eight_bits,) = (one for one in made.deltas if isinstance(one, Quantised))
            with eight_bits.measuring():
                made.raw_scores(rows, batch_size=1)  # no padding among them
        return made


def _has_matrices(one: Installed) -> bool:
    """Whether the delta has whole matrices of its own."""
    if isinstance(one.delta, OWNERS):
        return isinstance(one.delta, Mask) or any(weight.dim() > 1 for weight in one.weights.values())
    return isinstance(one.delta, Narrow) and one.delta.trained


def _shaped(one: Installed) -> tuple[Delta, dict[str, Tensor]]:
    """A delta that says which layers or units there are, without weights of its own."""
    state = {name: tensor for name, tensor in one.state_dict().items() if name not in one.weights}
    return (replace(one.delta, trained=False) if isinstance(one.delta, Narrow) else one.delta), state
