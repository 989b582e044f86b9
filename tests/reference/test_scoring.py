"""Scores of continuations, beginnings computed once and branches side by side, against a plain loop through transformers' own forward."""

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.backbone import scoring, tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.backbone.scoring import Request, Score, score
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.errors import BackboneError

CAUSAL = [name for name, family in FAMILIES.items() if family.objective == "causal"]
EXAMPLES = tuple(range(10, 76))  # a beginning that is worth being computed once
REQUESTS = [
    Request((*EXAMPLES, 5, 6, 7), ((8,), (9,))),
    Request((*EXAMPLES, 5, 6), ((7, 8), (7, 8, 9), (7,), (8, 8))),
    Request((20, 21), ((22, 23, 24, 25), (22, 24))),
    Request((*EXAMPLES, *EXAMPLES[:40], 3), ((4, 5),)),
    Request((*EXAMPLES, *EXAMPLES[:40], 4), ((4, 5), ())),
    Request((*EXAMPLES, *EXAMPLES[:40], 4), ((5, 4),)),
    Request((*EXAMPLES, *EXAMPLES[:40], 4, 3), ((5, 4),)),
    Request((81,), ((82,),)),
]


def made(family):
    model, tokenizer = tiny.model(family)
    return Backbone(model, tokenizer, name=family)


def one_by_one(logits_of, requests):
    """Each token of each continuation by a pass of its own."""

    def token(context, ids, at):
        with torch.no_grad():
            logits_V = logits_of(torch.tensor([[*context, *ids[:at]]])).double()
        return logits_V.log_softmax(-1)[ids[at]].item(), logits_V.argmax().item() == ids[at]

    def whole(context, ids):
        found = [token(context, ids, at) for at in range(len(ids))]
        return Score(tuple(log for log, _ in found), all(greedy for _, greedy in found))

    return [[whole(request.context, ids) for ids in request.continuations] for request in requests]


def plain(backbone):
    return lambda ids_1T: backbone.model(input_ids=ids_1T).logits[0, -1]


def assert_alike(found, expected):
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert one.tokens == pytest.approx(other.tokens, abs=1e-5)
        assert one.greedy == other.greedy and one.total == pytest.approx(sum(other.tokens), abs=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_equal_to_one_token_at_a_time(family):
    backbone = made(family)
    expected = one_by_one(plain(backbone), REQUESTS)
    assert_alike(score(backbone, REQUESTS), expected)
    assert_alike(score(backbone, REQUESTS, together=1), expected)


@pytest.mark.parametrize(
    "deltas", [(LoRA(),), (Prefix(length=3),), (SoftPrompt(length=3),), (Prefix(length=2), SoftPrompt(length=2))], ids=str
)
def test_with_deltas_in_the_stack(deltas):
    backbone = made("llama")
    bare = score(backbone, REQUESTS)
    installed = [delta.install(backbone, generator=torch.Generator().manual_seed(1)) for delta in deltas]
    with torch.no_grad():
        for number, weight in enumerate(weight for one in installed for weight in one.weights.values()):
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))

    def logits_of(ids_1T):
        return backbone.lm_logits(backbone.forward(ids_1T, torch.ones_like(ids_1T)).hidden_BTD[0, -1], None)

    found = score(backbone, REQUESTS)
    assert_alike(found, one_by_one(logits_of, REQUESTS))
    assert abs(found[0][0].total - bare[0][0].total) > 1e-3
    for one in reversed(installed):
        one.remove()
    assert score(backbone, REQUESTS) == bare  # the same bytes, run for run


@functools.cache
def tiny_gpt2():
    return made("gpt2")


ids = st.lists(st.integers(10, 12), max_size=4).map(tuple)
requests = st.builds(Request, ids.map(lambda some: (10, *some)), st.lists(ids, max_size=3).map(tuple))


@settings(max_examples=15)
@given(st.lists(requests, max_size=4), st.integers(1, 30), st.integers(1, 300))
def test_any_requests_in_any_portions(asked, together, logits):
    backbone = tiny_gpt2()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "AT_ONCE", logits)
        patch.setattr(scoring.shared, "WORTH", 1)
        patch.setattr(scoring.shared, "LEAST", 1)
        assert_alike(score(backbone, asked, together=together), one_by_one(plain(backbone), asked))


class Counting(Backbone):
    """Counts the tokens that go through the stack."""

    tokens = 0

    def forward(self, ids_BT, *arguments, **options):
        self.tokens += ids_BT.numel()
        return super().forward(ids_BT, *arguments, **options)


def test_what_is_shared_goes_through_the_stack_once():
    model, tokenizer = tiny.model("llama")
    backbone = Counting(model, tokenizer, name="llama")
    asked = [Request((*EXAMPLES, row, row), ((5, 6), (5, 7))) for row in range(20)]
    score(backbone, asked, together=16)
    assert backbone.tokens == len(EXAMPLES) + 20 * 3  # and one of the continuations' common token each


def test_refused():
    with pytest.raises(BackboneError, match="autoregressive"):
        score(made("bert"), REQUESTS)
    backbone = made("llama")
    with pytest.raises(BackboneError, match="request 1"):
        score(backbone, [Request((5,), ()), Request((), ((5,),))])
    most = backbone.room
    assert len(score(backbone, [Request((5,) * most, ((5,),))])[0][0].tokens) == 1
    with pytest.raises(BackboneError, match=str(most + 1)):
        score(backbone, [Request((5,) * most, ((5, 6),))])
