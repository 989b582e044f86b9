"""TunedModel ↔ folder: manifest.json, safetensors, a card (README.md). Versioned, fingerprinted, strict. Knows no training.

Holds only what was trained, and the labelled examples that the model shows, if it shows any; the backbone is named, and its weights
and tokenizer are told apart by fingerprints.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from fewtune import card, registry
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import load as load_backbone
from fewtune.data.example import Example
from fewtune.deltas import DELTAS
from fewtune.deltas.delta import install_saved, load_strictly
from fewtune.errors import ArtifactError, FewtuneError
from fewtune.exits import CRITERIA
from fewtune.exits.criteria import NEVER
from fewtune.exits.exits import Exits
from fewtune.model import TunedModel
from fewtune.precision import has_bfloat16
from fewtune.prompt.demonstrations import Demonstrated, Demonstrations
from fewtune.readout import READOUTS, sentences
from fewtune.readout.calibration import Calibrator
from fewtune.tasks.task import Task

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class BackboneName:
    """Which PLM an artifact belongs to."""

    name: str
    fingerprint: str
    tokenizer_fingerprint: str


def save(model: TunedModel, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the artifact to `folder` in one go: it is there whole or not at all.

    Raises `ArtifactError` if something stands there already and `overwrite` is false, or if it is not an artifact.
    """
    folder = Path(folder)
    check_target(folder, overwrite=overwrite)
    files = {name: to_bytes(_on_cpu(state)) for name, state in tensors(model).items()}
    manifest = _manifest(model, files)
    files[MANIFEST] = (json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
    files["README.md"] = card.write(manifest, sizes={name: len(content) for name, content in files.items()}).encode()
    with whole(folder) as temporary:
        for name, content in files.items():
            write_file(temporary / name, content)
    return folder


def tensors(model: TunedModel) -> dict[str, dict[str, torch.Tensor]]:
    """What was learned, by file and by name; a part that learns nothing has no file."""
    states = {f"delta-{number}.safetensors": delta.state_dict() for number, delta in enumerate(model.deltas)}
    states["readout.safetensors"] = {name: weight.detach().clone() for name, weight in model.reader.weights.items()}
    if model.exits is not None:
        states["exits.safetensors"] = {name: weight.detach().clone() for name, weight in model.exits.weights.items()}
    return {name: state for name, state in states.items() if state}


def check_target(folder: Path, *, overwrite: bool, mark: str = MANIFEST) -> None:
    """Raise `ArtifactError` unless an artifact, which holds a file called `mark`, may be written to `folder`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    fix = "Give another --out."
    if folder.is_dir() and (folder / mark).exists():
        if overwrite:
            return
        fix = "Give another --out, or --overwrite."
    raise ArtifactError(expected="a folder that is not there yet", got="one that is", where=str(folder), fix=fix)


def _on_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _manifest(model: TunedModel, files: Mapping[str, bytes]) -> dict[str, registry.Plain]:
    backbone = model.backbone
    body: dict[str, registry.Plain] = {
        "format": FORMAT,
        "backbone": registry.to_dict(BackboneName(backbone.name, backbone.fingerprint, backbone.tokenizer_fingerprint)),
        "task": model.task.to_dict(),
        "templates": [str(template) for template in model.asked.templates],
        "words": [words.ids for words in model.asked.words],
        "deltas": [DELTAS.to_dict(delta.delta) for delta in model.deltas],
        "readout": READOUTS.to_dict(model.readout),
        "calibrator": model.calibrator.to_dict(),
        "demonstrations": None if model.demonstrations is None else _shown(model.demonstrations),
        "max_length": model.max_length,
        "precision": backbone.precision,
        "trained_parameters": model.trained_parameters,
        "backbone_parameters": backbone.parameters,
        **({} if model.exits is None else {"exits": _way_out(model.exits)}),
        "about": dict(model.about),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
    return {**body, "fingerprint": _fingerprint(body)}


def _shown(demonstrations: Demonstrated) -> dict[str, registry.Plain]:
    """The labelled examples that stand in prompts, how they are drawn, and the weights of the encoder that compares them."""
    spec, fields = demonstrations.spec, demonstrations.task.fields
    return {
        "spec": registry.to_dict(spec),
        "seed": demonstrations.seed,
        "encoder_fingerprint": sentences.loaded(spec.encoder).backbone.fingerprint if spec.compares else None,
        "examples": [[{name: one.fields[name] for name in fields}, one.label] for one in demonstrations.examples],
    }


def _demonstrated(data: Mapping[str, registry.Plain], model: TunedModel, where: str) -> Demonstrated:
    """What `_shown` wrote, ready for `model`."""
    spec = registry.from_dict(Demonstrations, data["spec"], f"{where}.spec")
    examples = [Example(fields, label) for fields, label in data["examples"]]
    embed = sentences.lazily(spec.encoder, data["encoder_fingerprint"])
    return spec.of(examples, model.task, seed=data["seed"], in_front=model.backbone.causal, embed=embed)


def _way_out(exits: Exits) -> dict[str, registry.Plain]:
    """How rows may leave early; a threshold that no row reaches is written as none."""
    return {
        "criterion": CRITERIA.to_dict(exits.criterion),
        "layers": list(exits.layers),
        "ensemble": exits.ensemble,
        "tolerance": exits.tolerance,
        "threshold": exits.threshold if exits.on else None,
        "about": dict(exits.about),
    }


def _exits(data: Mapping[str, registry.Plain], model: TunedModel, state: Mapping[str, torch.Tensor], where: str, file: str) -> Exits:
    """What `_way_out` wrote, with its weights."""
    exits = Exits.install(
        CRITERIA.from_dict(data["criterion"], f"{where}.criterion"),
        data["layers"],
        backbone=model.backbone,
        reader=model.reader,
        candidates=len(model.task.labels),
        ensemble=data["ensemble"],
        tolerance=data["tolerance"],
        threshold=NEVER if data["threshold"] is None else data["threshold"],
        about=data["about"],
    )
    load_strictly(exits.weights, state, file)
    return exits


def _fingerprint(body: Mapping[str, registry.Plain]) -> str:
    """sha256 over everything that decides an answer: label map, templates, words, specs, weights."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place at the end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise ArtifactError(
            expected="a place to write to", got=error.strerror or str(error), where=str(folder), fix="Give another --out."
        ) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        _swap(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(temporary: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old.tmp")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: str | Path) -> dict[str, registry.Plain]:
    """The manifest of an artifact, its own fingerprint checked; raises `ArtifactError`."""
    path = Path(folder) / MANIFEST
    fix = "Give the folder that `fewtune fit --out` wrote."
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(expected="an artifact", got=f"no {MANIFEST}", where=str(folder), fix=fix) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(expected="a readable manifest", got=str(error), where=str(path), fix="Copy the whole folder again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ArtifactError(expected=f"format {FORMAT}", got=repr(got), where=str(path), fix="Install the fewtune that wrote it.")
    body = {key: value for key, value in manifest.items() if key != "fingerprint"}
    if _fingerprint(body) != manifest.get("fingerprint"):
        fix = "The label map, a template, the words or another entry was changed by hand; restore it or fit again."
        raise ArtifactError(expected="the manifest as it was written", got="a changed one", where=str(path), fix=fix)
    return manifest


def load(folder: str | Path, *, backbone: Backbone | None = None, device: str | None = None) -> TunedModel:
    """Read the model that `save` wrote; `backbone` may be given if it is loaded already.

    Raises `ArtifactError` for a missing, extra or changed file or tensor, and when the backbone, its tokenizer or the label
    words are not those that the model was made with.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    states = _states(folder, manifest["files"])
    name = registry.from_dict(BackboneName, manifest["backbone"], f"{folder / MANIFEST}: backbone")
    backbone = backbone or _load_backbone(name, folder, device)
    _check_backbone(name, backbone, folder)
    if manifest["precision"] == "bfloat16" and has_bfloat16(backbone.device):
        backbone.precision = "bfloat16"
    return _assemble(folder, manifest, states, backbone)


def _load_backbone(name: BackboneName, folder: Path, device: str | None) -> Backbone:
    try:
        return load_backbone(name.name, device=device)
    except FewtuneError as error:
        fix = f"The model was made on that PLM ({error}); make it available, or pass it with --backbone."
        raise ArtifactError(expected=f'the PLM "{name.name}"', got="none", where=str(folder), fix=fix) from error


def _check_backbone(name: BackboneName, backbone: Backbone, folder: Path) -> None:
    for what, wanted, got in (
        ("weights", name.fingerprint, backbone.fingerprint),
        ("tokenizer", name.tokenizer_fingerprint, backbone.tokenizer_fingerprint),
    ):
        if wanted != got:
            raise ArtifactError(
                expected=f"{name.name} with {what} {wanted[:12]}",
                got=f"{what} {got[:12]}",
                where=str(folder),
                fix="The PLM is another version than the one the model was made on; use that one or fit again.",
            )


def _states(folder: Path, files: Mapping[str, str]) -> dict[str, dict[str, torch.Tensor]]:
    fix = "Copy the whole folder again."
    extra = sorted({path.name for path in folder.glob("*.safetensors")} - files.keys())
    if extra:
        raise ArtifactError(expected="the files of the manifest", got=f"also {extra[0]}", where=str(folder), fix="Remove it.")
    states = {}
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(expected="a file of the manifest", got="none", where=str(path), fix=fix)
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise ArtifactError(expected=f"the file with sha256 {wanted[:12]}", got="a changed one", where=str(path), fix=fix)
        try:
            states[name] = load_file(path)
        except SafetensorError as error:
            raise ArtifactError(expected="a safetensors file", got=str(error), where=str(path), fix=fix) from None
    return states


def _assemble(
    folder: Path, manifest: Mapping[str, registry.Plain], states: Mapping[str, dict[str, torch.Tensor]], backbone: Backbone
) -> TunedModel:
    where = str(folder / MANIFEST)
    task = Task.from_dict(manifest["task"], f"{where}: task")
    readout = READOUTS.from_dict(manifest["readout"], f"{where}: readout")
    specs = [DELTAS.from_dict(data, f"{where}: deltas[{number}]") for number, data in enumerate(manifest["deltas"])]
    model = TunedModel.assemble(backbone, task, readout, max_length=manifest["max_length"])
    settled = [str(template) for template in model.asked.templates], json.loads(json.dumps([words.ids for words in model.asked.words]))
    if settled != (manifest["templates"], manifest["words"]):
        raise ArtifactError(
            expected="the templates and label words of the manifest",
            got="others for this tokenizer",
            where=where,
            fix="Use the fewtune that wrote it, or fit again.",
        )
    files = [f"delta-{number}.safetensors" for number in range(len(specs))]
    load_strictly(model.reader.weights, states.get("readout.safetensors", {}), f"{folder}/readout.safetensors")
    model.deltas = install_saved(
        backbone, [(spec, states.get(file, {}), f"{folder}/{file}") for spec, file in zip(specs, files, strict=True)]
    )
    model.calibrator = Calibrator.from_dict(manifest["calibrator"], f"{where}: calibrator")
    if manifest.get("demonstrations") is not None:
        model.demonstrations = _demonstrated(manifest["demonstrations"], model, f"{where}: demonstrations")
    if manifest.get("exits") is not None:
        state = states.get("exits.safetensors", {})
        model.exits = _exits(manifest["exits"], model, state, f"{where}: exits", f"{folder}/exits.safetensors")
    model.about = manifest["about"]
    return model
