"""A job file (TOML) → frozen values: which data, methods, shots and seeds. Knows keys and paths; reads no data, loads no PLM."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fewtune import registry
from fewtune.backbone.catalogue import CATALOGUE
from fewtune.deltas import DELTAS, presets
from fewtune.deltas.delta import Delta
from fewtune.errors import SpecError
from fewtune.model import DEFAULT_LENGTH
from fewtune.prompt import demonstrations
from fewtune.prompt.search import SEARCHES
from fewtune.readout import CALIBRATIONS, READOUTS
from fewtune.recipe import DEFAULT_BACKBONE
from fewtune.registry import Plain, Table
from fewtune.settings import Settings, started
from fewtune.sources import KIND
from fewtune.strategies import STRATEGIES
from fewtune.train.adapt import ADAPTATIONS
from fewtune.train.fit import FitOptions

SEEDS = (13, 21, 42)
_SPECS = ("deltas", "readout", "calibration", "demonstrations", "search", "adapt")


@dataclass(frozen=True)
class DataSet:
    """A table `[data.NAME]`: files, columns, and what is asked, in a task file or here; paths are those of the job file's folder."""

    train: str
    test: str
    unlabeled: str | None = None
    teacher: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    task: str | None = None
    kind: str = KIND
    labels: tuple[str, ...] = ()
    template: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Method:
    """A table `[methods.NAME]`: what the flags of `fewtune fit` say, under their names."""

    strategy: str | None = None
    backbone: tuple[str, ...] = (DEFAULT_BACKBONE,)
    deltas: tuple[str, ...] | None = None
    readout: str | None = None
    calibration: str | None = None
    demonstrations: str | None = None
    search: tuple[str, ...] | None = None
    adapt: tuple[str, ...] | None = None
    start: str | None = None
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = FitOptions.batch_size
    max_length: int = DEFAULT_LENGTH
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True)
class _File:
    """The keys of a job file."""

    data: Mapping[str, DataSet]
    methods: Mapping[str, _Method]
    shots: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = SEEDS
    out: str | None = None


