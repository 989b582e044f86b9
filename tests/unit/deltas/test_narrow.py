"""Which units remain: the rule on tables worked out by hand, and on any scores."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewtune.backbone import tiny, trim
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.narrow import chosen


def as_lists(kept):
    return {key: kept_K.tolist() for key, kept_K in kept.items()}


def test_blocks_count_alike_and_keep_their_best():
    # Divided by their lengths: (0.6, 0.8), (0, 1), (0.7071, 0.7071).
    scores = {("heads", 0): torch.tensor([3.0, 4.0]), ("heads", 1): torch.tensor([0.0, 0.1]), ("heads", 2): torch.tensor([5.0, 5.0])}
    assert as_lists(chosen(scores, {"heads": 0.5})) == {("heads", 0): [1], ("heads", 1): [1], ("heads", 2): [0]}
    assert as_lists(chosen(scores, {"heads": 4 / 6})) == {("heads", 0): [1], ("heads", 1): [1], ("heads", 2): [0, 1]}
    assert as_lists(chosen(scores, {"heads": 5 / 6})) == {("heads", 0): [0, 1], ("heads", 1): [1], ("heads", 2): [0, 1]}
    assert as_lists(chosen(scores, {"heads": 0.01})) == {("heads", 0): [1], ("heads", 1): [1], ("heads", 2): [0]}, "one in each"


def test_parts_are_ranked_apart():
    scores = {("heads", 0): torch.tensor([1.0, 9.0]), ("ffn", 0): torch.tensor([0.0, 0.1, 0.2, 0.3])}
    assert as_lists(chosen(scores, {"heads": 0.5, "ffn": 0.75})) == {("heads", 0): [1], ("ffn", 0): [1, 2, 3]}
    assert as_lists(chosen(scores, {"ffn": 0.5})) == {("ffn", 0): [2, 3]}


@given(
    rows=st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=4),
    share=st.floats(0.01, 1.0),
)
@pytest.mark.slow
def test_any_scores_keep_as_many_units_as_asked_for_in_order(rows, share):
    scores = {("ffn", block): torch.tensor(row) for block, row in enumerate(rows)}
    kept = chosen(scores, {"ffn": share})
    assert kept.keys() == scores.keys()
    assert sum(map(len, kept.values())) == max(len(rows), round(share * 3 * len(rows)))
    for key, kept_K in kept.items():
        assert len(kept_K) >= 1 and kept_K.tolist() == sorted(set(kept_K.tolist()))
        gone = [score for unit, score in enumerate(scores[key].tolist()) if unit not in kept_K.tolist()]
        assert not gone or max(gone) <= scores[key][kept_K.long()].min().item() + 1e-6


def test_magnitudes_are_products_of_the_lengths_of_a_units_weights():
    backbone = Backbone(*tiny.model("bert"), name="bert")
    block = backbone.blocks[1]
    made, read = block.intermediate.dense.weight, block.output.dense.weight
    expected = torch.stack([made[unit].norm() * read[:, unit].norm() for unit in range(128)])
    torch.testing.assert_close(trim.magnitudes(backbone, "ffn", 1), expected)
    own, rows = block.attention, slice(8, 16)
    made = torch.cat([getattr(own.self, name).weight[rows] for name in ("query", "key", "value")])
    expected = made.norm() * own.output.dense.weight[:, rows].norm()
    torch.testing.assert_close(trim.magnitudes(backbone, "heads", 1)[1], expected)
