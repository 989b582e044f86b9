"""What the user said and what was left open, settled into a recipe: the strategy, the PLMs, a readout and deltas that suit them.

Knows every spec and its default; reads no file but that of a saved model to go on from, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fewtune import artifact
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.data.sampling import others
from fewtune.deltas import DELTAS
from fewtune.deltas.delta import Delta
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.errors import SpecError, TaskError
from fewtune.model import DEFAULT_LENGTH
from fewtune.prompt.defaults import single_tokens
from fewtune.prompt.demonstrations import Demonstrations
from fewtune.prompt.search import SEARCHES, Search
from fewtune.prompt.template import Template
from fewtune.readout import READOUTS
from fewtune.readout.calibration import Calibration
from fewtune.readout.cloze import Cloze
from fewtune.readout.generate import Generate
from fewtune.readout.head import Head
from fewtune.readout.likelihood import Likelihood
from fewtune.readout.readout import Readout
from fewtune.readout.similarity import Similarity
from fewtune.recipe import DEFAULT_BACKBONE, Recipe, Start, reads_pool
from fewtune.strategies import STRATEGIES, searching, starting
from fewtune.strategies.pet import LEAST
from fewtune.strategies.strategy import Strategy
from fewtune.tasks import kind_of, one_label
from fewtune.tasks.task import Task
from fewtune.train.adapt import ADAPTATIONS, Adaptation
from fewtune.train.fit import FitOptions

DEFAULT_DELTAS: tuple[Delta, ...] = (LoRA(top=1 / 3),)
PAIRED_DELTAS: tuple[Delta, ...] = (LoRA(top=1 / 2, sites=("query", "value", "ffn_in", "ffn_out"), alpha=48.0),)
"""What is tuned by default where the readout learns from pairs; docs/defaults.md has the runs."""
BESIDE = "minilm-l6"
"""The PLM that is judged beside the default one: where texts are told apart by their subject, it does so as well or better."""
PETS = ("pet", "ipet")
JOINT = ("ladder", *PETS)
"""The strategies that take several PLMs."""
_LABELS = "{labels}"


@dataclass(frozen=True)
class Settings:
    """How to tune, where the user may leave everything open; `None` stands for the default.

    Of several `backbones`, each of which counts once, the ladder keeps a way of each, or of the one that is better; where none is named
    those are a language model and a sentence encoder.
    """

    backbones: tuple[str, ...] = ()
    strategy: str | None = None
    deltas: tuple[Delta, ...] | None = None
    readout: Readout | None = None
    calibration: Calibration | None = None
    demonstrations: Demonstrations | None = None
    search: tuple[Search, ...] = ()
    adapt: tuple[Adaptation, ...] = ()
    start: Start | None = None
    fit: FitOptions = field(default_factory=FitOptions)
    max_length: int = DEFAULT_LENGTH
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str | None = None
    seed: int = 42

    @property
    def spec(self) -> Strategy:
        """The strategy: the one that is named; else the ladder, unless something of the method is settled already."""
        usual = "supervised" if self.settled else "ladder"
        return STRATEGIES.from_text(self.strategy or usual, "--strategy")

    @property
    def settled(self) -> tuple[str, ...]:
        """The flags that settle something of the method already."""
        given = {
            "--start": self.start,
            "--delta": self.deltas,
            "--readout": self.readout,
            "--calibration": self.calibration,
            "--demonstrations": self.demonstrations,
            "--steps": self.fit.steps,
            "--learning-rate": self.fit.learning_rate,
        }
        return tuple(flag for flag, choice in given.items() if choice is not None)

    @property
    def way(self) -> str:
        """The strategy's name."""
        return STRATEGIES.name_of(self.spec)

    @property
    def backbone(self) -> str:
        """The PLM that comes first, and is the only one unless the ladder judges."""
        return self.backbones[0] if self.backbones else DEFAULT_BACKBONE

    @property
    def beside(self) -> tuple[str, ...]:
        """The PLMs that the ladder judges, or PET tunes, beside it."""
        usual = (BESIDE,) if self.way in JOINT else ()
        return tuple(dict.fromkeys(self.backbones))[1:] if self.backbones else usual

    @property
    def judged(self) -> tuple[str, ...]:
        """All PLMs that are needed, the first one first."""
        return self.backbone, *self.beside

    def __post_init__(self) -> None:
        if self.beside and self.way not in JOINT:
            fix = "Leave --strategy, --delta, --readout and the like out, so that PLMs are judged; or name one --backbone."
            got = f"{len(self.backbones)} for strategy {self.way}"
            raise SpecError(expected="one PLM", got=got, where="--backbone", fix=fix)
        if self.start and self.way != "supervised":
            raise SpecError(expected="strategy supervised", got=self.way, where="--start", fix="Leave --strategy and --teacher out.")


