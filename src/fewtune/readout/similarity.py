"""Read a sentence embedding with a logistic regression; the encoder is tuned by pulling texts of one label together. Knows no words.

    states ──► pool ──► unit length ──► [pairs: contrastive loss, while tuning] ──► logistic regression, fitted once afterwards

Where nothing is learned the regression's rows are embeddings of the labels, so that a score is a scaled cosine.

Dimensions: N examples, B rows, T tokens, D width, C candidates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone, Output
from fewtune.errors import SpecError
from fewtune.prompt.batch import Batch
from fewtune.readout.head import pooled
from fewtune.train.losses import supervised_contrastive

_UNSEEN = math.log(1e-6)  # the logit of a label that no row to learn from has


@dataclass(frozen=True)
class Similarity:
    """A sentence encoder's use with few labels: tuned on pairs, then a linear classifier (as Tunstall et al. 2022 do it).

    Every pair of a batch counts at once in one supervised contrastive loss of the given `temperature` (Khosla et al. 2020, eq. 2).
    `strength` is the inverse of the regression's L2 penalty (scikit-learn's C). Zero-shot a score is `scale` times the cosine of text and
    label; sentence encoders are trained with 20 (the scale of sentence-transformers' loss over the texts of a batch).
    """

    pool: Literal["mean", "first", "last"] = "mean"
    temperature: float = 0.1
    strength: float = 1.0
    scale: float = 20.0

    needs_slot: ClassVar[bool] = False
    spells: ClassVar[bool] = False
    reverses: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 0.0
    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("temperature", "strength", "scale"):
            if not getattr(self, name) > 0:
                got = repr(getattr(self, name))
                raise SpecError(expected="a number above 0", got=got, where=f"similarity.{name}", fix="Change the value.")

    def install(self, backbone: Backbone, *, candidates: int, generator: torch.Generator) -> SimilarityReader:
        """A regression of zeros, which says nothing until it is settled; nothing is drawn."""
        del generator
        shapes = {"head.weight": (candidates, backbone.width), "head.bias": (candidates,)}
        weights = {name: nn.Parameter(torch.zeros(shape, device=backbone.device)) for name, shape in shapes.items()}
        return SimilarityReader(self, weights)


class SimilarityReader:
    """Embeddings of unit length, and the regression over them."""

    train_mode: tuple[nn.Module, ...] = ()

    def __init__(self, spec: Similarity, weights: Mapping[str, nn.Parameter]) -> None:
        self.spec, self.weights = spec, weights

    def embeddings(self, output: Output, batch: Batch) -> Tensor:
        """embeddings_BD of unit length."""
        return nn.functional.normalize(pooled(output.hidden_BTD, batch.mask_BT, self.spec.pool), dim=-1)

    def start(self, labels_CD: Tensor) -> None:
        """Read by the cosine to what stands for each label, `labels_CD` of any length but 0."""
        with torch.no_grad():
            self.weights["head.weight"].copy_(self.spec.scale * nn.functional.normalize(labels_CD, dim=-1))
            self.weights["head.bias"].zero_()

    def scores(self, output: Output, batch: Batch) -> Tensor:
        """scores_BC, the regression's logits."""
        return nn.functional.linear(self.embeddings(output, batch), self.weights["head.weight"], self.weights["head.bias"])

    def loss(self, output: Output, batch: Batch, targets_B: Tensor, bias_C: Tensor) -> Tensor:
        """The contrastive loss over all pairs of the batch; the regression has no part in it."""
        del bias_C
        return supervised_contrastive(self.embeddings(output, batch), targets_B, temperature=self.spec.temperature)

    def learned(self, embeddings_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """(weight_CD, bias_C), float64, of a regression fitted on embeddings; one for each candidate where targets_NC are yes or no."""
        fitted = one_by_one if targets_N.dtype == torch.bool else logistic
        return fitted(embeddings_ND, targets_N, candidates=len(self.weights["head.bias"]), strength=self.spec.strength)

    def settle(self, batches: Iterable[tuple[Output, Batch]], targets_N: Tensor) -> None:
        """Fit the regression on the embeddings of all rows to learn from, given in the order of `targets_N`."""
        embeddings_ND = torch.cat([self.embeddings(output, batch).detach().cpu() for output, batch in batches])
        weight_CD, bias_C = self.learned(embeddings_ND, targets_N)
        with torch.no_grad():
            self.weights["head.weight"].copy_(weight_CD)
            self.weights["head.bias"].copy_(bias_C)


def logistic(embeddings_ND: Tensor, targets_N: Tensor, *, candidates: int, strength: float) -> tuple[Tensor, Tensor]:
    """(weight_CD, bias_C) of scikit-learn's multinomial regression; a candidate without a row gets next to no probability."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    weight_CD = torch.zeros(candidates, embeddings_ND.shape[1], dtype=torch.float64)
    bias_C = torch.full((candidates,), _UNSEEN, dtype=torch.float64)
    seen = sorted(set(targets_N.tolist()))
    if len(seen) == 1:
        bias_C[seen] = 0.0
        return weight_CD, bias_C
    with warnings.catch_warnings():
        # As many labels as rows are usual here; scikit-learn takes them for numbers to be predicted and says so.
        warnings.filterwarnings("ignore", ".*could represent a regression problem", UserWarning)
        found = LogisticRegression(C=strength, max_iter=1000).fit(embeddings_ND.double().numpy(), targets_N.numpy())
    rows_KD, biases_K = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    if len(seen) == 2:  # of two classes scikit-learn gives the difference alone
        rows_KD, biases_K = torch.cat([-rows_KD, rows_KD]) / 2, torch.cat([-biases_K, biases_K]) / 2
    weight_CD[seen], bias_C[seen] = rows_KD, biases_K
    return weight_CD, bias_C


def one_by_one(embeddings_ND: Tensor, targets_NC: Tensor, *, candidates: int, strength: float) -> tuple[Tensor, Tensor]:
    """(weight_CD, bias_C) of a regression for each candidate, yes or no; one that every row has, or none, is as good as sure."""
    rows, biases = zip(
        *(logistic(embeddings_ND, targets_NC[:, candidate].long(), candidates=2, strength=strength) for candidate in range(candidates)),
        strict=True,
    )
    return torch.stack([no_yes[1] - no_yes[0] for no_yes in rows]), torch.stack([no_yes[1] - no_yes[0] for no_yes in biases])
