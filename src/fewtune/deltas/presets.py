"""Deltas as papers have them, by name; and what a flag says, read as deltas. Holds specs only.

Each preset is the paper's own setting of shape, place, initialisation and scale; learning rates stay those of the deltas.
"""

from __future__ import annotations

from collections.abc import Mapping

from fewtune import registry
from fewtune.deltas import DELTAS
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.delta import Delta
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.errors import SpecError

PRESETS: Mapping[str, tuple[Delta, ...]] = {
    # Hu et al. 2021, table 9 (RoBERTa-base): r = 8, α = 8, query and value.
    "lora-paper": (LoRA(rank=8, alpha=8, sites=("query", "value")),),
    # The low-rank path beside the feed-forward block's first projection, d → r → 4 d.
    "lora-ffn": (LoRA(rank=1, alpha=1, sites=("ffn_in",)),),
    # Houlsby et al. 2019, sections 2.1 and 3.1: both sub-layers, 64 units, near the identity; the norms are trained, too.
    "houlsby": (Adapter(size=64, at=("attention", "ffn"), activation="gelu", init="houlsby"), Subset("norms")),
    # Pfeiffer et al. 2021, as AdapterHub has it: behind the feed-forward block only, width / 16, ReLU, N(0, 0.02²).
    "pfeiffer": (Adapter(reduction=16, at=("ffn",), activation="relu", init="bert"),),
    # He et al. 2022, section 4: beside the feed-forward block, ReLU, Up zero; the scaled one times 4.
    "parallel": (Adapter(reduction=2, at=("ffn",), activation="relu", parallel=True),),
    "scaled-parallel": (Adapter(reduction=2, at=("ffn",), activation="relu", parallel=True, scale=4.0),),
    # He et al. 2022, section 4.6, on GLUE: prefixes of 16 and a scaled parallel adapter of 16 units.
    "mam": (Prefix(length=16, hidden=512), Adapter(size=16, at=("ffn",), activation="relu", parallel=True, scale=2.0)),
    # Liu et al. 2022 (T-Few), section 3.3.
    "ia3-paper": (IA3(outputs=("key", "value"), inputs=("ffn_out",)),),
    # Ben Zaken et al. 2022.
    "bitfit": (Subset("biases"),),
    # Lester et al. 2021, section 3: 100 vectors drawn from the 5,000 most frequent tokens.
    "lester": (SoftPrompt(length=100),),
    # Li & Liang 2021, section 4.3 and their settings for table-to-text: 5 vectors made by a network of 512 units.
    "li-liang": (Prefix(length=5, hidden=512),),
    # Liu et al. 2022 (P-tuning v2): no network.
    "p-tuning-v2": (Prefix(length=20),),
}


def read(text: str, where: str = "--delta") -> tuple[Delta, ...]:
    """The deltas that a flag names: a preset, `name:field=value,…` of the table, or `none`, which leaves all to the readout.

    Raises `SpecError` for an unknown name or field.

    >>> read("bitfit")
    (Subset(part='biases', blocks=1),)
    >>> read("lora:rank=4")[0].rank
    4
    """
    if text.strip() == "none":
        return ()
    name = text.partition(":")[0].strip()
    if text.strip() in PRESETS:
        return PRESETS[text.strip()]
    if name in PRESETS:
        raise SpecError(expected=f'"{name}" alone', got=f'"{text}"', where=where, fix="A preset has no fields; take the delta itself.")
    if name not in DELTAS.members:
        fix = registry.nearest(name, [*DELTAS, *PRESETS])
        raise SpecError(expected="the name of a delta or a preset", got=f'"{name}"', where=where, fix=fix)
    return (DELTAS.from_text(text, where),)
