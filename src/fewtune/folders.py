"""Folders that are there whole or not at all, with a manifest that says what is in them and tells when it was changed.

Knows JSON, safetensors and hashes; nothing of what they hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from fewtune import registry
from fewtune.errors import ArtifactError

MANIFEST = "manifest.json"
_FIX = "Copy the whole folder again."


def check_target(folder: Path, *, overwrite: bool, mark: str = MANIFEST) -> None:
    """Raise `ArtifactError` unless what holds a file called `mark` may be written to `folder`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    fix = "Name another folder."
    if folder.is_dir() and (folder / mark).exists():
        if overwrite:
            return
        fix = "Name another folder, or --overwrite."
    raise ArtifactError(expected="a folder that is not there yet", got="one that is", where=str(folder), fix=fix)


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of the tensors."""
    return to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def sealed(body: Mapping[str, registry.Plain], files: Mapping[str, bytes]) -> dict[str, registry.Plain]:
    """The manifest: `body`, a hash of each file, and a fingerprint over all of it."""
    hashed = {**body, "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}}
    return {**hashed, "fingerprint": _fingerprint(hashed)}


def written(manifest: Mapping[str, registry.Plain]) -> bytes:
    """The text of a manifest's file."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path, *, format: int, what: str, fix: str, name: str = MANIFEST) -> dict[str, registry.Plain]:
    """The manifest called `name`, of `what` in this `format`, its fingerprint checked; raises `ArtifactError`."""
    path = folder / name
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(expected=what, got=f"no {name}", where=str(folder), fix=fix) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(expected="a readable manifest", got=str(error), where=str(path), fix=_FIX) from None
    if not isinstance(manifest, dict) or manifest.get("format") != format:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ArtifactError(expected=f"format {format}", got=repr(got), where=str(path), fix="Install the fewtune that wrote it.")
    body = {key: value for key, value in manifest.items() if key != "fingerprint"}
    if _fingerprint(body) != manifest.get("fingerprint"):
        fix = "The label map, a template, the words or another entry was changed by hand; restore it or fit again."
        raise ArtifactError(expected="the manifest as it was written", got="a changed one", where=str(path), fix=fix)
    return manifest


def _fingerprint(body: Mapping[str, registry.Plain]) -> str:
    """sha256 over everything that decides an answer: label map, templates, words, specs, weights."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raise `ArtifactError` for a file of a manifest that is missing or changed."""
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(expected="a file of the manifest", got="none", where=str(path), fix=_FIX)
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise ArtifactError(expected=f"the file with sha256 {wanted[:12]}", got="a changed one", where=str(path), fix=_FIX)


def states(folder: Path, files: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """The tensors in the safetensors files of a manifest, by file; raises `ArtifactError` for one that is missing, extra or changed."""
    extra = sorted({path.name for path in folder.glob("*.safetensors")} - files.keys())
    if extra:
        raise ArtifactError(expected="the files of the manifest", got=f"also {extra[0]}", where=str(folder), fix="Remove it.")
    check_files(folder, files)
    found = {}
    for name in files:
        try:
            found[name] = load_file(folder / name)
        except SafetensorError as error:
            raise ArtifactError(expected="a safetensors file", got=str(error), where=str(folder / name), fix=_FIX) from None
    return found


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files, whose names may have folders in them, in one go: the folder is there whole or not at all."""
    with whole(folder) as temporary:
        for name, content in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            write_file(temporary / name, content)


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place at the end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise ArtifactError(
            expected="a place to write to", got=error.strerror or str(error), where=str(folder), fix="Name another folder."
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
