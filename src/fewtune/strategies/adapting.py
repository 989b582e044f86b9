"""What a PLM learns of the unlabelled texts' language: before it is tuned on labels (task-adaptive pre-training) or beside them (auxiliary
language modelling). Knows recipes and models; what is predicted and how it is judged lies in `fewtune.train.language`.

No labelled row has a part in it. So adapting before is the same in every fold, and is done once for all of them.

Dimensions: B rows, T tokens, N predictions, D width.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from torch import Tensor

from fewtune import forecast
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.data.sampling import derive
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError, DataError, SpecError, TaskError
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch, bucketed_order, collate
from fewtune.prompt.defaults import templates_of
from fewtune.prompt.encode import Encoder, Row
from fewtune.prompt.template import Template
from fewtune.recipe import Recipe
from fewtune.strategies import trainable
from fewtune.train.adapt import ADAPTATIONS, Auxiliary, TaskAdaptive
from fewtune.train.fit import Session, fit, fit_once
from fewtune.train.language import Masking, Predictions, language_loss, next_tokens

B = TypeVar("B")
_Asked = tuple[Batch, Predictions]


def able(contestants: Sequence[tuple[Recipe, Backbone]], split: Split, session: Session) -> list[tuple[Recipe, Backbone]]:
    """The contestants as they can adapt: of several PLMs one without an LM head learns from labels alone.

    Raises an `InputError` where adapting is wanted and there is nothing to learn from, nothing to train, or no LM head at all.
    """
    heads = [backbone.has_lm_head for _, backbone in contestants]
    found = []
    for (recipe, backbone), head in zip(contestants, heads, strict=True):
        if recipe.adapt and any(heads) and not head:
            session.say(f"{backbone.name} has no LM head and learns from labels alone.")
            recipe = replace(recipe, adapt=())
        _check(recipe, backbone, split)
        found.append((recipe, backbone))
    return found


def _check(recipe: Recipe, backbone: Backbone, split: Split) -> None:
    if not recipe.adapt:
        return
    names = [ADAPTATIONS.name_of(one) for one in recipe.adapt]
    if twice := [name for name in ADAPTATIONS if names.count(name) > 1]:
        fix = "Say all of it at once, as in tapt:steps=100,batch_size=16."
        raise SpecError(expected="each adaptation once", got=f"{twice[0]} twice", where="--adapt", fix=fix)
    if all(isinstance(delta, Subset) and delta.part == "none" for delta in recipe.deltas):
        fix = "Name a --delta and no --strategy zeroshot, or leave --adapt out."
        raise TaskError(expected="a delta that learns the texts' language", got="none", where="--adapt", fix=fix)
    backbone.require_lm_head("--adapt", fix="Leave --adapt out, or take another --backbone.")
    if not backbone.causal and backbone.tokenizer.mask_token_id is None:
        fix = "Leave --adapt out, or take another --backbone."
        raise BackboneError(expected="a tokenizer with a mask token", got="one without", where="--adapt", fix=fix)
    if not split.unlabeled:
        raise DataError(expected="unlabelled rows", got="none", where="--adapt", fix="Give texts with --unlabeled, or leave --adapt out.")


@dataclass(frozen=True)
class Language:
    """Rows as a PLM learns their language: `at` gives the batch of a step, a pure function, and `loss` what is minimised of it."""

    model: TunedModel
    rows: Sequence[Row]
    batch_size: int
    seed: int

    @classmethod
    def of(cls, model: TunedModel, rows: Iterable[Row], batch_size: int, seed: int) -> Language:
        """Of the rows in which a token can be predicted; raises `DataError` where there is none."""
        special = set(model.backbone.tokenizer.all_special_ids)
        found = [row for row in rows if (len(row.ids) > 1 if model.backbone.causal else not special.issuperset(row.ids))]
        if not found:
            fix = "Give other texts with --unlabeled, or leave --adapt out."
            raise DataError(expected="unlabelled rows with words in them", got="none", where="--adapt", fix=fix)
        return cls(model, found, batch_size, seed)

    @property
    def objective(self) -> str:
        """What is predicted, as a person says it."""
        return "token by token" if self.model.backbone.causal else "masked tokens"

    @cached_property
    def _masking(self) -> Masking:
        tokenizer = self.model.backbone.tokenizer
        vocabulary = min(len(tokenizer), self.model.backbone.vocabulary)
        return Masking(tokenizer.mask_token_id, frozenset(tokenizer.all_special_ids), vocabulary)

    @cached_property
    def _epoch(self) -> Callable[[int], list[list[int]]]:
        lengths = [len(row.ids) for row in self.rows]

        @lru_cache(maxsize=2)
        def epoch(number: int) -> list[list[int]]:
            return bucketed_order(lengths, size=self.batch_size, seed=derive(self.seed, "order", number))

        return epoch

    def at(self, step: int) -> _Asked:
        """The batch as the model is given it, and what is to be predicted."""
        length = len(self._epoch(0))  # as many in every epoch
        return self._asked(self._epoch(step // length)[step % length], step)

    def _asked(self, indices: Sequence[int], step: int) -> _Asked:
        backbone = self.model.backbone
        batch = collate([self.rows[index] for index in indices], pad=backbone.tokenizer.pad_token_id or 0)
        if backbone.causal:
            asked = next_tokens(batch.ids_BT, batch.mask_BT)
        else:
            asked = self._masking.hide(batch.ids_BT, batch.mask_BT, seed=derive(self.seed, "masking", step))
        return replace(batch, ids_BT=asked.ids_BT).to(backbone.device), asked.to(backbone.device)

    def loss(self, drawn: _Asked) -> Tensor:
        """The language-modelling loss of a batch, through the PLM's own LM head; only states that predict something go through it."""
        batch, asked = drawn
        states_ND = self.model.output(batch).hidden_BTD.flatten(0, 1)[asked.places_N]
        head, weights = self.model.backbone.lm_logits, self.model.backbone.lm_weights
        return language_loss(states_ND, asked.targets_N, lambda part_ND: head(part_ND, None), weights=weights)

    def seconds(self, steps: int) -> float:
        """What so many steps will take, each like one on a batch of the middle size."""
        epoch = self._epoch(0)
        sizes = [len(indices) * max(len(self.rows[index].ids) for index in indices) for indices in epoch]
        middle = statistics.fmean(sizes)
        size, indices = min(zip(sizes, epoch, strict=True), key=lambda sized: abs(sized[0] - middle))
        drawn = self._asked(indices, 0)
        return steps * forecast.step_seconds(self.model, lambda: self.loss(drawn), most=max(1, steps // 20)) * middle / size


def before(model: TunedModel, recipe: Recipe, pool: Sequence[Example], session: Session) -> None:
    """Train the deltas on the language of the pool, if the recipe asks for that."""
    spec = next((one for one in recipe.adapt if isinstance(one, TaskAdaptive)), None)
    if spec is None:
        return
    seed = derive(recipe.seed, "tapt")
    language = Language.of(model, _bare(model, pool), spec.batch_size, seed)
    backbone = model.backbone
    decided_by = (backbone.fingerprint, backbone.precision, recipe.deltas, recipe.fit, spec, seed, tuple(row.ids for row in language.rows))
    if decided_by not in session.shared and not session.told:
        trained = sum(delta.trained_parameters for delta in model.deltas)
        session.say(
            f"Adapting {trained:,} weights to the language of {len(language.rows):,} unlabelled texts, {language.objective}: "
            f"{spec.steps} steps of {spec.batch_size}, about {language.seconds(spec.steps):.0f} s."
        )
    groups = trainable.grouped(trainable.of_deltas(model.deltas), spec.learning_rate)  # the LM head reaches no weight of a readout

    def fitted(own: Session) -> None:
        fit(groups, language.at, language.loss, steps=spec.steps, options=recipe.fit, seed=seed, session=own)

    with model.training():
        fit_once(decided_by, groups, fitted, session=replace(session, label="fit.tapt"))


def _bare(model: TunedModel, pool: Sequence[Example]) -> list[Row]:
    """The texts as they are: a template would be learned with them."""
    length = min(model.max_length, model.backbone.room)
    encoder = Encoder(model.backbone.tokenizer, causal=model.backbone.causal, max_length=length)
    template = Template.parse(templates_of(model.task, slot=False)[0])
    return encoder.encode([template.render(example.fields) for example in pool])


@dataclass(frozen=True)
class Beside:
    """A language that is learned in the same steps as labels are: (1 - `weight`) × their loss + `weight` × its own."""

    weight: float
    language: Language

    def __str__(self) -> str:
        return (
            f"Each step also learns the language of {self.language.batch_size} of {len(self.language.rows):,} unlabelled texts, "
            f"{self.language.objective}, with weight {self.weight:g}."
        )

    def joined(self, batches: Callable[[int], B], loss: Callable[[B], Tensor]) -> tuple[Callable[[int], Any], Callable[[Any], Tensor]]:
        """Batches and loss of the steps in which both are learned."""

        def both(drawn: tuple[B, _Asked]) -> Tensor:
            return (1 - self.weight) * loss(drawn[0]) + self.weight * self.language.loss(drawn[1])

        return lambda step: (batches(step), self.language.at(step)), both


def beside(model: TunedModel, recipe: Recipe, pool: Sequence[Example]) -> Beside | None:
    """What is learned beside labels, if the recipe asks for that: the pool in the model's own templates, as in PET."""
    spec = next((one for one in recipe.adapt if isinstance(one, Auxiliary)), None)
    if spec is None:
        return None
    worded = [example for example in pool if any(text.strip() for text in example.fields.values())]
    templates = range(len(model.asked.templates))
    rows = itertools.chain.from_iterable(model.asking.rows(worded[number :: len(templates)], number) for number in templates)
    return Beside(spec.weight, Language.of(model, rows, spec.batch_size, derive(recipe.seed, "auxiliary")))
