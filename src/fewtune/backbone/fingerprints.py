"""Hashes that tell which weights and which tokenizer a backbone has. Knows no format of any artifact."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn


def model(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of the weights, in the order of their names."""
    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer(tokenizer: Any) -> str:
    """sha256 over what the tokenizer does, without the settings of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = _without_settings(backend.to_str()) if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _without_settings(text: str) -> str:
    return json.dumps({**json.loads(text), "padding": None, "truncation": None}, sort_keys=True)
