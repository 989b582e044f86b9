"""Decide between float32 and bfloat16 by looking: what the hardware has, how large the PLM is, and whether the scores agree.

Nothing is timed: the same job on the same machine must take the same way, however busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fewtune.backbone.backbone import Backbone, Precision
from fewtune.data.example import Example, Split
from fewtune.model import TunedModel
from fewtune.tasks import kind_of

Wanted = Literal["auto", "float32", "bfloat16"]
_PROBES = 16
_TOLERANCE = 0.1  # the most by which a log-probability may differ
_LOSS_TOLERANCE = 0.02
_LEAST_WIDTH = 256  # in narrower matrices the casts cost more than the products gain


def settle_precision(model: TunedModel, wanted: Wanted, split: Split) -> None:
    """Set the backbone's precision; `auto` takes bfloat16 only where the hardware has it, the PLM gains by it and scores agree."""
    probes = (split.train or split.unlabeled or split.test)[:_PROBES]

    def same() -> bool:
        full_NC, half_NC = _probe(model, probes, "float32"), _probe(model, probes, "bfloat16")
        return agree(full_NC, half_NC, independent=kind_of(model.task).independent or model.asking.free is not None)

    settle(model.backbone, wanted, same if probes else None)


def settle_for_language(backbone: Backbone, wanted: Wanted, loss: Callable[[], Tensor]) -> None:
    """The same where a language is learned: what must agree is the `loss` of some text, in nats a token."""

    def measured(precision: Precision) -> float:
        with torch.no_grad(), backbone.as_precision(precision):
            return loss().item()

    settle(backbone, wanted, lambda: abs(measured("float32") - measured("bfloat16")) <= _LOSS_TOLERANCE)


def settle(backbone: Backbone, wanted: Wanted, same: Callable[[], bool] | None) -> None:
    """Set the precision; `auto` asks whether what is computed in both is the `same` only where bfloat16 would be taken."""
    if wanted != "auto":
        backbone.precision = wanted
        return
    backbone.precision = "float32"
    gains = backbone.width >= _LEAST_WIDTH and has_bfloat16(backbone.device)
    if gains and same is not None and same():
        backbone.precision = "bfloat16"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capability = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return "BF16" in capability or "AMX" in capability or (device.type == "cpu" and _has_flag())


def _has_flag() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def agree(full_NC: Tensor, half_NC: Tensor, *, independent: bool = False) -> bool:
    """Whether no log-probability differs by more than 0.1; `independent` says that each candidate is judged for itself."""
    if independent:
        full_NC, half_NC = (torch.stack([scores_NC, torch.zeros_like(scores_NC)], -1) for scores_NC in (full_NC, half_NC))
    apart_NC = (full_NC.log_softmax(-1) - half_NC.log_softmax(-1)).abs()
    there_NC = ~(full_NC.isneginf() & half_NC.isneginf())  # a row may have fewer candidates than others
    return bool(apart_NC[there_NC].max() <= _TOLERANCE)


def _probe(model: TunedModel, probes: tuple[Example, ...], precision: Precision) -> Tensor:
    with model.backbone.as_precision(precision):
        return model.raw_scores(probes)
