"""Maps in eight bits: known answers of the rounding, its bounds, no sum that is cut off, and a token's own answer."""

import copy

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fewtune.backbone import int8
from fewtune.backbone.int8 import Int8Map, Shared, has_kernel, restored, rounded, scaled


def test_known_values_and_scales():
    weight_OI = torch.tensor([[2.54, 0.0, -1.28, 0.02], [-0.5, -0.77, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
    values_OI, scale_O = rounded(weight_OI)
    # The second row: two neighbours of one sign count together.
    torch.testing.assert_close(scale_O[:2], torch.tensor([0.02, 0.01]))
    assert values_OI.tolist() == [[127, 0, -64, 1], [-50, -77, 10, 0], [0, 0, 0, 0]]
    assert values_OI.dtype == torch.int8


def test_the_scale_of_a_token_is_its_most():
    scaled_NI, most_N1 = scaled(torch.tensor([[1.0, -4.0], [0.0, 0.0], [0.25, 0.5]]))
    assert scaled_NI.tolist() == [[0.25, -1.0], [0.0, 0.0], [0.5, 1.0]]
    assert most_N1[:, 0].tolist()[::2] == [4.0, 0.5]


SIZES = st.tuples(st.integers(1, 5), st.integers(1, 9))


@given(size=SIZES, spread=st.floats(1e-6, 1e6), seed=st.integers(0, 2**31))
def test_no_weight_is_more_than_half_a_scale_away_and_no_two_neighbours_are_beyond_the_bound(size, spread, seed):
    weight_OI = torch.randn(*size, generator=torch.Generator().manual_seed(seed)) ** 3 * spread
    values_OI, scale_O = rounded(weight_OI)
    away_OI = (restored(values_OI, scale_O) - weight_OI).abs()
    assert (away_OI <= scale_O[:, None] * 0.5 + weight_OI.abs() * 1e-6).all()
    whole_OI = torch.nn.functional.pad(values_OI.int(), (0, size[1] % 2)).unflatten(1, (-1, 2))
    assert whole_OI.clamp(min=0).sum(-1).max() <= 128
    assert whole_OI.clamp(max=0).sum(-1).min() >= -128


def reference(own, inputs, bias_O):
    """The formula in double precision: what is rounded, multiplied as whole numbers."""
    most = inputs.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    steps = (inputs / most * 127).round().double()
    return (steps @ own.values_OI.double().T) * own.scale_O.double() * most.double() / 127 + bias_O.double()


@given(size=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 70)), seed=st.integers(0, 2**31))
@example(size=(1, 1, 1), seed=67275)  # product and bias cancel out: an error is small beside them, not beside their sum
def test_the_product_is_that_of_whole_numbers(size, seed):
    tokens, outputs, inputs = size
    generator = torch.Generator().manual_seed(seed)
    own = Int8Map.of(torch.randn(outputs, inputs, generator=generator), Shared())
    bias_O = torch.randn(outputs, generator=generator)
    # Steps that are whole already, so that nothing lies between two.
    steps = torch.randint(-127, 128, (tokens, inputs), generator=generator).float()
    steps[:, 0] = 127.0
    states = steps / 127 * (torch.rand(tokens, 1, generator=generator) + 0.5)
    expected = reference(own, states, bias_O)
    terms = reference(own, states, torch.zeros_like(bias_O)).abs() + bias_O.double().abs()
    assert ((own(states, bias_O).double() - expected).abs() <= 1e-6 * terms).all()


def test_the_largest_sums_are_not_cut_off():
    own = Int8Map.of(torch.ones(3, 64), Shared())
    assert own(torch.ones(2, 64), None) == pytest.approx(64 * 64 / 63.5, rel=1e-3)
    own = Int8Map.of(torch.tensor([[1.0, 0.0] * 32]), Shared())
    torch.testing.assert_close(own(torch.ones(2, 64), None), torch.full((2, 1), 32.0))
    torch.testing.assert_close(own(-torch.ones(2, 64), None), torch.full((2, 1), -32.0))


@pytest.mark.skipif(not has_kernel(), reason="torch has no product of whole numbers here")
def test_a_processor_without_the_product_gives_the_same(monkeypatch):
    own = Int8Map.of(torch.randn(48, 96), Shared())
    states, bias_O = torch.randn(5, 7, 96), torch.randn(48)
    fast = own(states, bias_O)
    monkeypatch.setattr(int8, "has_kernel", lambda: False)
    slow = own(states, bias_O)
    # A number that lies between two steps may go to either.
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=2e-2)
    assert (fast - slow).abs().median() < 1e-5


def test_a_token_is_answered_as_if_it_were_alone():
    own = Int8Map.of(torch.randn(48, 96), Shared())
    states = torch.randn(6, 96) * torch.tensor([1e-3, 1.0, 1e3, 1.0, 0.0, 5.0])[:, None]
    together = own(states, None)
    for row in range(6):
        assert torch.equal(own(states[row : row + 1], None)[0], together[row])


