"""The table of deltas."""

from fewtune.deltas.delta import Delta
from fewtune.deltas.lora import LoRA
from fewtune.deltas.subset import Subset
from fewtune.registry import Table

DELTAS: Table[Delta] = Table("delta", {"lora": LoRA, "subset": Subset})
