"""Pre-training: a language model learns to predict the tokens of a corpus, all of its weights or low-rank updates of them. Knows backbones
and blocks of ids; no file of text, no task and no label.

Dimensions: B blocks, T tokens, N predictions, D width.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fewtune import forecast
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.update import Update
from fewtune.data.corpus import Blocks, Order
from fewtune.data.sampling import derive
from fewtune.data.writers import write_text
from fewtune.deltas.delta import Delta, Installed
from fewtune.deltas.lora import LoRA, LowRank
from fewtune.errors import BackboneError, DataError, SpecError
from fewtune.precision import Wanted, settle_for_language
from fewtune.prompt.tokens import word_starts
from fewtune.strategies import trainable
from fewtune.train.fit import FitOptions, Group, Session, fit
from fewtune.train.language import MASKED, Masking, Predictions, language_loss, next_tokens, perplexity

FRESH, CONTINUED = 1e-3, 1e-4
"""Learning rates of weights that start at random, and of those that were trained before."""


@dataclass(frozen=True)
class Pretraining:
    """How a language is learned. What is predicted, masked or next tokens, is the backbone's nature.

    Without `deltas` all weights are trained; with them, which are low-rank, these and a new LM head. `masked` is the share of the tokens
    that a masked LM is to predict while it learns; `whole_words`: words are masked instead of tokens (held-out blocks are judged with 0.15
    of the tokens whatever these are). It takes `epochs` over the blocks unless `fit` says how many steps. `points` is how often the
    held-out blocks are judged.
    """

    deltas: tuple[Delta, ...] = ()
    masked: float = MASKED
    whole_words: bool = False
    epochs: float = 1.0
    points: int = 10
    precision: Wanted = "auto"
    fit: FitOptions = FitOptions(batch_size=32, average=0.0)
    seed: int = 42

    def __post_init__(self) -> None:
        for name, holds in {"epochs": 0 < self.epochs < math.inf, "points": self.points >= 1}.items():
            if not holds:
                raise SpecError(expected="a number above 0", got=repr(getattr(self, name)), where=f"--{name}", fix="Change the value.")
        if not 0 < self.masked < 1:
            raise SpecError(expected="a share between 0 and 1", got=str(self.masked), where="--masked", fix="BERT has 0.15.")
        for delta in self.deltas:
            if not isinstance(delta, LoRA):
                fix = "Take lora, or leave --delta out to train all weights."
                raise SpecError(expected="a low-rank delta", got=type(delta).__name__, where="--delta", fix=fix)
            if delta.dropout:
                fix = "Leave it out: what is pre-trained sees hardly any text twice."
                raise SpecError(expected="no dropout", got=f"{delta.dropout:g}", where="--delta lora:dropout", fix=fix)

    def run(
        self, backbone: Backbone, blocks: Blocks, *, new: frozenset[str] = frozenset(), earlier: Update | None = None, session: Session
    ) -> Learned:
        """Train `backbone`, whose weights of the names `new` are still random; `earlier` is what these and the deltas begin with.

        Raises `DataError` for too few blocks, `SpecError` for deltas that are not those of the update.
        """
        if not blocks.trained or not blocks.held_out():
            fix = "Give more text, or a shorter --length."
            raise DataError(expected="at least two blocks of text", got=str(len(blocks)), where="corpus", fix=fix)
        generator = torch.Generator().manual_seed(derive(self.seed, "init"))
        deltas = tuple(delta.install(backbone, generator=generator) for delta in self.deltas)
        _check_apart(deltas)
        if earlier is not None:
            _go_on(earlier, backbone, deltas, new)
        language = Language(backbone, blocks, self.fit.batch_size, self.seed, self.whole_words, self.masked)
        settle_for_language(backbone, self.precision, lambda: language.loss(language.at(0)))
        backbone.precision = session.world.told(backbone.precision)
        together = self.fit.accumulate * session.world.size
        groups, steps = _groups(self, backbone, deltas, new), self._steps(blocks, together)
        trained = [weight for group in groups for weight in group.weights.values()]
        _announce(language, trained, steps, together, session)
        curve = _Curve(language, _when(steps, self.points), together, session)
        curve.judge(0)
        begun, judging = time.perf_counter(), curve.seconds
        losses = fit(groups, language.at, language.loss, steps=steps, options=self.fit, seed=self.seed, session=curve.session)
        seconds = time.perf_counter() - begun
        return Learned(
            curve.points(losses),
            steps,
            sum(weight.numel() for weight in trained),
            seconds,
            curve.steps_here * together * language.tokens / (seconds - curve.seconds + judging) if curve.steps_here else None,
            deltas,
        )

    def _steps(self, blocks: Blocks, together: int) -> int:
        size = self.fit.batch_size * together
        return self.fit.steps if self.fit.steps is not None else math.ceil(self.epochs * blocks.trained / size)


@dataclass(frozen=True)
class Point:
    """The curve after `step` steps: the mean training loss since the point before, and the loss on the held-out blocks, in nats a
    prediction."""

    step: int
    tokens: int
    loss: float | None
    held_out: float

    @property
    def perplexity(self) -> float:
        """e to the held-out loss."""
        return math.exp(self.held_out)

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain data for JSON."""
        return {"step": self.step, "tokens": self.tokens, "loss": self.loss, "held_out": self.held_out, "perplexity": self.perplexity}


