"""TunedModel ↔ folder: manifest.json, safetensors, a card (README.md). Versioned, fingerprinted, strict. Knows no training.

Holds only what was trained, and the labelled examples that the model shows, if it shows any; the backbone is named, and its weights
and tokenizer are told apart by fingerprints. Models that answer side by side are such folders in a folder, whose manifest says how their
answers become one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewtune import card, folders, registry
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example
from fewtune.deltas import DELTAS
from fewtune.deltas.delta import Delta, install_saved, load_strictly
from fewtune.errors import ArtifactError
from fewtune.exits import CRITERIA
from fewtune.exits.criteria import NEVER
from fewtune.exits.exits import Exits
from fewtune.folders import MANIFEST, check_target
from fewtune.model import TunedModel
from fewtune.plm import BackboneName
from fewtune.precision import has_bfloat16
from fewtune.prompt.demonstrations import Demonstrated, Demonstrations
from fewtune.readout import READOUTS, sentences
from fewtune.readout.calibration import Calibrator
from fewtune.readout.mixing import Mix
from fewtune.readout.readout import Readout
from fewtune.routes import Routes
from fewtune.tasks.task import Task

FORMAT = 1
_CARD = "README.md"


def save(model: TunedModel | Routes, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the artifact to `folder` in one go: it is there whole or not at all.

    Raises `ArtifactError` if something stands there already and `overwrite` is false, or if it is not an artifact.
    """
    folder = Path(folder)
    check_target(folder, overwrite=overwrite)
    folders.write(folder, _files(model))
    return folder


def _files(model: TunedModel | Routes) -> dict[str, bytes]:
    """Every file of the artifact by its name; nobody checks whether a card is as it was written."""
    if isinstance(model, Routes):
        body = _beside(model)
        named = zip(body["routes"], model.models, strict=True)
        files = {f"{said['folder']}/{name}": content for said, one in named for name, content in _files(one).items()}
    else:
        body = _body(model)
        files = {name: folders.packed(state) for name, state in tensors(model).items()}
    manifest = folders.sealed(body, {name: content for name, content in files.items() if Path(name).name != _CARD})
    files[MANIFEST] = folders.written(manifest)
    return {**files, _CARD: card.write(manifest, sizes={name: len(content) for name, content in files.items()}).encode()}


def tensors(model: TunedModel) -> dict[str, dict[str, torch.Tensor]]:
    """What was learned, by file and by name; a part that learns nothing has no file."""
    states = {f"delta-{number}.safetensors": delta.state_dict() for number, delta in enumerate(model.deltas)}
    states["readout.safetensors"] = {name: weight.detach().clone() for name, weight in model.reader.weights.items()}
    if model.exits is not None:
        states["exits.safetensors"] = {name: weight.detach().clone() for name, weight in model.exits.weights.items()}
    return {name: state for name, state in states.items() if state}


def _body(model: TunedModel) -> dict[str, registry.Plain]:
    """What the manifest says beside the files."""
    backbone = model.backbone
    return {
        "format": FORMAT,
        "backbone": registry.to_dict(BackboneName.of(backbone)),
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
    }


def _beside(routes: Routes) -> dict[str, registry.Plain]:
    """What the manifest of models side by side says beside the files."""
    return {
        "format": FORMAT,
        "task": routes.task.to_dict(),
        "routes": [
            {"folder": f"route-{number}", "backbone": model.backbone.name, "method": model.about.get("method", "")}
            for number, model in enumerate(routes.models, start=1)
        ],
        "mix": registry.to_dict(routes.mix),
        "calibrator": routes.calibrator.to_dict(),
        "max_length": routes.max_length,
        "trained_parameters": routes.trained_parameters,
        "backbone_parameters": routes.backbone_parameters,
        "about": dict(routes.about),
    }


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


def read_manifest(folder: str | Path) -> dict[str, registry.Plain]:
    """The manifest of an artifact, its own fingerprint checked; raises `ArtifactError`."""
    return folders.read_manifest(Path(folder), format=FORMAT, what="an artifact", fix="Give the folder that `fewtune fit --out` wrote.")


