"""Tune pre-trained language models with few labels and few parameters."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewtune.artifact import load as load
    from fewtune.data.example import Example as Example
    from fewtune.data.example import Prediction as Prediction
    from fewtune.data.example import Split as Split
    from fewtune.deltas.adapter import Adapter as Adapter
    from fewtune.deltas.lora import LoRA as LoRA
    from fewtune.deltas.prefix import Prefix as Prefix
    from fewtune.deltas.scaling import IA3 as IA3
    from fewtune.deltas.soft_prompt import SoftPrompt as SoftPrompt
    from fewtune.deltas.subset import Subset as Subset
    from fewtune.errors import FewtuneError as FewtuneError
    from fewtune.evaluation import evaluate as evaluate
    from fewtune.exchange import export_peft as export_peft
    from fewtune.exchange import import_peft as import_peft
    from fewtune.job import fit as fit
    from fewtune.job import zeroshot as zeroshot
    from fewtune.model import TunedModel as TunedModel
    from fewtune.plm import load as load_backbone
    from fewtune.prompt.demonstrations import Demonstrations as Demonstrations
    from fewtune.prompt.search import TemplateSearch as TemplateSearch
    from fewtune.prompt.search import WordSearch as WordSearch
    from fewtune.readout.calibration import Contextual as Contextual
    from fewtune.readout.calibration import Temperature as Temperature
    from fewtune.readout.calibration import Uncalibrated as Uncalibrated
    from fewtune.readout.channel import Channel as Channel
    from fewtune.readout.cloze import Cloze as Cloze
    from fewtune.readout.head import Head as Head
    from fewtune.readout.prior import PriorMatching as PriorMatching
    from fewtune.readout.similarity import Similarity as Similarity
    from fewtune.recipe import Recipe as Recipe
    from fewtune.routes import Routes as Routes
    from fewtune.tasks.task import Task as Task
    from fewtune.train.adapt import Auxiliary as Auxiliary
    from fewtune.train.adapt import TaskAdaptive as TaskAdaptive
    from fewtune.train.fit import FitOptions as FitOptions

__version__ = "0.1.0"

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    # Threads that wait for one another sleep soon (OpenMP reads this when torch is loaded). Spinning, as by default, they take a core from
    # the very thread that is waited for where another process is busy, too, and all of it becomes many times slower.
    os.environ["GOMP_SPINCOUNT"] = "1000"

_PUBLIC = {
    "Adapter": "fewtune.deltas.adapter:Adapter",
    "Auxiliary": "fewtune.train.adapt:Auxiliary",
    "Channel": "fewtune.readout.channel:Channel",
    "Cloze": "fewtune.readout.cloze:Cloze",
    "Contextual": "fewtune.readout.calibration:Contextual",
    "Demonstrations": "fewtune.prompt.demonstrations:Demonstrations",
    "Example": "fewtune.data.example:Example",
    "FewtuneError": "fewtune.errors:FewtuneError",
    "FitOptions": "fewtune.train.fit:FitOptions",
    "Head": "fewtune.readout.head:Head",
    "IA3": "fewtune.deltas.scaling:IA3",
    "LoRA": "fewtune.deltas.lora:LoRA",
    "Prediction": "fewtune.data.example:Prediction",
    "Prefix": "fewtune.deltas.prefix:Prefix",
    "PriorMatching": "fewtune.readout.prior:PriorMatching",
    "Recipe": "fewtune.recipe:Recipe",
    "Routes": "fewtune.routes:Routes",
    "Similarity": "fewtune.readout.similarity:Similarity",
    "SoftPrompt": "fewtune.deltas.soft_prompt:SoftPrompt",
    "Split": "fewtune.data.example:Split",
    "Subset": "fewtune.deltas.subset:Subset",
    "Task": "fewtune.tasks.task:Task",
    "TaskAdaptive": "fewtune.train.adapt:TaskAdaptive",
    "TemplateSearch": "fewtune.prompt.search:TemplateSearch",
    "Temperature": "fewtune.readout.calibration:Temperature",
    "TunedModel": "fewtune.model:TunedModel",
    "Uncalibrated": "fewtune.readout.calibration:Uncalibrated",
    "WordSearch": "fewtune.prompt.search:WordSearch",
    "evaluate": "fewtune.evaluation:evaluate",
    "export_peft": "fewtune.exchange:export_peft",
    "fit": "fewtune.job:fit",
    "import_peft": "fewtune.exchange:import_peft",
    "load": "fewtune.artifact:load",
    "load_backbone": "fewtune.plm:load",
    "zeroshot": "fewtune.job:zeroshot",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    """A public name, resolved on first use, so that importing the package loads nothing heavy."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
