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

import torch
from torch import Tensor

from fewtune import plm
from fewtune.backbone.backbone import Backbone
from fewtune.data.sampling import derive
from fewtune.deltas.delta import Delta, Installed, load_strictly
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError, SpecError
from fewtune.model import TunedModel
from fewtune.plm import BackboneName
from fewtune.readout.calibration import Calibrator

Trained = Literal["all", "deltas"]


def smaller(
    teacher: TunedModel, layers: int | tuple[int, ...] | None, backbone: str | None, *, trained: Trained, seed: int = 0
) -> TunedModel:
    """A student of `layers` layers, on a PLM of its own: the teacher's, or the one called `backbone`.

    On the teacher's PLM it begins with the teacher's readout and calibration, and with its weights, of which all are trained, or with its
    deltas, which are trained on. Raises `SpecError` or `BackboneError` for a teacher whose weights or deltas cannot be handed on.
    """
    own = backbone in (None, teacher.backbone.name)
    # Before the PLM is read once more, for it may be refused.
    weights = _weights(teacher) if own and trained == "all" else {}
    held = BackboneName.of(teacher.backbone).load("distill", device=str(teacher.backbone.device)) if own else None
    learner = held or plm.load(str(backbone), device=str(teacher.backbone.device))
    learner.precision = teacher.backbone.precision
    bare = TunedModel.assemble(learner, teacher.task, teacher.readout, max_length=teacher.max_length, seed=derive(seed, "init", "readout"))
    steps = tuple(range(learner.depth)) if layers is None else Shallow(layers).steps(learner.depth if not own else teacher.backbone.depth)
    student = replace(bare, deltas=_installed(teacher, learner, steps, own=own, trained=trained, seed=seed), about=teacher.about)
    if own:
        renamed = _renaming(teacher.backbone, steps)
        for number, installed in enumerate(_handed(student.deltas)):
            state = weights if trained == "all" else _handed(teacher.deltas)[number].state_dict()
            _start(installed, state, renamed)
        load_strictly(student.reader.weights, dict(teacher.reader.weights), "the teacher's readout")
    keeps = own and not teacher.calibrator.premise
    return student.calibrated(teacher.calibrator if keeps else Calibrator.identity(len(teacher.task.labels)))


def _handed(deltas: Sequence[Installed]) -> list[Installed]:
    """Those that hold weights, which a student may begin with."""
    return [installed for installed in deltas if not isinstance(installed.delta, Shallow)]


def _weights(teacher: TunedModel) -> dict[str, Tensor]:
    """All weights of the teacher with its deltas merged."""
    try:
        return plm.merged(teacher.backbone, _handed(teacher.deltas))
    except BackboneError as error:
        fix = "Choose distill:trained=deltas, which trains these on, or another backbone for the student."
        raise SpecError(expected="a teacher whose deltas are changes of weights", got=error.got, where="distill", fix=fix) from error


def _installed(
    teacher: TunedModel, learner: Backbone, steps: tuple[int, ...], *, own: bool, trained: Trained, seed: int
) -> tuple[Installed, ...]:
    """The student's deltas: which steps remain, if not all do, and what is trained."""
    held = next((one.delta for one in teacher.deltas if isinstance(one.delta, Shallow)), None) if own else None
    if held is not None:
        before = held.steps(learner.depth)
        steps = tuple(before[step] for step in steps)
    specs: list[Delta] = [] if steps == tuple(range(learner.depth)) else [Shallow(steps)]
    specs += [Subset("all")] if trained == "all" else [one.delta for one in _handed(teacher.deltas)]
    generators = (torch.Generator().manual_seed(derive(seed, "init", number)) for number in range(len(specs)))
    return tuple(spec.install(learner, generator=generator) for spec, generator in zip(specs, generators, strict=True))


def _renaming(backbone: Backbone, steps: Sequence[int]) -> Callable[[str], str]:
    """The student's name of a weight → the teacher's: a block is called by another number there."""
    if backbone.family.shared:
        return lambda name: name
    numbered = re.compile(rf"^({re.escape(backbone.blocks_path)}\.)(\d+)(?=\.)")
    return lambda name: numbered.sub(lambda found: f"{found[1]}{steps[int(found[2])]}", name)


def _start(installed: Installed, state: Mapping[str, Tensor], renamed: Callable[[str], str]) -> None:
    """Let a delta begin with the teacher's weights; one at a place where the teacher has none stays as it was drawn."""
    own = installed.state_dict()
    installed.load_state_dict({name: state.get(renamed(name), weight) for name, weight in own.items()})
