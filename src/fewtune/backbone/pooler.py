"""The dense layer that BERT and ALBERT have behind the first position's state and that their classifiers read through a tanh: in a
loaded backbone, or in the files of a PLM whose language model leaves it out. Knows no head.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fewtune.backbone import catalogue
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.quiet import quiet
from fewtune.errors import BackboneError


def of(backbone: Backbone) -> nn.Linear | None:
    """The pooler of a loaded backbone; models with an LM head have none."""
    return _dense(backbone.stack)


def stored(name: str) -> nn.Linear | None:
    """The pooler in the files of the PLM called `name`, whether or not its language model uses it; None where there is none."""
    from transformers import AutoModel

    try:
        with quiet():
            stack, report = AutoModel.from_pretrained(str(catalogue.locate(name)), dtype="auto", output_loading_info=True)
    except (BackboneError, OSError, ValueError):  # a backbone that was made in memory has no files
        return None
    drawn = any(key.startswith("pooler.") for key in report["missing_keys"])
    return None if drawn else _dense(stack)


def _dense(stack: Any) -> nn.Linear | None:
    pooler = getattr(stack, "pooler", None)
    dense = getattr(pooler, "dense", pooler)
    return dense if isinstance(dense, nn.Linear) else None
