"""What a Hugging Face PEFT folder is: its files, what its config may say, how it names modules and which of them it means.
Reading and writing share it; knows names only, computes nothing.

    adapter_config.json         what kind of adapter, and its settings
    adapter_model.safetensors   `base_model.model.` + the module's path in the model it was trained on + the part's name
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import SITES
from fewtune.backbone.sites import Site
from fewtune.errors import ArtifactError

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ROOT, PROMPT_ROOT = "base_model.model.", "base_model."
"""What stands before a module's path; prompt methods do not wrap the model and say less."""

TASKS = ("SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION", None)
"""The tasks whose adapters can be read: one answer a text."""

_ANYWHERE = (
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "modules_to_save", "runtime_config"),
)
_TARGETS = ("target_modules", "exclude_modules", "fan_in_fan_out")
_PROMPT = ("num_virtual_tokens", "num_transformer_submodules", "token_dim", "num_layers", "num_attention_heads", "encoder_hidden_size")

KEYS: Mapping[str, frozenset[str]] = {
    "LORA": frozenset(
        (
            *_ANYWHERE,
            *_TARGETS,
            *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "rank_pattern", "alpha_pattern"),
            *("layers_to_transform", "layers_pattern", "init_lora_weights"),
            # How weights were started or spread over machines; no trace of it is left in what the adapter computes.
            *("eva_config", "megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
        )
    ),
    "IA3": frozenset((*_ANYWHERE, *_TARGETS, "feedforward_modules", "init_ia3_weights")),
    "PROMPT_TUNING": frozenset(
        (*_ANYWHERE, *_PROMPT, "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
    ),
    # The file holds the vectors that its network made, which is all that answers depend on.
    "P_TUNING": frozenset((*_ANYWHERE, *_PROMPT, "encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout")),
    "PREFIX_TUNING": frozenset((*_ANYWHERE, *_PROMPT, "prefix_projection", "init_weights")),
}
"""Adapter type → the keys of its config that are understood. Any other key must be empty."""

STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model's own weights alone."""


def refusal(where: object, *, expected: str, got: str, fix: str) -> ArtifactError:
    """An error about a PEFT folder."""
    return ArtifactError(expected=expected, got=got, where=str(where), fix=fix)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a PEFT folder; raises `ArtifactError` for another kind of folder, and for what it says that cannot be had here."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _absent(folder) from None
    except (OSError, ValueError) as error:
        raise refusal(path, expected="a readable config", got=str(error), fix="Copy the whole folder again.") from None
    if not isinstance(config, dict) or "peft_type" not in config:
        raise _foreign(folder, config)
    _check(config, path)
    return config


def _absent(folder: Path) -> ArtifactError:
    if any((folder / name).exists() for name in ("head_config.json", "adapter_fusion_config.json")):
        return _adapterhub(folder)
    # PEFT puts every adapter but the one called "default" into a folder of its name.
    inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    fix = (
        f"Give the folder of one adapter: {', '.join(str(folder / name) for name in inner)}." if inner else "Give a PEFT adapter's folder."
    )
    return refusal(folder, expected="a PEFT folder", got=f"no {CONFIG}", fix=fix)


def _foreign(folder: Path, config: object) -> ArtifactError:
    if isinstance(config, dict) and "config" in config and {"version", "model_type", "model_class"} & config.keys():
        return _adapterhub(folder)
    return refusal(folder / CONFIG, expected='the config of a PEFT adapter, with a "peft_type"', got="none", fix="Give a PEFT folder.")


def _adapterhub(folder: Path) -> ArtifactError:
    fix = "The two formats share a file name only; convert it to PEFT's format, or train the adapter with fewtune (--delta adapter)."
    return refusal(folder, expected="a PEFT folder", got="an AdapterHub folder", fix=fix)


def _check(config: Mapping[str, Any], path: Path) -> None:
    kind = config["peft_type"]
    if kind not in KEYS:
        fix = f"These can be read: {', '.join(KEYS)}."
        raise refusal(path, expected="a type of adapter that fewtune has", got=f"peft_type {kind}", fix=fix)
    if config.get("task_type") not in TASKS:
        fix = "Only adapters that classify texts or go on with them can be read."
        raise refusal(path, expected="one answer for each text", got=f"task_type {config['task_type']}", fix=fix)
    if config.get("bias", "none") != "none":
        fix = "Its trained biases have no place beside a low-rank update here; train with bias none."
        raise refusal(path, expected="bias none", got=f"bias {config['bias']}", fix=fix)
    if config.get("init_lora_weights", True) not in STARTS:
        fix = "Its start changed the base model's weights; save it with PEFT's path_initial_model_for_weight_conversion."
        raise refusal(path, expected="an adapter of the base model as it is", got=f"a start by {config['init_lora_weights']}", fix=fix)
    for key in sorted(config.keys() - KEYS[kind]):
        if config[key]:
            fix = "It may change what the adapter computes, and fewtune does not have it."
            raise refusal(path, expected=f"no {key}", got=json.dumps(config[key]), fix=fix)


@dataclass(frozen=True)
class Names:
    """Between a module's path in a loaded backbone and its name in a model that PEFT trained.

    That model is called as its stack stands in it (`bert.encoder…` in a classifier); `bare` where the stack alone was trained.
    """

    backbone: Backbone
    bare: bool = False

    @property
    def prefix(self) -> str:
        """What stands before the stack's own paths in a whole model, where that is not so without an LM head, too."""
        return "" if self.backbone.family.stack else f"{self.backbone.model.base_model_prefix}."

    def ours(self, name: str) -> str:
        """The path here of what PEFT calls `name`."""
        return (self.prefix if self.backbone.has_lm_head else "") + name.removeprefix(self.prefix)

    def theirs(self, path: str) -> str:
        """What PEFT calls the module that is at `path` here."""
        return ("" if self.bare else self.prefix) + path.removeprefix(self.prefix)


def whole_sites(backbone: Backbone, name: str) -> tuple[Site, ...]:
    """The sites called `name` that are whole linear maps, no slices of fused ones; none where the family has no such."""
    if name == "norms" or name not in backbone.family.sites:
        return ()
    return tuple(site for site in backbone.sites(name) if (site.start, site.stop) == (0, site.outputs))


def linear_maps(backbone: Backbone) -> tuple[str, ...]:
    """The paths of every linear map that has a name as a site, from the bottom."""
    return tuple(dict.fromkeys(site.path for name in SITES for site in whole_sites(backbone, name)))


def attention_paths(backbone: Backbone) -> tuple[str, ...]:
    """The attention module of each block, where a prefix stands; raises `ArtifactError` where PEFT and fewtune have it otherwise."""
    attention, blocks = backbone.family.attention, len(backbone.blocks)
    if attention is None or blocks != backbone.depth:
        fix = "Take another --backbone or another method."
        raise refusal("prefix", expected="a family whose blocks each have an attention of their own", got=backbone.name, fix=fix)
    return tuple(Names(backbone).ours(f"{backbone.family.blocks}.{block}.{attention}") for block in range(blocks))


def targets(name: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT would put an adapter at the module called `name`: by its whole name, its ending, or a pattern."""
    if _named(name, config.get("exclude_modules") or ()):
        return False
    wanted = config["target_modules"]
    if wanted == "all-linear":
        return True
    if not _named(name, wanted):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(wanted, str) or name in wanted or layers in (None, []):
        return True
    return _layer(name, config.get("layers_pattern") or ()) in ([layers] if isinstance(layers, int) else layers)


def _named(name: str, wanted: str | Collection[str]) -> bool:
    if isinstance(wanted, str):
        return bool(wanted) and re.fullmatch(wanted, name) is not None
    return name in wanted or any(name.endswith(f".{ending}") for ending in wanted)


def _layer(name: str, patterns: str | Iterable[str]) -> int | None:
    """The first number in the name that stands behind one of `patterns`, or behind anything where there are none."""
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    forms = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in listed] or [r".*?\.[^.]*\.(\d+)\."]
    found = next((match for form in forms if (match := re.match(form, name))), None)
    return int(found.group(1)) if found else None


def fed_forward(name: str, wanted: str | Collection[str]) -> bool:
    """Whether (IA)³ rescales the inputs of the module: PEFT looks at the ending, wherever in a word it begins."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name.endswith(ending) for ending in wanted)


def by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first pattern that fits the end of `name`."""
    return next((value for form, value in (patterns or {}).items() if re.match(rf"(.*\.)?({form})$", name)), default)
