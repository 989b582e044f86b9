"""The table of ways to make a tuned model smaller, and what each of them is: a frozen dataclass with one verb."""

from __future__ import annotations

from typing import Protocol

from fewtune.data.example import Split
from fewtune.model import TunedModel
from fewtune.registry import Table
from fewtune.strategies.distill import Distill
from fewtune.strategies.int8 import ToInt8
from fewtune.strategies.narrow import Narrowing
from fewtune.strategies.prune import Prune
from fewtune.strategies.share import Share
from fewtune.train.fit import Session


class Compression(Protocol):
    """A frozen dataclass with one verb."""

    def run(self, model: TunedModel, split: Split, *, session: Session) -> TunedModel:
        """A smaller model that answers as `model` does, which stays usable; both may share a frozen PLM.

        `split.train` are labelled rows, `split.unlabeled` such without labels, `split.taught` such with soft ones. Raises `InputError`
        for a model that cannot be made smaller in this way, and `Interrupted` after Ctrl-C.
        """
        ...


COMPRESSIONS: Table[Compression] = Table(
    "way to make a model smaller", {"distill": Distill, "narrow": Narrowing, "prune": Prune, "share": Share, "int8": ToInt8}
)
