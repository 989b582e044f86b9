"""What to tune and how, as one frozen value of real specs: TOML in, JSON out. Knows the specs, runs none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fewtune import registry
from fewtune.deltas import DELTAS
from fewtune.deltas.delta import Delta
from fewtune.model import DEFAULT_LENGTH
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.prompt.search import SEARCHES, Search
from fewtune.readout import CALIBRATIONS, READOUTS
from fewtune.readout.calibration import Calibration
from fewtune.readout.cloze import Cloze
from fewtune.readout.readout import Readout
from fewtune.tasks.task import Task
from fewtune.train.adapt import ADAPTATIONS, Adaptation
from fewtune.train.fit import FitOptions

DEFAULT_BACKBONE = "smollm2-135m"


@dataclass(frozen=True)
class Start:
    """A saved model, whose deltas are gone on with: its folder, and the fingerprint of what is in it."""

    folder: str
    fingerprint: str


def reads_pool(adapt: Sequence[Adaptation], calibration: Calibration | None) -> bool:
    """Whether any of it needs unlabelled rows."""
    return bool(adapt) or (calibration is not None and calibration.needs == "unlabeled")


@dataclass(frozen=True)
class Recipe:
    """One job. `calibration` None means: whichever of none and contextual makes the labelled rows likelier before tuning."""

    task: Task
    backbone: str = DEFAULT_BACKBONE
    deltas: tuple[Delta, ...] = ()
    readout: Readout = field(default_factory=Cloze)
    calibration: Calibration | None = None
    demonstrations: Demonstrations | None = None
    search: tuple[Search, ...] = ()
    adapt: tuple[Adaptation, ...] = ()
    start: Start | None = None
    fit: FitOptions = field(default_factory=FitOptions)
    max_length: int = DEFAULT_LENGTH
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 42

    def to_dict(self) -> dict[str, registry.Plain]:
        """Plain data for JSON."""
        return {
            "task": self.task.to_dict(),
            "backbone": self.backbone,
            "deltas": [DELTAS.to_dict(delta) for delta in self.deltas],
            "readout": READOUTS.to_dict(self.readout),
            "calibration": None if self.calibration is None else CALIBRATIONS.to_dict(self.calibration),
            "demonstrations": None if self.demonstrations is None else registry.to_dict(self.demonstrations),
            "search": [SEARCHES.to_dict(search) for search in self.search],
            "adapt": [ADAPTATIONS.to_dict(one) for one in self.adapt],
            **({} if self.start is None else {"start": registry.to_dict(self.start)}),
            "fit": registry.to_dict(self.fit),
            "max_length": self.max_length,
            "precision": self.precision,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, registry.Plain], where: str = "recipe") -> Recipe:
        """The recipe that `to_dict` wrote or a TOML file holds; errors carry the key path."""
        plain = registry.from_dict(_Plain, {key: value for key, value in data.items() if key not in _SPECS}, where)
        calibration = data.get("calibration")
        deltas = enumerate(data.get("deltas", ()))
        return cls(
            task=Task.from_dict(data.get("task", {}), f"{where}.task"),
            deltas=tuple(DELTAS.from_dict(item, f"{where}.deltas[{number}]") for number, item in deltas),
            readout=READOUTS.from_dict(data.get("readout", {"name": "cloze"}), f"{where}.readout"),
            calibration=None if calibration is None else CALIBRATIONS.from_dict(calibration, f"{where}.calibration"),
            search=tuple(SEARCHES.from_dict(item, f"{where}.search[{number}]") for number, item in enumerate(data.get("search", ()))),
            adapt=tuple(ADAPTATIONS.from_dict(item, f"{where}.adapt[{number}]") for number, item in enumerate(data.get("adapt", ()))),
            backbone=plain.backbone,
            demonstrations=plain.demonstrations,
            start=plain.start,
            fit=plain.fit,
            max_length=plain.max_length,
            precision=plain.precision,
            seed=plain.seed,
        )


_SPECS = ("task", "deltas", "readout", "calibration", "search", "adapt")


@dataclass(frozen=True)
class _Plain:
    """The fields of a recipe that need no table."""

    backbone: str = DEFAULT_BACKBONE
    demonstrations: Demonstrations | None = None
    start: Start | None = None
    fit: FitOptions = field(default_factory=FitOptions)
    max_length: int = DEFAULT_LENGTH
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 42
