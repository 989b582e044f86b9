"""Deltas with their weights → the files of a Hugging Face PEFT folder. What PEFT cannot hold is refused. Knows the format and site
names; no head's meaning, no task.

The same deltas give the same bytes: keys are sorted, and modules are called by the shortest endings that mean them and no other.
Dimensions: P positions in front, D width, H heads of keys and values, E size of a head, N keys and values of all blocks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Bank
from fewtune.backbone.sites import Site
from fewtune.deltas import peft_format
from fewtune.deltas.delta import Delta, Installed
from fewtune.deltas.lora import LoRA
from fewtune.deltas.peft_format import CONFIG, PROMPT_ROOT, ROOT, WEIGHTS, Names, attention_paths, refusal
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt

State = dict[str, Tensor]


@dataclass(frozen=True)
class Saved:
    """What goes beside the adapter: whole modules of the base model (a head), by its names, and what the adapter is for."""

    tensors: Mapping[str, Tensor]
    modules: tuple[str, ...] = ()
    task: str | None = None


def write(deltas: Sequence[Installed], backbone: Backbone, saved: Saved) -> dict[str, bytes]:
    """The files of a PEFT folder, by name; raises `ArtifactError` for deltas that PEFT cannot hold."""
    kinds = {type(delta.delta) for delta in deltas}
    if len(kinds) != 1 or not kinds <= _WRITERS.keys():
        got = " and ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        fix = f"PEFT can hold one of: {', '.join(kind.__name__ for kind in _WRITERS)}."
        raise refusal("export", expected="deltas of one kind that PEFT has", got=got, fix=fix)
    kind, writer = _WRITERS[next(iter(kinds))]
    in_modules = kind in ("LORA", "IA3")
    if not in_modules and saved.task is None:
        fix = "There PEFT would leave it out; use --readout head."
        raise refusal("export", expected="a classifier or an autoregressive model", got=f"{kind} for a masked language model", fix=fix)
    config, tensors = writer(deltas, backbone)
    root = ROOT if in_modules else PROMPT_ROOT
    state = {**tensors, **{f"{root}{name}": tensor for name, tensor in saved.tensors.items()}}
    body = {**_common(kind, backbone, saved), **config}
    return {
        CONFIG: (json.dumps(body, indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS: to_bytes({key: state[key].detach().cpu().contiguous() for key in sorted(state)}, metadata={"format": "pt"}),
    }


def _common(kind: str, backbone: Backbone, saved: Saved) -> dict[str, Any]:
    model = type(backbone.model)
    mapping = {"base_model_class": model.__name__, "parent_library": model.__module__}
    return {
        "peft_type": kind,
        "task_type": saved.task,
        "auto_mapping": None if saved.task else mapping,
        "base_model_name_or_path": backbone.name,
        "revision": None,
        "inference_mode": True,
        "modules_to_save": list(saved.modules) or None,
    }


# Low-rank updates

_LORA_PARTS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


@dataclass(frozen=True)
class _Update:
    site: Site
    rank: int
    alpha: float
    parts: State


def _lora(deltas: Sequence[Installed], backbone: Backbone) -> tuple[dict[str, Any], State]:
    specs = [installed.delta for installed in deltas if isinstance(installed.delta, LoRA)]
    if len({(spec.dora, spec.rslora, spec.dropout) for spec in specs}) > 1:
        raise refusal("export", expected="low-rank updates of one make", got="several", fix="Export models with one each.")
    updates = [update for installed in deltas for update in _updates(installed, backbone)]
    by_path, names = _by_path([update.site for update in updates]), Names(backbone)
    endings, layers = _called(by_path, names)
    config = {
        **_scales(updates, names),
        "lora_dropout": specs[0].dropout,
        "use_dora": specs[0].dora,
        "use_rslora": specs[0].rslora,
        "bias": "none",
        "target_modules": endings,
        "layers_to_transform": layers,
        "layers_pattern": None if layers is None else _layers_pattern(backbone),
        "fan_in_fan_out": _transposed(by_path, backbone),
    }
    tensors = {
        f"{ROOT}{names.theirs(update.site.path)}.{_LORA_PARTS[part]}": tensor for update in updates for part, tensor in update.parts.items()
    }
    return config, tensors


def _scales(updates: Sequence[_Update], names: Names) -> dict[str, Any]:
    """The commonest rank and α, and by whole name those of modules that have others."""
    rank, alpha = _commonest(update.rank for update in updates), _commonest(update.alpha for update in updates)
    return {
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {names.theirs(update.site.path): update.rank for update in updates if update.rank != rank},
        "alpha_pattern": {names.theirs(update.site.path): _number(update.alpha) for update in updates if update.alpha != alpha},
    }


def _updates(installed: Installed, backbone: Backbone) -> list[_Update]:
    spec, state = installed.delta, installed.state_dict()
    assert isinstance(spec, LoRA)
    updates = []
    for site, rank in spec.places(backbone):
        stem = f"{site.path}.{site.name}."
        parts = {key.removeprefix(stem): tensor for key, tensor in state.items() if key.startswith(stem)}
        updates.append(_Update(site, rank, spec.alpha, parts))
    return updates


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


# (IA)³


def _ia3(deltas: Sequence[Installed], backbone: Backbone) -> tuple[dict[str, Any], State]:
    names = Names(backbone)
    outputs: list[Site] = []
    inputs: list[Site] = []
    state: State = {}
    for installed in deltas:
        spec = installed.delta
        assert isinstance(spec, IA3)
        outputs += [site for name in spec.outputs for site in backbone.sites(name, top=spec.top)]
        inputs += [site for name in spec.inputs for site in backbone.sites(name, top=spec.top)]
        state |= installed.state_dict()
    by_path = _by_path([*outputs, *inputs])
    inner = [site.path for site in inputs]
    wanted, fed = _meant(by_path, inner, names)
    config = {
        "target_modules": wanted,
        "feedforward_modules": fed,
        "fan_in_fan_out": _transposed(by_path, backbone),
    }
    tensors = {}
    for site in (*outputs, *inputs):
        factors = state[f"{site.path}.{site.name}.ia3"]
        tensors[f"{ROOT}{names.theirs(site.path)}.ia3_l"] = factors[None, :] if site.path in inner else factors[:, None]
    return config, tensors


def _meant(sites: Mapping[str, Site], inner: Collection[str], names: Names) -> tuple[list[str], list[str]]:
    """(target_modules, feedforward_modules), which PEFT wants to be some of the former; whole names where an ending would mean both."""
    inside = {names.theirs(path) for path in inner}
    short = _called(sites, names, layers=False)[0]
    for wanted in (short, sorted(map(names.theirs, sites))):
        fed = [ending for ending in wanted if any(name == ending or name.endswith(f".{ending}") for name in inside)]
        if all(peft_format.fed_forward(names.theirs(path), fed) == (path in inner) for path in sites):
            break
    return wanted, fed


# Vectors in front


def _prompt(deltas: Sequence[Installed], backbone: Backbone) -> tuple[dict[str, Any], State]:
    if len(deltas) > 1:
        raise refusal("export", expected="one soft prompt", got=f"{len(deltas)}", fix="Export models with one each.")
    vectors_PD = deltas[0].state_dict()["soft_prompt"]
    config = {**_positions(backbone, len(vectors_PD)), "token_dim": vectors_PD.shape[1], "prompt_tuning_init": "RANDOM"}
    return config, {"prompt_embeddings": vectors_PD}


def _prefix(deltas: Sequence[Installed], backbone: Backbone) -> tuple[dict[str, Any], State]:
    spec, state = deltas[0].delta, deltas[0].state_dict()
    assert isinstance(spec, Prefix)
    if len(deltas) > 1 or spec.zero or spec.top < 1:
        got = f"{len(deltas)}" if len(deltas) > 1 else ("one with gates" if spec.zero else f"one with top={spec.top}")
        raise refusal("export", expected="one prefix for all blocks, without gates", got=got, fix="PEFT has no other; train such a one.")
    made_NHPE = torch.stack([state[f"{path}.{part}"] for path in attention_paths(backbone) for part in ("prefix_key", "prefix_value")])
    heads, length, size = made_NHPE.shape[1:]
    config = {
        **_positions(backbone, length),
        "num_attention_heads": heads,
        "token_dim": heads * size,
        "encoder_hidden_size": heads * size,
        "prefix_projection": False,
    }
    return config, {"prompt_embeddings": made_NHPE.permute(2, 0, 1, 3).flatten(1)}


def _positions(backbone: Backbone, length: int) -> dict[str, Any]:
    return {
        "num_virtual_tokens": length,
        "num_transformer_submodules": 1,
        "num_layers": backbone.depth,
        "num_attention_heads": int(backbone.model.config.num_attention_heads),
    }


_WRITERS: Mapping[type[Delta], tuple[str, Callable[[Sequence[Installed], Backbone], tuple[dict[str, Any], State]]]] = {
    LoRA: ("LORA", _lora),
    IA3: ("IA3", _ia3),
    SoftPrompt: ("PROMPT_TUNING", _prompt),
    Prefix: ("PREFIX_TUNING", _prefix),
}


# Sites → modules


def _by_path(sites: Sequence[Site]) -> dict[str, Site]:
    found: dict[str, Site] = {}
    for site in sites:
        if (site.start, site.stop) != (0, site.outputs):
            fix = "PEFT adapts whole modules; train with --delta …:sites=attention_in."
            raise refusal("export", expected="whole linear maps", got=f"a slice of {site.path} ({site.name})", fix=fix)
        if site.path in found:
            fix = "PEFT holds one update for each module."
            raise refusal("export", expected="one update for each module", got=f"several for {site.path}", fix=fix)
        found[site.path] = site
    return found


def _transposed(paths: Iterable[str], backbone: Backbone) -> bool:
    """Whether the modules keep their weights transposed (GPT-2's)."""
    return not any(isinstance(surgery.unwrapped(backbone.model.get_submodule(path)), nn.Linear) for path in paths)


def _called(sites: Mapping[str, Site], names: Names, *, layers: bool = True) -> tuple[list[str], list[int] | None]:
    """(target_modules, layers_to_transform) that mean the modules of `sites` and no other: by endings if that can be."""
    wanted = {names.theirs(path): path for path in sites}
    known = _known(names)
    blocks = sorted({site.block for site in sites.values()})
    for numbers in (None, blocks) if layers else (None,):
        numbered = {"layers_to_transform": numbers, "layers_pattern": _layers_pattern(names.backbone)}
        found: set[str] = set()
        for name, path in wanted.items():
            for ending in _endings(name, _inside(sites[path], names.backbone)):
                if all(other in wanted for other in known if peft_format.targets(other, {"target_modules": [ending], **numbered})):
                    found.add(ending)
                    break
        if {name for name in known if found and peft_format.targets(name, {"target_modules": found, **numbered})} == wanted.keys():
            return sorted(found), numbers
    return sorted(wanted), None


def _layers_pattern(backbone: Backbone) -> str:
    return backbone.family.blocks.rpartition(".")[2]


def _inside(site: Site, backbone: Backbone) -> str:
    """The path of the site's module in its block."""
    return site.path.partition(f"{backbone.family.blocks}.{site.block}.")[2]


def _endings(name: str, inside: str) -> list[str]:
    """The endings of `name` that lie in the block, the shortest first."""
    parts = name.split(".")
    return [".".join(parts[-count:]) for count in range(1, inside.count(".") + 2)]


def _known(names: Names) -> set[str]:
    """The names of all modules that a model of PEFT may have, a pooler among them."""
    model = names.backbone.model
    banks = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Bank))
    here = {path for path, _ in model.named_modules() if path and not path.startswith(banks)}
    return {names.theirs(path) for path in here} | {f"{names.prefix}pooler.dense"}
