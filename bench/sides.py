"""Both sides of a duel for one setting: fewtune's own training loop, and the peer with what it is given. Takes no times.

Dimensions: B rows, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from floor import Products
from peers import FULL, RATE, VECTORS, Peer, Start, Texts, alike, as_used, random_batches
from torch import Tensor

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.deltas import DELTAS
from fewtune.deltas.delta import Delta
from fewtune.model import TunedModel
from fewtune.prompt.batch import Batch
from fewtune.readout.calibration import Uncalibrated
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.recipe import Recipe
from fewtune.strategies import STRATEGIES
from fewtune.tasks.task import Task
from fewtune.train.cache import StateCache
from fewtune.train.fit import FitOptions, Group, Progress, Session, fit
from fewtune.train.losses import cross_entropy

SIZE = 8
SEED = 13
TEMPLATE = "Review: {text}\nSentiment: {slot}"
LABELS = ("negative", "positive")
SPECS = {
    **{"lora": "lora", "dora": "lora:dora=true", "ia3": "ia3", FULL: "subset"},
    **{"prefix": f"prefix:length={VECTORS}", "soft-prompt": f"soft-prompt:length={VECTORS}"},
}
"""Method → fewtune's delta."""


@dataclass(frozen=True)
class Setting:
    """One row: `length` is what the peer pads to (0: the longest row of a batch; None: everything is alike)."""

    comparison: str
    model: str
    method: str
    length: int | None

    @property
    def top(self) -> float:
        """The share of the blocks that is tuned."""
        return 1 / 3 if self.comparison == "cached" else 1.0

    @property
    def own(self) -> Setting:
        """The setting that is the same for fewtune, which does not care how the peer pads."""
        return self if self.length is None else replace(self, length=0)

    def delta(self) -> Delta:
        """fewtune's method."""
        chosen: Any = DELTAS.from_text(SPECS[self.method], "method")
        return replace(chosen, top=self.top) if self.top < 1 else chosen


class Side(ABC):
    """fewtune's loop on one setting, and the peer that it is compared with. `peer` comes with `meet`."""

    peer: Peer

    def __init__(self, setting: Setting, folder: str, backbone: Backbone, train: tuple[Example, ...]) -> None:
        self.setting, self.folder, self.train = setting, folder, train
        self.backbone: Backbone | None = backbone
        self.recipe = Recipe(
            Task.classification(LABELS, template=TEMPLATE if backbone.causal else None),
            deltas=(setting.delta(),),
            readout=Cloze() if backbone.causal else Head(),
            calibration=Uncalibrated(),
            fit=FitOptions(learning_rate=RATE, batch_size=SIZE),
            precision="float32",
            seed=SEED,
        )
        self.untuned = TunedModel.assemble(backbone, self.recipe.task, self.recipe.readout, seed=SEED)
        self.labels = [LABELS.index(example.label or "") for example in train]

    @abstractmethod
    def fit(self, steps: int, progress: Progress) -> None:
        """fewtune's steps, each followed by a call of `progress`."""

    @abstractmethod
    def meet(self) -> None:
        """Make the peer."""

    @abstractmethod
    def inputs(self, step: int) -> Any:
        """What the peer is given at a step."""

    def let_go(self) -> None:
        """Take fewtune's side out of memory; the peer needs nothing of it any more."""
        del self.untuned
        self.backbone = None