@dataclass(frozen=True)
class Saved:
    """What `save` wrote to `folder`, read and told apart, not installed: `states` are the tensors by file and by name."""

    folder: Path
    manifest: Mapping[str, registry.Plain]
    states: Mapping[str, Mapping[str, torch.Tensor]]

    @property
    def backbone(self) -> BackboneName:
        """The PLM that it was made on."""
        return registry.from_dict(BackboneName, self.manifest["backbone"], f"{self.where}: backbone")

    @property
    def task(self) -> Task:
        """What it was made for."""
        return Task.from_dict(self.manifest["task"], f"{self.where}: task")

    @property
    def readout(self) -> Readout:
        """How it reads."""
        return READOUTS.from_dict(self.manifest["readout"], f"{self.where}: readout")

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """What it changes of the PLM."""
        return tuple(DELTAS.from_dict(data, f"{self.where}: deltas[{number}]") for number, data in enumerate(self.manifest["deltas"]))

    @property
    def calibrator(self) -> Calibrator:
        """What is taken off its scores."""
        return Calibrator.from_dict(self.manifest["calibrator"], f"{self.where}: calibrator")

    @property
    def demonstrations(self) -> Demonstrations | None:
        """How labelled examples are shown, if they are."""
        shown = self.manifest.get("demonstrations")
        return None if shown is None else registry.from_dict(Demonstrations, shown["spec"], f"{self.where}: demonstrations.spec")

    @property
    def where(self) -> str:
        """The manifest's place, for errors."""
        return str(self.folder / MANIFEST)

    def learned(self) -> list[tuple[Mapping[str, torch.Tensor], str]]:
        """What each delta learned, with the file that holds it."""
        files = [f"delta-{number}.safetensors" for number in range(len(self.manifest["deltas"]))]
        return [(self.states.get(file, {}), f"{self.folder}/{file}") for file in files]

    def read_by(self) -> tuple[Mapping[str, torch.Tensor], str]:
        """What the readout learned, with the file that holds it."""
        return self.states.get("readout.safetensors", {}), f"{self.folder}/readout.safetensors"


def read(folder: str | Path) -> Saved:
    """What `save` wrote of a model on one PLM; raises `ArtifactError` for a missing, extra or changed file, and for several models."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if "routes" in manifest:
        got, fix = f"{len(manifest['routes'])} side by side", f"Give one of them: {folder / manifest['routes'][0]['folder']}."
        raise ArtifactError(expected="a model on one PLM", got=got, where=str(folder), fix=fix)
    return Saved(folder, manifest, folders.states(folder, manifest["files"]))


def load(folder: str | Path, *, backbone: Backbone | None = None, device: str | None = None) -> TunedModel | Routes:
    """Read what `save` wrote, a model or several side by side; `backbone` may be given if it is loaded already, and there is but one.

    Raises `ArtifactError` for a missing, extra or changed file or tensor, and when the backbone, its tokenizer or the label
    words are not those that the model was made with.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if "routes" not in manifest or backbone is not None:
        return load_one(folder, backbone=backbone, device=device)
    # Each route's manifest vouches for its other files, which are looked at where it is read.
    folders.check_files(folder, {name: wanted for name, wanted in manifest["files"].items() if Path(name).name == MANIFEST})
    models = tuple(load_one(folder / one["folder"], device=device) for one in manifest["routes"])
    where = str(folder / MANIFEST)
    mix = registry.from_dict(Mix, manifest["mix"], f"{where}: mix")
    return Routes(models, mix, Calibrator.from_dict(manifest["calibrator"], f"{where}: calibrator"), manifest["about"])


def load_one(folder: str | Path, *, backbone: Backbone | None = None, device: str | None = None) -> TunedModel:
    """The same of a model on one PLM; raises `ArtifactError` for several side by side, too."""
    saved = read(folder)
    if backbone is None:
        backbone = saved.backbone.load(str(folder), device=device)
    else:
        saved.backbone.check(backbone, str(folder))
    return _assemble(saved, backbone)


def rebuilt(model: TunedModel, deltas: Sequence[tuple[Delta, Mapping[str, torch.Tensor]]]) -> TunedModel:
    """The same model with other deltas, each with what it learned, on a PLM of its own; raises as `load` does."""
    # As if it were read from a folder.
    body = json.loads(folders.written({**_body(model), "deltas": [DELTAS.to_dict(spec) for spec, _ in deltas]}))
    states = {name: state for name, state in tensors(model).items() if not name.startswith("delta-")}
    states |= {f"delta-{number}.safetensors": dict(state) for number, (_, state) in enumerate(deltas)}
    backbone = BackboneName.of(model.backbone).load("the model", device=str(model.backbone.device))
    return _assemble(Saved(Path("the model"), body, states), backbone)


def _assemble(saved: Saved, backbone: Backbone) -> TunedModel:
    manifest, where = saved.manifest, saved.where
    if manifest["precision"] == "bfloat16" and has_bfloat16(backbone.device):
        backbone.precision = "bfloat16"
    specs = saved.deltas
    model = TunedModel.assemble(backbone, saved.task, saved.readout, max_length=manifest["max_length"])
    settled = [str(template) for template in model.asked.templates], json.loads(json.dumps([words.ids for words in model.asked.words]))
    if settled != (manifest["templates"], manifest["words"]):
        raise ArtifactError(
            expected="the templates and label words of the manifest",
            got="others for this tokenizer",
            where=where,
            fix="Use the fewtune that wrote it, or fit again.",
        )
    load_strictly(model.reader.weights, *saved.read_by())
    model.deltas = install_saved(backbone, [(spec, *learned) for spec, learned in zip(specs, saved.learned(), strict=True)])
    model.calibrator = saved.calibrator
    if manifest.get("demonstrations") is not None:
        model.demonstrations = _demonstrated(manifest["demonstrations"], model, f"{where}: demonstrations")
    if manifest.get("exits") is not None:
        state = saved.states.get("exits.safetensors", {})
        model.exits = _exits(manifest["exits"], model, state, f"{where}: exits", f"{saved.folder}/exits.safetensors")
    model.about = manifest["about"]
    return model
