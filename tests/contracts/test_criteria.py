"""Every criterion of the table: the strictest threshold lets nobody out early, the laxest everybody at once, a looser one never later."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.exits import CRITERIA
from fewtune.exits.criteria import NEVER, figures, same

SEEN = list(CRITERIA)
EXITS, WIDTH = 4, 6
VARIANTS = [*SEEN, "margin:by=top", "patience:tolerance=0.1"]


def test_every_criterion_is_seen():
    assert SEEN == ["entropy", "margin", "patience", "confidence"]


def judge(text, threshold, *, seed=0):
    """Ready to judge; what it learns is drawn."""
    made = CRITERIA.from_text(text).install(exits=EXITS, width=WIDTH, threshold=threshold)
    generator = torch.Generator().manual_seed(seed)
    for weight in made.weights.values():
        weight.data = torch.randn(weight.shape, generator=generator)
    return made


def drawn(rows=7, candidates=2, *, seed=1, size=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(EXITS, rows, candidates, generator=generator) * size, torch.randn(rows, WIDTH, generator=generator)


def left(made, scores_LBC, state_BD):
    """The number of the exit at which each row leaves, EXITS where it does at none."""
    with torch.no_grad():
        done_LB = torch.stack([made.done(scores_LBC[: number + 1], state_BD) for number in range(EXITS)])
    return torch.cat([done_LB, torch.ones(1, done_LB.shape[1], dtype=torch.bool)]).int().argmax(0)


@pytest.mark.parametrize("name", VARIANTS)
def test_goes_through_plain_data(name):
    criterion = CRITERIA.from_text(name)
    assert CRITERIA.from_dict(json.loads(json.dumps(CRITERIA.to_dict(criterion)))) == criterion
    assert CRITERIA.to_text(criterion) == name


@pytest.mark.parametrize("name", VARIANTS)
def test_the_strictest_lets_nobody_out_and_the_laxest_everybody_at_once(name):
    assert left(judge(name, NEVER), *drawn()).tolist() == [EXITS] * 7
    assert left(judge(name, -NEVER), *drawn()).tolist() == [0] * 7


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=30)
@given(low=st.floats(-1, 4), more=st.floats(0, 3), seed=st.integers(0, 99))
def test_a_looser_threshold_never_lets_a_row_out_later(name, low, more, seed):
    scores_LBC, state_BD = drawn(seed=seed)
    loose, strict = (left(judge(name, threshold), scores_LBC, state_BD) for threshold in (low, low + more))
    assert bool((loose <= strict).all())


@pytest.mark.parametrize("name", VARIANTS)
def test_each_row_is_judged_for_itself(name):
    made, (scores_LBC, state_BD) = judge(name, 0.5), drawn()
    with torch.no_grad():
        together_B = made.sure(scores_LBC, state_BD)
        alone = [made.sure(scores_LBC[:, row : row + 1], state_BD[row : row + 1]) for row in range(7)]
    torch.testing.assert_close(together_B, torch.cat(alone))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("candidates", [2, 20])
@settings(max_examples=20)
@given(size=st.sampled_from([0.0, 1e-30, 1.0, 1e4, 1e30]), seed=st.integers(0, 99))
def test_finite_at_extremes(name, candidates, size, seed):
    scores_LBC, state_BD = drawn(candidates=candidates, seed=seed, size=size)
    with torch.no_grad():
        for number in range(EXITS):
            sure_B = judge(name, 0.5).sure(scores_LBC[: number + 1], state_BD)
            assert sure_B.shape == (7,) and bool(sure_B.isfinite().all())


# By hand: two rows, three layers. Row 0 answers b, a, a; row 1 answers a at every layer.
TABLE_LBC = torch.tensor([[[0.2, 0.8], [0.5 + 1e-6, 0.5]], [[0.6, 0.4], [0.9, 0.1]], [[0.9, 0.1], [1 - 1e-9, 1e-9]]]).log()
BY_HAND = {
    # 1 + (p log2 p + q log2 q)
    "entropy": [[0.278072, 0.0], [0.029049, 0.531004], [0.531004, 1.0]],
    "margin": [[0.6, 0.0], [0.2, 0.8], [0.8, 1.0]],
    "margin:by=top": [[0.8, 0.5], [0.6, 0.9], [0.9, 1.0]],
    "patience": [[0, 0], [0, 1], [1, 2]],
    # values 0.8, 0.4, 0.1 and 0.5, 0.1, 0: only the last change of row 1 is within a fifth
    "patience:tolerance=0.2": [[0, 0], [0, 0], [0, 1]],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_three_layers_by_hand(name):
    made = CRITERIA.from_text(name).install(exits=3, width=WIDTH, threshold=0.5)
    sure_LB = torch.stack([made.sure(TABLE_LBC[: number + 1], torch.zeros(2, WIDTH)) for number in range(3)])
    torch.testing.assert_close(sure_LB, torch.tensor(BY_HAND[name], dtype=torch.float32), atol=1e-5, rtol=0)
    done_LB = torch.stack([made.done(TABLE_LBC[: number + 1], torch.zeros(2, WIDTH)) for number in range(3)])
    assert done_LB.tolist() == (torch.tensor(BY_HAND[name]) >= 0.5).tolist()


def test_the_confidence_predictor_by_hand():
    made = CRITERIA.from_text("confidence").install(exits=3, width=2, threshold=0.5)
    state_BD = torch.tensor([[1.0, -2.0], [0.0, 1.0]])
    with torch.no_grad():
        assert made.sure(TABLE_LBC, state_BD).tolist() == [0.5, 0.5]
        made.weights["confidence.state"][2] = torch.tensor([2.0, 1.0])
        made.weights["confidence.figures"][2] = torch.tensor([0.0, 0.0, 1.0, 10.0, 0.0])
        made.weights["confidence.bias"][2] = -3.0
        logits_B = torch.tensor([0.0 + math.log(0.6) + 10 * 0.3 - 3, 1.0 + math.log(0.9) + 10 * 0.1 - 3])
        torch.testing.assert_close(made.sure(TABLE_LBC, state_BD), logits_B.sigmoid(), atol=1e-5, rtol=0)


def test_the_figures_by_hand():
    expected = torch.tensor([[math.log(9), -math.log(0.468996), math.log(0.6), 0.3, 0.5], [15.0, 15.0, math.log(0.9), 0.1, 0.3]])
    torch.testing.assert_close(figures(TABLE_LBC), expected, atol=1e-5, rtol=0)
    assert figures(TABLE_LBC[:1])[:, 2].tolist() == [0.0, 0.0]
    assert figures(TABLE_LBC[:1])[:, 3:].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_what_is_the_same_answer():
    scores_BC, others_BC = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.45, 0.55], [0.6, 0.4]]).log()
    assert same(scores_BC, others_BC, None).tolist() == [False, True]
    assert same(scores_BC, others_BC, 0.1).tolist() == [True, False]
