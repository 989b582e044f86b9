"""Going on from a saved model: its deltas, and its readout where the same labels are read, begin with what they learned there.

So a task gets more rows later, and one task's prompt starts another's (Vu et al. 2022, soft prompt transfer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from fewtune import artifact
from fewtune.artifact import Saved
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.delta import Delta, load_strictly
from fewtune.deltas.prefix import Prefix
from fewtune.errors import ArtifactError, SpecError
from fewtune.model import TunedModel
from fewtune.readout.calibration import Calibrator
from fewtune.recipe import Recipe, Start
from fewtune.tasks.task import Task
from fewtune.train.fit import Session


def learned(recipe: Recipe, backbone: Backbone) -> list[tuple[Mapping[str, Tensor], str]]:
    """(weights, where they come from) of each of the recipe's deltas that its start has learned; none without a start.

    They are loaded as soon as their delta is installed, for the next may stand on what it puts in the PLM's place. Raises `ArtifactError`
    for a folder that is another by now, or was made on another PLM, `SpecError` for other deltas than its own.
    """
    if recipe.start is None:
        return []
    saved = _read(recipe.start)
    saved.backbone.check(backbone, str(saved.folder))
    if further(saved) != recipe.deltas:
        raise SpecError(expected="the deltas of the saved model", got="others", where=recipe.start.folder, fix="Leave --delta out.")
    return list(saved.learned())


def read_on(model: TunedModel, recipe: Recipe, session: Session) -> None:
    """Let the readout of `model` begin with what the recipe's start has learned, where the same labels are read."""
    if recipe.start is None:
        return
    saved = _read(recipe.start)
    alike = reads_alike(saved, recipe)
    if alike:
        load_strictly(model.reader.weights, *saved.read_by())
    if not session.told:
        session.say(f"It goes on from {recipe.start.folder}{'' if alike else ', with a readout of its own'}.")


def further(saved: Saved) -> tuple[Delta, ...]:
    """The deltas of a saved model as they are trained on: the network that made a prefix is not saved, so it goes on without one."""
    return tuple(replace(delta, hidden=0) if isinstance(delta, Prefix) else delta for delta in saved.deltas)


def calibrator(recipe: Recipe) -> Calibrator | None:
    """That of the saved model, against which its deltas were trained, where the same is asked; the temperature is another matter."""
    saved = _read(recipe.start) if recipe.start and recipe.calibration is None else None
    if saved is None or not reads_alike(saved, recipe) or _asked(saved.task) != _asked(recipe.task):
        return None
    return replace(saved.calibrator, temperature=1.0)


def _asked(task: Task) -> tuple[object, ...]:
    return task.fields, task.templates, task.words, task.label_name, task.description


def reads_alike(saved: Saved, recipe: Recipe) -> bool:
    """Whether the readout of the saved model is asked for again, for the same labels."""
    return saved.readout == recipe.readout and (saved.task.kind, saved.task.labels) == (recipe.task.kind, recipe.task.labels)


def _read(start: Start) -> Saved:
    saved = artifact.read(start.folder)
    if saved.manifest["fingerprint"] != start.fingerprint:
        fix = "Leave the model as it is while another goes on from it."
        raise ArtifactError(expected=f"the model {start.fingerprint[:12]}", got="another by now", where=start.folder, fix=fix)
    return saved
