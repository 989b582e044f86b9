"""A row is judged at the temperature and threshold of the other rows; the same written out, row by row."""

import numpy as np
import pytest
import torch

import fewtune as ft
from fewtune.data.example import Example
from fewtune.data.sampling import derive, folds
from fewtune.readout.calibration import expected_temperature
from fewtune.strategies.verdict import Verdict
from fewtune.tasks import kind_of
from fewtune.tasks.multilabel import best_threshold

SCORES = ("4", "4.5", "3.5", "3", "1", "0.5", "1.5", "0")
RATED = tuple(Example({"text": f"text {score}"}, score) for score in SCORES)
RATING = ft.Task.regression(low=0, high=5)
LABELLED = tuple(Example({"text": str(row)}, label) for row, label in enumerate(["fun|good"] * 4 + ["dull"] * 3 + ["dull|bad"]))
SEVERAL = ft.Task.multilabel(["bad", "dull", "fun", "good"])
LABELS = ("a", "b", "a", "c", "b", "c", "a", "b", "c")
ONE = ft.Task.classification(["a", "b", "c"])


@pytest.mark.parametrize("tempered", [True, False])
def test_a_label_is_judged_at_the_temperature_of_the_other_rows(tempered):
    rows = tuple(Example({"text": str(row)}, label) for row, label in enumerate(LABELS))
    log_NC = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).log_softmax(1) * 3
    found, targets_N = Verdict.of(log_NC, ONE, rows, seed=42, tempered=tempered), torch.tensor(["abc".index(label) for label in LABELS])
    for kept, held in folds(rows, 4, seed=derive(42, "temperature")):
        heat = expected_temperature(log_NC[list(kept)], targets_N[list(kept)]) if tempered else 1.0
        for row in held:
            log_C = (log_NC[row] / heat).log_softmax(0) if tempered else log_NC[row]
            assert found.losses_N[row] == pytest.approx(-log_C[targets_N[row]].item())
    assert found.ratio.over_N.tolist() == (log_NC.argmax(1) == targets_N).tolist() and found.kind == "classification"


@pytest.mark.parametrize("tempered", [True, False])
def test_a_rating_is_judged_at_the_temperature_of_the_other_rows(tempered):
    log_NC = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(1) * 3
    found = Verdict.of(log_NC, RATING, RATED, seed=42, tempered=tempered)
    targets = torch.tensor([[1 - float(score) / 5, float(score) / 5] for score in SCORES], dtype=torch.float64)
    parts = folds(RATED, 4, seed=derive(42, "temperature"), groups=kind_of(RATING).groups(RATING, RATED, 2))
    for kept, held in parts:
        heat = expected_temperature(log_NC[list(kept)], targets[list(kept)]) if tempered else 1.0
        for row in held:
            likely = (log_NC[row] / heat).softmax(0) if tempered else log_NC[row].exp()
            assert found.losses_N[row] == pytest.approx(-(targets[row] * likely.log()).sum().item(), rel=1e-5)
            assert found.ratio.over_N[row] == pytest.approx(abs(5 * likely[1].item() - float(SCORES[row])), rel=1e-5)
    assert found.temperature == (pytest.approx(expected_temperature(log_NC, targets)) if tempered else 1.0)


def test_a_threshold_is_that_of_the_other_rows_and_of_all_for_the_model():
    odds_NC = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found = Verdict.of(odds_NC, SEVERAL, LABELLED, seed=42, tempered=False)
    true_NC = np.array(kind_of(SEVERAL).targets(SEVERAL, LABELLED))
    parts = folds(LABELLED, 4, seed=derive(42, "temperature"), groups=kind_of(SEVERAL).groups(SEVERAL, LABELLED, 2))
    likely = odds_NC.sigmoid().numpy()
    for kept, held in parts:
        threshold = best_threshold(true_NC[list(kept)], likely[list(kept)])
        for row in held:
            given = likely[row] >= threshold
            assert found.ratio.over_N[row] == 2 * (given & true_NC[row]).sum()
            assert found.ratio.under_N[row] == given.sum() + true_NC[row].sum()
    assert found.kind == f"multilabel:separator=|,threshold={best_threshold(true_NC, likely)}"
    expected = torch.nn.functional.binary_cross_entropy_with_logits(odds_NC, torch.tensor(true_NC).double(), reduction="none").mean(1)
    assert found.losses_N.tolist() == pytest.approx(expected.tolist())
