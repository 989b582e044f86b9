"""Batches whose rows cannot share a pass, or had better not: when they are split, and that everything comes back in order."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewtune.backbone import tiny, turns
from fewtune.backbone.backbone import Backbone
from fewtune.deltas.lora import LoRA
from fewtune.deltas.soft_prompt import SoftPrompt

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


def mask(lengths, width=None):
    return (torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]).long()


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.sampled_from([0, 16, 32, 100]))
def test_turns_of_like_length_hold_each_row_once_and_cost_the_least(lengths, cost):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(turns, "TURN", cost)
        found = [rows_N.tolist() for rows_N in turns.by_length(mask(lengths))] or [list(range(len(lengths)))]

    def price(parts):
        return sum(len(part) * max(part) + cost for part in parts)

    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    ordered = sorted(lengths)
    ways = itertools.chain(*(itertools.combinations(range(1, len(ordered)), count) for count in range(len(ordered))))
    cheapest = min(price([ordered[start:end] for start, end in itertools.pairwise([0, *cuts, len(ordered)])]) for cuts in ways)
    assert price([[lengths[row] for row in part] for part in found]) == cheapest


def test_rows_of_one_length_little_padding_and_single_rows_take_no_turns():
    assert turns.by_length(mask([50] * 8)) == turns.by_length(mask([50] * 8, width=90)) == turns.by_length(mask([5], width=90)) == []
    assert turns.by_length(mask([50, 50 - turns.TURN])) == []
    assert [rows_N.tolist() for rows_N in turns.by_length(mask([90, 8, 9, 90]))] == [[1, 2], [0, 3]]


def test_an_accelerator_takes_no_turns():
    assert turns.by_length(mask([90, 8, 9, 90]).to("meta")) == []


def test_rows_that_end_in_trees_take_turns_as_well(monkeypatch):
    backbone = made("llama")
    ids_BT, mask_BT = torch.randint(10, 100, (3, 8), generator=torch.Generator().manual_seed(0)), mask([8, 4, 6])
    with torch.no_grad():
        for trees in ([(-1, 0, 0)], [(-1, 0, 0), (-1, -1), (-1, 0, 1)]):
            monkeypatch.setattr(turns, "TURN", 10**9)
            once_BTD = backbone.forward(ids_BT, mask_BT, trees=trees).hidden_BTD
            monkeypatch.setattr(turns, "TURN", 0)
            turned_BTD = backbone.forward(ids_BT, mask_BT, trees=trees).hidden_BTD
            assert len(turns.by_length(mask_BT)) == 3
            torch.testing.assert_close(turned_BTD[mask_BT.bool()], once_BTD[mask_BT.bool()], atol=1e-5, rtol=1e-5)


def test_vectors_in_front_and_what_a_decoder_writes_come_back_in_order(monkeypatch):
    backbone = made("t5", (0, SoftPrompt(length=3)))
    ids_BT, mask_BT = torch.randint(10, 100, (3, 8), generator=torch.Generator().manual_seed(0)), mask([8, 2, 5])
    written_BFJ = torch.randint(10, 100, (3, 2, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        monkeypatch.setattr(turns, "TURN", 10**9)
        once, read = backbone.forward(ids_BT, mask_BT, written_BFJ=written_BFJ), backbone.forward(ids_BT, mask_BT)
        monkeypatch.setattr(turns, "TURN", 0)
        turned, turned_read = backbone.forward(ids_BT, mask_BT, written_BFJ=written_BFJ), backbone.forward(ids_BT, mask_BT)
    torch.testing.assert_close(turned.hidden_BTD, once.hidden_BTD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned_read.hidden_BTD[mask_BT.bool()], read.hidden_BTD[mask_BT.bool()], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned_read.first_BD, read.first_BD, atol=1e-5, rtol=1e-5)