@dataclass(frozen=True)
class Language:
    """Blocks as a backbone learns them: `at` gives batch number n, a pure function, and `loss` what is minimised of it.

    `masked` is the share of its tokens that is asked for; of held-out blocks it is `MASKED` of the tokens, so that losses can be compared.
    """

    backbone: Backbone
    blocks: Blocks
    batch_size: int
    seed: int
    whole_words: bool = False
    masked: float = MASKED
    order: Order = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", Order(self.blocks.trained, self.seed))

    @property
    def tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch_size * self.blocks.length

    @cached_property
    def _masking(self) -> Masking:
        tokenizer, size = self.backbone.tokenizer, self.backbone.vocabulary
        starts = word_starts(tokenizer, size) if self.whole_words else ()
        return Masking(tokenizer.mask_token_id, frozenset(tokenizer.all_special_ids), min(len(tokenizer), size), self.masked, starts)

    @cached_property
    def _judging(self) -> Masking:
        return replace(self._masking, share=MASKED, starts=())

    def at(self, number: int) -> tuple[Tensor, Predictions]:
        """(mask_BT, what is given and asked) of a batch."""
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        places = [self.blocks.training(self.order.at(position)) for position in positions]
        return self._asked(places, derive(self.seed, "masking", number))

    def held_out(self) -> Iterator[tuple[Tensor, Predictions]]:
        """The held-out blocks, masked in the same way each time."""
        places = self.blocks.held_out()
        for start in range(0, len(places), self.batch_size):
            yield self._asked(places[start : start + self.batch_size], derive(self.seed, "held-out", start), judging=True)

    def _asked(self, places: Sequence[int], seed: int, *, judging: bool = False) -> tuple[Tensor, Predictions]:
        ids_BT, mask_BT = map(torch.from_numpy, self.blocks.rows(places))
        if self.backbone.causal:
            asked = next_tokens(ids_BT, mask_BT)
        else:
            asked = (self._judging if judging else self._masking).hide(ids_BT, mask_BT, seed=seed)
        return mask_BT.to(self.backbone.device), asked.to(self.backbone.device)

    def loss(self, drawn: tuple[Tensor, Predictions]) -> Tensor:
        """The mean loss of a batch's predictions; only states that predict something go through the LM head."""
        mask_BT, asked = drawn
        states_ND = self.backbone.forward(asked.ids_BT, mask_BT).hidden_BTD.flatten(0, 1)[asked.places_N]
        head, weights = self.backbone.lm_logits, self.backbone.lm_weights
        return language_loss(states_ND, asked.targets_N, lambda part_ND: head(part_ND, None), weights=weights)

    @torch.no_grad()
    def judged(self) -> float:
        """The mean loss over all predictions in the held-out blocks; raises `DataError` where there is nothing to predict in them."""
        sums = [(self.loss(drawn).item() * len(drawn[1].targets_N), len(drawn[1].targets_N)) for drawn in self.held_out()]
        if not (predictions := sum(count for _, count in sums)):
            fix = "Take a PLM that knows the language, or give more text."
            raise DataError(expected="held-out tokens that the PLM knows", got="none", where="corpus", fix=fix)
        return sum(loss for loss, _ in sums) / predictions


@dataclass(frozen=True)
class Learned:
    """What came of it: the curve, and the `deltas` that are installed in the backbone and learned it. `seconds` and `tokens_per_second` are
    those of this run, without what earlier ones did; the rate is that of training, without judging."""

    curve: tuple[Point, ...]
    steps: int
    trained_parameters: int
    seconds: float
    tokens_per_second: float | None
    deltas: tuple[Installed, ...]


def _groups(spec: Pretraining, backbone: Backbone, deltas: Sequence[Installed], new: frozenset[str]) -> list[Group]:
    own = dict(backbone.model.named_parameters())
    random = {name: weight for name, weight in own.items() if name in new}
    rest = {name: weight for name, weight in own.items() if name not in new}
    learned = trainable.of_deltas(deltas) if deltas else [("", rest, CONTINUED)]
    return trainable.grouped([*learned, ("", random, FRESH)], spec.fit.learning_rate)


def _check_apart(deltas: Sequence[Installed]) -> None:
    """Raise `SpecError` for two updates of the same weight, which could not be merged in the end."""
    places = [place for delta in deltas for place in {place for place, _ in delta.edits}]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise SpecError(expected="one delta at each place", got=f"two at {twice[0]}", where="--delta", fix="Give them other sites.")


