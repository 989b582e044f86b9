"""A change of a model folder's weights in a small file: low-rank updates of some, others whole. Knows tensors and names; no delta, no
training.

    tensors   NAME.low_rank_A (R × I), NAME.low_rank_B (O × R), float16: the weight NAME becomes NAME + scale · B A
              any other name, float16: the whole weight of a part that the model did not have, such as an LM head
    metadata  "update": JSON with "architecture" (transformers' class), "prefix" (of the stack's names in it), "scales" (NAME → scale),
              "base" and "fingerprint" (the PLM whose update it is), "settings" (of the configuration, that the new part needs)

Dimensions: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewtune.errors import BackboneError

FILE = "update.safetensors"


@dataclass(frozen=True)
class About:
    """What an update says of itself."""

    architecture: str
    prefix: str
    scales: Mapping[str, float]
    base: str
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def half(weight: Tensor) -> Tensor:
    """The value as it is stored, in the weight's own type."""
    return weight.detach().to(torch.float16).to(weight.dtype)


def write(path: Path, about: About, factors: Mapping[str, tuple[Tensor, Tensor]], whole: Mapping[str, Tensor]) -> None:
    """Write the update; `factors` are (A_RI, B_OR) by the name of the weight."""
    tensors = {f"{name}.low_rank_{letter}": part for name, pair in factors.items() for letter, part in zip("AB", pair, strict=True)}
    stored = {name: part.detach().cpu().to(torch.float16).contiguous() for name, part in {**tensors, **whole}.items()}
    save_file(stored, path, metadata={"update": json.dumps(asdict(about), sort_keys=True)})


@dataclass(frozen=True)
class Update:
    """What a file holds: `factors` (A_RI, B_OR) by the name of the weight, `whole` weights by theirs, in float32."""

    about: About
    factors: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]
    file: Path

    @cached_property
    def digest(self) -> str:
        """The file's sha256."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


def read(path: Path) -> Update:
    """The update in a file, or in a model folder that has one.

    Raises `BackboneError` where there is none.
    """
    file = path / FILE if path.is_dir() else path
    try:
        with safe_open(file, "pt") as opened:
            about = About(**json.loads(opened.metadata()["update"]))
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
        factors = {name: (tensors.pop(f"{name}.low_rank_A"), tensors.pop(f"{name}.low_rank_B")) for name in about.scales}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        fix = "Name a folder that `fewtune pretrain --delta lora:…` wrote."
        raise BackboneError(expected=f"a low-rank update ({FILE})", got="none", where=str(path), fix=fix) from error
    return Update(about, factors, tensors, file)


def apply(folder: Path, path: Path) -> None:
    """Change the Hugging Face model folder of the base, in place, to what was trained.

    Raises `BackboneError` for a weight that the folder does not have.
    """
    update = read(path)
    about, weights = update.about, _named(load_file(folder / "model.safetensors"), update.about.prefix)
    for name, (A_RI, B_OR) in update.factors.items():
        if name not in weights:
            fix = f"The update belongs to {about.base}."
            raise BackboneError(expected=f"the weight {name}", got="none", where=str(folder), fix=fix)
        weights[name] = (weights[name].float() + about.scales[name] * B_OR @ A_RI).contiguous()
    weights |= update.whole
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = {**config, **about.settings, "architectures": [about.architecture]}
    (folder / "config.json").write_text(json.dumps(named, indent=2), encoding="utf-8")


def _named(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of a stack, or of a whole model, as the whole model calls them; a pooler is no part of a masked LM."""
    bare = not any(name.startswith(prefix) for name in weights)
    full = {prefix + name if bare else name: weight for name, weight in weights.items()}
    return {name: weight for name, weight in full.items() if not name.startswith(f"{prefix}pooler.")}
