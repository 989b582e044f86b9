"""Next tokens, gaps and texts that go on, against the logits of transformers' own model."""

import pytest
import torch

from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.completion import Writing, complete, fill, next_tokens, nucleus, write
from fewtune.errors import BackboneError, DataError, SpecError
from fewtune.prompt.tokens import plain_ids


@pytest.fixture(scope="module")
def llama():
    return Backbone(*tiny.model("llama"), name="llama")


@pytest.fixture(scope="module")
def bert():
    return Backbone(*tiny.model("bert"), name="bert")


def best(logits_V, tokenizer, count):
    shares = logits_V[: len(tokenizer)].softmax(-1).topk(count)
    return [
        (tokenizer.decode([token]), pytest.approx(share, abs=1e-4))
        for token, share in zip(*map(list, (shares.indices.tolist(), shares.values.tolist())), strict=True)
    ]


@torch.no_grad()
def test_the_next_tokens(llama):
    ids = plain_ids(llama.tokenizer, "great fun")
    expected = best(llama.model(input_ids=torch.tensor([ids])).logits[0, -1], llama.tokenizer, 3)
    assert [(one.text, one.probability) for one in next_tokens(llama, "great fun", top=3)] == expected
    everything = next_tokens(llama, "great fun", top=10_000)
    assert len(everything) == len(llama.tokenizer) and sum(one.probability for one in everything) == pytest.approx(1, abs=1e-4)
    assert next_tokens(llama, "", top=1), "behind what texts start with"


@torch.no_grad()
def test_gaps_are_filled_while_the_others_stay_open(bert):
    ids = bert.tokenizer("the [MASK] of [MASK]")["input_ids"]
    logits_TV = bert.model(input_ids=torch.tensor([ids])).logits[0]
    places = [place for place, token in enumerate(ids) if token == bert.tokenizer.mask_token_id]
    found = fill(bert, "the [MASK] of [MASK]", top=2)
    assert [[(one.text, one.probability) for one in gap] for gap in found] == [
        best(logits_TV[place], bert.tokenizer, 2) for place in places
    ]


def test_a_gap_is_written_alike_for_every_masked_plm():
    roberta = Backbone(*tiny.model("roberta"), name="roberta")
    assert fill(roberta, "the [MASK] of sports") == fill(roberta, "the <mask> of sports")


def test_a_text_goes_on_with_the_likeliest_tokens(llama):
    found = write(llama, "great fun", Writing(tokens=5))
    ids = plain_ids(llama.tokenizer, "great fun")
    with torch.no_grad():
        for _ in range(found.tokens):
            ids.append(int(llama.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert found.text == llama.tokenizer.decode(ids, skip_special_tokens=True) and found.text.startswith("great fun")
    assert 1 <= found.tokens <= 5 and found.log_probability < 0


def test_drawn_texts_are_a_function_of_the_seed(llama):
    texts = [write(llama, "great", Writing(8, True, seed=seed)).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1] and len(set(texts)) > 1
    greedy = write(llama, "great", Writing(8)).text
    assert write(llama, "great", Writing(8, True, top_p=1e-6)).text == greedy == write(llama, "great", Writing(8, True, 1e-3)).text


def test_a_nucleus_is_the_fewest_tokens_that_hold_the_share():
    shares_BV = torch.tensor([[0.1, 0.6, 0.3], [0.34, 0.33, 0.33]])
    assert nucleus(shares_BV, 0.6).tolist() == [[0.0, pytest.approx(0.6), 0.0], [pytest.approx(0.34), pytest.approx(0.33), 0.0]]
    assert torch.equal(nucleus(shares_BV, 1.0), shares_BV)


def test_draws_follow_the_probabilities(llama):
    logs_BV = torch.tensor([[0.7, 0.2, 0.1]]).log().expand(4000, 3)
    drawn = Writing(draw=True).picker(torch.device("cpu"))(logs_BV).bincount(minlength=3) / 4000
    torch.testing.assert_close(drawn, torch.tensor([0.7, 0.2, 0.1]), atol=0.03, rtol=0)


@pytest.mark.parametrize(("plm", "call", "error", "said"), [
    ("bert", lambda plm: next_tokens(plm, "a"), BackboneError, "Put \\[MASK\\] where"),
    ("llama", lambda plm: fill(plm, "a [MASK]"), BackboneError, "which fills gaps"),
    ("bert", lambda plm: fill(plm, "a"), DataError, "expected a text with"),
    ("bert", lambda plm: fill(plm, "[MASK] " * 600), DataError, "at most 512 tokens"),
    ("llama", lambda plm: next_tokens(plm, "good " * 600), DataError, "at most 511 tokens"),
    ("bert", lambda plm: complete(plm, "a [MASK]", how=Writing(3)), BackboneError, "a masked model"),
])  # fmt: skip
def test_what_cannot_be_completed_is_refused(request, plm, call, error, said):
    with pytest.raises(error, match=said):
        call(request.getfixturevalue(plm))


@pytest.mark.parametrize("field", [{"tokens": 0}, {"temperature": 0.0}, {"top_p": 1.5}])
def test_ranges(field):
    with pytest.raises(SpecError, match=f"--{next(iter(field)).replace('_', '-')}"):
        Writing(**field)
