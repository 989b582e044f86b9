"""A backbone's own weights and tokenizer → a Hugging Face model folder. Knows no delta: what is to be kept of one is merged before."""

from __future__ import annotations

from pathlib import Path

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.quiet import quiet


def save(backbone: Backbone, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into `folder`; `--backbone FOLDER` takes it."""
    with quiet():
        backbone.model.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
