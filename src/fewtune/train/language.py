"""Language modelling: which tokens of a batch are to be predicted, masked ones or each next one, and how unlikely they are. Knows token ids
and hidden states; no text, no model and no tokenizer.

The logits of a batch over a whole vocabulary are large (512 tokens × 50,000 words take 100 MB). So the LM head is a function that is
called for the states that predict something and no others, on a limited number at a time.

Dimensions: B rows, T tokens, N predictions, D width, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewtune.train.losses import cross_entropy

MASKED = 0.15
"""The share of the tokens that is to be predicted (Devlin et al. 2019, section 3.1)."""
_SHOWN, _REPLACED = 0.8, 0.1  # of these the share that becomes a mask token, and that becomes a random one
_GREATEST = math.log(sys.float_info.max)
_MOST = 128  # so that a part of the logits is below 32 MiB, the most that malloc reuses: more is fresh memory each time


@dataclass(frozen=True)
class Predictions:
    """The tokens ids_BT as the model is given them, and what it is to say: the state at place `places_N[n]`, rows and tokens being laid
    flat, predicts the token `targets_N[n]`."""

    ids_BT: Tensor
    places_N: Tensor
    targets_N: Tensor

    def to(self, device: torch.device | str) -> Predictions:
        """The same on another device."""
        return Predictions(self.ids_BT.to(device), self.places_N.to(device), self.targets_N.to(device))


def perplexity(loss: float) -> float | None:
    """e to the mean loss of a token; None where that is no finite number.

    >>> perplexity(0.0), perplexity(1000.0), perplexity(float("nan"))
    (1.0, None, None)
    """
    return math.exp(loss) if loss < _GREATEST else None


def next_tokens(ids_BT: Tensor, mask_BT: Tensor) -> Predictions:
    """Every token but the first of its row, predicted by the state before it; `mask_BT` is 1 at real tokens, which stand on the left.

    >>> asked = next_tokens(torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    >>> asked.places_N.tolist(), asked.targets_N.tolist()
    ([0, 1, 3], [6, 7, 9])
    """
    rows_N, before_N = mask_BT[:, 1:].nonzero(as_tuple=True)
    return Predictions(ids_BT, rows_N * ids_BT.shape[1] + before_N, ids_BT[rows_N, before_N + 1])


@dataclass(frozen=True)
class Masking:
    """Tokens are chosen, and hidden behind `mask` in 80 % of the cases, behind a random token in 10 %, not at all in the others, so
    that a state cannot know whether it stands for what it shows (Devlin et al. 2019, section 3.1 and appendix A.1).

    `special` ids are never chosen and never shown in the place of others; random tokens come from the first `vocabulary` ids. With
    `starts`, which says of each id whether a word begins with it, words are chosen instead of tokens, and each token of a chosen one is
    hidden for itself (BERT's own code of May 2019).
    """

    mask: int
    special: frozenset[int]
    vocabulary: int
    share: float = MASKED
    starts: tuple[bool, ...] = field(default=(), repr=False)

    def hide(self, ids_BT: Tensor, mask_BT: Tensor, *, seed: int) -> Predictions:
        """In each row the `share` of its tokens, one at least, to be predicted where it stood: a pure function of the arguments.

        `mask_BT` is 1 at real tokens. A row of special tokens alone has nothing to predict.
        """
        random = np.random.default_rng(seed)
        special_BT = np.isin(ids_BT.numpy(), list(self.special)) | (mask_BT.numpy() == 0)
        rows = enumerate(zip(ids_BT.numpy(), ~special_BT, strict=True))
        places_N = np.concatenate([self._chosen(ids_T, free_T, random) + row * free_T.size for row, (ids_T, free_T) in rows])
        given = ids_BT.numpy().flatten()
        targets_N, fate_N = given[places_N], random.random(len(places_N))
        others_N = random.choice(self._ordinary, len(places_N))
        random_N = np.where(fate_N < _SHOWN + _REPLACED, others_N, targets_N)
        given[places_N] = np.where(fate_N < _SHOWN, self.mask, random_N)
        return Predictions(torch.from_numpy(given).view_as(ids_BT), torch.from_numpy(places_N), torch.from_numpy(targets_N))

    @cached_property
    def _ordinary(self) -> NDArray[np.int64]:
        return np.setdiff1d(np.arange(self.vocabulary), list(self.special))

    @cached_property
    def _starts(self) -> NDArray[np.bool_]:
        return np.array(self.starts)

    def _chosen(self, ids_T: NDArray[np.int64], free_T: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.int64]:
        places = free_T.nonzero()[0]
        count = min(len(places), max(1, round(self.share * len(places))))
        if not self.starts or not count:
            return np.sort(random.choice(places, count, replace=False))
        apart = np.diff(places, prepend=-2) > 1  # behind a special token a word begins, too
        word_N = np.cumsum(self._starts[ids_T[places]] | apart) - 1
        return places[np.isin(word_N, _words(np.bincount(word_N), count, random))]


def _words(sizes_W: NDArray[np.int64], count: int, random: np.random.Generator) -> list[int]:
    """Words in a random order, as many as have `count` tokens together; one that is too long is passed over, as in BERT's code.
    Where all are too long, the shortest is chosen."""
    chosen: list[int] = []
    for word in random.permutation(len(sizes_W)):
        if sizes_W[word] <= count:
            chosen.append(int(word))
            count -= sizes_W[word]
    return chosen or [int(sizes_W.argmin())]


def language_loss(
    hidden_ND: Tensor, targets_N: Tensor, logits: Callable[[Tensor], Tensor], *, weights: Sequence[Tensor] = (), most: int = _MOST
) -> Tensor:
    """The mean over predictions of the cross-entropy between the tokens and softmax of `logits` of the states that predict them.

    Where nothing is predicted it is 0, as of a batch of tokens that the tokenizer does not know.

    `logits` (states_ND → logits_NV) is called on at most `most` states at a time, and once for each: the gradient is taken at once, while
    the logits are there, so neither are they kept nor computed again. `weights` are those of `logits` that are trained; others get no
    gradient. What is given can be derived once, not twice.

    >>> round(language_loss(torch.zeros(3, 8), torch.tensor([0, 3, 7]), lambda states_ND: states_ND, most=2).item(), 4)
    2.0794
    """
    if not len(targets_N):
        return hidden_ND.sum()  # of no states, so that gradients can be asked for
    loss: Tensor = _InParts.apply(hidden_ND, targets_N, logits, most, *weights)  # type: ignore[no-untyped-call]
    return loss


class _InParts(torch.autograd.Function):
    """Forward: the loss, and with it the gradients of all that takes one; backward: these, times what comes from above."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, targets_N: Tensor, logits: Callable[[Tensor], Tensor], most: int, *weights: Tensor) -> Tensor:
        derived = any(ctx.needs_input_grad)
        total, states, sums = hidden_ND.new_zeros(()), list[Tensor](), [torch.zeros_like(weight) for weight in weights if derived]
        for part_ND, own_N in zip(torch.split(hidden_ND, most), torch.split(targets_N, most), strict=True):
            with torch.set_grad_enabled(derived):
                leaf_ND = part_ND.detach().requires_grad_(derived)
                part = cross_entropy(logits(leaf_ND), own_N) * (len(own_N) / len(targets_N))
            total += part.detach()
            if derived:
                state_ND, *others = torch.autograd.grad(part, [leaf_ND, *weights], allow_unused=True)
                states.append(state_ND)
                for kept, other in zip(sums, others, strict=True):
                    kept += 0 if other is None else other
        ctx.save_for_backward(*([torch.cat(states), *sums] if derived else []))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        states_ND, *sums = (gradient * above for gradient in ctx.saved_tensors)
        return (states_ND, None, None, None, *sums)
