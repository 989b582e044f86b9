"""Calibrations against their papers' formulas, by hand, and at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.errors import BackboneError, SpecError
from fewtune.readout.calibration import CONTENT_FREE, Calibration, Calibrator, Contextual, Temperature, Uncalibrated, expected_temperature
from fewtune.registry import Table

TABLE: Table[Calibration] = Table("calibration", {"none": Uncalibrated, "contextual": Contextual, "temperature": Temperature})


def drawn(rows: int, candidates: int, *, seed: int, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, candidates, generator=torch.Generator().manual_seed(seed)) * spread


def likelihood(scores: torch.Tensor, targets: torch.Tensor, temperature: float) -> float:
    return -torch.nn.functional.cross_entropy(scores.double() / temperature, targets).item()


def sampled(scores: torch.Tensor, *, seed: int) -> torch.Tensor:
    return torch.multinomial(scores.softmax(1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]


finite_rows = st.integers(2, 5).flatmap(
    lambda candidates: st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=candidates, max_size=candidates), min_size=1, max_size=6
    ).map(torch.tensor)
)


def test_contextual_two_by_three_by_hand():
    # Content-free rows (0.6, 0.3, 0.1) and (0.4, 0.1, 0.5): mean (0.5, 0.2, 0.3), so W = diag(2, 5, 10/3).
    calibrator = Contextual().fit(torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.1, 0.5]]).log())
    assert [math.exp(bias) for bias in calibrator.bias_C] == pytest.approx([0.5, 0.2, 0.3])
    # (0.5, 0.3, 0.2) → (1, 1.5, 2/3) / (19/6); (0.25, 0.5, 0.25) → (0.5, 2.5, 5/6) / (23/6)
    calibrated = calibrator(torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.5, 0.25]]).log()).softmax(1)
    by_hand = torch.tensor([[6 / 19, 9 / 19, 4 / 19], [3 / 23, 15 / 23, 5 / 23]], dtype=torch.float64)
    torch.testing.assert_close(calibrated, by_hand, atol=1e-6, rtol=0)


@pytest.mark.parametrize("candidates", [1, 2, 7])
def test_contextual_equals_the_plain_formula(candidates):
    nothing, scores = drawn(3, candidates, seed=0, spread=2), drawn(20, candidates, seed=1, spread=3)
    weights = 1 / nothing.double().softmax(1).mean(0)
    plain = scores.double().softmax(1) * weights
    calibrated = Contextual().fit(nothing, None)(scores).softmax(1)
    torch.testing.assert_close(calibrated, plain / plain.sum(1, keepdim=True), atol=1e-6, rtol=0)


def test_contextual_makes_a_content_free_input_even():
    nothing = drawn(1, 5, seed=2, spread=4)
    torch.testing.assert_close(Contextual().fit(nothing)(nothing).softmax(1), torch.full((1, 5), 0.2, dtype=torch.float64))


def test_contextual_limits_the_gain_of_a_candidate_that_never_comes():
    calibrator = Contextual().fit(torch.tensor([[1e4, -1e4]]))
    assert calibrator.bias_C == pytest.approx((0.0, math.log(1e-6)), abs=1e-5)


def test_temperature_finds_the_one_that_the_targets_were_drawn_at():
    scores = drawn(20_000, 4, seed=3, spread=2)
    found = Temperature().fit(scores * 2.5, sampled(scores, seed=4))
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    assert found.bias_C == (0.0,) * 4


@pytest.mark.parametrize(("spread", "seed"), [(0.3, 5), (1.0, 6), (6.0, 7)])
def test_temperature_is_the_most_likely_of_a_fine_grid(spread, seed):
    scores, targets = drawn(60, 3, seed=seed, spread=spread), sampled(drawn(60, 3, seed=seed), seed=seed)
    temperature = Temperature().fit(scores, targets).temperature
    grid = torch.logspace(math.log10(0.05), math.log10(20), 400).tolist()
    assert likelihood(scores, targets, temperature) >= max(likelihood(scores, targets, tried) for tried in grid) - 1e-9
    assert likelihood(scores, targets, temperature) >= likelihood(scores, targets, 1.0)


@settings(max_examples=40)
@given(finite_rows, st.integers(0, 2**31))
def test_temperature_never_changes_which_candidate_is_first(scores, seed):
    targets = torch.randint(scores.shape[1], (len(scores),), generator=torch.Generator().manual_seed(seed))
    calibrator = Temperature().fit(scores, targets)
    calibrated, first = calibrator(scores), scores.argmax(1)
    assert 0.05 <= calibrator.temperature <= 20
    assert torch.equal(calibrated.gather(1, first[:, None])[:, 0], calibrated.max(1).values)


def test_temperature_stays_one_where_every_row_is_right():
    assert Temperature().fit(torch.eye(3) * 2, torch.arange(3)) == Calibrator.identity(3)


@pytest.mark.parametrize(("spread", "seed"), [(0.3, 5), (1.0, 6), (6.0, 7)])
def test_temperature_of_distributions_is_the_most_likely_of_a_fine_grid(spread, seed):
    scores, targets = drawn(60, 3, seed=seed, spread=spread), drawn(60, 3, seed=seed).softmax(-1)

    def likelihood_of_targets(temperature):
        return -torch.nn.functional.cross_entropy(scores.double() / temperature, targets.double()).item()

    found = likelihood_of_targets(Temperature().fit(scores, targets).temperature)
    assert found >= max(map(likelihood_of_targets, torch.logspace(math.log10(0.05), math.log10(20), 400).tolist())) - 1e-9


def test_temperature_of_distributions_that_are_sure_is_that_of_their_candidates():
    scores, targets = drawn(40, 3, seed=1), sampled(drawn(40, 3, seed=1), seed=2)
    assert Temperature().fit(scores, torch.eye(3)[targets]).temperature == pytest.approx(Temperature().fit(scores, targets).temperature)
    assert Temperature().fit(torch.eye(3) * 2, torch.eye(3)) == Calibrator.identity(3)


def test_temperature_of_a_yes_or_no_for_each_is_the_most_likely_of_a_fine_grid():
    scores, chance = drawn(80, 3, seed=2, spread=3), torch.rand(80, 3, generator=torch.Generator().manual_seed(3))
    targets = chance < (scores / 2.5).sigmoid()

    def loss(temperature):
        return torch.nn.functional.binary_cross_entropy_with_logits(scores.double() / temperature, targets.double()).item()

    found = Temperature().fit(scores, targets)
    assert loss(found.temperature) <= min(map(loss, torch.logspace(math.log10(0.05), math.log10(20), 400).tolist())) + 1e-9
    torch.testing.assert_close(found.each(scores), scores.double() / found.temperature)
    assert Temperature().fit(torch.tensor([[2.0, -1.0]]), torch.tensor([[True, False]])).temperature == 1.0


def test_temperature_is_highest_where_the_scores_mislead():
    assert Temperature().fit(torch.eye(2) * 3, torch.tensor([1, 0])).temperature == pytest.approx(20, rel=1e-3)


def test_temperature_is_finite_where_no_score_says_anything():
    calibrator = Temperature().fit(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    assert 0.05 <= calibrator.temperature <= 20


@settings(max_examples=30)
@given(finite_rows)
def test_uncalibrated_leaves_probabilities_as_they_are(scores):
    calibrator = Uncalibrated().fit(scores[:0])
    assert calibrator == Calibrator.identity(scores.shape[1])
    torch.testing.assert_close(calibrator(scores).softmax(1), scores.double().softmax(1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", list(TABLE))
@settings(max_examples=20)
@given(scores=finite_rows)
def test_every_calibration_is_finite_row_by_row_carries_order_and_survives_saving(name, scores):
    calibration = TABLE.from_dict({"name": name})
    targets = torch.arange(len(scores)) % scores.shape[1]
    calibrator = calibration.fit(scores, targets)
    calibrated = calibrator(scores)
    assert calibrated.shape == scores.shape and bool(calibrated.isfinite().all())
    for row, score in zip(calibrated, scores, strict=True):
        torch.testing.assert_close(calibrator(score[None])[0], row, rtol=1e-12, atol=0)
        torch.testing.assert_close(calibrator(score), row, rtol=1e-12, atol=0)
    order = torch.arange(scores.shape[1]).flip(0)
    # Column order[j] comes to stand at j, so the target order[j] becomes j; `order` is its own inverse.
    turned = calibration.fit(scores[:, order], order[targets])(scores[:, order])
    torch.testing.assert_close(turned.softmax(1), calibrated[:, order].softmax(1), atol=1e-4, rtol=1e-4)
    assert torch.equal(Calibrator.from_dict(calibrator.to_dict())(scores), calibrated)


def test_calibrated_scores_keep_more_than_the_models_precision():
    scores = drawn(4, 3, seed=8).bfloat16().requires_grad_()
    calibrated = Contextual().fit(scores)(scores)
    assert (calibrated.dtype, calibrated.requires_grad) == (torch.float64, False)


def test_what_each_calibration_needs_and_what_says_nothing():
    assert {name: TABLE.member(name).needs for name in TABLE} == {"none": "nothing", "contextual": "content_free", "temperature": "targets"}
    assert CONTENT_FREE == ("N/A", "", "[MASK]")


@pytest.mark.parametrize("calibration", [Contextual(), Temperature()])
def test_scores_that_nothing_can_be_learned_from_are_refused(calibration):
    for shape in ((0, 2), (2, 0), (2,)):
        with pytest.raises(SpecError, match="at least one row"):
            calibration.fit(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64))
    for bad in (math.nan, math.inf):
        with pytest.raises(BackboneError, match="expected finite scores"):
            calibration.fit(torch.tensor([[0.0, bad]]), torch.tensor([0]))


@pytest.mark.parametrize("targets", [None, torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([-1, 0])])
def test_targets_that_do_not_fit_are_refused(targets):
    with pytest.raises(SpecError, match="targets"):
        Temperature().fit(torch.zeros(2, 2), targets)


def test_calibrators_that_would_spoil_scores_are_refused():
    for data in ({"bias_C": [0.0, math.nan]}, {"bias_C": [0.0], "temperature": 0.0}, {"bias_C": [0.0], "temperature": math.inf}):
        with pytest.raises(SpecError, match="calibrator"):
            Calibrator.from_dict(data)
    with pytest.raises(SpecError, match="2 candidates"):
        Calibrator.identity(2)(torch.zeros(1, 3))


def test_a_temperature_of_few_rows_is_drawn_towards_one():
    generator = torch.Generator().manual_seed(0)
    # Scores whose softmax is right at temperature 3: a target is drawn from it.
    scores_NC = 3 * torch.randn(400, 3, generator=generator)
    targets_N = torch.multinomial((scores_NC / 3).softmax(-1), 1, generator=generator)[:, 0]
    assert 2 < expected_temperature(scores_NC, targets_N) < Temperature().fit(scores_NC, targets_N).temperature < 4.5
    # By hand: one row, p(target) = sigmoid(d / T): -log sigmoid(d / T) + (log T)² / 2 is least where its slope is 0.
    d = 2.0
    found = expected_temperature(torch.tensor([[d, 0.0]]), torch.tensor([0]))
    log_t = math.log(found)
    slope = (d / found) / (1 + math.exp(d / found)) + log_t
    assert abs(slope) < 1e-4 and found < 1


def test_a_temperature_of_rows_that_are_all_right_is_no_extreme():
    flat_NC = 0.1 * torch.eye(2).repeat(20, 1)
    found = expected_temperature(flat_NC, torch.arange(2).repeat(20))
    assert 0.05 < found < 0.2  # much surer than it was, but finite


@pytest.mark.parametrize("form", ["soft", "yes or no"])
def test_a_temperature_of_few_rows_is_that_of_a_plain_search_whatever_the_targets(form):
    scores = drawn(12, 3, seed=5, spread=3.0).double()
    shares = drawn(12, 3, seed=6).softmax(1)
    targets = shares if form == "soft" else shares > 1 / 3

    def surprise(log_t):
        scaled = scores / math.exp(log_t)
        if form == "soft":
            loss = -(targets * scaled.log_softmax(1)).sum(1).mean()
        else:
            loss = -torch.where(targets, scaled.sigmoid(), (-scaled).sigmoid()).log().mean()
        return loss.item() + log_t**2 / 2 / 12

    plain = min((step / 1000 for step in range(-2900, 2900)), key=surprise)
    assert math.log(expected_temperature(scores, targets)) == pytest.approx(plain, abs=2e-3)
