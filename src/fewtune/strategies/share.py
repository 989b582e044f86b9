"""Fewer sets of weights: groups of a tuned model's blocks share their matrices, with corrections of each block's own, and learn what the
model answered before and what went on in its layers. Knows what a model with shared blocks starts from; what is learned is
`fewtune.strategies.distill`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.deltas.delta import Installed, install_saved, remove_all
from fewtune.deltas.int8 import Int8
from fewtune.deltas.mask import Mask
from fewtune.deltas.narrow import Narrow
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.sharing import Sharing
from fewtune.errors import ArtifactError, BackboneError, SpecError
from fewtune.model import TunedModel
from fewtune.plm import BackboneName
from fewtune.strategies.distill import Distill, Teaching, check
from fewtune.strategies.narrower import answering
from fewtune.train.fit import Session


@dataclass(frozen=True)
class Share:
    """The blocks are `groups` groups of neighbours that share matrices, with corrections of rank `rank` (the delta `sharing`).

    The model recovers by distillation: `hidden` weighs the squared distance of the states of each layer to what they were. What is shared,
    the corrections and the whole model's deltas learn. Rows are seen `passes` times, in 200 steps at least, unless `steps` are named.
    """

    groups: int = 3
    rank: int = 8
    temperature: float = 2.0
    gold: float = 0.5
    hidden: float = 1.0
    passes: int = 3
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = 16
    seed: int = 42

    def __post_init__(self) -> None:
        assert self.delta and self.recovery

    @property
    def delta(self) -> Sharing:
        """The delta that blocks share by."""
        return Sharing(self.groups, self.rank)

    @property
    def recovery(self) -> Distill:
        """How it is learned."""
        return Distill(
            temperature=self.temperature,
            gold=self.gold,
            hidden=self.hidden,
            passes=self.passes,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def run(self, model: TunedModel, split: Split, *, session: Session) -> TunedModel:
        """The model with shared blocks, on a PLM of its own; raises `InputError` for one that cannot share or be taught, `Interrupted`
        after Ctrl-C."""
        check((model,), split, "share")
        made = shared(model, self.delta, BackboneName.of(model.backbone).load("share", device=str(model.backbone.device)))
        try:
            Teaching.of(self.recovery, (model,), made, split, session).learn(session)
        except BaseException:
            made.remove()
            raise
        return made


def shared(model: TunedModel, delta: Sharing, learner: Backbone) -> TunedModel:
    """The model on `learner`, the same PLM, with matrices as near to its own as they can be; its other deltas as they are.

    Raises `SpecError` for deltas that cannot stand on shared blocks.
    """
    saved = [(one.delta, one.state_dict(), "the model") for one in model.deltas]
    below = [one for one in saved if isinstance(one[0], Shallow | Narrow)]
    wanted = {name: tensor for _, state, _ in saved for name, tensor in state.items() if name.endswith(".weight")}
    installed: list[Installed] = []
    try:
        installed += install_saved(learner, below)
        installed.append(delta.near(learner, wanted))
        taken = {f"{path}.weight" for path, _ in installed[-1].edits}
        above = [(one, _without(taken, state), where) for one, state, where in saved if not isinstance(one, Shallow | Narrow)]
        installed += install_saved(learner, above)
    except (ArtifactError, BackboneError) as error:
        remove_all(installed)
        raise _refused(model, error) from error
    except BaseException:
        remove_all(installed)
        raise
    return answering(model, learner, tuple(installed))


def _refused(model: TunedModel, error: ArtifactError | BackboneError) -> SpecError:
    """Why these deltas cannot stand on shared blocks, in this way's own words."""
    held = next(
        (name for kind, name in ((Int8, "eight bits"), (Mask, "pruned weights")) for one in model.deltas if isinstance(one.delta, kind)), ""
    )
    if not held and error.where.startswith("sharing."):
        return SpecError(expected=error.expected, got=error.got, where=error.where.replace("sharing.", "share."), fix=error.fix)
    got = held or ("blocks of several sizes" if isinstance(error, BackboneError) else "a delta that is another for each weight")
    fix = "Share the blocks of a whole model, or take another way beside it: distill."
    return SpecError(expected="deltas that suit shared blocks", got=got, where="share", fix=fix)


def _without(names: set[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}
