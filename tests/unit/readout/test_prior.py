"""Prior matching by hand, against its definition, and at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fewtune as ft
from fewtune import job
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.data.example import Example, Split
from fewtune.errors import BackboneError, DataError, SpecError
from fewtune.readout.prior import PriorMatching
from fewtune.train.fit import Session


def test_two_rows_by_hand():
    # Odds 9 and 1 with a factor w: 9w/(1+9w) + w/(1+w) = 1 holds for w = 1/3 (3/4 + 1/4).
    calibrator = PriorMatching().fit(torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log())
    assert math.exp(calibrator.bias_C[1] - calibrator.bias_C[0]) == pytest.approx(1 / 3)
    calibrated = calibrator(torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()).softmax(-1)
    torch.testing.assert_close(calibrated, torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64))


@settings(max_examples=50)
@given(candidates=st.integers(1, 6), rows=st.integers(1, 30), skew=st.floats(0, 1.5), seed=st.integers(0, 999))
def test_the_mean_probabilities_are_the_prior(candidates, rows, skew, seed):
    generator = torch.Generator().manual_seed(seed)
    scores_NC = torch.randn(rows, candidates, generator=generator) + skew * torch.arange(candidates)
    shares = torch.rand(candidates, generator=generator, dtype=torch.float64) + 0.1
    prior = tuple((shares / shares.sum()).tolist())
    found = PriorMatching(prior).fit(scores_NC)(scores_NC).softmax(-1).mean(0)
    torch.testing.assert_close(found, torch.tensor(prior, dtype=torch.float64), atol=1e-6, rtol=0)


def test_what_cannot_be_a_prior_is_refused():
    for prior in ((0.5, 0.6), (1.0, 0.0), (1.2, -0.2)):
        with pytest.raises(SpecError, match="shares above 0 that add up to 1"):
            PriorMatching(prior)
    with pytest.raises(SpecError, match="expected 3 shares, got 2"):
        PriorMatching((0.5, 0.5)).fit(torch.zeros(2, 3))
    with pytest.raises(SpecError, match="at least one row"):
        PriorMatching().fit(torch.zeros(0, 3))
    with pytest.raises(BackboneError, match="finite scores"):
        PriorMatching().fit(torch.tensor([[0.0, float("nan")]]))


TASK = ft.Task.classification(["no", "yes"], template="Text: {text}\nLabel: {slot}")
POOL = tuple(Example({"text": text}) for text in ("great fun and joy", "a dull mess", "joy", "what is the capital of the country?"))


def test_zeroshot_learns_it_from_the_unlabelled_rows():
    backbone = Backbone(*tiny.model("llama"), name="llama")
    settings = job.Settings(strategy="zeroshot", calibration=PriorMatching((0.25, 0.75)))
    model = job.tune(TASK, Split(unlabeled=POOL), backbone, settings, session=Session())
    torch.testing.assert_close(model.probabilities(POOL).mean(0), torch.tensor([0.25, 0.75], dtype=torch.float64), atol=1e-6, rtol=0)
    with pytest.raises(DataError, match="unlabelled rows"):
        job.tune(TASK, Split(), backbone, settings, session=Session())
