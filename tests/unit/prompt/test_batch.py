"""Rows → batches: padded by hand, and put together so that all come and little is padded."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.prompt.batch import balanced_order, bucketed_order, buckets, collate, collate_filled
from fewtune.prompt.encode import Row
from fewtune.prompt.spelling import Filling


def test_collate_by_hand():
    rows = [Row((5, 6, 7), (0, 0, 0), 1), Row((8,), (0,), 0)]
    batch = collate(rows, pad=9, words=((3,), (4, 5)))
    assert batch.ids_BT.tolist() == [[5, 6, 7], [8, 9, 9]] and batch.mask_BT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.types_BT is None and batch.slot_B.tolist() == [1, 0] and batch.words == ((3,), (4, 5)) and len(batch) == 2
    assert {tensor.dtype for tensor in (batch.ids_BT, batch.mask_BT, batch.slot_B)} == {torch.int64}


def test_collate_numbers_segments_only_where_there_are_some():
    batch = collate([Row((5, 6), (0, 1), 0), Row((7,), (0,), 0)], pad=0, words=((1,), (2,)))
    assert batch.types_BT.tolist() == [[0, 1], [0, 0]] and batch.words == ((1,), (2,))
    moved = batch.to("cpu")
    assert torch.equal(moved.types_BT, batch.types_BT) and moved.words == batch.words
    assert collate([Row((7,), (0,), 0)], pad=0).to("cpu").types_BT is None


def test_collate_with_words_put_in_by_hand():
    rows = [Row((5, 6, 7), (0, 0, 0), 1, own=(2,), said=1), Row((8, 9), (0, 0), 0, own=(0, 1), said=2)]
    batch = collate_filled(rows, Filling((((3,),), ((1, 2),))), pad=0)
    assert batch.ids_BT.tolist() == [[5, 3, 6, 7, 0], [5, 1, 2, 6, 7], [3, 8, 9, 0, 0], [1, 2, 8, 9, 0]]
    assert batch.mask_BT.sum(1).tolist() == [4, 5, 3, 4] and batch.types_BT is None and batch.trees == ()
    assert [own.nonzero()[:, 0].tolist() for own in batch.own_BT] == [[3], [4], [1, 2], [2, 3]]
    assert len(batch) == 2 and batch.slot_B.tolist() == [1, 0] and batch.said_B.tolist() == [1, 2]
    moved = batch.to("cpu")
    assert torch.equal(moved.own_BT, batch.own_BT) and torch.equal(moved.said_B, batch.said_B)


lengths = st.lists(st.integers(1, 60), max_size=80)


@settings(max_examples=100)
@given(lengths, st.integers(1, 9))
def test_buckets_are_a_partition_from_short_to_long(given_lengths, size):
    found = buckets(given_lengths, size=size)
    flat = [index for batch in found for index in batch]
    assert sorted(flat) == list(range(len(given_lengths)))
    assert [given_lengths[index] for index in flat] == sorted(given_lengths)
    assert all(len(batch) == size for batch in found[:-1]) and all(1 <= len(batch) <= size for batch in found)


@settings(max_examples=100)
@given(lengths, st.integers(1, 9), st.integers(0, 2**62))
def test_an_epoch_is_a_partition_and_a_function_of_its_arguments(given_lengths, size, seed):
    found = bucketed_order(given_lengths, size=size, seed=seed)
    assert sorted(index for batch in found for index in batch) == list(range(len(given_lengths)))
    assert all(1 <= len(batch) <= size for batch in found)
    assert len(found) == -(-len(given_lengths) // size)
    assert found == bucketed_order(given_lengths, size=size, seed=seed)


def test_an_epoch_is_drawn_anew_for_each_seed_and_pads_little():
    given_lengths = [(index * 37) % 50 + 1 for index in range(200)]
    epochs = [bucketed_order(given_lengths, size=8, seed=seed) for seed in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]

    def padded(batches):
        return sum(max(given_lengths[index] for index in batch) * len(batch) for batch in batches)

    at_random = [list(range(start, min(start + 8, 200))) for start in range(0, 200, 8)]
    assert all(padded(epoch) < 0.75 * padded(at_random) for epoch in epochs)
    # The order of the batches does not follow length, or training would.
    first_lengths = [given_lengths[batch[0]] for batch in epochs[0]]
    assert first_lengths != sorted(first_lengths)


@settings(max_examples=100)
@given(targets=st.lists(st.integers(0, 4), min_size=1, max_size=60), size=st.integers(2, 20), seed=st.integers(0, 99))
def test_balanced_order_gives_partners_and_turns(targets, size, seed):
    batches = balanced_order(targets, size=2 * size, seed=seed)
    assert batches == balanced_order(targets, size=2 * size, seed=seed)
    assert {row for batch in batches for row in batch} == set(range(len(targets))), "every row comes in an epoch"
    counts = Counter(targets)
    for batch in batches:
        assert len(set(batch)) == len(batch) <= 2 * size
        alone = [target for target, times in Counter(targets[row] for row in batch).items() if times == 1]
        assert all(counts[target] == 1 for target in alone), "a row has a partner unless its label has none"
    dealt = Counter(targets[row] for batch in batches for row in batch)
    assert max(dealt.values()) <= max(counts.values()) + 1