class Alike(Side):
    """The very same batches, at the very same modules, under the same readout."""

    def __init__(self, setting: Setting, folder: str, backbone: Backbone, train: tuple[Example, ...]) -> None:
        super().__init__(setting, folder, backbone, train)
        delta = self.recipe.deltas[0].install(backbone, generator=torch.Generator().manual_seed(SEED))
        self.model: TunedModel | None = replace(self.untuned, deltas=(delta,))
        rows = self.model.asking.rows(train, 0)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SEED)).tolist()
        self.chosen = [order[start : start + SIZE] for start in range(0, len(order), SIZE)]
        self.batches = [self.model.asking.collate([rows[index] for index in indices], 0) for indices in self.chosen]
        self.targets = [torch.tensor([self.labels[index] for index in indices]) for indices in self.chosen]
        self.cache = StateCache()
        self.trained = delta.trained_parameters + sum(weight.numel() for weight in self.model.reader.weights.values())
        self.start = Start(
            head=tuple(weight.detach().clone() for weight in self.model.reader.weights.values()),
            places=_places(backbone, setting.top),
            vectors=_vectors(delta.state_dict()) if setting.method in ("prefix", "soft-prompt") else None,
        )

    def fit(self, steps: int, progress: Progress) -> None:
        """The loop of `fewtune.train.fit` over these batches; below the first trained block they are kept."""
        model = self.model
        assert model is not None
        self._fill(model)
        weights = {**model.deltas[0].weights, **model.reader.weights}
        with model.training():
            groups = [Group(weights, RATE)]
            options = replace(self.recipe.fit, average=0.0)  # the peer has nothing like it
            fit(groups, self._number, self._loss, steps=steps, options=options, seed=SEED, session=Session(progress=progress))
        model.remove()

    def _number(self, step: int) -> int:
        return step % len(self.batches)

    def _loss(self, number: int) -> Tensor:
        assert self.model is not None
        below_BTD = self.cache.get(self.chosen[number])
        return cross_entropy(self.model.batch_scores(self.batches[number], below_BTD), self.targets[number])

    def _fill(self, model: TunedModel) -> None:
        if model.first_block == 0:
            return
        for indices, batch in zip(self.chosen, self.batches, strict=True):
            with torch.no_grad():
                below_BTD = model.backbone.below(batch.ids_BT, batch.mask_BT, batch.types_BT, start=model.first_block)
            self.cache.add(indices, batch.mask_BT.sum(1).tolist(), below_BTD)

    def meet(self) -> None:
        """The peer on the bare stack."""
        self.peer = alike(self.folder, self.setting.method, self.start)

    def inputs(self, step: int) -> tuple[Batch, Tensor]:
        """The batch that fewtune has at this step."""
        number = self._number(step)
        return self.batches[number], self.targets[number]

    def difference(self) -> float:
        """By how much the losses of the first batch differ before any step, without dropout."""
        with torch.no_grad():
            return abs(self._loss(0).item() - self.peer.measure(self.inputs(0)))

    def products(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """The matrix products that this step cannot do without."""
        rows, tokens = self.batches[self._number(step)].ids_BT.shape
        return self._products.pairs(rows, tokens)

    @cached_property
    def _products(self) -> Products:
        assert self.model is not None
        first, method = self.model.first_block, self.setting.method
        return Products(
            self.model.backbone,
            first,
            full=method == FULL,
            ahead=VECTORS if method == "soft-prompt" else 0,
            keys=VECTORS if method == "prefix" else 0,
        )

    def let_go(self) -> None:
        """Without the model, too."""
        super().let_go()
        self.model = None


class Used(Side):
    """fewtune's strategy with its defaults; the peer as its users have it, with batches of its own."""

    def __init__(self, setting: Setting, folder: str, backbone: Backbone, train: tuple[Example, ...]) -> None:
        super().__init__(setting, folder, backbone, train)
        words = [token for (token,) in self.untuned.asked.words[0].ids] if backbone.causal else None
        prompts = tuple(row.ids for row in self.untuned.asking.rows(train, 0))
        answers = tuple(words[label] for label in self.labels) if words else None
        self.texts = Texts(prompts, tuple(self.labels), answers, backbone.tokenizer.pad_token_id or 0)
        self.blocks = range(backbone.first_block(setting.top), backbone.depth) if setting.top < 1 else None

    def fit(self, steps: int, progress: Progress) -> None:
        """The strategy as a user runs it."""
        assert self.backbone is not None
        recipe = replace(self.recipe, fit=replace(self.recipe.fit, steps=steps))
        strategy = STRATEGIES.member("supervised")()
        model = strategy.run(recipe, Split(train=self.train), self.backbone, session=Session(progress=progress))
        self.trained = model.trained_parameters
        model.remove()

    def meet(self) -> None:
        """The peer and its batches."""
        self.peer = as_used(self.folder, self.setting.method, self.texts, blocks=self.blocks)
        self.batches = random_batches(self.texts, size=SIZE, length=self.setting.length or 0, seed=SEED)

    def inputs(self, step: int) -> Callable[[], Any]:
        """The next batch, which is padded when it is asked for."""
        return lambda: next(self.batches)


def side_of(setting: Setting, folder: str, backbone: Backbone, train: tuple[Example, ...]) -> Alike | Used:
    """Both sides of a setting, the peer not made yet."""
    return (Alike if setting.length is None else Used)(setting, folder, backbone, train)


def _places(backbone: Backbone, top: float) -> dict[str, list[str]]:
    """Site → paths below the stack."""
    lead = f"{backbone.model.base_model_prefix}." if backbone.has_lm_head else ""
    names = ("query", "key", "value", "ffn_out")
    return {name: [site.path.removeprefix(lead) for site in backbone.sites(name, top=top)] for name in names}


def _vectors(state: Mapping[str, Tensor]) -> Tensor:
    """Soft prompts as they are, (P, D); keys and values (H, P, E) of each block as peft lays them out, (P, L · 2 · H · E)."""
    if "soft_prompt" in state:
        return state["soft_prompt"]
    return torch.cat([part_HPE.permute(1, 0, 2).flatten(1) for part_HPE in state.values()], 1)
