"""A Hugging Face PEFT folder → specs of deltas and their weights. Whatever cannot be had here exactly is refused, never dropped.
Knows the format and site names; no head, no task.

Modules become sites: those of one kind must be there in every block of an upper share of the stack, for that is what a delta
says of itself. Dimensions: I inputs, O outputs, R rank, P positions in front, D width, H heads of keys and
values, E size of a head, N numbers or tensors of all blocks.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import SITES
from fewtune.backbone.sites import Site
from fewtune.deltas import peft_format
from fewtune.deltas.delta import Delta
from fewtune.deltas.lora import LoRA
from fewtune.deltas.peft_format import CONFIG, PICKLED, PROMPT_ROOT, ROOT, WEIGHTS, Names, refusal
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt

State = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """What a folder holds: deltas with their weights, and `rest`, the tensors that are of no delta, by the base model's names.

    `base` names the model that it was trained on, `model_class` that model's class, where the folder says so.
    """

    deltas: tuple[tuple[Delta, State], ...]
    rest: State
    base: str | None
    model_class: str | None


@dataclass(frozen=True)
class _Folder:
    where: Path
    config: Mapping[str, Any]
    tensors: State
    backbone: Backbone

    def refusal(self, *, expected: str, got: str, fix: str) -> Exception:
        return refusal(self.where / WEIGHTS, expected=expected, got=got, fix=fix)


def read(folder: str | Path, backbone: Backbone) -> Found:
    """The deltas of a PEFT folder for `backbone`; raises `ArtifactError` for what cannot be had here exactly."""
    where = Path(folder)
    config = peft_format.read_config(where)
    kind = config["peft_type"]
    root = ROOT if kind in ("LORA", "IA3") else PROMPT_ROOT
    tensors = {key.removeprefix(root): tensor for key, tensor in _tensors(where).items()}
    try:
        deltas, rest = _READERS[kind](_Folder(where, config, tensors, backbone))
    except (re.error, TypeError, ValueError, AttributeError) as error:
        fix = "It is not as PEFT writes it; save the adapter again."
        raise refusal(where / CONFIG, expected="a sound config", got=str(error), fix=fix) from error
    mapping = config.get("auto_mapping") or {}
    return Found(tuple(deltas), rest, config.get("base_model_name_or_path"), mapping.get("base_model_class"))


def _tensors(folder: Path) -> State:
    fix = "Copy the whole folder again."
    path = folder / WEIGHTS
    try:
        if path.is_file():
            return load_file(path)
        path = folder / PICKLED
        if not path.is_file():
            raise refusal(folder, expected=f"{WEIGHTS} or {PICKLED}", got="neither", fix=fix)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise refusal(path, expected="a safetensors file", got=str(error), fix=fix) from None
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        got = str(error).strip().split("\n")[0]
        raise refusal(path, expected="a file of tensors", got=got, fix="Save the adapter again as safetensors.") from None
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise refusal(path, expected="a file of tensors", got="something else", fix=fix)
    return found


# Low-rank updates

_LORA_PARTS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_NO_MAPS = {"lora_embedding_": "an update of the embeddings", "base_layer.": "a weight of the base model", "lora_B.bias": "a bias beside B"}


def _lora(folder: _Folder) -> tuple[list[tuple[Delta, State]], State]:
    modules, rest = _modules(folder, _LORA_PARTS)
    for key in rest:
        if odd := next((what for mark, what in _NO_MAPS.items() if mark in key), None):
            raise folder.refusal(expected="updates of linear maps only", got=f"{odd}: {key}", fix="fewtune has no such delta.")
    wanted = {"lora_A", "lora_B", *(["magnitude"] if folder.config.get("use_dora") else [])}
    for name, parts in modules.items():
        _complete(folder, name, parts, wanted)
    names = _names(folder, modules)
    settings = {names.ours(name): _settings(folder, name, parts["lora_A"]) for name, parts in modules.items()}
    states = {names.ours(name): parts for name, parts in modules.items()}
    _check_targets(folder, names, states)
    # Places of one α in the same blocks make one delta.
    groups: dict[tuple[tuple[int, ...], float], dict[str, int]] = {}
    placed = _placed(folder, states)
    for name, sites in placed.items():
        rank, alpha = _one(folder, name, {settings[site.path] for site in sites})
        groups.setdefault((_blocks(sites), alpha), {})[name] = rank
    return [
        (_low_rank(folder, blocks, alpha, ranks), _state(states, [site for name in ranks for site in placed[name]]))
        for (blocks, alpha), ranks in groups.items()
    ], rest


def _low_rank(folder: _Folder, blocks: tuple[int, ...], alpha: float, ranks: Mapping[str, int]) -> LoRA:
    each = tuple(ranks.values())
    return LoRA(
        rank=each[0],
        ranks=each if len(set(each)) > 1 else (),
        alpha=alpha,
        dropout=float(folder.config.get("lora_dropout") or 0.0),
        sites=tuple(ranks),
        top=_top(folder, blocks),
        rslora=bool(folder.config.get("use_rslora")),
        dora=bool(folder.config.get("use_dora")),
    )


def _settings(folder: _Folder, name: str, A_RI: Tensor) -> tuple[int, float]:
    """(rank, α) of one module; the rank that the config says must be that of its tensors."""
    config = folder.config
    rank = peft_format.by_pattern(config.get("rank_pattern"), name, config.get("r", 8))
    if A_RI.ndim != 2 or len(A_RI) != rank:
        got = f"a lora_A of shape {tuple(A_RI.shape)}"
        raise folder.refusal(expected=f"rank {rank} at {name}", got=got, fix="Config and weights are of different adapters.")
    return rank, float(peft_format.by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8)))


def _one(folder: _Folder, name: str, found: set[tuple[int, float]]) -> tuple[int, float]:
    if len(found) > 1:
        fix = "One delta has one rank and α for each kind of place."
        raise folder.refusal(expected=f"one rank and α for all of {name}", got=f"(rank, α) {sorted(found)}", fix=fix)
    return next(iter(found))


# (IA)³


def _ia3(folder: _Folder) -> tuple[list[tuple[Delta, State]], State]:
    modules, rest = _modules(folder, {"ia3_l": "ia3"})
    names = _names(folder, modules)
    wanted = folder.config.get("feedforward_modules") or ()
    inner = {names.ours(name): peft_format.fed_forward(name, wanted) for name in modules}
    states = {names.ours(name): parts for name, parts in modules.items()}
    _check_targets(folder, names, states)
    outputs = _placed(folder, {path: parts for path, parts in states.items() if not inner[path]}, none=True)
    inputs = _placed(folder, {path: parts for path, parts in states.items() if inner[path]}, none=True)
    flat: dict[str, State] = {}
    for sites, by_inputs in ((outputs, False), (inputs, True)):
        for site in (site for listed in sites.values() for site in listed):
            flat[site.path] = {"ia3": _factors(folder, site, states[site.path]["ia3"], by_inputs)}
    deltas: list[tuple[Delta, State]] = []
    for blocks in dict.fromkeys(map(_blocks, (*outputs.values(), *inputs.values()))):
        chosen = [{name: sites for name, sites in kind.items() if _blocks(sites) == blocks} for kind in (outputs, inputs)]
        delta = IA3(outputs=tuple(chosen[0]), inputs=tuple(chosen[1]), top=_top(folder, blocks))
        deltas.append((delta, _state(flat, [site for kind in chosen for sites in kind.values() for site in sites])))
    return deltas, rest


def _factors(folder: _Folder, site: Site, factors: Tensor, by_inputs: bool) -> Tensor:
    shape = (1, site.inputs) if by_inputs else (site.outputs, 1)
    if tuple(factors.shape) != shape:
        got = f"shape {tuple(factors.shape)}"
        fix = "Config and weights are of different adapters, or of another base model."
        raise folder.refusal(expected=f"factors of shape {shape} at {site.path}", got=got, fix=fix)
    return factors.flatten()


# Vectors in front


def _prompt(folder: _Folder) -> tuple[list[tuple[Delta, State]], State]:
    vectors_PD, rest = _vectors(folder)
    return [(SoftPrompt(length=len(vectors_PD)), {"soft_prompt": vectors_PD})], rest


def _vectors(folder: _Folder) -> tuple[Tensor, State]:
    rest = dict(folder.tensors)
    vectors = rest.pop("prompt_embeddings", None)
    length = folder.config.get("num_virtual_tokens")
    if vectors is None or vectors.ndim != 2 or len(vectors) != length:
        got = "none" if vectors is None else f"shape {tuple(vectors.shape)}"
        raise folder.refusal(expected=f"prompt_embeddings of {length} positions", got=got, fix="Copy the whole folder again.")
    if folder.config.get("num_transformer_submodules") not in (None, 1):
        fix = "It is for an encoder and a decoder, which fewtune does not tune."
        raise folder.refusal(expected="one stack", got="several", fix=fix)
    return vectors, rest


def _prefix(folder: _Folder) -> tuple[list[tuple[Delta, State]], State]:
    made_PN, rest = _vectors(folder)
    paths = peft_format.attention_paths(folder.backbone)
    heads, width = int(folder.config.get("num_attention_heads") or 0), int(folder.config.get("token_dim") or 0)
    if not heads or made_PN.shape[1] != 2 * len(paths) * width:
        got = f"{made_PN.shape[1]} numbers for each position"
        fix = "The adapter is for a PLM of another shape."
        raise folder.refusal(expected=f"keys and values of {width} numbers for {len(paths)} blocks", got=got, fix=fix)
    made_NHPE = made_PN.view(len(made_PN), 2 * len(paths), heads, -1).permute(1, 2, 0, 3)
    state: State = {}
    for number, path in enumerate(paths):
        state |= {f"{path}.prefix_key": made_NHPE[2 * number], f"{path}.prefix_value": made_NHPE[2 * number + 1]}
    return [(Prefix(length=len(made_PN)), state)], rest


_READERS: Mapping[str, Callable[[_Folder], tuple[list[tuple[Delta, State]], State]]] = {
    "LORA": _lora,
    "IA3": _ia3,
    "PROMPT_TUNING": _prompt,
    "P_TUNING": _prompt,
    "PREFIX_TUNING": _prefix,
}


# Modules → sites


def _modules(folder: _Folder, parts: Mapping[str, str]) -> tuple[dict[str, State], State]:
    """({module's name: {part: tensor}}, the tensors that are no such part)."""
    modules: dict[str, State] = {}
    rest: State = {}
    for key, tensor in folder.tensors.items():
        ending = next((ending for ending in parts if key.endswith(f".{ending}")), None)
        if ending is None:
            rest[key] = tensor
        else:
            modules.setdefault(key.removesuffix(f".{ending}"), {})[parts[ending]] = tensor
    if not modules:
        raise folder.refusal(expected="weights of an adapter", got="none", fix="Copy the whole folder again.")
    return modules, rest


def _names(folder: _Folder, modules: Iterable[str]) -> Names:
    names = Names(folder.backbone)
    return Names(folder.backbone, bare=not any(name.startswith(names.prefix) for name in modules))


def _complete(folder: _Folder, name: str, parts: Mapping[str, Tensor], wanted: set[str]) -> None:
    if parts.keys() != wanted:
        expected, got = " and ".join(sorted(wanted)), " and ".join(sorted(parts))
        raise folder.refusal(expected=f"{expected} at {name}", got=got, fix="Config and weights are of different adapters.")


def _check_targets(folder: _Folder, names: Names, states: Mapping[str, State]) -> None:
    """What the config means to adapt must be what the file holds, or PEFT itself would give other answers."""
    if folder.config.get("target_modules") is None:
        return
    known = set(peft_format.linear_maps(folder.backbone))
    meant = {path for path in known | states.keys() if peft_format.targets(names.theirs(path), folder.config)}
    for path in sorted(meant ^ states.keys()):
        expected = "weights for each of the target_modules" if path in meant else "weights for the target_modules only"
        got = f"{'none' if path in meant else 'some'} for {names.theirs(path)}"
        raise folder.refusal(expected=expected, got=got, fix="Config and weights are of different adapters.")


def _placed(folder: _Folder, states: Mapping[str, State], *, none: bool = False) -> dict[str, list[Site]]:
    """Site name → its places among the modules; every module must be one, and every place of a site there in its block."""
    left, placed = set(states), dict[str, list[Site]]()
    for name in SITES:
        sites = peft_format.whole_sites(folder.backbone, name)
        blocks = {site.block for site in sites if site.path in left}
        here = [site for site in sites if site.block in blocks]
        if here and all(site.path in left for site in here):
            placed[name] = here
            left -= {site.path for site in here}
    if left or not (placed or none):
        fix = f"Deltas stand at whole sites: {', '.join(name for name in folder.backbone.family.sites if name != 'norms')}."
        raise folder.refusal(expected="an adapter at sites of this PLM", got=f"a part of one, or another place: {min(left)}", fix=fix)
    return placed


def _blocks(sites: Iterable[Site]) -> tuple[int, ...]:
    return tuple(sorted({site.block for site in sites}))


def _top(folder: _Folder, blocks: tuple[int, ...]) -> float:
    """The upper share of the stack that `blocks` are."""
    depth = folder.backbone.depth
    top = next((count / depth for count in range(depth, 0, -1) if folder.backbone.upper(count / depth) == blocks), None)
    if top is None:
        fix = "A delta of fewtune changes every block from some block on."
        raise folder.refusal(expected="the top of the stack", got=f"blocks {', '.join(map(str, blocks))}", fix=fix)
    return top


def _state(states: Mapping[str, State], sites: Iterable[Site]) -> State:
    return {f"{site.path}.{site.name}.{part}": tensor for site in sites for part, tensor in states[site.path].items()}
