"""A smaller model that starts from what a tuned one has learned: fewer layers of it, or another PLM. Knows weights' names; trains nothing.

teacher's block   0   1   2   3   4   5
                  │       │           │        weights, with the deltas merged, or the deltas themselves
student's block   0       1           2
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from fewtune import plm
from fewtune.backbone import shorten
from fewtune.backbone.backbone import Backbone
from fewtune.data.sampling import derive
from fewtune.deltas.delta import Begin, Delta, Installed, install_all, load_strictly
from fewtune.deltas.int8 import Int8
from fewtune.deltas.narrow import Narrow
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.sharing import Sharing
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError, SpecError
from fewtune.model import TunedModel
from fewtune.plm import BackboneName

Trained = Literal["all", "deltas"]
_Saved = tuple[Delta, Mapping[str, Tensor] | None]
"""A delta, and what the teacher has learned of it, if it begins with that."""


def smaller(
    teacher: TunedModel, layers: int | tuple[int, ...] | None, backbone: str | None, *, trained: Trained, seed: int = 0
) -> TunedModel:
    """A student of `layers` layers, on a PLM of its own: the teacher's, or the one called `backbone`.

    On the teacher's PLM it begins with the teacher's readout, calibration and demonstrations, and with its weights, of which all are
    trained, or with its deltas, which are trained on. Raises `SpecError` or `BackboneError` for a teacher whose weights or deltas cannot
    be handed on.
    """
    own = backbone in (None, teacher.backbone.name)
    # Before the PLM is read once more, for it may be refused.
    weights = _weights(teacher) if own and trained == "all" else {}
    held = BackboneName.of(teacher.backbone).load("distill", device=str(teacher.backbone.device)) if own else None
    learner = held or plm.load(str(backbone), device=str(teacher.backbone.device))
    learner.precision = teacher.backbone.precision
    bare = TunedModel.assemble(learner, teacher.task, teacher.readout, max_length=teacher.max_length, seed=derive(seed, "init", "readout"))
    steps = tuple(range(learner.depth)) if layers is None else Shallow(layers).steps(learner.depth if not own else teacher.backbone.depth)
    taught = [(Subset("all"), weights)] if trained == "all" else [(one.delta, one.state_dict()) for one in _handed(teacher.deltas)]
    saved: list[_Saved] = [*_shape(teacher, learner, steps, own=own), *((delta, state if own else None) for delta, state in taught)]
    blocks = shorten.remaining(teacher.backbone, steps) if own else ()
    _check_groups(teacher, blocks)
    renamed = _renaming(teacher.backbone, blocks)
    begun = ((delta, derive(seed, "init", number), _begin(state, renamed)) for number, (delta, state) in enumerate(saved))
    deltas = install_all(learner, begun)
    student = replace(bare, deltas=deltas, about=teacher.about)
    if not own:
        return student
    load_strictly(student.reader.weights, dict(teacher.reader.weights), "the teacher's readout")
    student = replace(student, demonstrations=teacher.demonstrations)
    return student if teacher.calibrator.premise else student.calibrated(teacher.calibrator)


def _handed(deltas: Sequence[Installed]) -> list[Installed]:
    """Those that hold weights, which a student may begin with."""
    return [installed for installed in deltas if not isinstance(installed.delta, Shallow)]


def _weights(teacher: TunedModel) -> dict[str, Tensor]:
    """All weights of the teacher with its deltas merged."""
    try:
        return plm.merged(teacher.backbone, _handed(teacher.deltas))
    except BackboneError as error:
        name = smaller_already(teacher.deltas)
        first = f"--by distill --by {name}, " if name else ""
        fix = f"Choose {first}distill:trained=deltas, which trains these on, or another backbone for the student."
        got = f"one by {name}" if name else error.got
        raise SpecError(expected="a teacher whose deltas are changes of weights", got=got, where="distill", fix=fix) from error


def smaller_already(deltas: Sequence[Installed]) -> str:
    """The way by which a model was made smaller so that its weights are no longer the PLM's with some change, if it was."""
    ways: dict[type[Delta], str] = {Int8: "int8", Narrow: "narrow", Sharing: "share"}
    return next((ways[type(one.delta)] for one in deltas if type(one.delta) in ways), "")


def _shape(teacher: TunedModel, learner: Backbone, steps: tuple[int, ...], *, own: bool) -> list[_Saved]:
    """Which steps remain of the PLM, if not all do."""
    held = next((one.delta for one in teacher.deltas if isinstance(one.delta, Shallow)), None) if own else None
    if held is not None:
        before = held.steps(learner.depth)
        steps = tuple(before[step] for step in steps)
    return [] if steps == tuple(range(learner.depth)) else [(Shallow(steps), None)]


def _renaming(backbone: Backbone, blocks: Sequence[int]) -> Callable[[str], str]:
    """The student's name of a weight → the teacher's: a block is called by another number there."""
    numbered = re.compile(rf"^({re.escape(backbone.blocks_path)}\.)(\d+)(?=\.)")
    return lambda name: numbered.sub(lambda found: f"{found[1]}{blocks[int(found[2])]}", name)


def _check_groups(teacher: TunedModel, blocks: Sequence[int]) -> None:
    """Raise `SpecError` where these of the teacher's blocks, alone, would share matrices with others, or under another's name."""
    for delta in (one.delta for one in teacher.deltas if isinstance(one.delta, Sharing)):
        first = {block: group[0] for group in delta.members_of(len(teacher.backbone.blocks)) for block in group}
        own = {block: blocks[group[0]] for group in delta.members_of(len(blocks)) for block in group}
        if any(own.get(number) != first.get(block) for number, block in enumerate(blocks)):
            raise SpecError(
                expected="layers that share as the teacher's do",
                got=f"the blocks {', '.join(map(str, blocks))} in {delta.groups} groups",
                where="distill.layers",
                fix="Keep as many layers of each group, the lowest among them, or distil before sharing: --by distill --by share.",
            )


def _begin(state: Mapping[str, Tensor] | None, renamed: Callable[[str], str]) -> Begin:
    """Let a delta begin with the teacher's weights, if there are such; one at a place where the teacher has none stays as it was drawn."""

    def begin(installed: Installed) -> None:
        if state is not None:
            installed.load_state_dict({name: state.get(renamed(name), weight) for name, weight in installed.state_dict().items()})

    return begin
