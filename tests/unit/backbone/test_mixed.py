"""Attention by products is torch's fused attention, forwards and backwards, and is what a model in bfloat16 is trained through on a CPU."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fewtune.backbone import mixed, tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES

ROWS, HEADS, QUERIES, KEYS, SIZE = 2, 4, 5, 7, 8
SEEN = torch.arange(KEYS)[None, None, None].expand(ROWS, 1, QUERIES, -1) < torch.tensor([KEYS, 3])[:, None, None, None]
CPU = torch.device("cpu")


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def given(*, keys=KEYS, heads=HEADS):
    query = drawn(ROWS, HEADS, QUERIES, SIZE, seed=1)
    return tuple(states.requires_grad_() for states in (query, *(drawn(ROWS, heads, keys, SIZE, seed=seed) for seed in (2, 3))))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        ({}, {"attn_mask": SEEN}),
        ({}, {"attn_mask": drawn(1, HEADS, QUERIES, KEYS, seed=4).float(), "scale": 0.2}),
        ({}, {"attn_mask": torch.where(SEEN, 0.0, torch.finfo(torch.float32).min)}),
        ({"keys": QUERIES}, {"is_causal": True}),
        ({"heads": 2}, {"enable_gqa": True}),
    ],
)
def test_products_are_fused_attention_in_float32_forwards_and_backwards(shape, options):
    ours, theirs = given(**shape), tuple(states.detach().float().requires_grad_() for states in given(**shape))
    out, expected = mixed.by_products(*ours, **options), scaled_dot_product_attention(*theirs, **options)
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)
    above = drawn(*out.shape, seed=5)
    gradients = torch.autograd.grad(out, ours, above), torch.autograd.grad(expected, theirs, above.float())
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own.float(), other, atol=0.03, rtol=0.03)


def test_a_query_that_sees_nothing_gives_numbers():
    out = mixed.by_products(*given(), attn_mask=torch.zeros(1, 1, QUERIES, KEYS, dtype=torch.bool))
    assert out.isfinite().all()


@pytest.fixture
def products(monkeypatch):
    """How often attention was computed by products."""
    calls, compute = [], mixed.by_products
    monkeypatch.setattr(mixed, "by_products", lambda *states, **options: calls.append(1) or compute(*states, **options))
    return calls


def test_it_stands_in_where_attention_is_trained_through_and_nowhere_else(products):
    states = given()
    with mixed.halved(CPU):
        scaled_dot_product_attention(*states)
        assert len(products) == 1
        scaled_dot_product_attention(*(frozen.detach() for frozen in states))
        scaled_dot_product_attention(*states, dropout_p=0.5)
    with torch.no_grad(), mixed.halved(CPU):
        scaled_dot_product_attention(*states)
    scaled_dot_product_attention(*states)
    assert len(products) == 1


def test_a_bias_of_the_scores_is_trained_too():
    bias = drawn(1, HEADS, QUERIES, KEYS, seed=4).float().requires_grad_()
    exact = scaled_dot_product_attention(*(states.detach().float() for states in given()), attn_mask=bias)
    above = drawn(*exact.shape, seed=5)
    (found,) = torch.autograd.grad(mixed.by_products(*given(), attn_mask=bias), bias, above)
    torch.testing.assert_close(found, torch.autograd.grad(exact, bias, above.float())[0], atol=0.03, rtol=0.03)


def test_more_scores_than_are_worth_keeping_are_left_to_torch(products, monkeypatch):
    scores = math.prod((ROWS, HEADS, QUERIES, KEYS))
    for most, calls in ((scores, 1), (scores - 1, 0)):
        monkeypatch.setattr(mixed, "_MOST", most)
        products.clear()
        with mixed.halved(CPU):
            scaled_dot_product_attention(*given())
        assert len(products) == calls


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_bfloat16_has_gradients_as_near_those_of_float32_as_through_fused_attention(family, products, monkeypatch):
    backbone = Backbone(*tiny.model(family), name=f"tiny {family}")
    ids_BT, mask_BT = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0)), torch.ones(3, 9, dtype=torch.long)
    mask_BT[1, 6:] = 0
    weight = backbone.model.get_input_embeddings().weight.requires_grad_()

    def gradient(precision):
        with backbone.as_precision(precision):
            hidden_BTD = backbone.forward(ids_BT, mask_BT).hidden_BTD
        return torch.autograd.grad(hidden_BTD[0, :, 0].sum(), weight)[0].flatten()

    exact, ours = gradient("float32"), gradient("bfloat16")
    assert bool(products) == (backbone.family.attention is not None)
    monkeypatch.setattr(mixed, "_gains", lambda *states, **options: False)
    near, fused = (torch.cosine_similarity(found, exact, dim=0) for found in (ours, gradient("bfloat16")))
    assert near > fused - 0.01
