"""A PLM by its name: find it, have transformers read it, refuse what is damaged. Knows no task and no delta."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fewtune.backbone import catalogue, fingerprints
from fewtune.backbone.anatomy import family_of
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import Family
from fewtune.backbone.quiet import quiet
from fewtune.errors import BackboneError

WITH_HEAD = {"masked": "AutoModelForMaskedLM", "causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}
"""transformers' class of models with an LM head, by what they predict."""


def load(name: str, *, device: str | None = None, say: Callable[[str], None] = lambda line: None) -> Backbone:
    """The PLM called `name`: an entry of the catalogue (fetched once), a local folder, or a hub id.

    Raises `BackboneError` for an unknown name, a family that is not in the table, a folder that transformers cannot read, weights that
    do not fill the model, no tokenizer, or a device that is not there.
    """
    device = device_of(device)
    source = str(catalogue.locate(name, say=say))
    with quiet():
        model, tokenizer = _load(source, name)
    fingerprint = fingerprints.model(model)
    return Backbone(model.float().to(device), tokenizer, name=name, fingerprint=fingerprint)


def default_device() -> str:
    """The accelerator if there is one, else the processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(name: str | None) -> str:
    """The device called so, or `default_device`; raises `BackboneError` for one that this machine has not."""
    if name is None:
        return default_device()
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # of a torch without CUDA the latter
        fix = "For example cpu; left out, the accelerator is taken if there is one."
        raise BackboneError(expected="a device of this machine", got=f'"{name}"', where="--device", fix=fix) from error
    return name


def _load(source: str, name: str) -> tuple[Any, Any]:
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source)
        family = family_of(config, name)
        kind = getattr(transformers, WITH_HEAD[family.objective] if _has_lm_head(config, family) else family.without_head)
        # Weights of another shape are ignored here to be named below.
        model, report = kind.from_pretrained(source, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (BackboneError, MemoryError):
        raise
    except Exception as error:  # of a damaged folder transformers raises whatever it trips over
        raise _unreadable(name, error) from error
    _check_weights(report, name)
    _check_blocks(report, family, name)
    _check_tokenizer(tokenizer, name)
    if any(key.startswith("pooler.") for key in report["missing_keys"]):
        model.pooler = None  # drawn at random, anew with each load; nothing may read it or be told apart by it
    return model, tokenizer


def _unreadable(name: str, error: Exception) -> BackboneError:
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return BackboneError(
        expected="a PLM of the catalogue, a model folder or a hub id",
        got=kind + str(error).strip().split("\n")[0].rstrip("."),
        where=f'backbone "{name}"',
        fix="`fewtune backbones list` shows the names that need no hub.",
    )


def _check_weights(report: Mapping[str, Any], name: str) -> None:
    absent = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    unfit = sorted([*absent, *(key for key, *_ in report["mismatched_keys"])])
    if unfit:
        raise BackboneError(
            expected="weights for the whole model",
            got=f"none that fit for {unfit[0]}",
            where=f'backbone "{name}"',
            fix="The folder is damaged or not what its config.json says.",
        )


def _check_blocks(report: Mapping[str, Any], family: Family, name: str) -> None:
    """Refuse weights of blocks that transformers would leave out without a word of ours: more blocks than the configuration names, or
    matrices that it has no place for. Buffers that older versions stored (rotary frequencies, causal masks) are computed anew.
    """
    weight = re.compile(rf"(^|\.){re.escape(family.blocks)}\.\d+\..*\.weight$")
    extra = sorted(key for key in report["unexpected_keys"] if weight.search(key))
    if extra:
        raise BackboneError(
            expected="a config.json that names every block",
            got=f"none for {extra[0]}",
            where=f'backbone "{name}"',
            fix="The folder is damaged or not what its config.json says.",
        )


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    # Without its files transformers makes a tokenizer up that knows no text.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise BackboneError(
            expected="the tokenizer of the PLM",
            got="none",
            where=f'backbone "{name}"',
            fix="Put tokenizer.json and tokenizer_config.json into the folder.",
        )


def _has_lm_head(config: Any, family: Family) -> bool:
    known = all(getattr(config, setting) == value for setting, value in family.head_if.items())
    return known and any(name.endswith(family.heads) for name in config.architectures or ())
