"""What is masked and what is predicted, by plain loops and over many draws; the loss by torch's own, with the head called in parts."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewtune.train.language import MASKED, Masking, language_loss, next_tokens

MASK, SPECIAL, VOCABULARY = 4, frozenset({0, 1, 2, 3, 4}), 40
MASKING = Masking(MASK, SPECIAL, VOCABULARY)


def padded(rows):
    """Padded with an ordinary token, for a tokenizer may have none for it."""
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[7] * (width - len(row))] for row in rows])
    return ids_BT, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


texts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), min_size=1, max_size=6)


@pytest.mark.slow
@given(texts)
def test_each_next_token_is_predicted_by_the_state_before_it(rows):
    ids_BT, mask_BT = padded(rows)
    asked = next_tokens(ids_BT, mask_BT)
    width = ids_BT.shape[1]
    expected = [(number * width + place, row[place + 1]) for number, row in enumerate(rows) for place in range(len(row) - 1)]
    assert list(zip(asked.places_N.tolist(), asked.targets_N.tolist(), strict=True)) == expected
    assert torch.equal(asked.ids_BT, ids_BT)


@given(texts, st.integers(0, 2**63 - 1))
@pytest.mark.slow
def test_masking_chooses_ordinary_tokens_only_and_as_many_as_it_should(rows, seed):
    ids_BT, mask_BT = padded(rows)
    before = ids_BT.clone()
    asked = MASKING.hide(ids_BT, mask_BT, seed=seed)
    assert torch.equal(ids_BT, before), "the batch that was given is left alone"
    flat, shown = ids_BT.flatten(), asked.ids_BT.flatten()
    assert torch.equal(flat[asked.places_N], asked.targets_N) and not SPECIAL & set(asked.targets_N.tolist())
    assert len(set(asked.places_N.tolist())) == len(asked.places_N) and bool(mask_BT.flatten()[asked.places_N].all())
    others = torch.ones_like(flat, dtype=torch.bool)
    others[asked.places_N] = False
    assert torch.equal(flat[others], shown[others])
    assert set(shown[asked.places_N].tolist()) <= {MASK} | (set(range(VOCABULARY)) - SPECIAL)
    ordinary = [sum(token not in SPECIAL for token in row) for row in rows]
    counts = Counter(place // ids_BT.shape[1] for place in asked.places_N.tolist())
    assert [counts[row] for row in range(len(rows))] == [min(count, max(1, round(MASKED * count))) for count in ordinary]


def test_masking_is_a_function_of_the_seed():
    ids_BT, mask_BT = padded([list(range(5, 35))] * 4)
    one, same, other = (MASKING.hide(ids_BT, mask_BT, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.ids_BT, same.ids_BT) and torch.equal(one.places_N, same.places_N)
    assert not torch.equal(one.places_N, other.places_N)


def test_most_are_hidden_a_tenth_becomes_another_token_and_a_tenth_stays():
    ids_BT = torch.full((200, 100), 7)
    asked = MASKING.hide(ids_BT, torch.ones_like(ids_BT), seed=0)
    shown = asked.ids_BT.flatten()[asked.places_N]
    assert len(shown) == 200 * 15
    # Of 3000 draws a share of 0.1 has a standard deviation of 0.0055; a random token is the old one once in 35 times.
    assert (shown == MASK).double().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (shown == 7).double().mean().item() == pytest.approx(0.1 + 0.1 / 35, abs=0.025)
    replaced = shown[(shown != MASK) & (shown != 7)].tolist()
    assert len(set(replaced)) == VOCABULARY - len(SPECIAL) - 1, "every ordinary token comes up"


STARTS = tuple(number % 3 == 0 for number in range(VOCABULARY))
WORDS = Masking(MASK, SPECIAL, VOCABULARY, starts=STARTS)


def words_of(row):
    """Places of the tokens of each word; one begins behind a special token, too."""
    found = []
    for place, token in enumerate(row):
        if token in SPECIAL:
            continue
        if not found or STARTS[token] or row[place - 1] in SPECIAL:
            found.append([])
        found[-1].append(place)
    return found


@given(texts, st.integers(0, 2**63 - 1))
@pytest.mark.slow
def test_words_are_masked_whole_and_together_no_more_than_the_share(rows, seed):
    ids_BT, mask_BT = padded(rows)
    asked = WORDS.hide(ids_BT, mask_BT, seed=seed)
    width = ids_BT.shape[1]
    for number, row in enumerate(rows):
        chosen = {place % width for place in asked.places_N.tolist() if place // width == number}
        words = words_of(row)
        assert all(chosen.issuperset(word) or chosen.isdisjoint(word) for word in words)
        assert bool(chosen) == bool(words)
        count = max(1, round(MASKED * sum(map(len, words))))
        shortest = min(map(len, words), default=0)
        assert len(chosen) <= max(count, shortest)
        missed = [word for word in words if chosen.isdisjoint(word)]
        assert all(len(word) > count - len(chosen) for word in missed), "another word would have fitted"


def test_of_whole_words_each_token_has_its_own_fate():
    row = [6, 7, 8, 9, 10, 11] * 40
    ids_BT = torch.tensor([row] * 100)
    asked = WORDS.hide(ids_BT, torch.ones_like(ids_BT), seed=0)
    shown = asked.ids_BT.flatten()[asked.places_N]
    assert len(shown) == 100 * 36
    assert (shown == MASK).double().mean().item() == pytest.approx(0.8, abs=0.03)
    kept = (shown == asked.targets_N).double().mean().item()
    assert kept == pytest.approx(0.1 + 0.1 / 35, abs=0.025)


@given(st.integers(1, 12), st.integers(1, 13))
@pytest.mark.slow
def test_the_loss_and_its_gradients_are_those_of_all_logits_at_once(count, most):
    generator = torch.Generator().manual_seed(count)
    hidden_ND = torch.randn(count, 4, generator=generator, dtype=torch.float64).float()
    weight_VD, targets_N = torch.randn(9, 4, generator=generator), torch.randint(9, (count,), generator=generator)
    sizes, found = [], []
    for parted in (True, False):
        states_ND, head_VD = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()

        def logits(part_ND, head_VD=head_VD):
            sizes.append(len(part_ND))
            return part_ND @ head_VD.T

        if parted:
            loss = language_loss(states_ND, targets_N, logits, weights=[head_VD], most=most)
        else:
            loss = torch.nn.functional.cross_entropy(states_ND @ head_VD.T, targets_N)
        (3 * loss).backward()
        found.append((loss.detach(), states_ND.grad, head_VD.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert max(sizes) <= most
    assert sum(sizes) == count, "once for each state, for the loss and its gradient together"


def test_by_hand():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    expected = (torch.tensor(2.0).log() + (1 + torch.tensor(2.0).exp()).log()) / 2
    torch.testing.assert_close(language_loss(logits, torch.tensor([1, 0]), lambda states_ND: states_ND), expected)
