"""Language modelling: which tokens of a batch are to be predicted, masked ones or each next one, and how unlikely they are. Knows token ids
and hidden states; no text, no model and no tokenizer.

The logits of a batch over a whole vocabulary are large (512 tokens × 50,000 words take 100 MB). So the LM head is a function that is
called for the states that predict something and no others, on a limited number at a time.

Dimensions: B rows, T tokens, N predictions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewtune.train.losses import cross_entropy

MASKED = 0.15
"""The share of the tokens that is to be predicted (Devlin et al. 2019, section 3.1)."""
_SHOWN, _REPLACED = 0.8, 0.1  # of these the share that becomes a mask token, and that becomes a random one
_MOST = 256


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

    `special` ids are never chosen and never shown in the place of others; random tokens come from the first `vocabulary` ids.
    """

    mask: int
    special: frozenset[int]
    vocabulary: int
    share: float = MASKED

    def hide(self, ids_BT: Tensor, mask_BT: Tensor, *, seed: int) -> Predictions:
        """In each row the `share` of its tokens, one at least, to be predicted where it stood: a pure function of the arguments.

        `mask_BT` is 1 at real tokens. A row of special tokens alone has nothing to predict.
        """
        random = np.random.default_rng(seed)
        special_BT = np.isin(ids_BT.numpy(), list(self.special)) | (mask_BT.numpy() == 0)
        places_N = np.concatenate([self._chosen(~special_T, random) + row * special_T.size for row, special_T in enumerate(special_BT)])
        given = ids_BT.numpy().flatten()
        targets_N, fate_N = given[places_N], random.random(len(places_N))
        others_N = random.choice(np.setdiff1d(np.arange(self.vocabulary), list(self.special)), len(places_N))
        random_N = np.where(fate_N < _SHOWN + _REPLACED, others_N, targets_N)
        given[places_N] = np.where(fate_N < _SHOWN, self.mask, random_N)
        return Predictions(torch.from_numpy(given).view_as(ids_BT), torch.from_numpy(places_N), torch.from_numpy(targets_N))

    def _chosen(self, free_T: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.int64]:
        places = free_T.nonzero()[0]
        count = min(len(places), max(1, round(self.share * len(places))))
        return np.sort(random.choice(places, count, replace=False))


def language_loss(hidden_ND: Tensor, targets_N: Tensor, logits: Callable[[Tensor], Tensor], *, most: int = _MOST) -> Tensor:
    """The mean over predictions of the cross-entropy between the tokens and softmax of `logits` of the states that predict them.

    `logits` (states_ND → logits_NV) is called on at most `most` states at a time; where there are more, nothing of that is kept for
    the gradient, for which it is called once more.

    >>> round(language_loss(torch.zeros(3, 8), torch.tensor([0, 3, 7]), lambda states_ND: states_ND, most=2).item(), 4)
    2.0794
    """

    def summed(part_ND: Tensor, own_N: Tensor) -> Tensor:
        return cross_entropy(logits(part_ND), own_N) * len(own_N)

    parts = list(zip(torch.split(hidden_ND, most), torch.split(targets_N, most), strict=True))
    if len(parts) == 1:
        return summed(*parts[0]) / len(targets_N)
    sums = [checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(sums).sum() / len(targets_N)
