"""A PLM by its name, or by a folder of deltas that were trained on one for whatever comes next: these are merged into its weights here.

Knows backbones, deltas and folders; no task and no training.

    backbone.json              the PLM by name and fingerprints, the deltas, how they were trained
    delta-NUMBER.safetensors   what each of them learned
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewtune import folders, registry
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.load import device_of
from fewtune.backbone.load import load as load_bare
from fewtune.data.sampling import derive
from fewtune.deltas import DELTAS
from fewtune.deltas.delta import Delta, Installed, install_saved, remove_all
from fewtune.errors import ArtifactError, FewtuneError, SpecError

FORMAT = 1
MANIFEST = "backbone.json"


@dataclass(frozen=True)
class BackboneName:
    """Which PLM something belongs to."""

    name: str
    fingerprint: str
    tokenizer_fingerprint: str

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneName:
        """The name of a PLM that is loaded."""
        return cls(backbone.name, backbone.fingerprint, backbone.tokenizer_fingerprint)

    def load(self, where: str, *, device: str | None = None) -> Backbone:
        """The very PLM; raises `ArtifactError`, which says what is at `where`, if it cannot be had or is another version, and
        `BackboneError` for a device that is not there."""
        device = device_of(device)
        try:
            backbone = load(self.name, device=device)
        except FewtuneError as error:
            fix = f"The model was made on that PLM ({error}); make it available under that name."
            raise ArtifactError(expected=f'the PLM "{self.name}"', got="none", where=where, fix=fix) from error
        self.check(backbone, where)
        return backbone

    def check(self, backbone: Backbone, where: str) -> None:
        """Raise `ArtifactError` unless weights and tokenizer are those of this name."""
        for what, wanted, got in (
            ("weights", self.fingerprint, backbone.fingerprint),
            ("tokenizer", self.tokenizer_fingerprint, backbone.tokenizer_fingerprint),
        ):
            if wanted != got:
                fix = "The PLM is another version than the one the model was made on; use that one or fit again."
                raise ArtifactError(expected=f"{self.name} with {what} {wanted[:12]}", got=f"{what} {got[:12]}", where=where, fix=fix)


def load(name: str, *, device: str | None = None, say: Callable[[str], None] = lambda line: None) -> Backbone:
    """The PLM called `name`: as `fewtune.backbone.load.load` has it, or a folder that `save` wrote.

    Raises `BackboneError` as that does, and `ArtifactError` for a folder that was changed or whose PLM is not there.
    """
    folder = Path(os.path.expanduser(name))
    if not (folder / MANIFEST).is_file():
        return load_bare(name, device=device, say=say)
    manifest = folders.read_manifest(folder, name=MANIFEST, format=FORMAT, what="a trained PLM", fix="Give the folder that was written.")
    states = folders.states(folder, manifest["files"])
    backbone = registry.from_dict(BackboneName, manifest["backbone"], f"{folder / MANIFEST}: backbone").load(str(folder), device=device)
    specs = [DELTAS.from_dict(data, f"{folder / MANIFEST}: deltas[{number}]") for number, data in enumerate(manifest["deltas"])]
    saved = [(spec, states.get(file, {}), f"{folder / file}") for number, spec in enumerate(specs) for file in [_file(number)]]
    _write_in(backbone, install_saved(backbone, saved))
    backbone.name, backbone.fingerprint = name, manifest["fingerprint"]
    return backbone


def install(backbone: Backbone, deltas: Sequence[Delta], *, seed: int) -> tuple[Installed, ...]:
    """New deltas that can be merged once they are trained; raises `SpecError` for others, and where none is named."""
    if not deltas:
        raise SpecError(expected="something to train", got="none", where="--delta", fix="For example --delta lora.")
    installed: list[Installed] = []
    try:
        for number, delta in enumerate(deltas):
            installed.append(delta.install(backbone, generator=torch.Generator().manual_seed(derive(seed, "init", number))))
        merged(backbone, installed)
    except FewtuneError as error:
        remove_all(installed)
        fix = f"Choose lora, ia3, bitfit or subset, each at a place of its own ({error.fix.rstrip('.')})."
        raise SpecError(expected="deltas that can become part of the weights", got=error.got, where="--delta", fix=fix) from error
    return tuple(installed)


def save(installed: Sequence[Installed], folder: Path, *, about: Mapping[str, registry.Plain], card: str, overwrite: bool = False) -> None:
    """Write trained deltas to `folder`, in one go; `about` are facts for the manifest, `card` is the text of README.md."""
    folders.check_target(folder, overwrite=overwrite, mark=MANIFEST)
    files = {_file(number): folders.packed(delta.state_dict()) for number, delta in enumerate(installed)}
    backbone = installed[0].backbone
    body = {
        "format": FORMAT,
        "backbone": registry.to_dict(BackboneName.of(backbone)),
        "deltas": [DELTAS.to_dict(delta.delta) for delta in installed],
        "trained_parameters": sum(delta.trained_parameters for delta in installed),
        "backbone_parameters": backbone.parameters,
        "about": dict(about),
    }
    files[MANIFEST] = folders.written(folders.sealed(body, files))
    folders.write(folder, {**files, "README.md": card.encode()})


def _file(number: int) -> str:
    return f"delta-{number}.safetensors"


def merged(backbone: Backbone, installed: Sequence[Installed]) -> dict[str, Tensor]:
    """The weights of the PLM with the deltas in them, which stay as they are; raises `BackboneError` for what cannot be merged."""
    undo = []
    try:
        for delta in installed:
            undo.append(delta.merge())
        return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    finally:
        for step in reversed(undo):
            step()


def _write_in(backbone: Backbone, installed: Sequence[Installed]) -> None:
    """Write the deltas into the weights for good and take them out."""
    weights = merged(backbone, installed)
    remove_all(installed)
    backbone.model.load_state_dict(weights)