@dataclass(frozen=True)
class JobFile:
    """What is to be compared. Shots of `None` are all rows; `out` is where results are kept; the first method is the baseline."""

    folder: Path
    data: Mapping[str, DataSet]
    methods: Mapping[str, Settings]
    shots: tuple[int | None, ...]
    seeds: tuple[int, ...]
    out: Path

    @classmethod
    def load(cls, path: Path) -> JobFile:
        """Read a job file; raises `SpecError` with the key path where it is not one."""
        where, given = str(path), _toml(path)
        file = registry.from_dict(_File, _shaped(given), where)
        _check(file, where)
        methods = {
            name: _settings(method, given["methods"][name], f"{where}.methods.{name}", path.parent) for name, method in file.methods.items()
        }
        out = path.parent / file.out if file.out else path.with_suffix(".jsonl")
        return cls(path.parent, file.data, methods, file.shots or (None,), file.seeds, out)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(expected="a job file", got=error.strerror or "none", where=str(path), fix="Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(expected="TOML", got=str(error), where=str(path), fix="Mend the file; the README shows a job file.") from None


def _shaped(given: Mapping[str, Plain]) -> dict[str, Plain]:
    """With lists where one item stands alone, and without the specs, which have tables of their own."""
    shaped = _with_lists(given, ("shots", "seeds"))
    if isinstance(given.get("data"), Mapping):
        shaped["data"] = {name: _shaped_data(data) for name, data in given["data"].items()}
    if isinstance(given.get("methods"), Mapping):
        shaped["methods"] = {
            name: {**_with_lists(method, ("backbone",)), **{key: None for key in _SPECS if key in method}}
            if isinstance(method, Mapping)
            else method
            for name, method in given["methods"].items()
        }
    return shaped


def _shaped_data(data: Plain) -> Plain:
    if not isinstance(data, Mapping):
        return data
    shaped = _with_lists(data, ("text", "labels", "template"))
    if isinstance(data.get("words"), Mapping):
        shaped["words"] = _with_lists(data["words"], tuple(data["words"]))
    return shaped


def _with_lists(table: Mapping[str, Plain], keys: tuple[str, ...]) -> dict[str, Plain]:
    return {key: [value] if key in keys and not isinstance(value, list) else value for key, value in table.items()}


def _check(file: _File, where: str) -> None:
    """Refuse what leaves nothing to run, or the same thing twice."""
    for key in ("data", "methods", "seeds", "shots"):
        given = getattr(file, key)
        if given is not None and (not given or len(set(given)) < len(given)):
            raise SpecError(expected="entries that differ, one at least", got=repr(given), where=f"{where}.{key}", fix="List each once.")
    if any(shots < 1 for shots in file.shots or ()):
        raise SpecError(expected="numbers above 0", got=repr(file.shots), where=f"{where}.shots", fix="Leave shots out for all rows.")
    for name, data in file.data.items():
        if data.task and (data.kind != KIND or data.labels or data.template or data.words):
            raise SpecError(
                expected="a task file, or kind, labels, template and words",
                got="both",
                where=f"{where}.data.{name}",
                fix="Say in one place what is asked.",
            )


def _settings(method: _Method, given: Mapping[str, Plain], where: str, folder: Path) -> Settings:
    """What `fewtune fit` would be told; whatever is refused is told by the method's key path."""
    try:
        return _as_flags(method, given, where, folder)
    except SpecError as error:
        if error.where.startswith(where):
            raise
        raise SpecError(expected=error.expected, got=error.got, where=f"{where}: {error.where}", fix=error.fix) from None


def _as_flags(method: _Method, given: Mapping[str, Plain], where: str, folder: Path) -> Settings:
    if method.strategy is not None:
        STRATEGIES.from_text(method.strategy, f"{where}.strategy")
    settings = Settings(
        backbones=() if method.start and "backbone" not in given else tuple(_backbone(name, folder) for name in method.backbone),
        strategy=method.strategy,
        deltas=_deltas(given["deltas"], f"{where}.deltas") if "deltas" in given else None,
        readout=_spec(READOUTS, given["readout"], f"{where}.readout") if "readout" in given else None,
        calibration=_spec(CALIBRATIONS, given["calibration"], f"{where}.calibration") if "calibration" in given else None,
        demonstrations=demonstrations.read(given.get("demonstrations"), f"{where}.demonstrations"),
        search=_specs(SEARCHES, given["search"], f"{where}.search") if "search" in given else (),
        adapt=_specs(ADAPTATIONS, given["adapt"], f"{where}.adapt") if "adapt" in given else (),
        fit=FitOptions(steps=method.steps, learning_rate=method.learning_rate, batch_size=method.batch_size),
        max_length=method.max_length,
        precision=method.precision,
    )
    return settings if method.start is None else started(settings, (folder / method.start).resolve())


def _backbone(name: str, folder: Path) -> str:
    """A model folder beside the job file, in full, for jobs may run elsewhere; any other name as it is."""
    beside = folder / name
    return str(beside.resolve()) if name not in CATALOGUE and (beside / "config.json").is_file() else name


def _deltas(given: Plain, where: str) -> tuple[Delta, ...]:
    """Text as `--delta` takes it, presets among them, or tables."""
    items = given if isinstance(given, list) else [given]
    places = [(item, f"{where}[{number}]") for number, item in enumerate(items)]
    return tuple(
        delta
        for item, place in places
        for delta in (presets.read(item, place) if isinstance(item, str) else (DELTAS.from_dict(item, place),))
    )


def _specs(table: Table[Any], given: Plain, where: str) -> tuple[Any, ...]:
    items = given if isinstance(given, list) else [given]
    return tuple(_spec(table, item, f"{where}[{number}]") for number, item in enumerate(items))


def _spec(table: Table[Any], given: Plain, where: str) -> Any:
    return table.from_text(given, where) if isinstance(given, str) else table.from_dict(given, where)
