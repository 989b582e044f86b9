"""Going on from a saved model: its deltas, and its readout where the same labels are read, begin with what they learned there.

So a task gets more rows later, and one task's prompt starts another's (Vu et al. 2022, soft prompt transfer).
"""

from __future__ import annotations

from dataclasses import replace

from fewtune import artifact
from fewtune.artifact import Saved
from fewtune.backbone.backbone import Backbone
from fewtune.data.sampling import derive
from fewtune.deltas.delta import Delta, Installed, install_all, load_strictly, saved
from fewtune.deltas.prefix import Prefix
from fewtune.errors import ArtifactError, SpecError
from fewtune.model import TunedModel
from fewtune.readout.calibration import Calibrator
from fewtune.recipe import Recipe, Start
from fewtune.tasks.task import Task
from fewtune.train.fit import Session


def start_of(recipe: Recipe, backbone: Backbone) -> Saved | None:
    """The saved model that the recipe goes on from, if there is one.

    Raises `ArtifactError` for a folder that is another by now, or was made on another PLM, `SpecError` for other deltas than its own.
    """
    if recipe.start is None:
        return None
    start = _read(recipe.start)
    start.backbone.check(backbone, str(start.folder))
    if further(start) != recipe.deltas:
        raise SpecError(expected="the deltas of the saved model", got="others", where=recipe.start.folder, fix="Leave --delta out.")
    return start


def begun(recipe: Recipe, start: Saved | None, backbone: Backbone) -> tuple[Installed, ...]:
    """The recipe's deltas in the backbone, new or with what the start has learned."""
    learned = [saved(*one) for one in start.learned()] if start else [_new] * len(recipe.deltas)
    deltas = enumerate(zip(recipe.deltas, learned, strict=True))
    return install_all(backbone, ((delta, derive(recipe.seed, "init", number), begin) for number, (delta, begin) in deltas))


def _new(installed: Installed) -> None:
    """Leave it as it was drawn."""


def read_on(model: TunedModel, recipe: Recipe, start: Saved, session: Session) -> None:
    """Let the readout begin with what the start has learned, where the same labels are read."""
    alike = reads_alike(start, recipe)
    if alike:
        load_strictly(model.reader.weights, *start.read_by())
    if not session.told:
        session.say(f"It goes on from {start.folder}{'' if alike else ', with a readout of its own'}.")


def further(start: Saved) -> tuple[Delta, ...]:
    """The deltas of a saved model as they are trained on: the network that made a prefix is not saved, so it goes on without one."""
    return tuple(replace(delta, hidden=0) if isinstance(delta, Prefix) else delta for delta in start.deltas)


def calibrator(recipe: Recipe) -> Calibrator | None:
    """That of the saved model, against which its deltas were trained, where the same is asked; the temperature is another matter."""
    start = _read(recipe.start) if recipe.start and recipe.calibration is None else None
    if start is None or not reads_alike(start, recipe) or _asked(start.task) != _asked(recipe.task):
        return None
    return replace(start.calibrator, temperature=1.0)


def _asked(task: Task) -> tuple[object, ...]:
    return task.fields, task.templates, task.words, task.label_name, task.description


def reads_alike(start: Saved, recipe: Recipe) -> bool:
    """Whether the readout of the saved model is asked for again, for the same labels."""
    return start.readout == recipe.readout and (start.task.kind, start.task.labels) == (recipe.task.kind, recipe.task.labels)


def _read(start: Start) -> Saved:
    found = artifact.read(start.folder)
    if found.manifest["fingerprint"] != start.fingerprint:
        fix = "Leave the model as it is while another goes on from it."
        raise ArtifactError(expected=f"the model {start.fingerprint[:12]}", got="another by now", where=start.folder, fix=fix)
    return found
