"""Hugging Face PEFT folder ↔ TunedModel: what `import-peft` and `export-peft` call. Joins deltas, head and task; computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from fewtune import folders
from fewtune.backbone.backbone import Backbone
from fewtune.deltas import DELTAS, peft_format, peft_read, peft_write
from fewtune.deltas.delta import install_saved, load_strictly
from fewtune.deltas.peft_write import Saved
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.errors import ArtifactError, TaskError
from fewtune.folders import check_target
from fewtune.model import DEFAULT_LENGTH, TunedModel
from fewtune.plm import load as load_backbone
from fewtune.prompt.verbalizer import WordIds
from fewtune.readout import classifiers
from fewtune.readout.calibration import Calibrator
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.readout.readout import Readout
from fewtune.tasks.task import Task

Say = Callable[[str], None]


def _silent(line: str) -> None:
    """Say nothing."""


def import_peft(
    folder: str | Path,
    task: Task,
    *,
    backbone: str | Backbone,
    max_length: int = DEFAULT_LENGTH,
    device: str | None = None,
    say: Say = _silent,
) -> TunedModel:
    """The model that a PEFT folder is on `backbone`: with the classifier that it holds, or else with a cloze of the task's template.

    The task's labels are in the order of the classifier's rows. Raises `ArtifactError` for what cannot be had here exactly, `TaskError`
    where labels or a template do not fit.
    """
    peft_format.read_config(Path(folder))  # what can be refused is refused before a model is loaded
    loaded = load_backbone(backbone, device=device, say=say) if isinstance(backbone, str) else backbone
    found = peft_read.read(folder, loaded)
    if found.base and found.base != loaded.name:
        say(f'The folder was made on "{found.base}"; it is put on "{loaded.name}". If their weights differ, so do the answers.')
    readout, weights = _readout(found, task, loaded, str(folder))
    model = TunedModel.assemble(loaded, task, readout, max_length=max_length)
    load_strictly(model.reader.weights, weights, str(folder))
    model.deltas = install_saved(loaded, [(delta, state, str(folder)) for delta, state in found.deltas])
    parts = ["cloze" if readout.needs_slot else "head", *(DELTAS.name_of(delta) for delta, _ in found.deltas)]
    model.about = {"method": f"imported from PEFT, {', '.join(parts)}", "strategy": "import", "base": found.base or ""}
    return model


def import_files(
    folder: Path,
    out: Path,
    task: Task,
    *,
    backbone: str,
    max_length: int = DEFAULT_LENGTH,
    device: str | None = None,
    overwrite: bool = False,
    say: Say = _silent,
) -> TunedModel:
    """`fewtune import-peft`: the model of a PEFT folder, saved to `out`."""
    check_target(out, overwrite=overwrite)
    model = import_peft(folder, task, backbone=backbone, max_length=max_length, device=device, say=say)
    model.save(out, overwrite=overwrite)
    return model


def _readout(found: peft_read.Found, task: Task, backbone: Backbone, where: str) -> tuple[Readout, dict[str, torch.Tensor]]:
    if not found.rest:
        if not task.templates:
            fix = "Without a classifier the answer is a word after a prompt: give the --template that the adapter was trained with."
            raise TaskError(expected="a template", got="none", where=where, fix=fix)
        return Cloze(), {}
    if found.model_class and not found.model_class.endswith("ForSequenceClassification"):
        fix = "Only classifiers of whole texts can be had here."
        raise ArtifactError(expected="a classifier of texts", got=f"the head of a {found.model_class}", where=where, fix=fix)
    head, weights = classifiers.read(found.rest, backbone, where=where)
    rows = len(weights["head.weight"])
    if rows != len(task.labels):
        fix = "Give --labels in the order of the classifier's rows."
        raise TaskError(expected=f"{rows} labels, one for each row of the classifier", got=f"{len(task.labels)}", where=where, fix=fix)
    return head, weights


def export_peft(model: TunedModel, folder: str | Path, *, overwrite: bool = False, say: Say = _silent) -> Path:
    """Write the PEFT folder that `model` is, whole or not at all; what PEFT has no place for is said, or refused with `ArtifactError`."""
    folder = Path(folder)
    check_target(folder, overwrite=overwrite, mark=peft_format.CONFIG)
    files = peft_write.write(model.deltas, model.backbone, _saved(model))
    with folders.whole(folder) as temporary:
        for name, content in files.items():
            folders.write_file(temporary / name, content)
    for line in _beside(model):
        say(line)
    return folder


def _saved(model: TunedModel) -> Saved:
    if isinstance(model.readout, Head):
        in_front = any(isinstance(delta.delta, SoftPrompt) for delta in model.deltas)
        tensors, modules = classifiers.write(model.readout, model.reader.weights, model.backbone, in_front=in_front)
        return Saved(tensors, modules, "SEQ_CLS")
    if not isinstance(model.readout, Cloze):
        fix = "PEFT holds classifiers of texts only."
        raise ArtifactError(expected="a head or a cloze", got=type(model.readout).__name__, where="export", fix=fix)
    return Saved({}, (), "CAUSAL_LM" if model.backbone.causal else None)


def _beside(model: TunedModel) -> list[str]:
    """What the folder does not hold and a caller of PEFT must know."""
    lines = [f"Labels, in the order of the scores: {', '.join(model.task.labels)}."]
    for template in model.asked.templates:
        lines.append(f"Not in the folder: the template {str(template)!r}.")
    if not isinstance(model.readout, Head):
        lines += [
            f"Not in the folder: the label words {_words(words.ids, model)}." for words in model.asked.words if isinstance(words, WordIds)
        ]
    if model.calibrator != Calibrator.identity(len(model.task.labels)):
        lines.append("Not in the folder: the calibration; scores are those before it.")
    if model.exits is not None:
        lines.append("Not in the folder: the early exits.")
    return lines


def _words(ids: Sequence[Sequence[int]], model: TunedModel) -> str:
    tokenizer = model.backbone.tokenizer
    shown: Mapping[str, str] = {
        label: "|".join(repr(tokenizer.decode([token])) for token in tokens) for label, tokens in zip(model.task.labels, ids, strict=True)
    }
    return ", ".join(f"{label}={words}" for label, words in shown.items())
