"""The table of deltas."""

from fewtune.deltas.adapter import Adapter
from fewtune.deltas.delta import Delta
from fewtune.deltas.int8 import Int8
from fewtune.deltas.lora import LoRA
from fewtune.deltas.mask import Mask
from fewtune.deltas.narrow import Narrow
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.sharing import Sharing
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.registry import Table

DELTAS: Table[Delta] = Table(
    "delta",
    {
        "lora": LoRA,
        "subset": Subset,
        "adapter": Adapter,
        "ia3": IA3,
        "soft-prompt": SoftPrompt,
        "prefix": Prefix,
        "shallow": Shallow,
        "mask": Mask,
        "narrow": Narrow,
        "sharing": Sharing,
        "int8": Int8,
    },
)
