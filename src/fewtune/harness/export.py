"""TunedModel → a folder that lm-evaluation-harness runs: the artifact, its own task as the harness writes tasks, and a script. Runs
nothing.

    FOLDER/model/     the artifact
          /tasks/     a task file for each template, and the rows that measure, if there are any
          /run.py     python run.py [task …]
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from fewtune import folders
from fewtune.data.example import Example
from fewtune.errors import ArtifactError
from fewtune.model import TunedModel
from fewtune.prompt.template import Field, Part, Sep, Template, Text
from fewtune.readout.calibration import Calibrator
from fewtune.readout.cloze import Cloze
from fewtune.readout.likelihood import Likelihood
from fewtune.registry import Plain
from fewtune.tasks import kind_of

SCRIPT, ROWS = "run.py", "test.jsonl"
Say = Callable[[str], None]

_RUN = '''"""This model in lm-evaluation-harness: python run.py [task ...], where both the harness and fewtune are installed."""

import os
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from fewtune.harness.model import register

here = Path(__file__).resolve().parent
model = register()(here / "model")
os.chdir(here)  # where the tasks look for their rows; the PLM may be a path from where this was called
results = lm_eval.simple_evaluate(
    model=model, tasks=sys.argv[1:] or {tasks}, task_manager=TaskManager(include_path="tasks"), bootstrap_iters=1000
)
print(make_table(results))
'''


def export(
    model: TunedModel, folder: str | Path, *, examples: Sequence[Example] = (), overwrite: bool = False, say: Say = lambda line: None
) -> list[str]:
    """Write the folder, whole or not at all, with `examples` as the rows that measure; the names of its tasks.

    What the harness has no place for is said; raises `ArtifactError` for a model that does not answer by likelihoods of words.
    """
    folder = Path(folder)
    _check(model)
    folders.check_target(folder, overwrite=overwrite, mark=SCRIPT)
    named = {f"fewtune_{_key(model.task.name or 'task')}_{number}": task(model, number) for number in range(len(model.asked.templates))}
    with folders.whole(folder) as temporary:
        model.save(temporary / "model")
        (temporary / "tasks").mkdir()
        for name, content in named.items():
            text = yaml.safe_dump({"task": name, **content}, sort_keys=False, allow_unicode=True)
            folders.write_file(temporary / "tasks" / f"{name}.yaml", text.encode())
        if examples:
            lines = "".join(json.dumps(_row(one), ensure_ascii=False) + "\n" for one in examples)
            folders.write_file(temporary / "tasks" / ROWS, lines.encode())
        folders.write_file(temporary / SCRIPT, _RUN.replace("{tasks}", json.dumps(list(named))).encode())
    for line in _beside(model, shown=bool(examples)):
        say(line)
    return list(named)


def task(model: TunedModel, number: int) -> dict[str, Plain]:
    """Template number `number` as a multiple-choice task of the harness, without its name; rows have the task's fields and `label`."""
    template = model.asked.templates[number]
    own = kind_of(model.task).offered == "row"
    labels = json.dumps(list(model.task.labels), ensure_ascii=False)
    return {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"tasks/{ROWS}"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": _jinja(template),
        "doc_to_choice": "candidates" if own else list(model.asked.fills),
        "doc_to_target": "{{candidates.index(label)}}" if own else "{{" + labels + ".index(label)}}",
        "target_delimiter": template.slot.lead if template.slot else " ",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }


def _check(model: TunedModel) -> None:
    if not model.backbone.causal or not isinstance(model.readout, Cloze | Likelihood):
        got = f"{type(model.readout).__name__.lower()} on {model.backbone.name}"
        fix = "Fit one with --readout cloze or likelihood on an autoregressive PLM."
        raise ArtifactError(expected="an autoregressive PLM whose likelihoods answer", got=got, where="export-lm-eval", fix=fix)
    if model.task.kind.partition(":")[0] not in ("classification", "choice"):
        fix = "Only a classification and a choice can be had there."
        raise ArtifactError(expected="one right answer of several", got=model.task.kind, where="export-lm-eval", fix=fix)


def _jinja(template: Template) -> str:
    """What stands before the slot, in the notation of the harness."""
    return "".join(_part(part) for part in template.parts)


def _part(part: Part) -> str:
    if isinstance(part, Text):
        return "{{" + json.dumps(part.text, ensure_ascii=False) + "}}" if "{" in part.text or "}" in part.text else part.text
    if isinstance(part, Field):
        return "{{" + _key(part.name) + " | trim}}"
    return "\n" if isinstance(part, Sep) else ""


def _key(name: str) -> str:
    """A column's name as the harness can write it."""
    return re.sub(r"\W|^(?=\d)", "_", name)


def _row(example: Example) -> dict[str, Plain]:
    own: dict[str, Plain] = {"candidates": list(example.candidates)} if example.candidates else {}
    return {**{_key(name): text for name, text in example.fields.items()}, **own, "label": example.label}


def _beside(model: TunedModel, *, shown: bool) -> list[str]:
    """What the folder does not hold and a user of the harness must know."""
    lines = (
        [] if shown else [f"Not in the folder: rows. Put them into tasks/{ROWS}, a JSON object a line with the task's fields and label."]
    )
    if any(len(own) > 1 for words in model.asked.words for own in words.ids):
        lines.append("The harness reads the first word of each label only.")
    if len(model.asked.templates) > 1:
        lines.append("The harness has a task for each template and does not average them.")
    if model.demonstrations is not None:
        lines.append("Not in the folder's tasks: the demonstrations.")
    if model.calibrator != Calibrator.identity(len(model.task.labels)):
        lines.append("Not in the folder's tasks: the calibration; the harness compares likelihoods before it.")
    return lines