@torch.no_grad()
def _go_on(earlier: Update, backbone: Backbone, deltas: Sequence[Installed], new: frozenset[str]) -> None:
    """Put an update's factors into the deltas and its whole weights into the backbone; raises `SpecError` where they do not fit."""
    edits = {f"{place}.weight": edit for delta in deltas for place, edit in delta.edits}
    own = {name: weight for name, weight in backbone.model.named_parameters() if name in new}
    shapes = {name: (edit.A_RI.shape, edit.B_OR.shape) for name, edit in edits.items() if type(edit) is LowRank}
    theirs = {name: (A_RI.shape, B_OR.shape) for name, (A_RI, B_OR) in earlier.factors.items()}
    fits = shapes == theirs and len(shapes) == len(edits) and own.keys() == earlier.whole.keys()
    if not fits or earlier.about.fingerprint != backbone.fingerprint:
        fix = "Name the --backbone and the --delta that it was made with."
        raise SpecError(expected=f"an update of {backbone.name} by these deltas", got="another", where="--start", fix=fix)
    for name, edit in edits.items():
        assert isinstance(edit, LowRank)
        A_RI, B_OR = earlier.factors[name]
        edit.A_RI.copy_(A_RI)
        edit.B_OR.copy_(B_OR * (earlier.about.scales[name] / edit.scale))
    for name, weight in own.items():
        weight.copy_(earlier.whole[name])


def _when(steps: int, points: int) -> frozenset[int]:
    """The steps after which the held-out blocks are judged; the last one among them.

    >>> sorted(_when(10, 4)), sorted(_when(2, 10))
    ([2, 5, 8, 10], [1, 2])
    """
    return frozenset(round(steps * point / points) for point in range(1, points + 1)) - {0}


def _announce(language: Language, trained: Sequence[nn.Parameter], steps: int, together: int, session: Session) -> None:
    """Say what will be done and how long it will take, where a step is so many batches `together`, those of other processes among them."""
    blocks, size = language.blocks, language.batch_size * together
    for weight in trained:
        weight.requires_grad_(True)
    drawn = language.at(0)
    each = forecast.seconds_of(trained, lambda: language.loss(drawn), most=max(1, min(3, steps // 100)))
    seconds = steps * each * together / session.world.size
    session.say(
        f"Training {sum(weight.numel() for weight in trained):,} weights on {blocks.trained:,} blocks of {blocks.length} tokens, "
        f"{'token by token' if language.backbone.causal else 'masked tokens'}, {language.backbone.precision}: {steps:,} steps of {size} "
        f"({steps * size / blocks.trained:.2f} epochs), about {_spoken(seconds)}. {len(blocks.held_out()):,} blocks are held out."
    )


def _spoken(seconds: float) -> str:
    """A time as a person says it.

    >>> _spoken(42), _spoken(600), _spoken(9000)
    ('42 s', '10 min', '2.5 h')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class _Curve:
    """Judges the held-out blocks as steps are done, and keeps what it found beside the checkpoint, so that a run that goes on has it. Of
    several processes the first does."""

    def __init__(self, language: Language, when: frozenset[int], together: int, session: Session) -> None:
        self.language, self.when, self.together, self.before = language, when, together, session
        self.session = replace(session, progress=self._told)
        self.path = session.folder and session.folder / f"{session.label}.curve.json"
        self.found: dict[int, float] = self._read()
        self.seconds, self.steps_here = 0.0, 0

    def _read(self) -> dict[int, float]:
        if self.path is None or not self.path.exists():
            return {}
        kept: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return {int(step): loss for step, loss in kept["found"].items()} if kept["key"] == self.before.key else {}

    def _told(self, what: str, done: int, steps: int, loss: float) -> None:
        self.before.progress(what, done, steps, loss)
        self.steps_here += 1
        if done in self.when:
            self.judge(done)

    def judge(self, step: int) -> None:
        """Judge and keep, unless that was done; the same weights give the same loss."""
        if step in self.found or not self.before.world.first:
            return
        begun = time.perf_counter()
        found = self.language.judged()
        self.seconds += time.perf_counter() - begun
        if (each := perplexity(found)) is None:
            fix = "Lower --learning-rate or use --precision float32."
            raise BackboneError(
                expected="a finite perplexity of the held-out blocks", got=f"a loss of {found:g}", where=f"step {step}", fix=fix
            )
        self.found[step] = found
        self.before.say(f"After {step:,} steps: held-out loss {found:.3f}, perplexity {each:.1f}.")
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"key": self.before.key, "found": self.found}), overwrite=True)

    def points(self, losses: Sequence[float]) -> tuple[Point, ...]:
        """The curve, with the training losses of all steps."""
        made, last = [], 0
        for step in sorted(step for step in self.found if step == 0 or step in self.when):
            loss = statistics.fmean(losses[last:step]) if step > last else None
            made.append(Point(step, step * self.together * self.language.tokens, loss, self.found[step]))
            last = step
        return tuple(made)
