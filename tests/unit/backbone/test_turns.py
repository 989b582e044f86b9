"""Batches whose rows cannot share a pass: when they are split, and that everything comes back in order."""

import torch

from fewtune.backbone import tiny, turns
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.lora import LoRA

ROUTE = torch.tensor([3, 1, -1, 3, 1])


def made(family, *placed):
    model, tokenizer = tiny.model(family)
    backbone = Backbone(model, tokenizer, name=family)
    for entry, delta in placed:
        with backbone.installing(entry):
            delta.install(backbone, generator=torch.Generator().manual_seed(0))
    return backbone


def split(backbone, route_B):
    return [rows_N.tolist() for rows_N in turns.of(backbone.stack, backbone.family.unrouted, route_B)]


def test_rows_of_each_entry_take_a_turn_where_a_delta_cannot_tell_them_apart():
    backbone = made("deberta-v2", (1, LoRA(rank=1)))
    assert split(backbone, ROUTE) == [[2], [1, 4], [0, 3]]
    assert split(backbone, torch.tensor([1, 1])) == split(backbone, None) == []
    # No row of the batch uses it.
    assert split(backbone, torch.tensor([-1, 2, 3])) == []


def test_all_rows_share_a_pass_where_deltas_can():
    assert split(made("deberta-v2", (1, LoRA(rank=1, sites=("value", "ffn_in"))), (3, LoRA(rank=2, sites=("ffn_out",)))), ROUTE) == []
    assert split(made("bert", (1, LoRA(rank=1))), ROUTE) == []


def test_each_row_is_computed_once_and_stands_where_it_stood():
    backbone, ran = made("deberta-v2", (1, LoRA(rank=1))), []
    backbone.blocks[0].register_forward_hook(lambda module, inputs, output: ran.append(len(inputs[0])))
    ids_BT = torch.randint(10, 100, (5, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed = backbone.forward(ids_BT, torch.ones_like(ids_BT), route_B=ROUTE)
        assert ran == [1, 2, 2]
        plain = made("deberta-v2").forward(ids_BT, torch.ones_like(ids_BT))
    # A new update changes nothing yet.
    torch.testing.assert_close(mixed.hidden_BTD, plain.hidden_BTD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed.first_BD, plain.first_BD, atol=1e-5, rtol=1e-5)


def test_going_on_from_the_states_below_takes_those_of_the_own_rows():
    backbone = made("deberta-v2", (1, LoRA(rank=1)))
    ids_BT = torch.randint(10, 100, (5, 4), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones_like(ids_BT)
    with torch.no_grad():
        below_BTD = backbone.below(ids_BT, mask_BT, None, start=2)
        gone_on_BTD = backbone.forward(ids_BT, mask_BT, start=2, below_BTD=below_BTD, route_B=ROUTE).hidden_BTD
        whole_BTD = backbone.forward(ids_BT, mask_BT, route_B=ROUTE).hidden_BTD
    torch.testing.assert_close(gone_on_BTD, whole_BTD, atol=1e-5, rtol=1e-5)


def test_what_is_not_there_has_no_rows():
    assert turns.rows(None, torch.tensor([1])) is None
    assert turns.rows(torch.tensor([5, 6, 7]), torch.tensor([2, 0])).tolist() == [7, 5]
