"""The cache of hidden states: what goes in comes out, without padding, and no more than fits."""

import torch

from fewtune.train.cache import MOST_BYTES, StateCache


def states(rows, tokens, *, width=4):
    return torch.arange(1.0, rows * tokens * width + 1).reshape(rows, tokens, width)


def test_rows_come_back_in_any_company_padded_with_zeros():
    cache, hidden_BTD = StateCache(), states(3, 5)
    assert cache.add(["a", "b", "c"], [5, 2, 3], hidden_BTD)
    got_BTD = cache.get(["c", "b"])
    assert got_BTD.shape == (2, 3, 4)
    assert torch.equal(got_BTD[0], hidden_BTD[2, :3])
    assert torch.equal(got_BTD[1, :2], hidden_BTD[1, :2]) and not bool(got_BTD[1, 2:].any())
    assert torch.equal(cache.get(["b", "a", "b"])[1], hidden_BTD[0])


def test_a_batch_with_an_unknown_row_is_not_answered():
    cache = StateCache()
    cache.add(["a"], [2], states(1, 2))
    assert cache.get(["a", "b"]) is None and cache.get(["b"]) is None


def test_padding_is_not_kept_and_bytes_are_counted():
    cache = StateCache()
    cache.add([0, 1], [1, 3], states(2, 9))
    assert cache.bytes == (1 + 3) * 4 * 4 == sum(kept.untyped_storage().nbytes() for kept in cache.states.values())


def test_what_is_kept_does_not_follow_the_batch():
    cache, hidden_BTD = StateCache(), states(1, 2)
    before = hidden_BTD.clone()
    cache.add(["a"], [2], hidden_BTD)
    hidden_BTD.zero_()
    assert torch.equal(cache.get(["a"]), before)


def test_says_when_it_is_full_and_keeps_what_fitted():
    cache = StateCache(most_bytes=3 * 4 * 4, most_disk=0)
    assert cache.add(["a"], [2], states(1, 2))
    assert not cache.add(["b", "c"], [1, 2], states(2, 2))
    assert cache.get(["a", "b"]) is not None and cache.get(["c"]) is None
    assert cache.bytes == 3 * 4 * 4
    assert MOST_BYTES == 2 * 1024**3


def test_keys_are_whatever_tells_rows_apart():
    cache = StateCache()
    cache.add([(0, 1), (1, 0)], [1, 1], states(2, 1))
    assert not torch.equal(cache.get([(0, 1)]), cache.get([(1, 0)]))


def test_half_precision_stays_and_costs_half():
    cache = StateCache()
    cache.add(["a"], [2], states(1, 2).bfloat16())
    assert cache.bytes == 2 * 4 * 2 and cache.get(["a"]).dtype == torch.bfloat16


def test_what_does_not_fit_into_memory_goes_to_a_file_and_comes_back(tmp_path):
    cache, hidden_BTD = StateCache(most_bytes=2 * 4 * 4, most_disk=7 * 4 * 4, folder=tmp_path), states(4, 3)
    assert cache.add(["a", "b"], [2, 3], hidden_BTD[:2])
    assert torch.equal(cache.get(["b", "a"])[0], hidden_BTD[1])
    assert cache.add(["c"], [3], hidden_BTD[2:3])  # the file has grown since it was mapped
    assert torch.equal(
        cache.get(["c", "b", "a"]), torch.stack([hidden_BTD[2], hidden_BTD[1], torch.cat([hidden_BTD[0, :2], torch.zeros(1, 4)])])
    )
    assert (cache.bytes, cache.disk_bytes) == (2 * 4 * 4, 6 * 4 * 4)
    assert not cache.add(["d"], [2], hidden_BTD[3:4]) and "d" not in cache
    assert not list(tmp_path.iterdir()), "the file has no name and goes with the process"


def test_half_precision_comes_back_from_the_file():
    cache, hidden_BTD = StateCache(most_bytes=0), states(2, 3).bfloat16()
    assert cache.add([0, 1], [3, 1], hidden_BTD)
    got_BTD = cache.get([1, 0])
    assert got_BTD.dtype == torch.bfloat16 and torch.equal(got_BTD[1], hidden_BTD[0]) and torch.equal(got_BTD[0, :1], hidden_BTD[1, :1])


def test_a_row_that_is_kept_is_not_kept_again():
    cache = StateCache()
    for _ in range(2):
        assert cache.add(["a"], [2], states(1, 2))
    assert cache.bytes == 2 * 4 * 4
