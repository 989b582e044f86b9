"""The table of task kinds."""

from fewtune.errors import TaskError
from fewtune.registry import Table
from fewtune.tasks.choice import Choice
from fewtune.tasks.classification import Classification
from fewtune.tasks.generation import Generation
from fewtune.tasks.multilabel import Multilabel
from fewtune.tasks.regression import Regression
from fewtune.tasks.task import Task, TaskKind

KINDS: Table[TaskKind] = Table(
    "task kind",
    {
        "classification": Classification,
        "regression": Regression,
        "multilabel": Multilabel,
        "choice": Choice,
        "generation": Generation,
    },
)


def kind_of(task: Task) -> TaskKind:
    """The kind that `task.kind` spells; an unknown name or field fails with the known ones."""
    return KINDS.from_text(task.kind, "task.kind")


def one_label(task: Task) -> bool:
    """Whether one of labels that all rows share is right and the others are wrong, so that what several models say can be mixed."""
    kind = kind_of(task)
    return kind.estimated == "accuracy" and kind.offered == "task"


def check_one_label(task: Task, where: str, fix: str) -> None:
    """Raise `TaskError` unless it is so."""
    if not one_label(task):
        raise TaskError(expected="a task with labels, whose answers are right or wrong", got=task.kind, where=where, fix=fix)
