"""The table of strategies."""

from fewtune.registry import Table
from fewtune.strategies.ladder import Ladder
from fewtune.strategies.pet import IPet, Pet
from fewtune.strategies.strategy import Strategy
from fewtune.strategies.supervised import Supervised
from fewtune.strategies.zeroshot import ZeroShot

STRATEGIES: Table[Strategy] = Table(
    "strategy", {"zeroshot": ZeroShot, "supervised": Supervised, "ladder": Ladder, "pet": Pet, "ipet": IPet}
)
