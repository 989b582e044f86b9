"""Branches behind a text: who sees whom, and where each token stands."""

import torch

from fewtune.backbone import tree

#   2 tokens of text, then a (0), b (1) after a, c (2) after the text, d (3) after b
PARENTS = (-1, 0, -1, 1)


def test_each_token_sees_the_text_and_what_it_goes_on_from():
    seen_SS = tree.seen(torch.tensor([[1, 1, 1, 1, 1, 1, 0]]), [PARENTS])[0, 0].int().tolist()
    assert seen_SS[:6] == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 0],
    ]


def test_padding_sees_something_so_that_no_row_of_scores_is_empty():
    seen_B1SS = tree.seen(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]), [(-1, -1)])
    assert bool(seen_B1SS.any(-1).all())


def test_positions_count_on_from_the_text_and_behind_what_stands_in_front():
    mask_BS = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    assert tree.positions(mask_BS, [PARENTS], None)[:, :6].tolist() == [[0, 1, 2, 3, 2, 4], [0, 1, 2, 3, 4, 3]]
    assert tree.positions(mask_BS, [PARENTS], None)[1].tolist() == [0, 1, 2, 3, 4, 3, 5]
    moved_BS = torch.arange(7).expand(2, 7) + 10
    assert tree.positions(mask_BS, [PARENTS], moved_BS)[1].tolist() == [10, 11, 12, 13, 14, 13, 15]


def test_a_window_goes_by_positions_not_by_places():
    near_SS = tree.near(torch.tensor([[0, 1, 2, 3, 2]]), 2)[0, 0].int().tolist()
    assert near_SS[4] == [0, 1, 1, 1, 1] and near_SS[3] == [0, 0, 1, 1, 1]


def test_each_row_has_a_tree_of_its_own():
    mask_BS = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
    trees = [PARENTS, (-1, -1), ()]
    for row, parents in enumerate(trees):
        alone_1S = mask_BS[row : row + 1]
        real = int(alone_1S.sum())
        assert torch.equal(tree.seen(mask_BS, trees)[row, 0, :real], tree.seen(alone_1S, [parents])[0, 0, :real])
        assert torch.equal(tree.positions(mask_BS, trees, None)[row], tree.positions(alone_1S, [parents], None)[0])
    assert tree.positions(mask_BS, trees, None)[:, :4].tolist() == [[0, 1, 2, 3], [0, 1, 2, 2], [0, 1, 2, 3]]
    plain_SS = torch.ones(3, 3, dtype=torch.bool).tril()
    assert torch.equal(tree.seen(mask_BS, trees)[2, 0, :3, :3], plain_SS)