def spanned(own, *inputs):
    with own.measuring():
        for states in inputs:
            own(states, None)
    return own


@given(size=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 70)), seed=st.integers(0, 2**31))
def test_within_a_span_the_product_is_that_of_whole_numbers(size, seed):
    tokens, outputs, inputs = size
    generator = torch.Generator().manual_seed(seed)
    own = Int8Map.of(torch.randn(outputs, inputs, generator=generator), Shared())
    own.span = (-0.5, 2.05)  # steps of 0.01, the nought at 50
    bias_O = torch.randn(outputs, generator=generator)
    steps = torch.randint(-80, 240, (tokens, inputs), generator=generator)
    expected = (steps.clamp(-50, 205).double() @ own.values_OI.double().T) * own.scale_O.double() * 0.01 + bias_O.double()
    within = steps.abs().double() @ own.values_OI.abs().double().T * own.scale_O * 0.01 + bias_O.abs()  # what is added up may cancel out
    assert ((own(steps * 0.01, bias_O) - expected).abs() <= 1e-5 * within).all()


def test_the_span_is_that_of_what_came_and_holds_nought():
    own = spanned(Int8Map.of(torch.eye(4), Shared()), torch.tensor([[1.0, 3.0, 0.5, 2.0]]), torch.full((2, 4), 0.25))
    assert own.span == (0.0, 3.0)
    assert spanned(own, torch.tensor([[-2.0, 1.0, 0.0, 0.0]])).span == (-2.0, 1.0)
    assert spanned(own).span is None
    assert spanned(own, torch.zeros(1, 4)).span is None


def test_within_a_span_no_sum_is_cut_off_and_a_token_is_answered_as_if_it_were_alone():
    own = Int8Map.of(torch.ones(3, 64), Shared())
    own.span = (0.0, 1.0)
    assert own(torch.ones(2, 64), None) == pytest.approx(64 * 64 / 63.5, rel=1e-3)
    own, states = Int8Map.of(torch.randn(48, 96), Shared()), torch.randn(6, 96)
    together = spanned(own, states)(states, None)
    for row in range(6):
        assert torch.equal(own(states[row : row + 1], None)[0], together[row])


@pytest.mark.skipif(not has_kernel(), reason="torch has no product of whole numbers here")
def test_within_a_span_a_processor_without_the_product_gives_the_same(monkeypatch):
    states, bias_O = torch.randn(5, 7, 96), torch.randn(48)
    own = spanned(Int8Map.of(torch.randn(48, 96), Shared()), states)
    fast = own(states * 1.2, bias_O)
    monkeypatch.setattr(int8, "has_kernel", lambda: False)
    slow = own(states * 1.2, bias_O)
    # A number that lies between two steps may go to either.
    assert (fast - slow).abs().median() < 1e-5
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=0.2)


def test_a_bias_that_is_learned_meanwhile_is_taken_as_it_is():
    states, bias_O = torch.randn(3, 16), torch.nn.Parameter(torch.zeros(8))
    own = spanned(Int8Map.of(torch.randn(8, 16), Shared()), states)
    first = own(states, bias_O)
    with torch.no_grad():
        bias_O.add_(1.0)
    torch.testing.assert_close(own(states, bias_O), first + 1)
    torch.testing.assert_close(own(states, None), first)


def test_gradients_flow_through_the_restored_weight():
    own = Int8Map.of(torch.randn(8, 16), Shared())
    states, bias_O = torch.randn(3, 16, requires_grad=True), torch.zeros(8, requires_grad=True)
    own(states, bias_O).sum().backward()
    torch.testing.assert_close(states.grad, restored(own.values_OI, own.scale_O).sum(0).expand(3, -1))
    assert torch.equal(bias_O.grad, torch.full((8,), 3.0))


def test_inputs_that_changed_are_scaled_anew():
    shared, states = Shared(), torch.ones(2, 4)
    own = Int8Map.of(torch.eye(4), shared)
    first = own(states, None)
    assert shared.scaled(states)[0] is shared.scaled(states)[0]
    states.mul_(2)
    torch.testing.assert_close(own(states, None), first * 2)


def test_a_copy_gives_the_same():
    own = Int8Map.of(torch.randn(8, 16), Shared())
    states = torch.randn(3, 16)
    expected = own(states, None)
    assert torch.equal(copy.deepcopy(own)(states, None), expected)


def test_the_engine_of_others_stays_as_it_was():
    before = torch.backends.quantized.engine
    Int8Map.of(torch.randn(4, 4), Shared())(torch.randn(1, 4), None)
    assert torch.backends.quantized.engine == before
