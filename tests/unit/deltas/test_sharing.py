"""What is shared, what corrects it, and how near it begins: held to torch's singular values and to a forward written densely."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.lora import LoRA
from fewtune.deltas.narrow import Narrow
from fewtune.deltas.sharing import Sharing, nearest
from fewtune.deltas.subset import Subset
from fewtune.errors import BackboneError, SpecError

PLACE = "intermediate.dense"


def made(blocks=6, family="bert"):
    return Backbone(*tiny.model(family, blocks=blocks), name=family)


def install(delta, backbone):
    return delta.install(backbone, generator=torch.Generator())


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_the_nearest_matrix_of_a_rank_is_that_of_the_greatest_singular_values(shape):
    matrix_OI = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix_OI, full_matrices=False)
    for rank in (1, 3, 5, 12):
        B_OR, A_RI = nearest(matrix_OI, rank)
        assert B_OR.shape == (shape[0], rank) and A_RI.shape == (rank, shape[1])
        best = left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]
        torch.testing.assert_close(B_OR @ A_RI, best, atol=1e-5, rtol=1e-5)
    zero_OI = torch.zeros(shape)
    B_OR, A_RI = nearest(zero_OI, 2)
    assert torch.equal(B_OR @ A_RI, zero_OI) and bool(B_OR.isfinite().all())


@pytest.mark.parametrize(
    ("blocks", "groups", "expected"),
    [(6, 3, [[0, 1], [2, 3], [4, 5]]), (6, 1, [[0, 1, 2, 3, 4, 5]]), (5, 2, [[0, 1, 2], [3, 4]]), (3, 2, [[0, 1]]), (4, 3, [[0, 1]])],
)
def test_neighbours_are_in_a_group_and_one_alone_shares_nothing(blocks, groups, expected):
    assert Sharing(groups=groups).members(made(blocks)) == expected


def test_blocks_of_a_group_have_one_matrix_and_corrections_of_their_own():
    backbone, delta = made(), Sharing(groups=2, rank=3)
    own = [block.intermediate.dense.weight.clone() for block in backbone.blocks]
    inputs = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    installed = install(delta, backbone)
    mean = torch.stack(own[3:]).mean(0)
    for number in (3, 4, 5):
        module = backbone.blocks[number].intermediate.dense
        B_OR, A_RI = nearest(own[number] - mean, 3)
        expected = inputs @ (mean + B_OR @ A_RI).T + module.base.bias
        torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=1e-5)
    held = [backbone.blocks[number].intermediate.dense.weight for number in (3, 4, 5)]
    assert all(weight is held[0] for weight in held) and held[0].requires_grad
    sites = [site for name in ("query", "key", "value", "attention_out", "ffn_in", "ffn_out") for site in backbone.sites(name)]
    numel = sum(site.inputs * site.outputs for site in sites if site.block == 0)
    low = sum(3 * (site.inputs + site.outputs) for site in sites)
    assert installed.stored_parameters == 2 * numel + low
    assert numel == 4 * 32 * 32 + 2 * 32 * 128 and low == 6 * 3 * (4 * 64 + 2 * 160)


def test_with_full_rank_the_model_is_as_it_was_and_merged_it_is_plain():
    backbone = made(3)
    ids_BT = torch.tensor([[10, 20, 30, 40]])
    with torch.no_grad():
        before = backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD
        installed = install(Sharing(groups=1, rank=32), backbone)
        torch.testing.assert_close(backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD, before, atol=1e-4, rtol=1e-4)
        undo = installed.merge()
        torch.testing.assert_close(backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD, before, atol=1e-4, rtol=1e-4)
        undo()
        installed.remove()
        assert torch.equal(backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD, before)


def test_all_other_weights_can_be_trained_beside_it():
    backbone = made(3)
    install(Sharing(groups=1, rank=1), backbone)
    every = install(Subset("all"), backbone)
    assert not any(name.endswith("dense.weight") and ".layer." in name for name in every.weights)
    assert any(name.endswith("dense.bias") for name in every.weights) and any("word_embeddings" in name for name in every.weights)


def test_what_cannot_be_shared_is_refused_with_the_reason():
    backbone = made(3)
    for groups in (3, 4):
        with pytest.raises(BackboneError, match="expected fewer groups than bert has blocks, which are 3"):
            install(Sharing(groups=groups), backbone)
    every = install(Subset("all"), backbone)
    with pytest.raises(BackboneError, match="expected matrices of the backbone, got another delta's in their place"):
        install(Sharing(groups=1), backbone)
    every.remove()
    narrowed = Narrow(heads=1.0, ffn=0.5).keeping(backbone, {("ffn", 1): torch.arange(9, dtype=torch.int32)})
    with pytest.raises(BackboneError, match="expected blocks of one size"):
        install(Sharing(groups=1), backbone)
    narrowed.remove()
    install(LoRA(rank=1), backbone)
    install(Sharing(groups=1), backbone)
    for odd in ({"groups": 0}, {"rank": 0}):
        with pytest.raises(SpecError, match="sharing"):
            Sharing(**odd)
