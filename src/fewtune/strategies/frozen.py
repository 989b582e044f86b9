"""Judge a regression on frozen embeddings: each text is embedded once, and folds learn from embeddings, which costs next to nothing. So
rows are parted again and again, and less hangs on how they happened to be parted.

Dimensions: P templates, N rows, D width, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Split
from fewtune.readout.similarity import SimilarityReader
from fewtune.recipe import Recipe
from fewtune.strategies.folds import parts_of
from fewtune.strategies.supervised import Supervised, outputs
from fewtune.strategies.zeroshot import targets
from fewtune.train.fit import Session

MOST = 10
"""So many times rows are parted at the most; five times took about a fifth off the variance (bench/results/partings.md)."""
_REGRESSIONS = 2000
"""Rows, times partings: of many rows the regressions themselves take long, and there once is enough."""


def applies(recipe: Recipe) -> bool:
    """Whether nothing is tuned but a regression on embeddings."""
    return recipe.readout.pairs and recipe.calibration is None and not (recipe.deltas or recipe.adapt or recipe.search)


def unseen(recipe: Recipe, split: Split, backbone: Backbone, session: Session) -> list[Tensor]:
    """log_NC of each labelled row by a regression that has not seen it, once for each parting of the rows."""
    model, train = Supervised().untuned(recipe, split, backbone, session), split.train
    reader, targets_N = model.reader, targets(model, train)
    assert isinstance(reader, SimilarityReader)
    templates = [model.asking.rows(train, template) for template in range(len(model.asked.templates))]
    whole = torch.cat([reader.embeddings(output, batch).detach().cpu() for output, batch in outputs(model, templates)])
    embeddings_PND = whole.reshape(len(templates), len(train), -1)
    found = []
    for number in range(max(1, min(MOST, _REGRESSIONS // len(train)))):
        raw_NC = torch.zeros(len(train), len(model.task.labels))
        for kept, held in parts_of(recipe, train, number):
            rows_PKD = embeddings_PND[:, list(kept)]
            weight_CD, bias_C = reader.learned(rows_PKD.flatten(0, 1), torch.cat([targets_N[list(kept)]] * len(rows_PKD)))
            raw_NC[list(held)] = nn.functional.linear(embeddings_PND[:, list(held)], weight_CD.float(), bias_C.float()).mean(0)
        found.append(model.log_probabilities(train, raw_NC))
    return found