def started(settings: Settings, folder: str | Path) -> Settings:
    """The settings of a fit that goes on from the model in `folder`: its deltas; its PLM and readout, with demonstrations, unless named.

    Raises `ArtifactError` for a folder that is no model, `SpecError` where deltas are named beside it.
    """
    saved = artifact.read(folder)
    if settings.deltas is not None:
        fix = "Leave --delta or --start out."
        raise SpecError(expected="the deltas of the saved model alone", got="others beside it", where="--delta", fix=fix)
    return replace(
        settings,
        backbones=settings.backbones or (saved.backbone.name,),
        deltas=starting.further(saved),
        readout=settings.readout or saved.readout,
        demonstrations=settings.demonstrations or (None if settings.readout else saved.demonstrations),
        start=Start(str(folder), saved.manifest["fingerprint"]),
    )


def routes(backbones: Sequence[str], readouts: Sequence[Readout]) -> list[tuple[str, Readout | None]]:
    """Which PLM is read how, of those that answer side by side: a readout for each, in their order, one for all, or none.

    Raises `SpecError` for another number of them.

    >>> routes(["smollm2-135m", "minilm-l6"], [])
    [('smollm2-135m', None), ('minilm-l6', None)]
    """
    if len(readouts) not in (0, 1, len(backbones)):
        got, fix = f"{len(readouts)} for {len(backbones)} PLMs", "Repeat --backbone: each --readout is that of one, in their order."
        raise SpecError(expected="a readout for each PLM, one for all, or none", got=got, where="--readout", fix=fix)
    return list(zip(backbones, readouts if len(readouts) == len(backbones) else [*readouts, None][:1] * len(backbones), strict=True))


def beside_each_other(task: Task, way: Settings) -> list[Settings]:
    """The usual language model and the usual sentence encoder, untuned, where nothing of the method is named and labels are all that there
    is; docs/defaults.md has the runs. Else the way that was named."""
    named = way.backbones or way.readout is not None or task.templates
    if named or not kind_of(task).paired:
        return [way]
    return [replace(way, backbones=(name,)) for name in (DEFAULT_BACKBONE, BESIDE)]


def with_pool(task: Task, settings: Settings, split: Split, say: Callable[[str], None]) -> Settings:
    """PET where nothing else is wanted, of the pool either, and there are enough unlabelled rows, or some that a teacher has labelled.

    Nobody asked for a small student then, so it must not be worse at all. Where the pool is not learned from, that is said.

    Raises `SpecError` for a strategy that has no use for a teacher.
    """
    if split.taught and settings.strategy is not None and settings.way not in PETS:
        fix = "Leave --teacher or --strategy out, or choose --strategy pet."
        raise SpecError(expected="a strategy that learns from a teacher", got=settings.way, where="--teacher", fix=fix)
    if settings.strategy is not None or not (split.taught or split.unlabeled):
        return settings
    why, other = None if split.taught else _why_not(task, settings, split), reads_pool(settings.adapt, settings.calibration)
    if why is None and (split.taught or not other):
        return replace(settings, strategy="pet:margin=0")
    if not other:
        rows = f"{count:,} unlabelled rows are" if (count := len(split.unlabeled)) > 1 else "one unlabelled row is"
        decided = "" if settings.start or not one_label(task) else "; --strategy pet decides otherwise"
        say(f"The {rows} not learned from ({why}){decided}.")
    return settings


def _why_not(task: Task, settings: Settings, split: Split) -> str | None:
    """Why unlabelled rows are no reason for PET, if they are none."""
    if not one_label(task):
        return f"{task.kind} is not learned so"
    if settings.settled:
        return f"{settings.settled[0]} settles the method"
    different = len(others(split.unlabeled, without=split.train))
    if different >= LEAST:
        return None
    return (
        f"fewer than {LEAST}" if len(split.unlabeled) < LEAST else f"fewer than {LEAST} different texts that are not labelled: {different}"
    )


def suited(task: Task, settings: Settings) -> Settings:
    """One PLM where none is named and the task has no labels: a sentence encoder, which is judged beside it, could only tell labels."""
    return settings if settings.backbones or kind_of(task).offered == "task" else replace(settings, backbones=(settings.backbone,))


def without_slot(recipe: Recipe) -> Recipe:
    """Those that read no word are given the bare texts: a template with a slot was meant for other PLMs."""
    slots = [Template.parse(text).slot for text in recipe.task.templates]
    return recipe if recipe.readout.needs_slot or not any(slots) else replace(recipe, task=replace(recipe.task, templates=()))


