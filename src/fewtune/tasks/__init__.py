"""The table of task kinds."""

from fewtune.registry import Table
from fewtune.tasks.classification import Classification
from fewtune.tasks.task import TaskKind

KINDS: Table[TaskKind] = Table("task kind", {"classification": Classification})