def recipe_of(task: Task, backbone: Backbone, settings: Settings) -> Recipe:
    """Defaults for what the user left open: a readout that suits the PLM and the kind of task, LoRA in the upper blocks.

    Raises `TaskError` for a readout that cannot answer the task.
    """
    untuned = settings.way == "zeroshot"
    readout = settings.readout or readout_of(task, backbone, untuned=untuned)
    _check_readout(task, readout, settings)
    usual = () if untuned else PAIRED_DELTAS if readout.pairs else DEFAULT_DELTAS
    deltas = usual if settings.deltas is None else settings.deltas
    recipe = Recipe(
        task=task,
        backbone=backbone.name,
        deltas=tuple(_named(delta, task) for delta in deltas),
        readout=readout,
        calibration=settings.calibration,
        demonstrations=settings.demonstrations,
        search=settings.search,
        adapt=settings.adapt,
        start=settings.start,
        fit=settings.fit,
        max_length=settings.max_length,
        precision=settings.precision,
        seed=settings.seed,
    )
    searching.check(recipe)
    return without_slot(recipe) if untuned else recipe


def _check_readout(task: Task, readout: Readout, settings: Settings) -> None:
    kind, name, expected = kind_of(task), READOUTS.name_of(readout), f"a readout for {task.kind}"
    if (kind.offered == "none") != isinstance(readout, Generate):
        got, fix = (
            (name, "Leave --readout out.") if kind.offered == "none" else (f"{name}, which writes free text", "Take --kind generation.")
        )
        raise TaskError(expected=expected, got=got, where="--readout", fix=fix)
    if kind.offered == "none" and len(task.templates) > 1:
        fix = "Name one --template: texts that are written have no mean."
        raise TaskError(expected="one template", got=str(len(task.templates)), where="task.templates", fix=fix)
    if settings.way == "zeroshot" and kind.independent:
        fix = "Label some rows and use `fewtune fit`."
        raise TaskError(expected="one label a row", got=task.kind, where="strategy zeroshot", fix=fix)
    if kind.offered == "row" and (refused := _unfit(readout)):
        fix = "Choose --readout likelihood, or leave it out."
        raise TaskError(expected=expected, got=f"{name}, {refused}", where="--readout", fix=fix)
    if kind.offered != "task" and settings.demonstrations is not None:
        fix = "Leave --demonstrations out."
        raise TaskError(expected="labels, of each of which a row is shown", got=task.kind, where="--demonstrations", fix=fix)
    if readout.pairs and not kind.paired and settings.way != "zeroshot":
        fix = "Choose --readout head, or cloze with a PLM that has an LM head."
        raise TaskError(expected=expected, got=f"{name}, which learns which rows are of one label", where="--readout", fix=fix)
    if readout.needs_slot and kind.independent:
        fix = "Choose --readout head, or similarity with a sentence encoder."
        raise TaskError(expected=expected, got=f"{name}, whose slot holds the word of one label", where="--readout", fix=fix)


def _unfit(readout: Readout) -> str | None:
    """Why a readout cannot tell candidates of each row's own apart, if it cannot."""
    if readout.reverses:
        return "which puts the same words before every row's text"
    if not readout.needs_slot:
        return "which learns labels that all rows share"
    return None if readout.spells else "which reads a first token only, where candidates are texts"


def readout_of(task: Task, backbone: Backbone, *, untuned: bool = False) -> Readout:
    """The slot's one token where it tells all label words apart, else their likelihood; without an LM head similarity.

    Per byte where rows have candidates of their own, which differ in length. A head instead where a slot cannot hold the answer, or where
    rows to learn from share no labels.
    """
    kind = kind_of(task)
    if kind.offered == "row":
        return Likelihood(per="byte")
    if kind.offered == "none":
        return Generate()
    if not backbone.has_lm_head:
        return Similarity() if kind.paired or untuned else Head()
    if kind.independent:
        return Head()
    return Cloze() if single_tokens(task, backbone.tokenizer, seq2seq=backbone.seq2seq) else Likelihood(per="token")


def _named(delta: Delta, task: Task) -> Delta:
    """`{labels}` in the text from which a prompt or a prefix starts stands for the label words (Lester et al. 2021, section 3.2)."""
    if isinstance(delta, SoftPrompt | Prefix) and _LABELS in delta.text:
        words = [word for label in task.labels for word in task.words.get(label, (label,))]
        return replace(delta, text=delta.text.replace(_LABELS, " ".join(words)))
    return delta


def method(recipe: Recipe, strategy: str) -> str:
    """The method in a few words.

    >>> method(Recipe(Task(labels=("a", "b"))), "zeroshot")
    'zeroshot, cloze'
    """
    found = (f"searched {SEARCHES.name_of(search)}" for search in recipe.search)
    parts = [
        strategy,
        READOUTS.name_of(recipe.readout),
        *found,
        *map(ADAPTATIONS.name_of, recipe.adapt),
        *(DELTAS.name_of(delta) for delta in recipe.deltas),
    ]
    parts += ["demonstrations"] if recipe.demonstrations else []
    return ", ".join(parts)
